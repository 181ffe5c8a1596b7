"""The notification log: a file with one durable line for each notification."""

import os
import re
from pathlib import Path

import anyio.to_thread

from asyncbg.errors import AsyncBGError
from asyncbg.service.integrations.private_directory import make_data_dir

_FILE_NAME = "notifications.log"
_LINE_BREAKER = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


class NoticeError(AsyncBGError):
    """The notification log cannot be written. The line may be missing or incomplete."""


class Notices:
    """Writer of ``notifications.log`` in ``data_dir``, created on first use and readable by its owner only."""

    def __init__(self, data_dir: Path) -> None:
        self._path = data_dir / _FILE_NAME

    @property
    def path(self) -> Path:
        """Return the path of the log file, which may not exist yet."""
        return self._path

    async def append(self, email: str, message: str) -> None:
        r"""Append the line ``notification for EMAIL: MESSAGE`` and return when it is on disk.

        Line breaks and control characters are escaped (``\n``, ``\x1b``), so one call writes one line. Raises
        NoticeError if the file cannot be written.
        """
        line = f"notification for {_escaped(email)}: {_escaped(message)}\n".encode("utf-8", "backslashreplace")
        await anyio.to_thread.run_sync(self._write, line)

    def _write(self, line: bytes) -> None:
        """Write with one O_APPEND call, so that lines of several threads and processes never interleave."""
        try:
            make_data_dir(self._path.parent)
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            file = os.open(self._path, flags, 0o600)
            try:
                written = os.write(file, line)
                os.fsync(file)
            finally:
                os.close(file)
        except OSError as error:
            raise NoticeError(
                f"cannot write {self._path}: {error.strerror}; make the directory ASYNCBG_DATA_DIR names writable"
            ) from error
        if written != len(line):
            raise NoticeError(f"only part of a line was written to {self._path}; free some disk space")


def _escaped(text: str) -> str:
    """Return ``text`` on one line."""
    return _LINE_BREAKER.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    """Return the escape sequence of one character."""
    character = match[0]
    code = ord(character)
    return _SHORT.get(character) or (f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}")
