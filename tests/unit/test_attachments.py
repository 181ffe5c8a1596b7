"""Attachments on disk: found by their owner, and removed after a week."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.service.integrations.attachments import AttachmentError, Attachments


async def chunks(data: bytes) -> AsyncIterator[bytes]:
    """An upload in one piece."""
    yield data


@pytest.fixture
def clock() -> ManualClock:
    """The time of the files."""
    return ManualClock()


@pytest.fixture
async def files(tmp_path: Path, clock: ManualClock) -> Attachments:
    """Attachments below an empty directory."""
    attachments = Attachments(tmp_path, min_free_bytes=0, clock=clock)
    await attachments.open()
    return attachments


async def test_an_attachment_is_found_by_its_owner_only(files: Attachments, tmp_path: Path) -> None:
    """The path does not lead another owner to the file, and the name of the file does not hold the token."""
    got = await files.receive(chunks(b"x"), file_name="a.txt", owner="ada")

    [loaded] = await files.load([got.path], owner="ada")
    assert (loaded.name, loaded.content) == ("a.txt", b"x")
    with pytest.raises(AttachmentError, match="does not exist"):
        await files.load([got.path], owner="bob")
    [stored] = (tmp_path / "attachments").iterdir()
    assert stored.stem not in got.path


@pytest.mark.parametrize(("days", "is_kept"), [(6, True), (8, False)])
async def test_an_attachment_is_removed_after_a_week(
    files: Attachments, clock: ManualClock, tmp_path: Path, days: int, is_kept: bool
) -> None:
    """Also while the service runs: a mail is not tried for so long."""
    await files.receive(chunks(b"x"), file_name="a.txt", owner="ada")
    clock.advance(days=days)

    await files.remove_old()

    assert len(list((tmp_path / "attachments").iterdir())) == is_kept
