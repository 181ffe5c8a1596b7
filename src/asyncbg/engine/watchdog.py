"""The watchdog: a thread that detects a blocked event loop, and reports the task and the line."""

import asyncio
import json
import logging
import sys
import sysconfig
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

from asyncbg.core.clock import Clock
from asyncbg.core.engine_events import LoopBlocked
from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.core.event import Event, dump
from asyncbg.core.job import Lease
from asyncbg.store.base import Backend

logger = logging.getLogger("asyncbg")

LOOP_BLOCKED = LoopBlocked.event_type
"""The type of the event."""

_TICKS_PER_LIMIT = 8
_MAX_TASKS = 1000
_MAX_NOTED, _LONGEST_NAME = 8, 200
_OTHER = "other"
_OWN = "asyncbg"
_INSTALLED = ("site-packages", "dist-packages")
_STDLIB = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib")})
_MACHINERY = {
    "asyncio.base_events": ("_run_once", "run_forever", "run_until_complete"),
    "asyncio.events": ("_run",),
    "asyncio.runners": ("run",),
}
"""Frames of the event loop itself: frames outside them show how the loop was started, not what blocks it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Blockage:
    """A blocked event loop: the line, the seconds, and the job's task, or the coroutine where no job runs."""

    lease: Lease | None
    task: str
    line: str
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the data of the event ``loop.blocked``."""
        return {"task": self.task, "line": self.line, "seconds": round(self.seconds, 3)}


class Watchdog:
    """Watches one event loop from :meth:`start` to :meth:`stop`, and reports what blocks it longer than ``limit_s``.

    The loop ticks a few times in each ``limit_s``, and the thread sleeps until a tick is overdue, so both are cheap. A
    warning is logged while the loop is blocked; ``report`` is called on the loop as soon as it runs again. A process
    that was stopped as a whole (SIGSTOP, a paused machine) blocks nothing.
    """

    def __init__(
        self,
        *,
        limit_s: float,
        lease_of: Callable[[str], Lease | None],
        report: Callable[[Blockage], None],
        note: Callable[[str], None],
        errors: ErrorLog | None = None,
    ) -> None:
        """``lease_of`` returns the job that the asyncio task of a name runs, or None.

        ``note`` receives the counts, as JSON, while the loop is still blocked. Both are called in the thread.
        """
        self._limit_s = limit_s
        self._tick_s = limit_s / _TICKS_PER_LIMIT
        self._lease_of = lease_of
        self._report = report
        self._note = note
        self._errors = errors or ErrorLog()
        self._counts: Counter[str] = Counter()
        self._lines: dict[str, str] = {}
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._was_suspended = False

    @property
    def counts(self) -> Mapping[str, int]:
        """How often the loop was blocked, by task."""
        return dict(self._counts)

    def start(self) -> None:
        """Watch the running event loop."""
        self._ended.clear()
        self._tick(asyncio.get_running_loop())
        arguments = (asyncio.get_running_loop(), threading.get_ident())
        self._thread = threading.Thread(target=self._watch_on, args=arguments, name="asyncbg-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; its sleep is interruptible, so this does not wait."""
        self._ended.set()
        if self._timer is not None:
            self._timer.cancel()
        if self._thread is not None:
            self._thread.join()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = time.monotonic() + self._tick_s
        self._timer = loop.call_later(self._tick_s, self._tick, loop)

    def _watch_on(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        """Watch until stopped. An error while frames are inspected is logged, and the watch continues."""
        while not self._ended.is_set():
            try:
                self._watch(loop, thread_id)
            except BaseException as error:  # noqa: BLE001 - the thread must not end
                self._errors.add("watchdog", error, "the watchdog failed and continues", is_ours=True)
                self._ended.wait(self._limit_s)

    def _watch(self, loop: asyncio.AbstractEventLoop, thread_id: int) -> None:
        due = self._due
        while self._sleep_until(due + self._limit_s / 2):
            if self._due != due:
                due = self._due
                continue
            suspended, holder = self._was_suspended, _running_in(thread_id)
            if not self._sleep_until(due + self._limit_s):
                return
            if self._due != due:
                due = self._due
            elif suspended or self._was_suspended:
                self._ended.wait(self._limit_s)  # give the loop time to tick
            else:
                if holder is not None and holder is _running_in(thread_id):  # else many short callbacks run
                    self._report_blockage(loop, thread_id, due)
                due = self._wait_for_tick(due)

    def _sleep_until(self, deadline: float) -> bool:
        """Sleep. Return False when stopped. Record whether the whole process was suspended meanwhile."""
        cpu_s, left_s = time.process_time(), deadline - time.monotonic()
        self._was_suspended = False
        if left_s <= 0:
            return not self._ended.is_set()
        if self._ended.wait(left_s):
            return False
        late_s = time.monotonic() - deadline
        self._was_suspended = late_s > self._limit_s and time.process_time() - cpu_s < late_s / 2
        return True

    def _wait_for_tick(self, due: float) -> float:
        while self._due == due and not self._ended.wait(self._tick_s):
            pass
        return self._due

    def _report_blockage(self, loop: asyncio.AbstractEventLoop, thread_id: int, due: float) -> None:
        frame = sys._current_frames().get(thread_id)
        holder = asyncio.current_task(loop)
        found = None if frame is None else blocking_frame(frame)
        if found is None or self._due != due:
            return  # the loop waits for the kernel or for a CPU: it is not blocked
        blockage = self._describe(holder, found)
        logger.warning(
            "event loop blocked for more than %g s by %s at %s: nothing else runs meanwhile; await there, or make "
            "it a plain def, which runs in a thread", self._limit_s, blockage.task, blockage.line,
        )  # fmt: skip
        name = blockage.task if blockage.task in self._counts or len(self._counts) < _MAX_TASKS else _OTHER
        self._counts[name] += 1
        self._lines[name] = blockage.line
        self._write_note()
        try:
            loop.call_soon_threadsafe(self._released, blockage, due)
        except RuntimeError:
            logger.debug("the loop was closed while it was blocked")

    def _write_note(self) -> None:
        worst = [
            {"task": name[:_LONGEST_NAME], "times": many, "line": self._lines[name][-_LONGEST_NAME:]}
            for name, many in self._counts.most_common(_MAX_NOTED)
        ]
        try:
            self._note(json.dumps(worst))
        except OSError as error:
            logger.debug("the blockages cannot be written: %s", error)

    def _describe(self, holder: "asyncio.Task[Any] | None", found: FrameType) -> Blockage:
        if holder is None:
            return Blockage(lease=None, task="a callback", line=location_of(found), seconds=0.0)
        name = holder.get_name()
        lease = self._lease_of(name)
        task = getattr(holder.get_coro(), "__qualname__", name) if lease is None else lease.task
        return Blockage(lease=lease, task=task, line=location_of(found), seconds=0.0)

    def _released(self, blockage: Blockage, due: float) -> None:
        if not self._ended.is_set():
            self._report(replace(blockage, seconds=time.monotonic() - due))


class BlockageRecorder:
    """Records blockages as events: stored with the job that blocked the loop, or only published if no job did."""

    def __init__(self, backend: Backend, publish: Callable[[Event], None], *, clock: Clock) -> None:
        """Store in ``backend``; ``publish`` receives events that belong to no job."""
        self._backend = backend
        self._publish = publish
        self._clock = clock
        self._writes: set[asyncio.Task[None]] = set()

    def report(self, blockage: Blockage) -> None:
        """Record a blockage; call it on the event loop."""
        data = dump(blockage.as_dict())
        if blockage.lease is None:
            self._publish(self._event(blockage, data))
            return
        # Submitted before anything else runs, so that it is stored before the job's final event.
        stored = self._backend.record(blockage.lease, LOOP_BLOCKED, data)
        task = asyncio.create_task(self._await_stored(stored, blockage, data), name="asyncbg-blockage")
        self._writes.add(task)
        task.add_done_callback(self._writes.discard)

    async def close(self) -> None:
        """Wait for pending writes."""
        if self._writes:
            await asyncio.wait(self._writes)

    async def _await_stored(self, stored: Awaitable[bool], blockage: Blockage, data: str) -> None:
        try:
            is_stored = await stored
        except BaseException as error:
            if ends_task(error):
                raise
            logger.warning("cannot record that the event loop was blocked: %s", type(error).__name__)
            is_stored = False
        if not is_stored:
            self._publish(self._event(blockage, data))

    def _event(self, blockage: Blockage, data: str) -> Event:
        """Return an event without a job: nothing may be published for a job after its final event."""
        return Event(0, LOOP_BLOCKED, self._clock.now_ms(), "", blockage.task, "", "", 0, data)


def _running_in(thread_id: int) -> FrameType | None:
    """Return the frame that the event loop of that thread has called; it is the same frame during one call."""
    innermost = sys._current_frames().get(thread_id)
    called = [] if innermost is None else list(_called_by_loop(innermost))
    return called[-1] if called else None


def blocking_frame(innermost: FrameType) -> FrameType | None:
    """Return the frame that blocks the loop: the innermost of the application, else of a library, else of asyncbg.

    None if the loop itself is on top, so that nothing blocks it.
    """
    frames = list(_called_by_loop(innermost))
    for is_meant in (_is_application, _is_library):
        found = next(filter(is_meant, frames), None)
        if found is not None:
            return found
    return frames[0] if frames else None


def location_of(frame: FrameType) -> str:
    """Return ``package/module.py:12 in function``, relative to the import path: no absolute directory."""
    path = Path(frame.f_code.co_filename)
    roots = [root for root in (Path(entry or ".").absolute() for entry in sys.path) if path.is_relative_to(root)]
    shown = path.relative_to(max(roots, key=lambda root: len(root.parts))) if roots else path.name
    return f"{shown}:{frame.f_lineno} in {frame.f_code.co_qualname}"


def _called_by_loop(innermost: FrameType) -> Iterator[FrameType]:
    """Yield frames from the innermost outwards, up to what the loop called; none if the loop is polling."""
    frame: FrameType | None = innermost
    held: list[FrameType] = []
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if frame.f_code.co_name in _MACHINERY.get(module, ()):
            break
        held.append(frame)
        frame = frame.f_back
    if len(held) == 1 and held[0].f_globals.get("__name__") == "selectors":
        return
    yield from held


def _is_application(frame: FrameType) -> bool:
    return _is_library(frame) and not any(part in _INSTALLED for part in Path(frame.f_code.co_filename).parts)


def _is_library(frame: FrameType) -> bool:
    """Whether the frame is neither of the standard library nor of asyncbg."""
    if frame.f_globals.get("__name__", "").partition(".")[0] == _OWN:
        return False
    name = frame.f_code.co_filename
    return any(part in _INSTALLED for part in Path(name).parts) or not (
        name.startswith(_STDLIB) or name.startswith("<frozen")
    )
