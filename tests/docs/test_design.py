"""docs/design.md and CONTRIBUTING.md are true: the rooms, the path of one job, and the places a recipe names."""

import re
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx
import pytest

import asyncbg
from asyncbg.service.server import create_app
from asyncbg.settings import load_settings
from asyncbg.testing import SmtpSink

ROOT = Path(__file__).parents[2]
PACKAGE = Path(asyncbg.__file__).parent
DESIGN = (ROOT / "docs" / "design.md").read_text("utf-8")
_MOST_FILES = 95
"""How many files of ours one job of ``POST /send-email/`` may pass, from the request to the end of its stream."""


def _contract() -> list[list[str]]:
    """The layers of import-linter's contract over all rooms, top to bottom."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (contract,) = [one for one in settings["tool"]["importlinter"]["contracts"] if one.get("containers") == ["asyncbg"]]
    return [re.split(r"\s*[|:]\s*", layer) for layer in contract["layers"]]


def _path_of_a_job() -> list[str]:
    listed = DESIGN.partition("<!-- path of a job -->")[2].partition("\n\n")[0]
    return re.findall(r"^\d+\. `([^`]+)`", listed, re.MULTILINE)


def test_the_table_of_rooms_is_the_contract() -> None:
    """The rooms stand in docs/design.md as import-linter holds them: the same words in the same order."""
    rows = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", DESIGN.partition("<!-- rooms -->")[2], re.MULTILINE)[2:]

    assert [re.findall(r"`(\w+)`", row) for row in rows] == _contract()


def test_every_room_is_in_the_contract() -> None:
    """No module of the top floor is left out, and there are at most twenty."""
    modules = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    entries = modules | {path.parent.name for path in PACKAGE.glob("*/__init__.py")}

    assert entries == {room for layer in _contract() for room in layer}
    assert len(entries) <= 20


@contextmanager
def _files_called() -> Iterator[set[str]]:
    """The files of the package whose functions are called meanwhile, in any thread that begins meanwhile."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, argument: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        yield files
    finally:
        sys.setprofile(None)
        threading.setprofile(None)


@pytest.mark.skipif(sys.gettrace() is not None, reason="a debugger or coverage has the trace function")
async def test_a_job_passes_the_files_that_the_design_names(tmp_path: Path, bg_smtp: SmtpSink) -> None:
    """One mail, from the request to the end of its stream, calls into every file of the path, and into few others."""
    settings = load_settings(
        database_url=f"sqlite:///{tmp_path}/test.db",
        data_dir=tmp_path / "data",
        smtp={"host": bg_smtp.host, "port": bg_smtp.port, "security": "none", "sender": "service@example.com"},
    )
    app = create_app(settings)
    mail = {"to_email": "ada.canary7f3a@canary7f3a.example", "subject": "Hello", "body": "Hi"}
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with _files_called() as called:
            accepted = (await http.post("/send-email/", json=mail)).json()
            (await http.get(f"/jobs/{accepted['jobs'][0]['id']}/events")).raise_for_status()

    ours = {str(Path(file).relative_to(PACKAGE)) for file in called if Path(file).is_relative_to(PACKAGE)}
    assert set(_path_of_a_job()) <= ours
    assert len(ours) <= _MOST_FILES, len(ours)


def test_contributing_names_what_exists() -> None:
    """Every file that CONTRIBUTING.md names is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    named = set(re.findall(r"`(?:\.venv/bin/python )?((?:[\w.]+/)*[\w.]+\.(?:py|md|toml|sql))\b", text))

    missing = {
        name
        for name in named
        if not any((base / name).exists() for base in (ROOT, PACKAGE, ROOT / "tests" / "backends"))
    }

    assert {name for name in missing if "000N" not in name} == set()
