"""The notification log gains exactly one line a call, on disk, readable by its owner only."""

import stat
from pathlib import Path

import anyio
import pytest

from asyncbg.service.integrations.notices import NoticeError, Notices


async def test_a_notification_is_one_line(tmp_path: Path) -> None:
    """The line has the documented form and follows what is there already."""
    notices = Notices(tmp_path)

    await notices.append("ada.canary7f3a@canary7f3a.example", "some notification")
    await Notices(tmp_path).append("bob.canary7f3a@canary7f3a.example", "grüße ☃")

    assert notices.path.read_text(encoding="utf-8") == (
        "notification for ada.canary7f3a@canary7f3a.example: some notification\n"
        "notification for bob.canary7f3a@canary7f3a.example: grüße ☃\n"
    )


@pytest.mark.parametrize("text", ["a\nb", "a\r\nb", "a\x00b", "a\x1b[2Jb", "a\x85b", "a\u2028b", "a\u2029b", "a\x0bb"])
async def test_what_could_break_a_line_is_escaped(tmp_path: Path, text: str) -> None:
    """A line break or control character in either part leaves one printable line."""
    notices = Notices(tmp_path)

    await notices.append(text, text)

    written = notices.path.read_bytes().decode()
    assert len(written.splitlines()) == 1
    assert written[:-1].isprintable()


async def test_a_newline_is_written_as_an_escape(tmp_path: Path) -> None:
    """A forged second notification stays within its line."""
    notices = Notices(tmp_path)

    await notices.append(
        "ada.canary7f3a@canary7f3a.example", "x\nnotification for eve.canary7f3a@canary7f3a.example: y"
    )

    assert notices.path.read_text(encoding="utf-8") == (
        "notification for ada.canary7f3a@canary7f3a.example: x\\n"
        "notification for eve.canary7f3a@canary7f3a.example: y\n"
    )


async def test_text_that_has_no_utf8_form_is_escaped(tmp_path: Path) -> None:
    """A lone surrogate does not fail the notification."""
    notices = Notices(tmp_path)

    await notices.append("ada.canary7f3a@canary7f3a.example", "\ud800")

    assert notices.path.read_text(encoding="utf-8").endswith(": \\ud800\n")


async def test_only_the_owner_may_read_it(tmp_path: Path) -> None:
    """The directory is made 0700 and the file 0600 on first use."""
    notices = Notices(tmp_path / "made" / "here")
    assert not notices.path.exists()

    await notices.append("ada.canary7f3a@canary7f3a.example", "x")

    assert stat.S_IMODE(notices.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(notices.path.parent.stat().st_mode) == 0o700


async def test_lines_written_at_once_do_not_mix(tmp_path: Path) -> None:
    """Fifty concurrent calls through two objects give fifty whole lines."""
    both = Notices(tmp_path), Notices(tmp_path)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(both[number % 2].append, f"{number}@example.com", "x" * 5000)

    lines = both[0].path.read_text(encoding="utf-8").splitlines()
    assert sorted(lines) == sorted(f"notification for {n}@example.com: {'x' * 5000}" for n in range(50))


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """A data directory below a plain file raises NoticeError that names the file and the setting, not the person."""
    (tmp_path / "plain").write_text("")

    with pytest.raises(NoticeError, match="ASYNCBG_DATA_DIR") as caught:
        await Notices(tmp_path / "plain").append("ada.canary7f3a@canary7f3a.example", "x")

    assert str(tmp_path) in str(caught.value)
    assert "ada" not in str(caught.value)


async def test_a_link_is_not_followed(tmp_path: Path) -> None:
    """A symbolic link in the place of the log raises NoticeError instead of writing elsewhere."""
    (tmp_path / "notifications.log").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(NoticeError):
        await Notices(tmp_path).append("ada.canary7f3a@canary7f3a.example", "x")

    assert not (tmp_path / "elsewhere").exists()
