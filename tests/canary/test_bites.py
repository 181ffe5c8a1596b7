"""The canary finds what it is for: a datum in every kind of output, of this process and of a child, fails a run."""

import contextlib
import gzip
import io
import logging
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from opentelemetry.sdk.trace import TracerProvider

from .allowed import reason_for
from .people import NUMBERS, Canary
from .recorder import DIRECTORY, counts_in, leaks_in
from .search import Search, leaks

pytest_plugins = ["pytester"]

EMAIL, PHONE = Canary.email, Canary.phone
ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[tuple[str, str]]]:
    """Kind and place of what leaks here: it is told to this test and not to the run."""
    monkeypatch.setenv(DIRECTORY, str(tmp_path))
    return lambda: [(found.kind, found.where) for found in leaks_in(tmp_path)]


Caught = Callable[[], list[tuple[str, str]]]


def test_what_is_written_to_standard_output_is_seen(caught: Caught) -> None:
    """Also where it is put into a string."""
    sys.stderr.write(f"to {EMAIL[:9]}")
    sys.stderr.write(f"{EMAIL[9:]}\n")
    with contextlib.redirect_stdout(io.StringIO()):
        sys.stdout.write(PHONE)

    assert caught() == [("output", "captured"), ("output", "redirected")]


def test_a_log_record_is_seen_as_its_handler_writes_it(caught: Caught, tmp_path: Path) -> None:
    """After the handler's filters: what one has taken out is no leak."""

    def forget(record: logging.LogRecord) -> bool:
        record.args = ("nobody",)
        return True

    handler = logging.FileHandler(tmp_path / "x.log")
    record = logging.LogRecord("shop", logging.INFO, "", 0, "to %s", (EMAIL,), None)

    handler.handle(record)
    handler.addFilter(forget)
    handler.handle(record)
    handler.close()

    assert caught() == [("log", "shop by logging.FileHandler")]


async def halves(text: str) -> AsyncIterator[bytes]:
    """A frame that is cut in the middle of the datum."""
    at = text.index(EMAIL) + 8
    for half in (text[:at], text[at:]):
        yield half.encode()


@pytest.mark.parametrize("path", ["body", "stream", "gzip", "header"])
async def test_an_answer_is_seen(caught: Caught, path: str) -> None:
    """A body, a frame of a stream that is cut in two, a compressed body, a header."""
    app, frame = FastAPI(), f'data: {{"to": "{EMAIL}"}}\n\n'
    answers = {
        "body": Response(frame),
        "stream": StreamingResponse(halves(frame), media_type="text/event-stream"),
        "gzip": Response(gzip.compress(frame.encode()), headers={"Content-Encoding": "gzip"}),
        "header": Response(headers={"X-To": EMAIL}),
    }
    app.add_api_route("/{path}", lambda path: answers[path])

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://shop.test") as client:
        await client.get(f"/{path}")

    assert caught() == [("header" if path == "header" else "body", f"GET /{path}")]


def test_a_span_is_seen(caught: Caught) -> None:
    """When it ends, with its attributes."""
    with TracerProvider().get_tracer("shop").start_as_current_span("order", attributes={"to": EMAIL}):
        pass

    assert caught() == [("span", "order")]


CHILD = f"""
import logging, subprocess, sys
print("to", "{EMAIL}", flush=True)
sys.stdout.buffer.write(b"{EMAIL}")
sys.stdout.flush()
logging.warning("call %s", "{PHONE}")
subprocess.run([sys.executable, "-c", "print('{NUMBERS[2]}')"], check=True)
"""


@pytest.mark.parametrize("environment", [None, {}, {"PYTHONPATH": "x", "PYTHONUNBUFFERED": "1"}])
def test_a_child_is_watched_whatever_its_environment(caught: Caught, environment: dict[str, str] | None) -> None:
    """And its own children; the leak names the test that started it."""
    subprocess.run([sys.executable, "-c", CHILD], env=environment, capture_output=True, check=True)

    kinds = [kind for kind, _ in caught()]
    assert sorted(kinds) == ["log", "output", "output", "output", "output"]


def test_a_child_works_as_if_it_were_not_watched() -> None:
    """What it writes is the same, and it can import no more than without the tap."""
    program = "import sys; print(sys.stdout.name, sys.stdout.line_buffering, sys.stdout.fileno()); import tests"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True, check=False)

    assert done.stdout == "<stdout> False 1\n"
    assert "No module named 'tests'" in done.stderr


RUN = """
from tests.canary import plugin

def pytest_configure(config):
    plugin.watch(config)
"""


@pytest.mark.usefixtures("caught")  # pytester repeats what the run tells
def test_a_leak_makes_a_run_fail(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of its tests pass, and yet: with the kind, the place, the test and the text around."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    pytester.makeconftest(RUN)
    pytester.makepyfile(f"def test_it(): print('to {EMAIL}')")

    result = pytester.runpytest_subprocess("-p", "no:randomly")

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(
        [
            "*personal data came out*",
            "output: captured",
            "*in *test_it (call)",
            f"*to {EMAIL}*",
            "1 leaks in *",
            "*1 passed*",
        ]
    )


def test_a_number_is_found_however_it_is_written() -> None:
    """Separators, spaces as URLs write them, a prefix dialled otherwise; and cut anywhere."""
    for text in (
        b"0049 (30) 90182-7310",
        b"+49%2030%2090182%207310",
        b"4539.1488.0343.6467",
        b"de89370400440532013000",
    ):
        assert list(leaks(b"x " + text + b" y")), text
        for at in range(len(text)):
            search = Search()
            assert search.feed(b"x " + text[:at]) or search.feed(text[at:] + b" y"), (text, at)
    assert not list(leaks(b"[email:0a1b2c3d] 4539 of 1488 in 0343 ms, 3090182731"))


def test_an_exception_is_for_one_place() -> None:
    """The person's own records, and nothing beside them."""
    assert reason_for("body", "GET /user/7/activity", EMAIL)
    for where in ("GET /user/7/activity/x", "POST /user/7/action", "GET /users/7/activity", "GET /jobs"):
        assert reason_for("body", where, EMAIL) is None
    assert reason_for("header", "GET /user/7/activity", EMAIL) is None
    assert reason_for("body", "GET /openapi.json", EMAIL) is None


def test_what_is_watched_is_counted(tmp_path: Path) -> None:
    """Records and bytes by kind, of processes that were killed, too."""
    program = "import os, sys; print('four'); sys.stdout.flush(); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program], env={DIRECTORY: str(tmp_path)}, check=False, capture_output=True)

    assert [counts["output"] for counts in counts_in(tmp_path)] == [(1, 5)]
