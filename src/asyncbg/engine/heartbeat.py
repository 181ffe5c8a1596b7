"""The heartbeat: a thread that tells that this process lives, whatever its event loop is busy with."""

import threading
from collections.abc import Callable

from asyncbg.core.error_log import ErrorLog


class Heartbeat:
    """Calls ``beat`` every ``period_s`` seconds from a thread of its own, from :meth:`start` to :meth:`stop`."""

    def __init__(self, beat: Callable[[], None], *, period_s: float, errors: ErrorLog | None = None) -> None:
        """Nothing beats before :meth:`start`."""
        self._beat = beat
        self._errors = errors or ErrorLog()
        self._period_s = period_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="asyncbg-heartbeat", daemon=True)

    def start(self) -> None:
        """Beat once, here and now, then go on in the thread. Raises OSError where even the first beat fails."""
        self._beat()
        self._thread.start()

    def stop(self) -> None:
        """End the thread; it sleeps interruptibly, so this takes no time."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._period_s):
            try:
                self._beat()
                self._errors.recovered("heartbeat")
            except BaseException as error:  # noqa: BLE001 - a thread that ends is missed by nobody until leases lapse
                self._errors.add_once(
                    "heartbeat", error, "the heartbeat cannot be written, leases may lapse", is_ours=True
                )
