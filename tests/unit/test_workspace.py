"""Working files: a clean-up removes what is ours and old, and nothing else."""

import logging
import os
import stat
from collections.abc import Collection
from pathlib import Path

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.service.integrations.private_directory import LinkedDirectoryError, warn_if_readable
from asyncbg.service.integrations.workspace import MARKER, Workspace


class Open(set[str]):
    """The batches that have a job which is not final."""

    async def find(self, batches: Collection[str]) -> Collection[str]:
        """Those of the given ones."""
        return self.intersection(batches)


@pytest.fixture
def unfinished() -> Open:
    """None at first."""
    return Open()


@pytest.fixture
def workspace(tmp_path: Path, clock: ManualClock, unfinished: Open) -> Workspace:
    """A workspace in a data directory of its own."""
    return Workspace(tmp_path / "data", clock=clock, find_open=unfinished.find)


def batches(tmp_path: Path) -> list[str]:
    """What lies in the directory of working files."""
    return sorted(path.name for path in (tmp_path / "data" / "work").iterdir())


async def test_what_is_old_and_ours_is_swept(workspace: Workspace, tmp_path: Path, clock: ManualClock) -> None:
    """With the number of its files; what is younger stays."""
    await workspace.write("old", "a", "text")
    await workspace.write("old", "b", "text")
    clock.advance(days=8)
    await workspace.write("young", "a", "text")
    os.utime(tmp_path / "data" / "work" / "young", (clock.now_ms() / 1_000,) * 2)

    assert await workspace.sweep() == 2
    assert batches(tmp_path) == ["young"]


async def test_a_batch_with_an_unfinished_job_is_not_swept(
    workspace: Workspace, tmp_path: Path, clock: ManualClock, unfinished: Open
) -> None:
    """Its clean-up is still to come, however long it has waited."""
    await workspace.write("waits", "a", "text")
    unfinished.add("waits")
    clock.advance(days=100)

    assert await workspace.sweep() == 0
    assert batches(tmp_path) == ["waits"]
    unfinished.clear()
    assert await workspace.sweep() == 1


async def test_what_is_not_ours_is_never_swept(workspace: Workspace, tmp_path: Path, clock: ManualClock) -> None:
    """A directory or a file that somebody put there stays, whatever its age."""
    await workspace.write("ours", "a", "text")
    theirs = tmp_path / "data" / "work" / "photos"
    theirs.mkdir()
    (theirs / "a.jpg").write_text("theirs")
    (tmp_path / "data" / "work" / "notes").write_text("theirs")
    clock.advance(days=100)

    assert await workspace.sweep() == 1
    assert batches(tmp_path) == ["notes", "photos"]


@pytest.mark.parametrize("target", ["marked", "plain"])
async def test_links_are_never_followed(
    workspace: Workspace, tmp_path: Path, clock: ManualClock, target: str
) -> None:  # fmt: skip
    """Neither one in place of a batch, with or without a marker behind it, nor one inside of a batch."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("theirs")
    if target == "marked":
        (outside / MARKER).touch()
    await workspace.write("ours", "a", "text")
    (tmp_path / "data" / "work" / "linked").symlink_to(outside, target_is_directory=True)
    (tmp_path / "data" / "work" / "ours" / "inside").symlink_to(outside, target_is_directory=True)
    clock.advance(days=100)

    await workspace.sweep()
    await workspace.remove("linked")

    assert (outside / "kept").read_text() == "theirs"
    assert batches(tmp_path) == ["linked"]


async def test_a_linked_directory_of_working_files_is_refused(workspace: Workspace, tmp_path: Path) -> None:
    """The error names the link and the remedy; nothing is written where it leads, nothing removed."""
    outside = tmp_path / "outside"
    (outside / "ours").mkdir(parents=True)
    (outside / "ours" / MARKER).touch()
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "work").symlink_to(outside, target_is_directory=True)

    with pytest.raises(LinkedDirectoryError, match=r"work is a symbolic link.*ASYNCBG_DATA_DIR"):
        await workspace.write("batch", "a", "text")
    assert await workspace.sweep() == await workspace.remove("ours") == 0
    assert [path.name for path in outside.iterdir()] == ["ours"]


async def test_directories_are_their_owners_alone(workspace: Workspace, tmp_path: Path) -> None:
    """Made with mode 0700; one of ours that is open to others is closed."""
    await workspace.write("batch", "a", "text")
    work = tmp_path / "data" / "work"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "data", work, work / "batch")} == {0o700}

    work.chmod(0o755)
    await workspace.write("batch", "a", "text")
    assert stat.S_IMODE(work.stat().st_mode) == 0o700


def test_a_data_directory_open_to_others_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It may be shared on purpose: the warning says how to close it, and nothing is changed."""
    tmp_path.chmod(0o755)
    with caplog.at_level(logging.WARNING, logger="asyncbg"):
        warn_if_readable(tmp_path)

    assert f"chmod 700 {tmp_path}" in caplog.text
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755
