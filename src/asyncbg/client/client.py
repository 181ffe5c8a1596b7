"""The client: one method for each thing the service does with jobs, and two for its event streams."""

import asyncio
import json
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp
from pydantic import SecretStr

from asyncbg.client.error import About, is_transient
from asyncbg.client.outage import Outage
from asyncbg.client.remote import AcceptedJob, JobPage, RemoteEvent, RemoteJob
from asyncbg.client.sse_parser import MAX_FRAME_BYTES
from asyncbg.client.stream import EventStream
from asyncbg.client.transport import Params, Sleep, Transport
from asyncbg.clock import Clock, SystemClock
from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    ErrorItem,
    JobCancelledError,
    JobFailedError,
    JobTimeoutError,
)
from asyncbg.job import JobState
from asyncbg.retry import RetryPolicy

Words = str | Sequence[str] | None

RETRY: Final = RetryPolicy(retries=6, base_s=0.25, cap_s=10.0)
POLL_S: Final = 20.0
EARLY_S: Final = 1.0
PAGE: Final = 100


class Client:
    """A client of the service at ``base_url``, which includes the prefix of its routes if there is one.

    ::

        async with Client("http://localhost:8000", api_key=key) as client:
            job = await client.submit("resize", {"album": 7})
            async for event in client.watch(job.id):
                print(event.type, event.data)
            print(await client.result(job.id))

    Errors are the engine's own where they fit (JobNotFoundError, ArgumentsError, OverloadedError, …), else ApiError;
    UnreachableError where no answer came although the request was repeated as ``retry`` says.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: SecretStr | str | None = None,
        session: aiohttp.ClientSession | None = None,
        timeout_s: float = 30.0,
        retry: RetryPolicy = RETRY,
        idle_s: float = 45.0,
        give_up_after_s: float | None = None,
        max_frame_bytes: int = MAX_FRAME_BYTES,
        clock: Clock | None = None,
        rng: random.Random | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        """Nothing is opened before ``async with``; a ``session`` of your own is used and not closed.

        ``timeout_s`` bounds a request, ``idle_s`` the silence of a stream (three heartbeats), after which it is opened
        again. ``give_up_after_s`` bounds how long streams and ``wait`` go on trying while the service is away; by
        default they never give up. ``clock``, ``rng`` and ``sleep`` are for tests.
        """
        _check_bounds(
            timeout_s=timeout_s, idle_s=idle_s, give_up_after_s=give_up_after_s, max_frame_bytes=max_frame_bytes
        )
        self._transport = Transport(
            base_url,
            api_key=api_key,
            session=session,
            timeout_s=timeout_s,
            retry=retry,
            clock=clock or SystemClock(),
            rng=rng or random.Random(),  # noqa: S311 - jitter is no secret
            sleep=sleep,
        )
        self._idle_s = idle_s
        self._give_up_after_s = give_up_after_s
        self._max_frame_bytes = max_frame_bytes

    async def __aenter__(self) -> Self:
        """Open the client."""
        self._transport.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the client and its streams."""
        await self._transport.close()

    async def submit(
        self,
        task: str,
        args: Mapping[str, Any] | None = None,
        *,
        delay_s: float | None = None,
        priority: int | None = None,
        tags: Sequence[str] = (),
        idempotency_key: str | None = None,
    ) -> AcceptedJob:
        """Submit a job; it is on disk when this returns.

        A submission that may have got lost is sent again under the same key, so it never becomes two jobs; give an
        ``idempotency_key`` of your own to have that hold across calls. Raises UnknownTaskError, ArgumentsError,
        OverloadedError, IdempotencyError.
        """
        if isinstance(tags, str):
            raise TypeError("tags should be a sequence of words, not one string")
        body = {"task": task, "args": dict(args or {}), "tags": list(tags), "delay_s": delay_s, "priority": priority}
        key = _checked_idempotency_key(idempotency_key or str(uuid.uuid4()))
        return await self._transport.request(
            "POST",
            "/jobs",
            AcceptedJob.from_json,
            about=About(task=task, key=key),
            body=_as_json(task, {name: value for name, value in body.items() if value is not None}),
            headers={"Idempotency-Key": key},
        )

    async def get(self, job_id: str) -> RemoteJob:
        """The job as it is now. Raises JobNotFoundError."""
        return await self._show(job_id)

    async def wait(self, job_id: str, timeout: float | None = None) -> RemoteJob:
        """The job when it is final. Goes on waiting while the service is away, as after a deploy.

        Raises JobTimeoutError after ``timeout`` seconds, JobNotFoundError.
        """
        outage, clock = self._outage(), self._transport.clock
        until_ms = None if timeout is None else clock.monotonic_ms() + timeout * 1000
        left_s = POLL_S if timeout is None else timeout
        while True:
            trouble = None
            poll_s, asked_ms = max(min(left_s, POLL_S), 0), clock.monotonic_ms()
            try:
                job = await self._show(job_id, wait_s=poll_s, retries=0)
                if job.is_final:
                    return job
                outage.end()
                # A service that stops answers early: do not ask it again and again.
                is_early = clock.monotonic_ms() - asked_ms < poll_s * 500
                delay_s = self._transport.rng.uniform(0, EARLY_S) if is_early else 0
            except AsyncBGError as error:
                if not is_transient(error):
                    raise
                delay_s, trouble = outage.next_delay_s(error), error
            if timeout is not None and until_ms is not None:
                left_s = (until_ms - clock.monotonic_ms()) / 1000
                if left_s <= 0:
                    raise JobTimeoutError(job_id, timeout) from trouble
                delay_s = min(delay_s, left_s)
            await self._transport.sleep(delay_s)

    async def result(self, job_id: str, timeout: float | None = None) -> Any:
        """What the task returned, when it has. Raises JobFailedError, JobCancelledError, and as ``wait`` does."""
        job = await self.wait(job_id, timeout)
        if job.state is JobState.SUCCEEDED:
            return job.result
        if job.state is JobState.FAILED:
            error = job.error
            raise JobFailedError(job_id, error.type if error else "Error", error.message if error else "")
        raise JobCancelledError(job_id, "its job.cancelled event says why")

    async def cancel(self, job_id: str, *, reason: str = "") -> RemoteJob:
        """Cancel the job; one that runs is told to stop. Raises JobStateError where it is final, JobNotFoundError."""
        return await self._change(job_id, "cancel", {"reason": reason})

    async def retry(self, job_id: str) -> RemoteJob:
        """Run a final job again. Raises JobStateError where it is not final, JobNotFoundError."""
        return await self._change(job_id, "retry")

    async def page(
        self,
        *,
        state: Words = None,
        task: str | None = None,
        tag: str | None = None,
        batch: str | None = None,
        owner: str | None = None,
        limit: int = PAGE,
        cursor: str | None = None,
    ) -> JobPage:
        """One page of at most ``limit`` (1 to 200) jobs, newest first; ``cursor`` is the ``next`` of the one before."""
        params = _params(state=state, task=task, tag=tag, batch=batch, owner=owner, limit=str(limit), cursor=cursor)
        return await self._transport.request("GET", "/jobs", JobPage.from_json, about=About(), params=params)

    async def list(
        self,
        *,
        state: Words = None,
        task: str | None = None,
        tag: str | None = None,
        batch: str | None = None,
        owner: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[RemoteJob]:
        """All jobs that fit, newest first, or the newest ``limit`` of them. Pages are fetched as they are needed."""
        left, cursor = limit, None
        while left is None or left > 0:
            size = PAGE if left is None else min(left, PAGE)
            page = await self.page(state=state, task=task, tag=tag, batch=batch, owner=owner, limit=size, cursor=cursor)
            for job in page.items:
                yield job
            left, cursor = None if left is None else left - len(page.items), page.next
            if cursor is None:
                return

    def watch(self, job_id: str, *, last_event_id: str | None = None) -> AsyncGenerator[RemoteEvent, None]:
        """The job's events from its first one, or from the one after ``last_event_id``, to its final one.

        Connections that break are made again and go on exactly where they were. It ends after the job's final event,
        or where the service has nothing more to tell (204); a ``stream.reset`` is told as an event. Raises
        JobNotFoundError, ApiError, StreamError, and UnreachableError after ``give_up_after_s``.
        """
        return self._stream(f"{_path(job_id)}/events", (), job_id, last_event_id)

    def events(
        self,
        *,
        job: Words = None,
        task: Words = None,
        batch: Words = None,
        type: Words = None,  # noqa: A002 - the contract's name
        owner: str | None = None,
        last_event_id: str | None = None,
    ) -> AsyncGenerator[RemoteEvent, None]:
        """The events of all jobs that fit, from now on or after ``last_event_id``: without end, until you stop.

        ``type`` is exact or a prefix: ``job.failed``, ``job.*``. Raises as ``watch`` does.
        """
        params = _params(job=job, task=task, batch=batch, type=type, owner=owner)
        return self._stream("/events", params, None, last_event_id)

    def _stream(
        self, path: str, params: Params, job_id: str | None, last_event_id: str | None
    ) -> AsyncGenerator[RemoteEvent, None]:
        return EventStream(
            self._transport,
            self._outage(),
            path,
            params=params,
            job_id=job_id,
            last_event_id=last_event_id,
            idle_s=self._idle_s,
            max_frame_bytes=self._max_frame_bytes,
        ).events()

    async def _show(self, job_id: str, *, wait_s: float = 0, retries: int | None = None) -> RemoteJob:
        return await self._transport.request(
            "GET",
            _path(job_id),
            RemoteJob.from_json,
            about=About(job_id=job_id),
            params=_params(wait=f"{wait_s:.3f}" if wait_s else None),
            extra_s=wait_s,
            retries=retries,
        )

    async def _change(self, job_id: str, action: str, body: Mapping[str, Any] | None = None) -> RemoteJob:
        """Not repeated where it may have been carried out: the second one would be refused for what the first did."""
        return await self._transport.request(
            "POST",
            f"{_path(job_id)}/{action}",
            RemoteJob.from_json,
            about=About(job_id=job_id, action=action),
            body=body,
            repeatable=False,
        )

    def _outage(self) -> Outage:
        return Outage(clock=self._transport.clock, rng=self._transport.rng, give_up_after_s=self._give_up_after_s)


def _check_bounds(**bounds: float | None) -> None:
    for name, bound in bounds.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} should be more than 0, not {bound!r}")


def _path(job_id: str) -> str:
    """The path of a job. Raises ValueError for what cannot be an id."""
    if not job_id.strip("."):
        raise ValueError(f"job_id should be the id of a job, not {job_id!r}")
    return f"/jobs/{quote(job_id, safe='')}"


def _params(**given: Words) -> Params:
    """A query: what is None is left out, a sequence is given one by one."""
    return [
        (name, word)
        for name, words in given.items()
        if words is not None
        for word in ([words] if isinstance(words, str) else words)
    ]


def _as_json(task: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body, if it has a JSON form. Raises ArgumentsError, without the values."""
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentsError(task, [ErrorItem(loc=["args"], msg=f"no JSON form: {error}", type="json")]) from error
    return body


def _checked_idempotency_key(key: str) -> str:
    if not (key.isascii() and key.isprintable() and len(key) <= 255):
        raise ValueError("idempotency_key should be 1 to 255 printable ASCII characters")
    return key
