"""The plugin in a project of its own: loaded without a word, in every mode, and cheap where it is not used."""

import subprocess
import sys

import pytest

pytest_plugins = ["pytester"]

CONFTEST = """
import pytest

ran = []

async def greet(name):
    ran.append(name)
    return f"Hello {name}"

@pytest.fixture
def bg_settings(bg_settings):
    return bg_settings | {"stream": {"retry_ms": 1234}}

@pytest.fixture
def bg(bg):  # an override may use the original
    bg.task(name="greet")(greet)
    return bg
"""

SUITE = """
import aiohttp
import pytest

async def test_jobs(bg, bg_clock):
    job = await bg.submit("greet", {"name": "Ada"}, delay_s=60)
    bg_clock.advance(minutes=1)
    await bg.drain()
    assert await job.result() == "Hello Ada"

async def test_the_live_server(bg, bg_live):
    async with aiohttp.ClientSession(bg_live.url) as http:
        answer = await http.post("/bg/jobs", json={"task": "greet", "args": {"name": "Bob"}})
        assert answer.status == 202
        job_id = (await answer.json())["jobs"][0]["id"]
        await bg.drain()
        assert (await (await http.get(f"/bg/jobs/{job_id}")).json())["result"] == "Hello Bob"
        async with http.get("/bg/events") as events:  # still open when the server stops
            assert b"retry: 1234" in await events.content.readany()

async def test_peers(bg_smtp, bg_web):
    assert bg_smtp.port and bg_web.url.startswith("http://127.0.0.1:")
"""

STRICT = "[pytest]\nasyncio_mode = strict\nasyncio_default_fixture_loop_scope = function\n"
AUTO = STRICT.replace("strict", "auto")
CASES = {
    "pytest-asyncio, auto": (AUTO, ""),
    "pytest-asyncio, strict": (STRICT, "import pytest\npytestmark = pytest.mark.asyncio\n"),
}


@pytest.mark.parametrize("mode", CASES)
def test_a_suite_uses_the_fixtures(pytester: pytest.Pytester, mode: str) -> None:
    """Nothing is imported or configured; warnings are errors."""
    ini, head = CASES[mode]
    pytester.makeini(ini)
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_app=head + SUITE)

    result = pytester.runpytest_subprocess("-W", "error")

    result.assert_outcomes(passed=3)


def test_anyios_plugin_runs_the_fixtures_where_pytest_asyncio_is_missing(pytester: pytest.Pytester) -> None:
    """A project that tests with anyio needs nothing else."""
    pytester.makeini("[pytest]\n")
    pytester.makepyfile(no_asyncio="import sys\nsys.modules['pytest_asyncio'] = None\n")
    pytester.makeconftest(CONFTEST + "\n@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n")
    pytester.makepyfile(test_app="import pytest\npytestmark = pytest.mark.anyio\n" + SUITE)

    result = pytester.runpytest_subprocess("-p", "no_asyncio", "-p", "no:asyncio", "-W", "error")

    result.assert_outcomes(passed=3)


def test_a_missing_mail_server_is_told_with_the_remedy(pytester: pytest.Pytester) -> None:
    """Without aiosmtpd only ``bg_smtp`` fails, and says what to install."""
    pytester.makeini(AUTO)
    pytester.makeconftest("import sys\nsys.modules['aiosmtpd'] = None\n" + CONFTEST)
    pytester.makepyfile(test_app=SUITE)

    result = pytester.runpytest_subprocess()

    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines(["*pip install 'fastapi-asyncbg?testing?'*"])


def test_the_plugin_can_be_left_out(pytester: pytest.Pytester) -> None:
    """``-p no:asyncbg`` takes all fixtures away."""
    pytester.makepyfile("def test_nothing(bg): ...")

    result = pytester.runpytest_subprocess("-p", "no:asyncbg")

    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'bg' not found*"])


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("asyncbg", {"pytest", "aiosmtpd", "asyncbg.testing"}),
        ("asyncbg.testing", {"pytest", "aiosmtpd"}),
        ("asyncbg.cli.demo", {"pytest", "aiosmtpd", "asyncbg.testing"}),
    ],
)
def test_what_is_not_used_is_not_imported(module: str, unwanted: set[str]) -> None:
    """An application loads nothing of its tests."""
    script = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)

    assert unwanted & set(loaded.stdout.split()) == set()
