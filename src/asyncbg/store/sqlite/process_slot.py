"""A process's slot at a SQLite file: the lock that proves the process alive, its heartbeat, note and counters."""

import itertools
import logging
import os
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from asyncbg.errors import DatabaseError
from asyncbg.store.sqlite.file_lock import FileLock, lock_file

logger = logging.getLogger("asyncbg")

_MAX_SLOTS = 1024
_LONGEST_LEASE_MS = 86_400_000
_HEARTBEAT = struct.Struct("<q")
_NOTE_BYTES = 4_088


class ProcessSlot:
    """One of the numbered slots at a database, held through ``flock`` on ``<database>-place<number>``.

    The kernel releases the lock when the process ends, so an unlocked slot means a dead process: its running jobs can
    be rescued at once, and a restarted process finds its earlier jobs by acquiring the same slot again. A slot counts
    as dead only by proof: its lock could be acquired, or its file does not exist. Any other error while checking (no
    free file descriptor, no permission) proves nothing, and the jobs of that slot are left alone.

    The file holds the heartbeat: until when (monotonic milliseconds, the same for all processes of a machine) the
    process counts as alive. It distinguishes a busy process from a hung one without a write to the database. A note for
    diagnostics may follow it.

    A process judges the heartbeats of others only while its own is on time: where the whole machine was suspended, all
    heartbeats have lapsed at once, and the first process to look would rescue the jobs of the others.
    """

    def __init__(self, database: Path | None) -> None:
        """``database`` is the database file; None (in memory) has a single slot."""
        self._database = database
        self._lock: FileLock | None = None
        self._beat_ms: int | None = None
        self._alive_until_ms = 0
        self._doubts_until_ms = 0
        self._unclear: set[str] = set()
        self.name = "0"

    def acquire(self) -> None:
        """Acquire the first free slot. Raises DatabaseError."""
        if self._database is None:
            return
        try:
            for number in range(_MAX_SLOTS):
                lock = lock_file(self._path(str(number)), create=True)
                if lock is not None:
                    os.ftruncate(_descriptor(lock), 0)  # the heartbeat of the previous process
                    self._lock, self.name = lock, str(number)
                    self._beat_ms, self._alive_until_ms, self._doubts_until_ms = None, 0, 0
                    return
        except OSError as error:
            raise DatabaseError(f"cannot lock a process slot of {self._database}: {error.strerror}") from error
        raise DatabaseError(f"all {_MAX_SLOTS} process slots of {self._database} are in use; stop some processes")

    def release(self) -> None:
        """Release the slot, even if a forked child still runs."""
        lock, self._lock = self._lock, None
        if lock is not None:
            lock.close()

    def beat(self, now_ms: int, *, lease_ms: int) -> None:
        """Count as alive for ``lease_ms`` from now. Thread-safe."""
        if self._is_late(now_ms):
            self._doubts_until_ms = now_ms + lease_ms
        self._beat_ms, self._alive_until_ms = now_ms, now_ms + lease_ms
        self._write(_HEARTBEAT.pack(self._alive_until_ms), 0)

    def _is_late(self, now_ms: int) -> bool:
        """Whether half a lease passed without a beat (one is due every quarter): this process was suspended."""
        return self._beat_ms is not None and now_ms - self._beat_ms > (self._alive_until_ms - self._beat_ms) // 2

    def write_note(self, text: str) -> None:
        """Write a note that other processes can read. Thread-safe."""
        self._write(text.encode().ljust(_NOTE_BYTES)[:_NOTE_BYTES], _HEARTBEAT.size)

    def _write(self, data: bytes, at: int) -> None:
        lock = self._lock
        if lock is not None and lock.fd is not None:
            os.pwrite(lock.fd, data, at)

    def read_notes(self) -> Mapping[str, str]:
        """Return the note of each live process, by slot name. Raises OSError."""
        return {
            name: Path(self._path(name)).read_bytes()[_HEARTBEAT.size :].decode("utf-8", "replace").strip()
            for name in self.held()
        }

    def gone(self, names: Iterable[str]) -> list[str]:
        """Return those of the named slots whose process is certainly dead; the own slot is never among them."""
        return [name for name in names if self._is_gone(name)]

    def _is_gone(self, name: str) -> bool:
        if self._database is None or (self._lock is not None and name == self.name):
            return False
        try:
            return self._is_free(name)
        except OSError as error:
            self._log_unclear(name, error)
            return False

    def silent(self, names: Iterable[str], now_ms: int) -> list[str]:
        """Return those of the named slots whose heartbeat has lapsed; none for a lease after a suspension."""
        if self._is_late(now_ms) or now_ms < self._doubts_until_ms:
            return []
        return [name for name in names if self._is_silent(name, now_ms)]

    def _is_silent(self, name: str, now_ms: int) -> bool:
        try:
            until_ms = self._alive_until_ms if name == self.name else self._deadline(name)
        except OSError as error:
            self._log_unclear(name, error)
            return False
        # A deadline far ahead was written before the machine restarted its clock.
        return not now_ms <= until_ms <= now_ms + _LONGEST_LEASE_MS

    def _deadline(self, name: str) -> int:
        """Return until when a slot counts as alive; 0 without a heartbeat. Raises OSError."""
        try:
            with Path(self._path(name)).open("rb", buffering=0) as file:
                text = file.read(_HEARTBEAT.size)
        except FileNotFoundError:
            return 0
        return int(_HEARTBEAT.unpack(text)[0]) if len(text) == _HEARTBEAT.size else 0

    def held(self) -> list[str]:
        """Return the slots that a process holds now, one for each running process. Raises OSError."""
        return [name for name in self.names() if not self._is_free(name)]

    def _is_free(self, name: str) -> bool:
        """Whether no process holds the slot: its lock can be acquired, or it has no file. Raises OSError."""
        if not name.isdecimal():
            return True  # no process ever acquires a slot of such a name
        try:
            lock = lock_file(self._path(name), create=False)
        except FileNotFoundError:
            return True
        if lock is None:
            return False
        lock.close()
        return True

    def names(self) -> Iterator[str]:
        """The slots that have a file, counted from 0; none lies behind the first gap. Raises OSError."""
        if self._database is None:
            return
        for number in itertools.count():
            try:
                os.stat(self._path(str(number)))  # noqa: PTH116 - its errors distinguish absence from other failures
            except FileNotFoundError:
                return
            yield str(number)

    def _path(self, name: str) -> str:
        return f"{self._database}-place{name}"

    def _log_unclear(self, name: str, error: OSError) -> None:
        """Log once for each slot that it cannot be checked."""
        if name not in self._unclear:
            self._unclear.add(name)
            logger.warning(
                "cannot check whether the process in slot %s is alive (%s); its jobs are not rescued",
                name,
                error.strerror,
            )


def _descriptor(lock: FileLock) -> int:
    if lock.fd is None:
        raise OSError("the lock was dropped")
    return lock.fd


class CounterFiles:
    """The counters of each process, in ``<database>-counts<slot>``; they outlive the process, as counters must."""

    def __init__(self, database: Path | None, slot: ProcessSlot) -> None:
        """``database`` None (in memory) is used by one process only: nothing is saved."""
        self._database = database
        self._slot = slot

    def save(self, text: str) -> None:
        """Replace the counters of the own slot atomically. Blocking. Raises OSError."""
        if self._database is None:
            return
        path = self._path(self._slot.name)
        file = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(f"{path}.new").replace(path)

    def load_own(self) -> str | None:
        """Return the counters of the own slot, saved by its current or previous process. Blocking. Raises OSError."""
        return None if self._database is None else self._read(self._slot.name)

    def load_others(self) -> Sequence[str]:
        """Return the counters of every other slot, held or not. Blocking. Raises OSError."""
        found = [self._read(name) for name in self._slot.names() if name != self._slot.name]
        return [text for text in found if text is not None]

    def _read(self, name: str) -> str | None:
        try:
            return self._path(name).read_text("utf-8")
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> Path:
        return Path(f"{self._database}-counts{name}")
