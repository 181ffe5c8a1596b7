"""A process's place at a SQLite file: a lock the kernel lets go of when the process is gone, however it went."""

import itertools
import logging
import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from asyncbg.errors import DatabaseError
from asyncbg.store.sqlite.file_lock import FileLock, acquire

logger = logging.getLogger("asyncbg")

_MOST_PLACES = 1024
_LONGEST_LEASE_MS = 86_400_000
_HEARTBEAT = struct.Struct("<q")
_NOTE_BYTES = 4_088


class Place:
    """One of the numbered places at a database, held through ``flock`` on ``<database>-place<number>``.

    A place that nobody holds belongs to a process that is gone, so its running jobs can be taken up at once, and a
    restarted process finds its own earlier jobs by taking the same place again. A place counts as gone only by proof:
    its lock was free for us to take, or its file does not exist. Whatever else goes wrong while looking (no free file
    descriptor, no permission) proves nothing, and its jobs are left alone.

    The file holds the holder's heartbeat: until when (monotonic milliseconds, the same for all processes of a machine)
    it counts as alive. It tells a process that is merely busy from one that hangs, without writing to the database. A
    note may stand behind it, for whoever looks at the process from outside.

    Silence is judged only by who was awake himself: where the whole machine stood still, all are silent at once, and
    whoever looks first would take the jobs of the others.
    """

    def __init__(self, database: Path | None) -> None:
        """Name the database file; None (in memory) has only the one place."""
        self._database = database
        self._lock: FileLock | None = None
        self._beat_ms: int | None = None
        self._alive_until_ms = 0
        self._doubts_until_ms = 0
        self._unclear: set[str] = set()
        self.name = "0"

    def take(self) -> None:
        """Take the first free place. Raises DatabaseError."""
        if self._database is None:
            return
        try:
            for number in range(_MOST_PLACES):
                lock = acquire(self._path(str(number)), create=True)
                if lock is not None:
                    os.ftruncate(_open_file(lock), 0)  # the heartbeat of whoever was here before
                    self._lock, self.name = lock, str(number)
                    self._beat_ms, self._alive_until_ms, self._doubts_until_ms = None, 0, 0
                    return
        except OSError as error:
            raise DatabaseError(f"cannot lock a place at {self._database}: {error.strerror}") from error
        raise DatabaseError(f"all {_MOST_PLACES} places at {self._database} are taken; end some of its processes")

    def leave(self) -> None:
        """Give the place back, even if a forked child lives on."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def beat(self, now_ms: int, *, lease_ms: int) -> None:
        """Count as alive for so long. From any thread."""
        if self._is_late(now_ms):
            self._doubts_until_ms = now_ms + lease_ms
        self._beat_ms, self._alive_until_ms = now_ms, now_ms + lease_ms
        self._write(_HEARTBEAT.pack(self._alive_until_ms), 0)

    def _is_late(self, now_ms: int) -> bool:
        """Whether half a lease went by without a beat, which comes every quarter: this process stood still."""
        return self._beat_ms is not None and now_ms - self._beat_ms > (self._alive_until_ms - self._beat_ms) // 2

    def note(self, text: str) -> None:
        """Leave a note for whoever looks at this process from outside. From any thread."""
        self._write(text.encode().ljust(_NOTE_BYTES)[:_NOTE_BYTES], _HEARTBEAT.size)

    def _write(self, data: bytes, at: int) -> None:
        lock = self._lock
        if lock is not None and lock.fd is not None:
            os.pwrite(lock.fd, data, at)

    def notes(self) -> Mapping[str, str]:
        """What the processes that hold a place now have noted there. Raises OSError."""
        return {
            name: Path(self._path(name)).read_bytes()[_HEARTBEAT.size :].decode("utf-8", "replace").strip()
            for name in self.held()
        }

    def gone(self, names: Iterable[str]) -> list[str]:
        """Those of the named places that certainly no process holds; our own is not among them."""
        return [name for name in names if self._is_gone(name)]

    def _is_gone(self, name: str) -> bool:
        if self._database is None or (self._lock is not None and name == self.name):
            return False
        try:
            return self._is_free(name)
        except OSError as error:
            self._tell_unclear(name, error)
            return False

    def silent(self, names: Iterable[str], now_ms: int) -> list[str]:
        """Those whose heartbeat has certainly lapsed; none for a lease after this process itself stood still."""
        if self._is_late(now_ms) or now_ms < self._doubts_until_ms:
            return []
        return [name for name in names if self._is_silent(name, now_ms)]

    def _is_silent(self, name: str, now_ms: int) -> bool:
        try:
            until_ms = self._alive_until_ms if name == self.name else self._deadline(name)
        except OSError as error:
            self._tell_unclear(name, error)
            return False
        # A deadline far ahead was written before the machine restarted its clock.
        return not now_ms <= until_ms <= now_ms + _LONGEST_LEASE_MS

    def _deadline(self, name: str) -> int:
        """What a place's heartbeat says; 0 where it never beat. Raises OSError."""
        try:
            with Path(self._path(name)).open("rb", buffering=0) as file:
                text = file.read(_HEARTBEAT.size)
        except FileNotFoundError:
            return 0
        return int(_HEARTBEAT.unpack(text)[0]) if len(text) == _HEARTBEAT.size else 0

    def held(self) -> list[str]:
        """The places that some process holds now: as many processes run jobs here. Raises OSError."""
        return [name for name in self.names() if not self._is_free(name)]

    def _is_free(self, name: str) -> bool:
        """Whether nobody holds the place: we could lock it, or it has no file. Raises OSError."""
        if not name.isdecimal():
            return True  # no process ever takes a place of such a name
        try:
            lock = acquire(self._path(name), create=False)
        except FileNotFoundError:
            return True
        if lock is None:
            return False
        lock.close()
        return True

    def names(self) -> Iterator[str]:
        """The places that have a file, taken from 0 upwards: nothing lies behind the first gap. Raises OSError."""
        if self._database is None:
            return
        for number in itertools.count():
            try:
                os.stat(self._path(str(number)))  # noqa: PTH116 - its errors tell absence from trouble
            except FileNotFoundError:
                return
            yield str(number)

    def _path(self, name: str) -> str:
        return f"{self._database}-place{name}"

    def _tell_unclear(self, name: str, error: OSError) -> None:
        """Say once of each place that it cannot be looked at."""
        if name not in self._unclear:
            self._unclear.add(name)
            logger.warning(
                "cannot tell whether the process at place %s is alive (%s); its jobs are left to it",
                name,
                error.strerror,
            )


def _open_file(lock: FileLock) -> int:
    if lock.fd is None:
        raise OSError("the lock was dropped")
    return lock.fd
