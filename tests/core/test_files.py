"""What cannot be looked at is an error, for whoever reads settings, opens a database or proves an erasure."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from asyncbg.core.files import files_below, is_directory, is_file, is_there, names_in
from asyncbg.errors import DatabaseError, OutageError, SettingsError
from asyncbg.ops.erasure.email_matcher import EmailMatcher
from asyncbg.ops.erasure.files import erase_files
from asyncbg.ops.erasure.verification import verify_erased
from asyncbg.ops.open_store import existing_file, open_store
from asyncbg.settings import load_settings
from asyncbg.store.sqlite.database import Database

EXHAUSTED = """
import os, resource, sys
from pathlib import Path
from asyncbg.ops.erasure.email_matcher import EmailMatcher
from asyncbg.ops.erasure.files import erase_files
from asyncbg.ops.erasure.verification import verify_erased
from asyncbg.core.files import files_below

directory, address = Path(sys.argv[1]), EmailMatcher("ada.canary7f3a@canary7f3a.example")
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
said = []
for look in (
    lambda: list(files_below(directory)),
    lambda: verify_erased(directory / "jobs.db", directory, address),
    lambda: erase_files(directory, address),
):
    try:
        said.append(repr(look()))
    except OSError as error:
        said.append(error.strerror)
while taken:
    os.close(taken.pop())
print(said)
"""


@pytest.fixture
def unclear(tmp_path: Path) -> Path:
    """A path that says neither that something is there nor that nothing is: a link that leads to itself."""
    path = tmp_path / "loop"
    path.symlink_to(path)
    return path


@pytest.mark.parametrize("ask", [is_there, is_file, is_directory, names_in])
def test_what_cannot_be_looked_at_is_not_absent(unclear: Path, ask: Callable[[Path], object]) -> None:
    """The same question of pathlib is answered with no."""
    assert not unclear.exists()

    with pytest.raises(OSError, match="symbolic links"):
        ask(unclear)


def test_what_is_absent_is_no_error(tmp_path: Path) -> None:
    """Nor is a path below a file, which cannot be there."""
    file = tmp_path / "file"
    file.write_text("")

    for path in (tmp_path / "none", file / "below"):
        assert (is_there(path), is_file(path), is_directory(path), names_in(path)) == (False, False, False, [])
        assert list(files_below(path)) == []


def test_files_are_found_at_every_depth_and_links_to_directories_are_not_followed(tmp_path: Path) -> None:
    """In order; a link to a file is one."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in ("a/b/deep", "a/one", "zero"):
        (tmp_path / name).write_text("")
    (tmp_path / "linked").symlink_to(tmp_path / "a")
    (tmp_path / "y").symlink_to(tmp_path / "zero")

    assert [path.relative_to(tmp_path).as_posix() for path in files_below(tmp_path)] == [
        "a/b/deep",
        "a/one",
        "y",
        "zero",
    ]


def test_without_a_free_descriptor_nothing_is_taken_for_searched(tmp_path: Path) -> None:
    """Neither the files, nor the proof that an address is gone, nor its erasure."""
    (tmp_path / "jobs.db").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", EXHAUSTED, str(tmp_path)], capture_output=True, text=True, timeout=60, check=True
    )

    assert done.stdout.strip() == str(["Too many open files"] * 3)


def test_a_file_of_settings_that_cannot_be_looked_at_stops_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it says might be that strangers must be kept out."""
    monkeypatch.chdir(tmp_path)
    Path(".env").symlink_to(".env")

    with pytest.raises(SettingsError, match=r"\.env cannot be checked"):
        load_settings()


async def test_a_database_that_cannot_be_looked_at_is_not_shown_as_empty(unclear: Path) -> None:
    """A command says so instead of showing no jobs."""
    settings = load_settings(database_url=f"sqlite:///{unclear}")

    with pytest.raises(DatabaseError, match="cannot access"):
        existing_file(settings)
    with pytest.raises(DatabaseError, match="cannot access"):
        async with open_store(settings):
            pass


async def test_a_database_that_cannot_be_looked_at_any_more_was_not_moved(tmp_path: Path) -> None:
    """The error names what stops us, and the work goes on when it is over."""
    directory, link = tmp_path / "real", tmp_path / "link"
    directory.mkdir()
    link.symlink_to(directory)
    database = Database(str(link / "jobs.db"))
    await database.open()
    try:
        link.unlink()
        link.symlink_to(link)
        with pytest.raises(OutageError, match="cannot be checked"):
            await database.write(lambda connection: connection.execute("CREATE TABLE one (n)"))
        link.unlink()
        link.symlink_to(directory)
        await database.write(lambda connection: connection.execute("CREATE TABLE two (n)"))
    finally:
        await database.close()


def test_an_erasure_looks_into_every_file(tmp_path: Path) -> None:
    """One below the data directory too."""
    address = EmailMatcher("ada.canary7f3a@canary7f3a.example")
    (tmp_path / "data" / "work" / "batch").mkdir(parents=True)
    (tmp_path / "data" / "work" / "batch" / "step.txt").write_text("for ada.canary7f3a@canary7f3a.example\n")
    database = tmp_path / "jobs.db"
    database.write_bytes(b"")

    assert len(verify_erased(database, tmp_path / "data", address).found) == 1
    assert erase_files(tmp_path / "data", address).removed == 1
    assert verify_erased(database, tmp_path / "data", address).found == {}
