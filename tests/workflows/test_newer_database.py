"""A database that a newer asyncbg wrote ends the start with one error, whichever part of it is newer."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from asyncbg.cli import run
from asyncbg.errors import DatabaseError
from asyncbg.service.server import create_app
from asyncbg.settings import Settings
from tests.workflows.conftest import settings_below

PARTS = ["engine", "activity", "audit", "imports", "keys", "sessions", "tickets"]


def newer(tmp_path: Path, part: str) -> Settings:
    """Settings on a database in which one part has tables of the future."""
    settings = settings_below(tmp_path)
    with closing(sqlite3.connect(tmp_path / "test.db")) as connection, connection:
        connection.execute("CREATE TABLE schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema_version VALUES (?, 99)", (part,))
    return settings


@pytest.mark.parametrize("part", PARTS)
async def test_the_service_says_which_part_and_what_to_do(tmp_path: Path, part: str) -> None:
    """One error of our own, no group of errors, no other error beside it."""
    app = create_app(newer(tmp_path, part))

    with pytest.raises(DatabaseError, match=rf"newer asyncbg \(version 99 of its {part} tables.*upgrade asyncbg"):
        async with app.router.lifespan_context(app):
            pass


@pytest.mark.parametrize(
    ("part", "command"),
    [("engine", "jobs list"), ("engine", "purge"), ("engine", "events tail --no-follow"), ("keys", "keys list"),
     ("audit", "audit"), ("keys", "audit"), *((part, "worker") for part in PARTS)],
)  # fmt: skip
def test_a_command_ends_with_one_line(
    tmp_path: Path, part: str, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the remedy on the last line, and no traceback."""
    settings = newer(tmp_path, part)
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", settings.database_url)
    monkeypatch.setenv("ASYNCBG_DATA_DIR", str(settings.data_dir))

    code = run(command.split())

    told = capsys.readouterr().err.splitlines()
    assert code == 1
    assert "newer asyncbg" in told[-1]
    assert not any("Traceback" in line for line in told)
