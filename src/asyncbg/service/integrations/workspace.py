"""Working files of jobs, in one directory for each batch, until they are removed."""

import logging
import os
import re
import shutil
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

from anyio.to_thread import run_sync

from asyncbg.core.clock import Clock
from asyncbg.core.files import is_directory
from asyncbg.service.integrations.private_directory import make_private_directory

logger = logging.getLogger("asyncbg")

LEFTOVER_AGE_MS = 7 * 24 * 3_600_000
"""Age at which an unused directory is removed: the clean-up of its batch never ran."""

MARKER = ".asyncbg-batch"
"""The file that marks a directory of the workspace; no other directory is removed."""

_NAME = re.compile("[A-Za-z0-9_-]{1,64}")


class Workspace:
    """Directories below ``data_dir/work``, readable by their owner only. Symbolic links are never followed."""

    def __init__(
        self, data_dir: Path, *, clock: Clock, find_open: Callable[[Collection[str]], Awaitable[Collection[str]]]
    ) -> None:
        """Use ``data_dir/work``, created with the first file.

        ``find_open`` returns those of the given batches that have an unfinished job.
        """
        self._directory = data_dir / "work"
        self._clock = clock
        self._find_open = find_open

    async def write(self, batch: str, name: str, text: str) -> None:
        """Write the file ``name`` of ``batch``, replacing an earlier one."""
        await run_sync(self._write, self._path(batch), name, text)

    async def remove(self, batch: str) -> int:
        """Remove the files of ``batch``. Return their number."""
        return await run_sync(_remove, self._path(batch))

    async def sweep(self) -> int:
        """Remove old directories without unfinished jobs. Return the number of removed files."""
        old = await run_sync(self._find_old)
        kept = frozenset(await self._find_open(old)) if old else frozenset()
        return sum([await self.remove(batch) for batch in old if batch not in kept])

    def _path(self, batch: str) -> Path:
        if not _NAME.fullmatch(batch):
            raise ValueError("a batch is named by letters, digits, _ and -")
        return self._directory / batch

    def _write(self, path: Path, name: str, text: str) -> None:
        make_private_directory(self._directory)
        make_private_directory(path)
        for file_name, content in ((MARKER, ""), (f"{name}.txt", text)):
            file = os.open(path / file_name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(file, "w", encoding="utf-8") as stream:
                stream.write(content)

    def _find_old(self) -> list[str]:
        """Return the batches whose directories are old and carry the marker."""
        if self._directory.is_symlink() or not is_directory(self._directory):
            return []
        oldest_ms = self._clock.now_ms() - LEFTOVER_AGE_MS
        with os.scandir(self._directory) as entries:
            return [
                entry.name
                for entry in entries
                if _NAME.fullmatch(entry.name)
                and entry.is_dir(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000 < oldest_ms
                and _is_ours(Path(entry.path))
            ]


def _is_ours(path: Path) -> bool:
    """Whether the path is a real directory with the marker in it."""
    marker = path / MARKER
    return not path.is_symlink() and marker.is_file() and not marker.is_symlink()


def _remove(path: Path) -> int:
    """Remove a directory of the workspace. Symbolic links in it are removed, not followed."""
    if path.parent.is_symlink() or not _is_ours(path):
        return 0
    files = sum(len(names) for _, _, names in os.walk(path)) - 1
    try:
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("the working files in %s cannot be removed: %s", path, error.strerror or type(error).__name__)
        return 0
    return files
