"""Delays and retries are wall-clock times: where that clock jumps, they move along."""

from asyncbg.core.clock import Clock
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.statement import SQL

_JUMP_MS = 1_000


class WallClockLane:
    """Knows by how much the wall clock was ahead of the monotonic one when it last looked."""

    def __init__(self, clock: Clock) -> None:
        """Made by the backend."""
        self._clock = clock
        self.offset_ms = 0

    def look(self) -> None:
        """Take the offset as it is now."""
        self.offset_ms = self._offset_ms()

    @property
    def has_jumped(self) -> bool:
        """Whether the wall clock was set since the last look."""
        return abs(self._offset_ms() - self.offset_ms) >= _JUMP_MS

    def _offset_ms(self) -> int:
        return self._clock.now_ms() - self._clock.monotonic_ms()

    def follow(self, tx: Transaction, items: list[None]) -> list[int]:
        """One process of all moves them: the others find the jump noted in the log's row already."""
        self.look()
        jump_ms = self.offset_ms - tx.connection.execute(SQL["read_wall_offset"]).fetchone()[0]
        if abs(jump_ms) >= _JUMP_MS:
            tx.connection.execute(SQL["shift_delays"], {"jump_ms": jump_ms})
            tx.connection.execute(SQL["write_wall_offset"], {"wall_offset": self.offset_ms})
        return [jump_ms] * len(items)
