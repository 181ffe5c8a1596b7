"""Identifiers: job ids that sort by time (UUIDv7, RFC 9562 section 5.7) and random tokens."""

import os
import re
import threading

from asyncbg.core.clock import Clock, SystemClock

_JOB_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_COUNTER_BITS = 12
_COUNTER_MAX = (1 << _COUNTER_BITS) - 1
_RANDOM_BYTES = 8192
_TAIL = 15
_VARIANTS = "89ab"
"""The first digit of ``rand_b``: the variant bits 10, then two that count."""


class IdGenerator:
    """A generator of UUIDv7 text ids that never sort before an earlier one of the same generator.

    The 12 bits of ``rand_a`` count within a millisecond (RFC 9562, method 1); when the count is used up, or the
    clock went back, the last millisecond is carried on and borrowed from.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        """Read the time from ``clock`` (the system's by default)."""
        self._clock = clock or SystemClock()
        self._lock = threading.Lock()
        self._last_ms = 0
        self._head = ""
        self._count = 0
        self._pool = ""
        self._at = 0

    def new(self) -> str:
        """Return a new id: 36 characters, lower case."""
        with self._lock:
            now_ms = self._clock.now_ms()
            if now_ms > self._last_ms:
                self._begin(now_ms)
            elif self._count < _COUNTER_MAX:
                self._count += 1
            else:
                self._begin(self._last_ms + 1)
            at, self._at = self._at, self._at + _TAIL
            if self._at > len(self._pool):
                # One system call serves a thousand ids.
                self._pool, at, self._at = os.urandom(_RANDOM_BYTES).hex(), 0, _TAIL
            head, count, pool = self._head, self._count, self._pool
        return f"{head}{count:03x}-{_VARIANTS[count & 3]}{pool[at : at + 3]}-{pool[at + 3 : at + _TAIL]}"

    def _begin(self, ms: int) -> None:
        self._last_ms, self._count = ms, 0
        text = f"{ms:012x}"
        self._head = f"{text[:8]}-{text[8:]}-7"


def is_job_id(text: str) -> bool:
    """Whether ``text`` has the form of a job id."""
    return _JOB_ID.fullmatch(text) is not None


def random_token() -> int:
    """Return a random positive integer of 62 bits: a fencing token that fits every database's BIGINT."""
    return int.from_bytes(os.urandom(8)) >> 2
