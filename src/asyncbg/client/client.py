"""The client: one method for each operation on jobs, and two for the event streams."""

import asyncio
import random
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
from pydantic import SecretStr

from asyncbg.client.error import About, is_transient
from asyncbg.client.remote import AcceptedJob, JobPage, RemoteAttempt, RemoteEvent, RemoteJob
from asyncbg.client.sse_parser import MAX_FRAME_BYTES
from asyncbg.client.stream import ResumingStream
from asyncbg.client.transport import Call, Deadline, Outage, Sleep, Transport
from asyncbg.client.wire import Params, Words, check_bounds, checked_idempotency_key, job_path, json_body, query
from asyncbg.core.clock import Clock, SystemClock
from asyncbg.core.job import JobState
from asyncbg.core.retry import RetryPolicy
from asyncbg.errors import (
    AsyncBGError,
    JobCancelledError,
    JobFailedError,
    JobTimeoutError,
    TracebackError,
)

RETRY: Final = RetryPolicy(retries=6, base_s=0.25, cap_s=10.0)
POLL_S: Final = 20.0
EARLY_S: Final = 1.0
SLACK_S: Final = 1.0
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
    UnreachableError where no response arrived after all retries of ``retry``.
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
        again. ``give_up_after_s`` bounds how long streams and ``wait`` retry while the service is unavailable; by
        default without a limit. ``clock``, ``rng`` and ``sleep`` are for tests.
        """
        check_bounds(
            timeout_s=timeout_s, idle_s=idle_s, give_up_after_s=give_up_after_s, max_frame_bytes=max_frame_bytes
        )
        self._transport = Transport(
            base_url,
            api_key=api_key,
            session=session,
            timeout_s=timeout_s,
            retry=retry,
            clock=clock or SystemClock(),
            rng=rng or random.Random(),  # nosec B311  # noqa: S311 - jitter is no secret
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
        key = checked_idempotency_key(idempotency_key or str(uuid.uuid4()))
        call = Call(
            method="POST",
            path="/jobs",
            headers={"Idempotency-Key": key},
            body=json_body(task, {name: value for name, value in body.items() if value is not None}),
            about=About(task=task, key=key),
        )
        return await self._transport.request(call, AcceptedJob.from_json)

    async def get(self, job_id: str) -> RemoteJob:
        """Return the job in its current state. Raises JobNotFoundError."""
        call = Call(path=job_path(job_id), about=About(job_id=job_id))
        return await self._transport.request(call, RemoteJob.from_json)

    async def wait(self, job_id: str, timeout: float | None = None) -> RemoteJob:
        """Return the job when it is final. Keeps waiting while the service is unavailable, as during a deploy.

        Raises JobTimeoutError after ``timeout`` seconds, JobNotFoundError.
        """
        outage, deadline = self._outage(), Deadline(self._transport.clock, timeout)
        while True:
            trouble = None
            try:
                job, delay_s = await self._poll(job_id, deadline.left_s())
                if job.is_final:
                    return job
                outage.end()
            except AsyncBGError as error:
                if not is_transient(error):
                    raise
                delay_s, trouble = outage.next_delay_s(error), error
            left_s = deadline.left_s()
            if timeout is not None and left_s <= 0:
                raise JobTimeoutError(job_id, timeout) from trouble
            await self._transport.sleep(min(delay_s, left_s))

    async def result(self, job_id: str, timeout: float | None = None) -> Any:
        """Wait for the result of the task. Raises JobFailedError, JobCancelledError, and as ``wait`` does."""
        job = await self.wait(job_id, timeout)
        if job.state is JobState.SUCCEEDED:
            return job.result
        if job.state is JobState.FAILED:
            error = job.error
            failure = JobFailedError(job_id, error.type if error else "Error", error.message if error else "")
            raise failure from await self._cause(job_id)
        raise JobCancelledError(job_id, "its job.cancelled event says why")

    async def attempts(self, job_id: str) -> Sequence[RemoteAttempt]:
        """Return the latest attempts, oldest first, each with its error and traceback. Raises JobNotFoundError."""
        call = Call(path=f"{job_path(job_id)}/attempts", about=About(job_id=job_id))
        return await self._transport.request(
            call, lambda body: tuple(RemoteAttempt.from_json(item) for item in body["items"])
        )

    async def _cause(self, job_id: str) -> TracebackError | None:
        """Return the stored traceback of a failed job; None where it is not available."""
        try:
            attempts = await self.attempts(job_id)
        except AsyncBGError:
            return None
        text = attempts[-1].traceback if attempts else None
        return None if text is None else TracebackError(job_id, text)

    async def cancel(self, job_id: str, *, reason: str = "") -> RemoteJob:
        """Cancel the job; a running job is asked to stop. Raises JobStateError where it is final, JobNotFoundError."""
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
        """Return one page of up to ``limit`` (1 to 200) jobs, newest first; ``cursor`` is the last page's ``next``."""
        params = query(state=state, task=task, tag=tag, batch=batch, owner=owner, limit=str(limit), cursor=cursor)
        return await self._transport.request(Call(path="/jobs", params=params), JobPage.from_json)

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
        """Iterate over matching jobs, newest first, or the newest ``limit``. Pages are fetched on demand."""
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
        """Iterate over the job's events from its first one, or from the one after ``last_event_id``, to its final one.

        Broken connections are reopened and resume where they were. It ends after the job's final event, or where the
        service has no more events (204); a ``stream.reset`` is an event. Raises
        JobNotFoundError, ApiError, StreamError, and UnreachableError after ``give_up_after_s``.
        """
        return self._stream(f"{job_path(job_id)}/events", (), job_id, last_event_id)

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
        """Iterate over the events of all matching jobs, from now on or after ``last_event_id``, without end.

        ``type`` is exact or a prefix: ``job.failed``, ``job.*``. Raises as ``watch`` does.
        """
        params = query(job=job, task=task, batch=batch, type=type, owner=owner)
        return self._stream("/events", params, None, last_event_id)

    def _stream(
        self, path: str, params: Params, job_id: str | None, last_event_id: str | None
    ) -> AsyncGenerator[RemoteEvent, None]:
        return ResumingStream(
            self._transport,
            self._outage(),
            path,
            params=params,
            job_id=job_id,
            last_event_id=last_event_id,
            idle_s=self._idle_s,
            max_frame_bytes=self._max_frame_bytes,
        ).events()

    async def _poll(self, job_id: str, left_s: float) -> tuple[RemoteJob, float]:
        """Poll the job once; return it and the pause before the next poll.

        A stopping service responds early, so the next poll must not follow immediately.
        """
        clock, poll_s = self._transport.clock, min(left_s, POLL_S)
        call = Call(
            path=job_path(job_id),
            params=query(wait=f"{poll_s:.3f}"),
            about=About(job_id=job_id),
            timeout_s=poll_s + min(self._transport.timeout_s, max(left_s - poll_s, SLACK_S)),
        )
        asked_ms = clock.monotonic_ms()
        job = await self._transport.request(call, RemoteJob.from_json, retries=0)
        is_early = clock.monotonic_ms() - asked_ms < poll_s * 500
        return job, self._transport.rng.uniform(0, EARLY_S) if is_early else 0.0

    async def _change(self, job_id: str, action: str, body: Mapping[str, Any] | None = None) -> RemoteJob:
        """Not repeated where it may have taken effect: a repeat would be refused because of the first."""
        call = Call(
            method="POST",
            path=f"{job_path(job_id)}/{action}",
            body=body,
            about=About(job_id=job_id, action=action),
            is_repeatable=False,
        )
        return await self._transport.request(call, RemoteJob.from_json)

    def _outage(self) -> Outage:
        return Outage(clock=self._transport.clock, rng=self._transport.rng, give_up_after_s=self._give_up_after_s)
