"""README.md keeps its word: its snippets run as they stand, its commands are well-formed, its links lead somewhere."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

README = Path(__file__).parents[2] / "README.md"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"!?\]\(([^)\s]+)\)")


def blocks(language: str) -> list[str]:
    """The blocks of a language, in order."""
    return [code for kind, code in _FENCE.findall(README.read_text("utf-8")) if kind == language]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty directory to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(code: str, name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Save a snippet as a module and import it, as a reader would."""
    path = place / f"{name}.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def snippet_with(words: str) -> str:
    """The one Python snippet that has these words in it."""
    (found,) = [code for code in blocks("python") if words in code]
    return found


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_every_snippet_is_a_module(number: int, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each Python snippet can be saved and imported by itself."""
    load(blocks("python")[number], f"readme_{number}", place, monkeypatch)


def test_the_one_line_swap_works(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first snippet's application accepts a signup; its job is there, on disk, and succeeds.

    The database is named, as a test has to: without that, a process that runs tests gets a temporary one.
    """
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", "sqlite:///asyncbg.db")
    module = load(snippet_with('@app.post("/signup")'), "readme_swap", place, monkeypatch)

    with TestClient(module.app) as client:
        answer = client.post("/signup", params={"email": "ada.canary7f3a@canary7f3a.example"})
        told = answer.json()
        job = client.get(f"/bg/jobs/{told['job']}", params={"wait": 20}).json()
        stream = client.get(told["events"]).text

    assert answer.status_code == 200
    assert (job["task"], job["state"], job["durable"]) == ("readme_swap:send_welcome", "succeeded", True)
    assert [line for line in stream.splitlines() if line.startswith("event: ")][-1] == "event: job.succeeded"
    assert (place / "asyncbg.db").exists()


async def test_the_tasks_of_the_second_snippet_run(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task with a delay, a key and progress is followed to its result. The delay is cut: nobody waits for it here."""
    code = snippet_with("async def later()")
    assert code.count("delay=30") == 1
    module = load(code.replace("delay=30", "delay=0.05"), "readme_more", place, monkeypatch)

    async with module.bg:
        await module.later()

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "job.scheduled"
    assert lines[-2:] == ["job.succeeded", "100"]
    assert "job.progress" in lines


def test_the_commands_are_well_formed() -> None:
    """There are two, the demo and the tests, that a shell accepts; the gate runs both (.ci/run)."""
    demo, tests = blocks("sh")

    for command in (demo, tests):
        subprocess.run(["sh", "-n"], input=command, text=True, check=True, timeout=10)
    assert "asyncbg demo --once" in demo
    assert "pytest" in tests
    gate = (README.parent / ".ci" / "run").read_text("utf-8")
    assert "readme_command 1" in gate
    assert "readme_command 2" in gate


def test_every_link_leads_to_a_file() -> None:
    """A relative link names something that is there."""
    targets = {target.partition("#")[0] for target in _LINK.findall(README.read_text("utf-8")) if "://" not in target}

    assert targets
    assert [target for target in sorted(targets) if target and not (README.parent / target).exists()] == []
