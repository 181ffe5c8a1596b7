"""Handlers of SIGTERM and SIGINT: the first signal begins the shutdown, a second ends the process."""

import asyncio
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

_RELAYED_S = 10.0
STOPPING = (signal.SIGTERM, signal.SIGINT)


def chain_signals(stop_claiming: Callable[[], None], begin_drain: Callable[[], None]) -> Callable[[], None]:
    """At the first signal call ``stop_claiming``, then ``begin_drain`` on the event loop, then the earlier handler.

    uvicorn waits for open connections before the lifespan ends, so the signal itself must end the streams. A second
    signal ends the process immediately, by that signal; its running jobs are rescued as after a crash. Return a
    function that restores the earlier handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    counter = _SignalCounter()
    undo: list[tuple[int, Any, Any]] = []
    for number in STOPPING:
        previous = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None, previous: Any = previous) -> None:
            if counter.is_second(received):
                end_at_once(received)
            stop_claiming()
            _call_on(loop, begin_drain)
            if callable(previous):
                previous(received, frame)
            elif previous == signal.SIG_DFL:
                end_at_once(received)

        signal.signal(number, handle)
        undo.append((number, handle, previous))

    def restore() -> None:
        for number, handle, previous in undo:
            if signal.getsignal(number) is handle:
                signal.signal(number, previous)

    return restore


def _call_on(loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
    """Call ``callback`` on the event loop, unless the loop was closed without a stop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(callback)


def end_at_once(number: int) -> None:
    """End this process immediately by a signal."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


class _SignalCounter:
    """Distinguishes a second signal from a first one that a supervisor relays.

    A terminal and systemd signal a whole group: uvicorn's worker gets that signal, and SIGTERM from its supervisor.
    The relayed one takes half a second or more: the supervisor may first check every file that it reloads, or wait
    five seconds for a worker that does not respond.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._may_be_relayed = multiprocessing.parent_process() is not None

    def is_second(self, number: int) -> bool:
        """Whether a signal should end the process immediately."""
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            return False
        if self._may_be_relayed and number == signal.SIGTERM and now_s - self._first_s < _RELAYED_S:
            self._may_be_relayed = False
            return False
        return True


def end_children_at_second_signal() -> None:
    """In a supervisor, whose handlers relay only the first signal: kill its processes and exit at a second one.

    The signals are read from the interpreter's wakeup descriptor, so that the supervisor's handlers stay unchanged.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        stops = 0
        while numbers := reader.recv(64):
            for number in numbers:
                stops += number in STOPPING
                if stops > 1:
                    for child in multiprocessing.active_children():
                        child.kill()
                    os._exit(128 + number)

    threading.Thread(target=listen, args=(), name="asyncbg-second-signal", daemon=True).start()
    _kept.append(writer)


_kept: list[socket.socket] = []
