"""A process's place at a SQLite file: a lock the kernel lets go of when the process is gone, however it went."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

_MOST_PLACES = 1024


class Place:
    """One of the numbered places at a database, held through ``flock`` on ``<database>-place<number>``.

    A place that nobody holds belongs to a process that is gone, so its running jobs can be taken up at once, and a
    restarted process finds its own earlier jobs by taking the same place again.
    """

    def __init__(self, database: Path | None) -> None:
        """Name the database file; None (in memory) has only the one place."""
        self._database = database
        self._held: int | None = None
        self.name = "0"

    def take(self) -> None:
        """Take the first free place."""
        if self._database is None:
            return
        for number in range(_MOST_PLACES):
            held = self._try(number, create=True)
            if held is not None:
                self._held, self.name = held, str(number)
                return
        raise OSError(f"all {_MOST_PLACES} places at {self._database} are taken")

    def leave(self) -> None:
        """Give the place back."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    @contextlib.contextmanager
    def dead(self) -> Iterator[list[str]]:
        """The places of processes that are gone; they stay locked for as long as the caller deals with them."""
        locks = {}
        try:
            for number in self._numbers():
                held = self._try(number, create=False) if str(number) != self.name else None
                if held is not None:
                    locks[str(number)] = held
            yield sorted(locks)
        finally:
            for held in locks.values():
                os.close(held)

    def _numbers(self) -> list[int]:
        if self._database is None:
            return []
        prefix = f"{self._database.name}-place"
        names = (path.name.removeprefix(prefix) for path in self._database.parent.glob(f"{prefix}*"))
        return sorted(int(name) for name in names if name.isdecimal())

    def _try(self, number: int, *, create: bool) -> int | None:
        """The locked file of a place, or None where somebody holds it."""
        path = f"{self._database}-place{number}"
        try:
            held = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(held)
            return None
        return held
