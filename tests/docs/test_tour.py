"""The transcripts in docs, run as a newcomer runs them: a real service, a real shell, every command in order.

``python tests/docs/test_tour.py --write`` replaces the outputs in the documents by those of a run, where they differ.
"""

import argparse
import difflib
import functools
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import asyncbg.errors
from asyncbg.service.server import create_app
from asyncbg.settings import Settings, SmtpSettings

SOURCE = Path(asyncbg.errors.__file__).parents[1]
DOCS = Path(__file__).parents[2] / "docs"
DOCUMENTS = sorted(path.name for path in DOCS.glob("*.md") if "```console\n" in path.read_text("utf-8"))

_PORT = "8000"
_END = "\x1e"
_RUNNING = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")
_REQUEST = re.compile(r'"([A-Z]+) ([^ "]*) HTTP/1\.1" (\d{3})')
_SERVE = re.compile(r"```sh\n((?:[^`]*\n)?[^`\n]*\basyncbg serve\b[^`]*)```")

_BLANK_END = re.compile(r"[ \t\r]+$", re.MULTILINE)
_UUID = re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b")
_EVENT_ID = re.compile(r"(?<![\w-])[0-9a-f]{8}-\d+(?![\w-])")
_VARYING = [
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+Z"), "<time>"),
    (re.compile(r'"\d{4}-\d\d-\d\d"'), '"<day>"'),
    (re.compile(r"^date: .*$", re.MULTILINE), "date: <time>"),
    (re.compile(r"^content-length: \d+$", re.MULTILINE), "content-length: <n>"),
    (re.compile(r'"(delay_s|duration_s)":[\d.]+'), r'"\1":<n>'),
    (re.compile(r"\[(\w+):[0-9a-f]{8}\]"), r"[\1:<pseudonym>]"),
    (re.compile(r'"ticket":"[\w-]+"'), '"ticket":"<ticket>"'),
    (re.compile(r"ticket=[\w-]+"), "ticket=<ticket>"),
    (re.compile(r'"progress":\d+,'), '"progress":<n>,'),
    (re.compile(r"item \d+ of"), "item <n> of"),
]
_POSITION = re.compile(r"(?<=^id: )\S+(?=\n(?:\n|event: stream\.reset))", re.MULTILINE)
_SUBJECT = re.compile(r'"subject":"([^"]*)"')


@dataclass
class Step:
    """One command of a transcript and what it printed."""

    command: str
    output: str = ""


@dataclass
class Transcript:
    """A document, cut into what is read and what is run."""

    parts: list[str | Step]

    @classmethod
    def parse(cls, text: str) -> "Transcript":
        """Find the commands of all ``console`` blocks: ``$ `` begins one, ``> `` goes on with it."""
        parts: list[str | Step] = []
        in_console = False
        for line in text.splitlines(keepends=True):
            fence = line.startswith("```")
            if fence or not in_console:
                in_console = fence and line == "```console\n"
                parts.append(line)
            elif line.startswith("$ "):
                parts.append(Step(line[2:]))
            elif not isinstance(step := parts[-1], Step):
                raise ValueError(f"output before any command: {line!r}")
            elif line.startswith("> ") and not step.output:
                step.command += line[2:]
            else:
                step.output += line
        return cls(parts)

    @property
    def steps(self) -> list[Step]:
        """The commands in order."""
        return [part for part in self.parts if isinstance(part, Step)]

    def render(self) -> str:
        """The document again."""
        return "".join(part if isinstance(part, str) else _as_text(part) for part in self.parts)


def _as_text(step: Step) -> str:
    command = "> ".join(step.command.splitlines(keepends=True))
    output = step.output.strip("\n")
    return f"$ {command}" + (f"{output}\n" if output else "")


@dataclass
class Walk:
    """A document that was run: what it says, what happened, and what the service said meanwhile."""

    written: Transcript
    seen: Transcript
    log: str = ""
    exit_code: int | None = None


@dataclass
class Service:
    """A running ``asyncbg serve``."""

    process: subprocess.Popen[str]
    port: str = ""
    lines: list[str] = field(default_factory=list)
    up: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Read what it logs, until it ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            if found := _RUNNING.search(line):
                self.port = found[1]
                self.up.set()
        self.up.set()


def walk(document: Path, place: Path) -> Walk:
    """Run all commands of ``document`` in ``place``, beside the service if the document starts one."""
    text = document.read_text("utf-8")
    result = Walk(Transcript.parse(text), Transcript.parse(text))
    environment = _environment(place)
    serve = _SERVE.search(text)
    if serve is None:
        _run(result.seen.steps, _PORT, place, environment)
        return result
    with _service(serve[1], place, environment) as service:
        _run(result.seen.steps, service.port, place, environment)
    result.log, result.exit_code = "".join(service.lines), service.process.returncode
    return result


def _environment(place: Path) -> dict[str, str]:
    """What a newcomer's shell has: ``asyncbg`` and ``python3`` on the path, and nothing set."""
    tools = place / "bin"
    tools.mkdir()
    for name, command in {"asyncbg": f"{sys.executable} -m asyncbg.cli", "python3": sys.executable}.items():
        tool = tools / name
        tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        tool.chmod(0o755)
    (place / ".curlrc").write_text("max-time = 60\n")
    path = f"{tools}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return {"PATH": path, "HOME": str(place), "LC_ALL": "C.UTF-8", "PYTHONPATH": str(SOURCE), "COLUMNS": "120"}


@contextmanager
def _service(command: str, place: Path, environment: dict[str, str]) -> Iterator[Service]:
    """Start the service as the document says, but on a free port; stop it as Ctrl-C does."""
    words = shlex.split(command.replace("\\\n", " "))
    settings = dict(word.split("=", 1) for word in words if "=" in word)
    assert [word for word in words if "=" not in word] == ["asyncbg", "serve"], command
    process = subprocess.Popen(
        [sys.executable, "-m", "asyncbg.cli", "serve"],
        cwd=place,
        env=environment | settings | {"ASYNCBG_SERVER__PORT": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    service = Service(process)
    with process:
        listener = threading.Thread(target=service.listen)
        listener.start()
        try:
            assert service.up.wait(30), "the service did not start in time"
            assert service.port, "".join(service.lines)
            yield service
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
            listener.join()


def _run(steps: Sequence[Step], port: str, place: Path, environment: dict[str, str]) -> None:
    """Run the commands in one shell, so that variables live on, and note what each prints."""
    shell = subprocess.Popen(
        ["bash", "--noprofile", "--norc"],
        cwd=place,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with shell:
        assert shell.stdin is not None
        assert shell.stdout is not None
        for step in steps:
            command = step.command.replace(f":{_PORT}", f":{port}")
            shell.stdin.write(f"{{ {command} }} </dev/null 2>&1; printf '{_END}\\n'\n")
            shell.stdin.flush()
            step.output = ""
            while not (line := shell.stdout.readline()).endswith(f"{_END}\n"):
                assert line, f"the shell ended in: {command}"
                step.output += line
            step.output += line.removesuffix(f"{_END}\n")
            step.output = _BLANK_END.sub("", step.output).replace(f":{port}", f":{_PORT}").strip("\n")
            step.output += "\n" if step.output else ""
        shell.stdin.close()


def normal(transcript: Transcript) -> str:
    """The commands and outputs without what differs from run to run; ids are numbered as they first appear."""
    text = "".join(f"$ {step.command}{_settled(step.output)}" for step in transcript.steps)
    text = _numbered(_EVENT_ID, "event", _numbered(_UUID, "job", text))
    for pattern, replacement in _VARYING:
        text = pattern.sub(replacement, text)
    return text


def _numbered(pattern: re.Pattern[str], word: str, text: str) -> str:
    known: dict[str, str] = {}
    return pattern.sub(lambda found: known.setdefault(found[0], f"<{word} {len(known) + 1}>"), text)


def _settled(output: str) -> str:
    """Of a stream: the stored events in order, then each job's last progress.

    Chance are how many there are, and how far the whole log is when a stream opens.
    """
    output = _POSITION.sub("<position>", f"{output}\n").rstrip("\n")
    if "event: job.progress\n" not in output:
        return f"{output}\n" if output else ""
    frames = [frame for frame in output.split("\n\n") if frame]
    stored = [frame for frame in frames if not frame.startswith("event: job.progress")]
    last = {found[1]: frame for frame in frames if frame not in stored and (found := _SUBJECT.search(frame))}
    return "\n\n".join([*stored, *last.values()]) + "\n"


def difference(result: Walk) -> str:
    """How what happened differs from what is written; nothing where it does not."""
    written, seen = normal(result.written).splitlines(), normal(result.seen).splitlines()
    return "\n".join(difflib.unified_diff(written, seen, "written", "seen", lineterm="", n=2))


def why_not() -> str:
    """What is missing here to run the transcripts, or in their way; nothing if all is well."""
    for tool in ("bash", "curl"):
        if shutil.which(tool) is None:
            return f"the transcripts are run with {tool}, which is not installed here"
    version = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout.split()[1]
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < (7, 84):
        return f"the transcripts need curl 7.84 or newer; this is {version}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", SmtpSettings().port)) == 0:
            return "the tour shows what happens without a mail server; there is one on this machine"
    return ""


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Walk]:
    """Runs a document, once for all tests."""
    if reason := why_not():
        pytest.skip(reason)
    return functools.cache(lambda name: walk(DOCS / name, tmp_path_factory.mktemp("walk")))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_is_written_is_what_happens(walked: Callable[[str], Walk], name: str) -> None:
    """Every command prints what the document says, but for ids, times and numbers that are chance."""
    result = walked(name)
    found = difference(result)

    assert result.written.steps
    assert not found, f"{found}\n\nIf that is as it should be: python tests/docs/test_tour.py --write"


def test_the_service_stays_well(walked: Callable[[str], Walk]) -> None:
    """Nothing on the tour makes the service log an error, but for the mail that fails, and it stops cleanly."""
    result = walked("tour.md")

    assert result.exit_code == 0, result.log
    assert "ERROR" not in result.log
    records = re.split(r"\n(?=\S)", result.log)
    told = [record for record in records if "Traceback" in record]
    assert all(re.search(r"job \S+ \(send_email\) failed and is retried", record) for record in told), told


def test_the_tour_goes_by_every_route(walked: Callable[[str], Walk]) -> None:
    """Each operation of the service, and the two that are not in its OpenAPI document, is answered with a success."""
    app = create_app(Settings(database_url="sqlite:///:memory:"))
    operations = {(method.upper(), path) for path, item in app.openapi()["paths"].items() for method in item}
    answered = [(method, path) for method, path, status in _REQUEST.findall(walked("tour.md").log) if status[0] == "2"]
    paths = {(method, path.partition("?")[0]) for method, path in answered}

    missed = [
        f"{method} {path}"
        for method, path in sorted(operations | {("GET", "/"), ("GET", "/openapi.json")})
        if not any(method == m and re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), p) for m, p in paths)
    ]

    assert not missed


def main() -> None:
    """Run the documents; with --write bring their outputs up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    for name in DOCUMENTS:
        with tempfile.TemporaryDirectory() as place:
            result = walk(DOCS / name, Path(place))
        found = difference(result)
        sys.stdout.write(f"{name}: differs\n{found}\n" if found else f"{name}: as written\n")
        if found and write:
            (DOCS / name).write_text(result.seen.render(), "utf-8")


if __name__ == "__main__":
    main()
