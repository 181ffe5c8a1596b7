"""The current job: what a running task sees of its job, from the event loop or any thread."""

import asyncio
import concurrent.futures
import contextlib
import json
import logging
import threading
from collections.abc import Callable, Coroutine, Generator, Mapping
from contextvars import ContextVar
from dataclasses import replace
from typing import Any, Protocol, SupportsFloat

from asyncbg.core.event import dump
from asyncbg.core.event_model import RESERVED_PREFIXES, EventModel
from asyncbg.core.job import Lease, ProgressValue
from asyncbg.errors import LeaseLostError, NotRunningError
from asyncbg.privacy.marks import ArgumentRedactor
from asyncbg.store.sqlite.database import Guard

logger = logging.getLogger("asyncbg")
_NOTHING = (0, None, "", "")
_NUMBERS = (int, float)
_MAX_EVENT_BYTES = 256 * 1024
_MAX_EVENT_NAME = 255
_current: ContextVar["CurrentJob | None"] = ContextVar("asyncbg_current_job", default=None)


class Reporter(Protocol):
    """Receives what a running job reports; implemented by the progress reporter."""

    def progress_changed(self, job: "CurrentJob") -> None:
        """Publish and store ``job.progress`` soon; called on the event loop, at most once until it is read."""
        ...

    async def publish(self, job: "CurrentJob", event_type: str, data: str) -> None:
        """Store and publish a custom event of the task."""
        ...

    def guard(self, job: "CurrentJob") -> Guard:
        """Return the lease check for a transaction of the task."""
        ...

    async def holds(self, job: "CurrentJob") -> bool:
        """Whether the job's attempt still has its lease."""
        ...


class Cancellation:
    """The cancellation state of an attempt, set by a cancel, a timeout or a shutdown. It is true once set.

    Safe from any thread: ``while not current_job().cancelled: …``.
    """

    __slots__ = ("_event", "_is_set", "_was_checked", "reason")
    _making = threading.Lock()

    def __init__(self) -> None:
        self.reason = ""
        """The reason given by the caller who cancelled."""
        self._is_set = False
        self._was_checked = False
        self._event: threading.Event | None = None

    def __bool__(self) -> bool:
        """Whether the attempt was cancelled; records that the task has checked it."""
        if self._is_set:
            self._was_checked = True
        return self._is_set

    @property
    def is_set(self) -> bool:
        """Whether the attempt was cancelled. For the worker: it does not record a check by the task."""
        return self._is_set

    @property
    def was_checked(self) -> bool:
        """Whether the task has checked it since it was set."""
        return self._was_checked

    def raise_if_cancelled(self) -> None:
        """Raise ``asyncio.CancelledError`` if the attempt was cancelled."""
        if self:
            raise asyncio.CancelledError(self.reason)

    def wait(self, timeout: float | None = None) -> bool:
        """Block this thread until cancellation, at most ``timeout`` seconds. Return whether it is set."""
        with self._making:
            event = self._event = self._event or threading.Event()
        if not self._is_set:
            event.wait(timeout)
        return bool(self)

    def set(self, reason: str) -> None:
        """Cancel the attempt. Called by the worker."""
        self.reason = reason
        self._is_set = True
        with self._making:
            event = self._event
        if event is not None:
            event.set()


class Publication(Coroutine[Any, Any, None]):
    """The awaitable that ``publish`` returns. In a thread the event is already stored, so it need not be awaited."""

    def __init__(self, work: Coroutine[Any, Any, None] | None) -> None:
        self._work = work

    def send(self, value: Any) -> Any:
        if self._work is None:
            raise StopIteration
        return self._work.send(value)

    def throw(self, *error: Any) -> Any:
        if self._work is None:
            raise error[0]
        return self._work.throw(*error)

    def close(self) -> None:
        if self._work is not None:
            self._work.close()

    def __await__(self) -> Generator[Any, Any, None]:
        if self._work is not None:
            yield from self._work.__await__()


class CurrentJob:
    """The running job. Get it with :func:`current_job`."""

    __slots__ = (
        "_latest",
        "_lease",
        "_loop",
        "_redactor",
        "_reporter",
        "_thread",
        "cancelled",
        "changed",
        "now_ms",
        "reported_s",
    )  # fmt: skip

    def __init__(self, lease: Lease, reporter: Reporter, now_ms: Callable[[], int]) -> None:
        """Create the job of a claim; ``reporter`` receives its progress and events."""
        self.now_ms = now_ms
        self._lease = lease
        self._reporter = reporter
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0
        self._redactor = ArgumentRedactor({}, {})
        self._latest: tuple[float, float | None, str, str] | None = None
        self.changed = False
        self.reported_s = 0.0
        self.cancelled = Cancellation()
        """Whether this attempt was asked to stop. A plain ``def`` must check it: threads cannot be interrupted."""

    @property
    def lease(self) -> Lease:
        """The lease of this attempt."""
        return self._lease

    @property
    def id(self) -> str:
        """The job's id. It is the same for all attempts: use it as idempotency key towards other services."""
        return self._lease.id

    @property
    def task(self) -> str:
        """The task's name."""
        return self._lease.task

    @property
    def owner(self) -> str:
        """The owner of the job."""
        return self._lease.owner

    @property
    def batch(self) -> str:
        """The id of the batch, which is that of its first job."""
        return self._lease.batch

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        return self._lease.attempt

    @property
    def max_attempts(self) -> int:
        """Maximum number of attempts; an error in the last one is final."""
        return self._lease.max_attempts

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags the job was submitted with."""
        return tuple(json.loads(self._lease.tags))

    def publish(self, event: str | EventModel, data: Mapping[str, Any] | None = None) -> "Publication":
        """Store a custom event and publish it once it is on disk: an EventModel, or a name and data.

        ``data`` must have a JSON form. Fields that the class marks as personal are stored and sent as pseudonyms, and
        so are the job's personal arguments where a text repeats them; other text that looks personal is redacted.
        NaN and infinity are stored as null. Raise ValueError for data of more than 256 KiB and for the reserved names
        that begin with ``job.``, ``stream.`` or ``loop.``, TypeError for data without a JSON form.

        Await it in a coroutine. In a plain function just call it: in a thread it returns when the event is on disk.
        """
        if not isinstance(event, EventModel):
            _require_event(event, data)
            name, payload = event, self.clean_json(json.loads(_event_text(event, dict(data or {}))))
        elif data is None:
            name, payload = event.event_type, event.masked(self.clean_json)
        else:
            raise TypeError(f"{type(event).__name__} contains its data; pass no other data")
        if name.startswith(RESERVED_PREFIXES) or not name.replace(".", "").replace("_", "").isalnum():
            raise ValueError(f"{name!r} is not a valid event name; use noun.verb, such as email.sent")
        publication = self._publish(name, _event_text(name, payload))
        if self._loop is None or threading.get_ident() == self._thread:
            return Publication(publication)
        done = _submit_to(self._loop, publication)
        if _has_loop():
            return Publication(_await_future(done))
        _block_until_done(done, self._loop)
        return Publication(None)

    async def _publish(self, name: str, data: str) -> None:
        await self._reporter.publish(self, name, data)

    @property
    def guard(self) -> Guard:
        """The lease check for a transaction in the jobs' database: call it first, with the connection.

        It raises LeaseLostError if this attempt has lost its lease, as after a suspended process, so that the
        transaction does not interfere with the attempt that runs now.
        """
        return self._reporter.guard(self)

    async def require_lease(self) -> None:
        """Raise LeaseLostError if this attempt has lost its lease. Await it right before an external effect."""
        if not await self._reporter.holds(self):
            raise LeaseLostError(self.id)

    def redact_with(self, redactor: ArgumentRedactor) -> None:
        """Redact the job's personal values from what it reports from now on. Called by the executor."""
        self._redactor = redactor

    def clean(self, text: str) -> str:
        """Return ``text`` with this job's personal values as pseudonyms, and other personal or secret text redacted."""
        return self._redactor.clean(text)

    def clean_json(self, value: Any) -> Any:
        """Return a JSON value with every text in it cleaned."""
        return self._redactor.clean_json(value)

    @property
    def redacted_progress(self) -> ProgressValue | None:
        """The progress with personal data redacted, to be shown and stored."""
        old = self.progress
        if old is None or not (old.message or old.unit):
            return old
        shown = old.as_dict()  # of bounded length, so that redaction takes bounded time
        return replace(old, message=self.clean(shown["message"]), unit=self.clean(shown["unit"]))

    @property
    def progress(self) -> ProgressValue | None:
        """The latest progress. The value is built here, since progress is reported more often than read."""
        if self._latest is None:
            return None
        current, total, message, unit = self._latest
        return ProgressValue(current=current, total=total, message=message, unit=unit)

    def report(
        self, current: float, total: float | None = None, message: str | None = None, unit: str | None = None
    ) -> None:
        """Set the progress; omitted values are kept. Does not block; safe in any thread.

        Raise TypeError for values that are not numbers.
        """
        if type(current) not in _NUMBERS:
            current = _number("current", current)
        if type(total) not in _NUMBERS and total is not None:
            total = _number("total", total)
        _, old_total, old_message, old_unit = self._latest or _NOTHING
        self._latest = (
            current,
            old_total if total is None else total,
            old_message if message is None else message,
            old_unit if unit is None else unit,
        )
        if not self.changed:
            self._notify_reporter()

    def advance(self, n: float) -> None:
        """Add ``n`` to the current value."""
        self.report((self._latest or _NOTHING)[0] + (n if type(n) in _NUMBERS else _number("n", n)))

    def _notify_reporter(self) -> None:
        self.changed = True
        if threading.get_ident() == self._thread:
            self._reporter.progress_changed(self)
        elif self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the thread outlived the engine
                self._loop.call_soon_threadsafe(self._reporter.progress_changed, self)

    def bind_loop(self) -> None:
        """Store the event loop of the attempt, for calls from other threads."""
        self._loop, self._thread = asyncio.get_running_loop(), threading.get_ident()


def _number(name: str, value: object) -> float:
    if not isinstance(value, SupportsFloat):
        raise TypeError(f"{name} of a progress report should be a number, not {type(value).__name__}")
    return float(value)


def _require_event(name: object, data: object) -> None:
    """Raise TypeError for an invalid name or data of an event, ValueError for a name that is too long."""
    if not isinstance(name, str) or not isinstance(data, Mapping | None):
        given = f"{type(name).__name__} and {type(data).__name__}"
        raise TypeError(f"an event is an EventModel, or a name and a mapping of its data, not {given}")
    if len(name) > _MAX_EVENT_NAME:
        raise ValueError(f"the name of an event should be at most {_MAX_EVENT_NAME} characters, not {len(name):,}")


def _event_text(name: str, data: Mapping[str, Any]) -> str:
    try:
        text = dump(data)
    except (TypeError, ValueError, RecursionError) as error:
        raise TypeError(f"the data of the event {name} has no JSON form: {error}") from error
    if len(text) > _MAX_EVENT_BYTES:
        raise ValueError(f"the data of the event {name} is larger than 256 KiB; publish where it is kept instead")
    return text


def current_job() -> CurrentJob:
    """Return the running job. Raise NotRunningError outside a job, also where a task is awaited inline.

    It is available in coroutines, in plain functions, and in what they run by ``asyncio.to_thread``,
    ``run_in_threadpool`` or ``anyio.to_thread``. A ``threading.Thread`` or an executor starts with an empty context:
    pass it the job.
    """
    job = _current.get()
    if job is None:
        raise NotRunningError(f"no job is running: current_job() works inside a task that asyncbg runs{_remedy()}")
    return job


def find_current_job() -> CurrentJob | None:
    """Return the running job, None outside a job."""
    return _current.get()


def _remedy() -> str:
    return "" if is_task_side() else f"; {UNKNOWN_THREAD}"


UNKNOWN_THREAD = (
    "a thread that was started by threading.Thread, loop.run_in_executor or an executor has no current job: "
    "call current_job() in the task and pass what it returns (or the task's own progress), "
    "start the thread by asyncio.to_thread, or run its function by contextvars.copy_context().run"
)


def is_task_side() -> bool:
    """Whether a task or a unit test may be running here: the main thread, or a thread with an event loop."""
    return threading.current_thread() is threading.main_thread() or _has_loop()


def _has_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


async def require_lease() -> None:
    """Raise LeaseLostError if the running attempt has lost its lease; do nothing outside a job."""
    job = _current.get()
    if job is not None:
        await job.require_lease()


def set_current_job(job: CurrentJob) -> None:
    """Make ``job`` the current job for the rest of this asyncio task."""
    job.bind_loop()
    _current.set(job)


def _submit_to(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, None]) -> concurrent.futures.Future[None]:
    """Start ``work`` on its loop, from another thread. Raise NotRunningError if the loop is closed."""
    try:
        return asyncio.run_coroutine_threadsafe(work, loop)
    except RuntimeError:
        work.close()
        raise NotRunningError(_LOOP_GONE) from None


_LOOP_GONE = "the event loop of this job is closed: the thread outlived the engine"
_POLL_S = 0.5


def _block_until_done(done: concurrent.futures.Future[None], loop: asyncio.AbstractEventLoop) -> None:
    """Block this thread until it is done. Raise NotRunningError if the loop was closed."""
    while not concurrent.futures.wait([done], timeout=_POLL_S).done:
        if loop.is_closed():
            raise NotRunningError(_LOOP_GONE)
    done.result()


async def _await_future(done: concurrent.futures.Future[None]) -> None:
    await asyncio.wrap_future(done)
