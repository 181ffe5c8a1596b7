"""Identifiers: job ids that sort by time (UUIDv7, RFC 9562 section 5.7) and random tokens."""

import os
import re
import threading

from asyncbg.clock import Clock, SystemClock

_JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_COUNTER_BITS = 12
_COUNTER_MAX = (1 << _COUNTER_BITS) - 1
_RANDOM_BYTES = 8192


class IdGenerator:
    """Makes UUIDv7 text ids that never sort before an earlier one of the same generator.

    The 12 bits of ``rand_a`` count within a millisecond (RFC 9562, method 1); when the count is used up, or the
    clock went back, the last millisecond is carried on and borrowed from.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """Read the time from ``clock`` (the system's by default)."""
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last_ms = 0
        self._count = 0
        self._pool = b""
        self._at = 0

    def new(self) -> str:
        """A fresh id: 36 characters, lower case."""
        with self._lock:
            now_ms = self._clock.now_ms()
            if now_ms > self._last_ms:
                self._last_ms, self._count = now_ms, 0
            elif self._count < _COUNTER_MAX:
                self._count += 1
            else:
                self._last_ms, self._count = self._last_ms + 1, 0
            head = f"{self._last_ms:012x}"
            count = self._count
            tail = f"{0x8000_0000_0000_0000 | (self._random() >> 2):016x}"
        return f"{head[:8]}-{head[8:]}-7{count:03x}-{tail[:4]}-{tail[4:]}"

    def _random(self) -> int:
        """64 random bits out of a pool, so that one system call serves a thousand ids."""
        if self._at + 8 > len(self._pool):
            self._pool, self._at = os.urandom(_RANDOM_BYTES), 0
        self._at += 8
        return int.from_bytes(self._pool[self._at - 8 : self._at])


def is_job_id(text: str) -> bool:
    """Whether ``text`` has the form of a job id."""
    return _JOB_ID.fullmatch(text) is not None


def random_token() -> int:
    """A random positive integer of 62 bits: a fencing token that fits every database's BIGINT."""
    return int.from_bytes(os.urandom(8)) >> 2
