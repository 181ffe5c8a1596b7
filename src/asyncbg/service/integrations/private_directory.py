"""Directories that only their owner can access."""

import logging
from pathlib import Path

from asyncbg.errors import AsyncBGError

logger = logging.getLogger("asyncbg")

_OTHERS = 0o077


class LinkedDirectoryError(AsyncBGError):
    """A directory of the service is a symbolic link, so files would be written or removed elsewhere."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a symbolic link; replace it by a directory, or set ASYNCBG_DATA_DIR to where it leads"
        )


def make_data_dir(path: Path) -> None:
    """Create the data directory with mode 0700; an existing one is left unchanged."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def warn_if_readable(path: Path) -> None:
    """Log a warning if other users can access the data directory, which may be intended."""
    if path.is_dir() and path.stat().st_mode & _OTHERS:
        logger.warning("other users can read %s; restrict it: chmod 700 %s", path, path)


def make_private_directory(path: Path) -> None:
    """Create a directory below the data directory with mode 0700; an existing one is set to that mode.

    Raises LinkedDirectoryError for a symbolic link.
    """
    make_data_dir(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():
        raise LinkedDirectoryError(path)
    if path.stat().st_mode & _OTHERS:
        path.chmod(0o700)
