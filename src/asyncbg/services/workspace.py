"""Keep the working files of a batch of jobs together, one directory a batch, until somebody cleans up."""

import os
import re
import shutil
from pathlib import Path

from anyio.to_thread import run_sync

from asyncbg.clock import Clock

LEFTOVER_AGE_MS = 7 * 24 * 3_600_000
"""A directory untouched for this long belongs to a batch whose clean-up never ran."""

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


class Workspace:
    """Directories below ``data_dir/work``, readable by their owner only."""

    def __init__(self, data_dir: Path, *, clock: Clock) -> None:
        """Take the directory; nothing is touched before the first file."""
        self._directory = data_dir / "work"
        self._clock = clock

    async def write(self, batch: str, name: str, text: str) -> None:
        """Write the file ``name`` of ``batch``, in place of an earlier one."""
        await run_sync(self._write, self._path(batch), name, text)

    async def remove(self, batch: str) -> int:
        """Remove what ``batch`` left; returns how many files."""
        return await run_sync(_remove, self._path(batch))

    async def sweep(self) -> int:
        """Remove the directories whose clean-up never ran; returns how many files."""
        return await run_sync(self._sweep)

    def _path(self, batch: str) -> Path:
        if not _NAME.fullmatch(batch):
            raise ValueError("a batch is named by letters, digits, _ and -")
        return self._directory / batch

    def _write(self, path: Path, name: str, text: str) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
        file = os.open(path / f"{name}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(text)

    def _sweep(self) -> int:
        if not self._directory.is_dir():
            return 0
        oldest_ms = self._clock.now_ms() - LEFTOVER_AGE_MS
        old = [path for path in self._directory.iterdir() if path.stat().st_mtime_ns // 1_000_000 < oldest_ms]
        return sum(_remove(path) for path in old)


def _remove(path: Path) -> int:
    files = len(list(path.iterdir())) if path.is_dir() else 0
    shutil.rmtree(path, ignore_errors=True)
    return files
