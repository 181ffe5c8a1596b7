"""A process's place at a SQLite file: a lock the kernel lets go of when the process is gone, however it went."""

import contextlib
import fcntl
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

_MOST_PLACES = 1024
_LONGEST_LEASE_MS = 86_400_000
_HEARTBEAT = struct.Struct("<q")
_NOTE_BYTES = 4_088


class Place:
    """One of the numbered places at a database, held through ``flock`` on ``<database>-place<number>``.

    A place that nobody holds belongs to a process that is gone, so its running jobs can be taken up at once, and a
    restarted process finds its own earlier jobs by taking the same place again.

    The file holds the holder's heartbeat: until when (monotonic milliseconds, the same for all processes of a machine)
    it counts as alive. It tells a process that is merely busy from one that hangs, without writing to the database:
    on SQLite before 3.51.3 a second connection that commits beside the checkpointing one may damage the log. A note
    may stand behind it, for whoever looks at the process from outside.

    Silence is judged only by who was awake himself: where the whole machine stood still, all are silent at once, and
    whoever looks first would take the jobs of the others.
    """

    def __init__(self, database: Path | None) -> None:
        """Name the database file; None (in memory) has only the one place."""
        self._database = database
        self._held: int | None = None
        self._beat_ms: int | None = None
        self._alive_until_ms = 0
        self._doubts_until_ms = 0
        self.name = "0"

    def take(self) -> None:
        """Take the first free place."""
        if self._database is None:
            return
        for number in range(_MOST_PLACES):
            held = self._try(number, create=True)
            if held is not None:
                os.ftruncate(held, 0)  # the heartbeat of whoever was here before
                self._held, self.name = held, str(number)
                self._beat_ms, self._alive_until_ms, self._doubts_until_ms = None, 0, 0
                return
        raise OSError(f"all {_MOST_PLACES} places at {self._database} are taken")

    def leave(self) -> None:
        """Give the place back."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def beat(self, now_ms: int, *, lease_ms: int) -> None:
        """Count as alive for so long. From any thread."""
        if self._is_late(now_ms):
            self._doubts_until_ms = now_ms + lease_ms
        self._beat_ms, self._alive_until_ms = now_ms, now_ms + lease_ms
        held = self._held
        if held is not None:
            os.pwrite(held, _HEARTBEAT.pack(self._alive_until_ms), 0)

    def _is_late(self, now_ms: int) -> bool:
        """Whether half a lease went by without a beat, which comes every quarter: this process stood still."""
        return self._beat_ms is not None and now_ms - self._beat_ms > (self._alive_until_ms - self._beat_ms) // 2

    def note(self, text: str) -> None:
        """Leave a note for whoever looks at this process from outside. From any thread."""
        held = self._held
        if held is not None:
            os.pwrite(held, text.encode().ljust(_NOTE_BYTES)[:_NOTE_BYTES], _HEARTBEAT.size)

    def notes(self) -> Mapping[str, str]:
        """What the processes that hold a place now have noted there."""
        return {
            name: self._content(int(name))[_HEARTBEAT.size :].decode("utf-8", "replace").strip() for name in self.held()
        }

    def alive(self, now_ms: int) -> list[str]:
        """The places that have been heard of recently; for a lease after this process stood still, all there are."""
        if self._is_late(now_ms) or now_ms < self._doubts_until_ms:
            return sorted({self.name, *map(str, self._numbers())})
        deadlines = {self.name: self._alive_until_ms}
        for number in self._numbers():
            deadlines.setdefault(str(number), self._deadline(number))
        # A deadline far ahead was written before the machine restarted its clock.
        return sorted(name for name, until_ms in deadlines.items() if now_ms <= until_ms <= now_ms + _LONGEST_LEASE_MS)

    def _deadline(self, number: int) -> int:
        text = self._content(number)[: _HEARTBEAT.size]
        return int(_HEARTBEAT.unpack(text)[0]) if len(text) == _HEARTBEAT.size else 0

    def _content(self, number: int) -> bytes:
        try:
            return Path(f"{self._database}-place{number}").read_bytes()
        except OSError:
            return b""

    def known(self) -> list[str]:
        """The places that have a file, and this one. Any other is gone: a power cut took it, or a backup had none."""
        return sorted({self.name, *map(str, self._numbers())})

    def held(self) -> list[str]:
        """The places that some process holds now: as many processes run jobs here."""
        found = []
        for number in self._numbers():
            free = self._try(number, create=False)
            if free is None:
                found.append(str(number))
            else:
                os.close(free)
        return found

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
