"""What SIGTERM and SIGINT do: the first begins the shutdown before the server's own handler, a second ends at once."""

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


def chain_signals(hold: Callable[[], None], begin: Callable[[], None]) -> Callable[[], None]:
    """At the first signal call ``hold`` in the handler itself, ``begin`` on the event loop, then the earlier handler.

    uvicorn waits for open connections before the lifespan ends, so streams must be told by the signal itself. A second
    signal ends the process at once, by that signal: the jobs that run are run again by whoever comes next, as after
    any other death. Returns the undo.
    """
    if threading.current_thread() is not threading.main_thread():
        return lambda: None
    loop = asyncio.get_running_loop()
    count = _Count()
    undo: list[tuple[int, Any, Any]] = []
    for number in STOPPING:
        previous = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None, previous: Any = previous) -> None:
            if count.is_second(received):
                end_at_once(received)
            hold()
            _call_on(loop, begin)
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


def _call_on(loop: asyncio.AbstractEventLoop, begin: Callable[[], None]) -> None:
    """Call it on the event loop; there is nothing to begin on one that was closed without a stop."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(begin)


def end_at_once(number: int) -> None:
    """End this process by a signal, whatever it is doing."""
    signal.signal(number, signal.SIG_DFL)
    signal.raise_signal(number)


class _Count:
    """Tells a second signal from the first one passed on by a supervisor.

    A terminal and systemd signal a whole group: uvicorn's worker gets that signal, and SIGTERM from its supervisor.
    That takes half a second where the supervisor has nothing to do; it may first look at every file that it reloads,
    or wait five seconds for a worker that does not answer.
    """

    def __init__(self) -> None:
        self._first_s: float | None = None
        self._may_be_relayed = multiprocessing.parent_process() is not None

    def is_second(self, number: int) -> bool:
        """Whether a signal is meant to end the process at once."""
        now_s = time.monotonic()
        if self._first_s is None:
            self._first_s = now_s
            return False
        if self._may_be_relayed and number == signal.SIGTERM and now_s - self._first_s < _RELAYED_S:
            self._may_be_relayed = False
            return False
        return True


def end_children_at_second_signal() -> None:
    """In a supervisor, whose own handlers pass on the first signal only: at a second one kill its processes and end.

    The signals are read from the interpreter's wakeup descriptor, so that the supervisor's handlers stay as they are.
    """
    told, hear = socket.socketpair()
    hear.setblocking(False)
    signal.set_wakeup_fd(hear.fileno(), warn_on_full_buffer=False)

    def listen() -> None:
        stops = 0
        while numbers := told.recv(64):
            for number in numbers:
                stops += number in STOPPING
                if stops > 1:
                    for child in multiprocessing.active_children():
                        child.kill()
                    os._exit(128 + number)

    threading.Thread(target=listen, args=(), name="asyncbg-second-signal", daemon=True).start()
    _kept.append(hear)


_kept: list[socket.socket] = []
