"""The supervisor of background loops: a loop that ends unexpectedly is logged, counted and restarted with backoff."""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from asyncbg.core.error_log import ends_task

logger = logging.getLogger("asyncbg")

Loop: TypeAlias = Callable[[], Coroutine[Any, Any, None]]
"""Makes the coroutine of a loop: called again for every start."""

_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 10.0
_STEADY_S = 60.0


class Supervisor:
    """Runs each loop as an asyncio task, from :meth:`start` to :meth:`stop`."""

    def __init__(self) -> None:
        """Nothing runs yet."""
        self.restarts: Counter[str] = Counter()
        """How often each loop was started again; loops that never ended are in it with 0."""
        self._running: dict[str, _Supervised] = {}

    @property
    def is_busy(self) -> bool:
        """Whether it has loops to run."""
        return bool(self._running)

    @property
    def down(self) -> list[str]:
        """The loops that have ended and wait for their next start."""
        return [one.name for one in self._running.values() if one.restart is not None]

    @property
    def is_loop_ending(self) -> bool:
        """Whether all loops are being cancelled, and not by :meth:`stop`: the event loop is shut down without it."""
        tasks = [one.task for one in self._running.values()]
        return bool(tasks) and all(task.cancelling() or task.cancelled() for task in tasks)

    def start(self, name: str, loop: Loop) -> None:
        """Start a loop; it runs until :meth:`stop`."""
        self.restarts[name] += 0
        supervised = self._running[name] = _Supervised(name, loop)
        self._run(supervised)

    async def stop(self) -> None:
        """Cancel all loops and wait until each has ended."""
        tasks = self.drop()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def drop(self) -> list[asyncio.Task[None]]:
        """Stop supervising. Return the tasks of the loops, which keep running."""
        ending, self._running = list(self._running.values()), {}
        for one in ending:
            if one.restart is not None:
                one.restart.cancel()
        return [one.task for one in ending]

    def _run(self, one: "_Supervised") -> None:
        one.restart = None
        one.started_s = asyncio.get_running_loop().time()
        one.task = asyncio.create_task(_contained(one), name=f"asyncbg-{one.name}")
        one.task.add_done_callback(lambda _: self._ended(one))

    def _ended(self, one: "_Supervised") -> None:
        if self._running.get(one.name) is not one:
            return
        if one.error is None and not one.task.cancelled():  # it returned on purpose
            del self._running[one.name]
            return
        loop = one.task.get_loop()
        is_steady = loop.time() - one.started_s >= _STEADY_S
        one.pause_s = _FIRST_PAUSE_S if is_steady else min(2 * one.pause_s, _LONGEST_PAUSE_S)
        one.restart = loop.call_later(one.pause_s, self._restart, one)
        error, one.error = one.error, None
        if error is not None:
            logger.critical("the loop %s failed and is started again in %.1f s", one.name, one.pause_s, exc_info=error)

    def _restart(self, one: "_Supervised") -> None:
        """A cancellation is logged here only: where the whole event loop is shut down, it never comes to this."""
        self.restarts[one.name] += 1
        self._run(one)
        logger.warning("the loop %s had ended and was started again", one.name)


@dataclass(slots=True, eq=False)
class _Supervised:
    """One loop, and when it is started again if it has ended."""

    name: str
    loop: Loop
    task: asyncio.Task[None] = field(init=False)
    started_s: float = 0.0
    pause_s: float = _FIRST_PAUSE_S / 2
    error: BaseException | None = None
    restart: asyncio.TimerHandle | None = None


async def _contained(one: _Supervised) -> None:
    """Run the loop; what it raises is kept, since SystemExit and KeyboardInterrupt would end the event loop too."""
    try:
        await one.loop()
    except BaseException as error:
        if ends_task(error):
            raise
        one.error = error
