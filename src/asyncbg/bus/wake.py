"""How one reader waits, and is woken."""

import asyncio
from collections.abc import Awaitable


class Wake:
    """One reader waits here; ``set`` wakes it. A future and a timer cost less than a task for ``asyncio.wait_for``."""

    __slots__ = ("_waiter",)

    def __init__(self) -> None:
        """Nobody waits."""
        self._waiter: asyncio.Future[bool] | None = None

    def set(self, value: bool = True) -> None:
        """Wake the reader with ``value``, if it waits."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(value)

    def wait(self, timeout_s: float | None) -> Awaitable[bool]:
        """Wait; False: the time was over first."""
        self._waiter = asyncio.get_running_loop().create_future()
        return self._waiter if timeout_s is None else self._wait_for(self._waiter, timeout_s)

    async def _wait_for(self, waiter: asyncio.Future[bool], timeout_s: float) -> bool:
        timer = waiter.get_loop().call_later(timeout_s, self.set, False)
        try:
            return await waiter
        finally:
            timer.cancel()
