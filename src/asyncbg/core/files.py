"""Files and directories: an error while checking is raised, never mistaken for absence.

``Path.exists`` and its like return False for any error (to every error since Python 3.14), and a glob yields
nothing where a directory cannot be opened (since 3.12), as with no free file descriptor.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def status_of(path: Path) -> os.stat_result | None:
    """Return the result of ``stat``; None where nothing exists. Raises OSError where that cannot be determined."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_there(path: Path) -> bool:
    """Whether anything exists. Raises OSError where that cannot be determined."""
    return status_of(path) is not None


def is_file(path: Path) -> bool:
    """Whether it is a regular file. Raises OSError where that cannot be determined."""
    found = status_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_directory(path: Path) -> bool:
    """Whether it is a directory. Raises OSError where that cannot be determined."""
    found = status_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def names_in(directory: Path) -> list[str]:
    """Return the sorted names in a directory; none where it does not exist. Raises OSError where it cannot be read."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names are all that is asked for
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(directory: Path) -> Iterator[Path]:
    """The regular files in a directory and below it, in order, links to directories not followed. Raises OSError.

    Files deleted meanwhile are left out.
    """
    for name in names_in(directory):
        path = directory / name
        if is_directory(path) and not path.is_symlink():
            yield from files_below(path)
        elif is_file(path):
            yield path
