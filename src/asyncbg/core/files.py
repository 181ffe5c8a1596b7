"""What is on a path and in a directory: trouble while looking is raised, never taken for absence.

``Path.exists`` and its like answer False to whatever stops them (to every error since Python 3.14), and a glob gives
nothing where a directory cannot be opened (since 3.12), as with no free file descriptor.
"""

import os
import stat
from collections.abc import Iterator
from pathlib import Path


def status_of(path: Path) -> os.stat_result | None:
    """What ``stat`` says; None where there is certainly nothing. Raises OSError where that cannot be told."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def is_there(path: Path) -> bool:
    """Whether there is anything. Raises OSError where that cannot be told."""
    return status_of(path) is not None


def is_file(path: Path) -> bool:
    """Whether there is a regular file. Raises OSError where that cannot be told."""
    found = status_of(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_directory(path: Path) -> bool:
    """Whether there is a directory. Raises OSError where that cannot be told."""
    found = status_of(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def names_in(directory: Path) -> list[str]:
    """The names in a directory, sorted; none where there is no directory. Raises OSError where it cannot be read."""
    try:
        return sorted(os.listdir(directory))  # noqa: PTH208 - names are all that is asked for
    except (FileNotFoundError, NotADirectoryError):
        return []


def files_below(directory: Path) -> Iterator[Path]:
    """The regular files in a directory and below it, in order, links to directories not followed. Raises OSError.

    What goes away meanwhile is left out.
    """
    for name in names_in(directory):
        path = directory / name
        if is_directory(path) and not path.is_symlink():
            yield from files_below(path)
        elif is_file(path):
            yield path
