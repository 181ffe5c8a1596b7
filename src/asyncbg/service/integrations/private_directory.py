"""Directories for their owner's eyes only."""

import logging
from pathlib import Path

from asyncbg.errors import AsyncBGError

logger = logging.getLogger("asyncbg")

_OTHERS = 0o077


class LinkedDirectoryError(AsyncBGError):
    """A directory of ours is a symbolic link, which would lead our files, and their removal, somewhere else."""

    def __init__(self, path: Path) -> None:
        """Name the link and the remedy."""
        super().__init__(
            f"{path} is a symbolic link; replace it by a directory, or set ASYNCBG_DATA_DIR to where it leads"
        )


def make_data_dir(path: Path) -> None:
    """Make the data directory with mode 0700; one that is there is left as it is."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)


def warn_if_readable(path: Path) -> None:
    """Log a warning where the data directory is open to other users: it may be shared on purpose, so it stays so."""
    if path.is_dir() and path.stat().st_mode & _OTHERS:
        logger.warning("other users can look into %s; set its mode: chmod 700 %s", path, path)


def make_private_directory(path: Path) -> None:
    """Make a directory below the data directory with mode 0700; one that is there is brought to that mode.

    Raises LinkedDirectoryError for a symbolic link.
    """
    make_data_dir(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink():
        raise LinkedDirectoryError(path)
    if path.stat().st_mode & _OTHERS:
        path.chmod(0o700)
