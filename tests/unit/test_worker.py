"""The worker: claims what there is room for, runs it, and settles what it ended in, whatever a task does."""

import asyncio
import concurrent.futures
import functools
import json
import logging
import random
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from pydantic import BaseModel, model_serializer
from tests.store.conftest import Store

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event, encode
from asyncbg.core.job import JobRecord, JobState
from asyncbg.core.retry import RetryPolicy
from asyncbg.engine import Engine
from asyncbg.engine.context import current_job
from asyncbg.engine.executor import Executor
from asyncbg.engine.maintenance import every
from asyncbg.engine.options import TaskOptions
from asyncbg.engine.progress import Progress, ProgressReporter
from asyncbg.engine.registry import InMemoryJobs, Registry
from asyncbg.engine.task import TaskDefinition
from asyncbg.engine.worker import Worker
from asyncbg.errors import (
    ArgumentsError,
    DatabaseError,
    FinalError,
    IdempotencyError,
    JobCancelledError,
    JobFailedError,
    JobStateError,
    OverloadedError,
)
from asyncbg.settings import RunnerSettings, load_settings
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import MEMORY

SOON_S = 10
"""No test waits so long unless it fails."""


class _Highest(random.Random):
    """Chance at its upper end: a retry's delay is the longest that its policy allows."""

    def uniform(self, a: float, b: float) -> float:
        """The upper bound."""
        return b


class _OddError(BaseException):
    """Not even an Exception."""


class _Unspeakable(Exception):  # noqa: N818 - not an error of ours
    """An error that cannot say what it is, and raises another where it is asked."""

    def __init__(self, instead: BaseException | None = None) -> None:
        """Raise ``instead`` when asked."""
        super().__init__()
        self.instead = instead or ValueError("no words")

    def __str__(self) -> str:
        """Fail."""
        raise self.instead


class _OddDelay(Exception):  # noqa: N818 - not an error of ours
    """An error whose delay cannot be told."""

    @property
    def retry_after_s(self) -> float:
        """Fail."""
        raise LookupError("no delay")


class Unwritable(BaseModel):
    """A result whose own serializer raises."""

    @model_serializer
    def write(self) -> str:
        """Fail."""
        raise RuntimeError("no words")


class _BusyError(Exception):
    """An error that asks for a delay."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__("come back later")
        self.retry_after_s = retry_after_s


class Bench:
    """A worker over an in-memory store that claims when told to, by a clock that is moved by hand."""

    def __init__(self, backend: SQLiteBackend, clock: ManualClock) -> None:
        self.store = Store(backend, clock)
        self.backend, self.clock = backend, clock
        self.registry = Registry()
        self.published: list[Event] = []
        self.heard = asyncio.Event()
        self.worker = self.employ()
        self._before = asyncio.all_tasks()

    def employ(
        self, *, concurrency: int = 10, progress_per_s: float = 10, grace_s: float = 0, cancel_grace_s: float = 0.2
    ) -> Worker:
        """Put a worker in place."""
        settings = RunnerSettings(
            concurrency=concurrency, threads=4, shutdown_grace_s=grace_s, cancel_grace_s=cancel_grace_s
        )
        executor = Executor(threads=settings.threads, clock=self.clock, rng=_Highest())
        self.backend.on_progress = self._hear
        reporter = ProgressReporter(self.backend, per_s=progress_per_s)
        self.worker = Worker(
            self.backend, self.registry, settings, executor=executor, reporter=reporter, in_memory=InMemoryJobs(),
            clock=self.clock,
        )  # fmt: skip
        return self.worker

    def _hear(self, events: Sequence[Event]) -> None:
        self.published += events
        self.heard.set()

    def task(self, function: Callable[..., Any], *, retries: int = 0, timeout: float | None = None) -> str:
        """Register a function under its own name."""
        options = TaskOptions(retry=RetryPolicy(retries=retries), timeout=timeout)
        self.registry.add(TaskDefinition.of(function.__name__, function, options))
        return function.__name__

    async def add(self, function: Callable[..., Any], *, timeout: float | None = None, **changes: Any) -> str:
        """Register a function and store a job of it."""
        name = self.task(function, retries=changes.get("retries", 0), timeout=timeout)
        return await self.store.add(task=name, **changes)

    async def quiet(self) -> None:
        """Wait until nothing goes on any more."""
        async with asyncio.timeout(SOON_S):
            while going_on := asyncio.all_tasks() - self._before - {asyncio.current_task()}:
                await asyncio.wait(going_on)

    async def drain(self) -> None:
        """Claim and run until nothing is ready."""
        await self.worker.run_ready()

    async def run(self, function: Callable[..., Any], **changes: Any) -> JobRecord:
        """Run one job as far as it goes without waiting for a time; its record then."""
        job_id = await self.add(function, **changes)
        await self.drain()
        await self.quiet()
        return await self.store.record(job_id)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    """A worker that has nothing to do yet."""
    clock = ManualClock()
    backend = SQLiteBackend(Database(MEMORY), clock=clock)
    await backend.open()
    bench = Bench(backend, clock)
    yield bench
    await bench.worker.stop()
    await backend.close()


@pytest.fixture
async def engine() -> AsyncIterator[Engine]:
    """A running engine over an in-memory store."""
    async with Engine(load_settings(database_url="sqlite:///:memory:", runner={"concurrency": 4})) as running:
        yield running


class Gate:
    """A task that tells when it began, and goes on when it may."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.open = asyncio.Event()
        self.left = ""

    async def __call__(self) -> str:
        """Wait at the gate."""
        self.began.set()
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.left = "cancelled"
            raise
        self.left = "returned"
        return "through"

    @property
    def task(self) -> Callable[[], Any]:
        """The gate as a function."""

        async def gate() -> str:
            return await self()

        return gate


# Running


async def test_a_job_runs_and_its_result_is_kept(bench: Bench) -> None:
    """What the coroutine returns is stored as JSON."""

    async def double(n: int) -> dict[str, int]:
        return {"n": 2 * n}

    record = await bench.run(double, args='{"n": 21}')

    assert (record.state, json.loads(record.result or "")) == ("succeeded", {"n": 42})


async def test_a_plain_function_runs_in_a_thread_with_its_job(bench: Bench) -> None:
    """The event loop is not held up, and the job is known there."""

    def where() -> list[Any]:
        return [threading.current_thread() is threading.main_thread(), current_job().task, current_job().attempt]

    record = await bench.run(where)

    assert json.loads(record.result or "") == [False, "where", 1]


async def test_no_more_jobs_run_at_once_than_allowed(bench: Bench) -> None:
    """The bound holds while slots free up and fill again; everything gets its turn."""
    now, most = 0, 0

    async def count() -> None:
        nonlocal now, most
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1

    worker = bench.employ(concurrency=3)
    ids = [await bench.add(count)] + [await bench.store.add(task="count") for _ in range(19)]
    await worker.claim()
    at_first = worker.active
    await bench.drain()

    assert (at_first, most, now) == (3, 3, 0)
    assert set(await bench.store.states(ids)) == {"succeeded"}


async def test_a_full_worker_claims_nothing(bench: Bench) -> None:
    """What cannot run here now is left to others."""
    gate = Gate()
    worker = bench.employ(concurrency=1)
    await bench.add(gate.task)
    await worker.claim()
    left = await bench.store.add(task="gate")
    await worker.claim()
    states = await bench.store.states([left])
    gate.open.set()

    assert states == ["queued"]


async def test_urgent_jobs_run_first(bench: Bench) -> None:
    """Highest priority first, then in the order they came."""
    order: list[int] = []

    async def note(n: int) -> None:
        order.append(n)

    bench.employ(concurrency=1)
    bench.task(note)
    for n, priority in enumerate((0, 5, -1, 5)):
        await bench.store.add(task="note", args=json.dumps({"n": n}), priority=priority)
    await bench.drain()

    assert order == [1, 3, 0, 2]


async def test_a_delayed_job_runs_when_it_is_due(bench: Bench) -> None:
    """The worker is told when to look again."""

    async def late() -> None: ...

    job_id = await bench.add(late, delay_s=60)
    next_due_ms = await bench.worker.claim()
    early = await bench.store.states([job_id])
    bench.clock.advance(seconds=60)
    await bench.drain()

    assert (next_due_ms, early) == (bench.clock.now_ms(), ["scheduled"])
    assert await bench.store.states([job_id]) == ["succeeded"]


async def test_a_batch_runs_in_order_and_a_failure_stops_nobody(bench: Bench) -> None:
    """Three jobs one after another; the second fails; the third runs all the same."""
    order: list[str] = []

    async def step() -> None:
        order.append(current_job().id)
        if len(order) == 2:
            raise ValueError("the second")

    bench.task(step)
    ids = await bench.store.add_chain(3, task="step")
    await bench.drain()

    assert order == ids
    assert await bench.store.states(ids) == ["succeeded", "failed", "succeeded"]


async def test_a_batch_may_stop_on_failure(bench: Bench) -> None:
    """The rest is cancelled and never runs."""
    order: list[str] = []

    async def step() -> None:
        order.append(current_job().id)
        raise ValueError("the first")

    bench.task(step)
    ids = await bench.store.add_chain(3, task="step", stop_on_failure=1)
    await bench.drain()

    assert order == ids[:1]
    assert await bench.store.states(ids) == ["failed", "cancelled", "cancelled"]


async def test_an_unknown_task_is_left_to_others(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """Its job stays queued and uncounted, is named once, and holds up nobody."""
    unknown = [await bench.store.add(task="elsewhere", priority=9) for _ in range(3)]
    known = await bench.run(_nothing)

    assert known.state == "succeeded"
    assert [(await bench.store.record(job_id)).attempt for job_id in unknown] == [0, 0, 0]
    assert await bench.store.states(unknown) == ["queued"] * 3
    assert [record.message for record in caplog.records].count(caplog.records[0].message) == 1
    assert "elsewhere" in caplog.records[0].message


async def test_a_task_that_becomes_known_is_run(bench: Bench) -> None:
    """When its module is loaded later, the jobs that were left are taken."""
    job_id = await bench.store.add(task="late_comer")
    await bench.drain()
    await bench.quiet()

    async def late_comer() -> None: ...

    bench.task(late_comer)
    bench.worker.recheck_skipped()
    await bench.drain()

    assert await bench.store.states([job_id]) == ["succeeded"]


async def test_a_job_whose_function_is_gone_fails(bench: Bench) -> None:
    """A job that is not durable and not held here can run nowhere, and is not given a function of the same name."""
    record = await bench.run(_nothing, durable=0, place=bench.backend.place)

    assert record.state == "failed"
    assert record.error is not None
    assert record.error.type == "NotDurableError"


# Failing


async def test_an_error_is_recorded_with_its_class_and_message(bench: Bench) -> None:
    """The job fails; nothing is raised into the engine."""

    async def fail() -> None:
        raise ValueError("no such thing")

    record = await bench.run(fail)

    assert record.state == "failed"
    assert record.error is not None
    assert record.error.as_dict() == {"type": "ValueError", "message": "no such thing"}


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (SystemExit(3), "SystemExit"),
        (_OddError("odd"), "_OddError"),
        (StopIteration("x"), "RuntimeError"),
        (StopAsyncIteration("x"), "StopAsyncIteration"),
        (TimeoutError("theirs"), "TimeoutError"),
        (ExceptionGroup("two", [ValueError("1"), ValueError("2")]), "ExceptionGroup"),
        (ValueError("a file named \udcff"), "ValueError"),
        (ValueError("x\0y"), "ValueError"),
        (_Unspeakable(), "_Unspeakable"),
        (ValueError("long " * 10_000), "ValueError"),
        (GeneratorExit(), "GeneratorExit"),
        (KeyboardInterrupt("stop"), "KeyboardInterrupt"),
        (_Unspeakable(SystemExit(1)), "_Unspeakable"),
        (_Unspeakable(KeyboardInterrupt()), "_Unspeakable"),
        (_OddDelay(), "_OddDelay"),
        (KeyError("k" * 100_000), "KeyError"),
        (ValueError(["row"] * 1_000_000), "ValueError"),
        (ValueError(*range(100_000)), "ValueError"),
        (BaseExceptionGroup("deep", [KeyboardInterrupt("inside")]), "BaseExceptionGroup"),
    ],
)
@pytest.mark.parametrize("in_thread", [False, True])
async def test_nothing_a_task_raises_hurts_the_worker(
    bench: Bench, error: BaseException, name: str, in_thread: bool
) -> None:
    """The job fails with it, its slot is free again, and the next job runs."""

    async def fail() -> None:
        raise error

    def fail_in_thread() -> None:
        raise error

    record = await bench.run(fail_in_thread if in_thread else fail)

    assert record.state == "failed"
    assert record.error is not None
    assert record.error.type == name
    assert len(record.error.message) <= 2_000
    assert bench.worker.is_idle
    assert (await bench.run(_nothing)).state == "succeeded"


async def test_a_generator_exit_out_of_a_future_frees_the_slot(bench: Bench) -> None:
    """It closes every coroutine that awaits the future, ours too, and is the attempt's error all the same."""

    def leave() -> None:
        raise GeneratorExit("gone")

    async def task() -> None:
        await asyncio.to_thread(leave)

    record = await bench.run(task)

    assert record.error is not None
    assert record.error.as_dict() == {"type": "GeneratorExit", "message": "gone"}
    assert bench.worker.is_idle


async def test_a_failed_job_is_tried_again_after_longer_and_longer_delays(bench: Bench) -> None:
    """Up to 1, 2 and 4 seconds, as the policy says; then it fails for good with all attempts counted."""
    delays: list[float] = []

    async def fail() -> None:
        raise ValueError(f"attempt {current_job().attempt}")

    record = await bench.run(fail, retries=3)
    while record.state is JobState.SCHEDULED:
        delays.append((record.run_at_ms - bench.clock.now_ms()) / 1000)
        bench.clock.advance(seconds=delays[-1])
        await bench.drain()
        record = await bench.store.record(record.id)

    assert delays == [1, 2, 4]
    assert (record.state, record.attempt, record.max_attempts) == ("failed", 4, 4)
    assert record.error is not None
    assert record.error.message == "attempt 4"


async def test_a_retry_may_succeed(bench: Bench) -> None:
    """The error of the attempt before is wiped out."""

    async def second_time_lucky() -> str:
        if current_job().attempt == 1:
            raise ValueError("not yet")
        return "done"

    record = await bench.run(second_time_lucky, retries=1)
    bench.clock.advance(seconds=1)
    await bench.drain()
    after = await bench.store.record(record.id)

    assert (record.state, after.state, after.attempt) == ("scheduled", "succeeded", 2)
    assert (after.error, after.result) == (None, '"done"')


async def test_a_final_error_is_not_tried_again(bench: Bench) -> None:
    """However many retries are left."""

    async def fail() -> None:
        raise FinalError("pointless")

    record = await bench.run(fail, retries=5)

    assert (record.state, record.attempt) == ("failed", 1)


@pytest.mark.parametrize(("asked_s", "delay_s"), [(0, 0), (90, 90), (1e300, 30 * 86_400), (float("inf"), 30 * 86_400)])
async def test_an_error_may_say_when_to_come_back(bench: Bench, asked_s: float, delay_s: float) -> None:
    """Its ``retry_after_s`` goes before the policy, up to a bearable length."""

    async def fail() -> None:
        if current_job().attempt == 1:
            raise _BusyError(asked_s)

    record = await bench.run(fail, retries=1)

    assert record.run_at_ms - bench.clock.now_ms() == delay_s * 1000
    assert record.state == ("succeeded" if asked_s == 0 else "scheduled")


async def test_an_attempt_that_takes_too_long_is_stopped(bench: Bench) -> None:
    """A coroutine is cancelled at its timeout, and the error says how long it had."""
    gate = Gate()
    record = await bench.run(gate.task, timeout=0.01)

    assert gate.left == "cancelled"
    assert record.error is not None
    assert record.error.as_dict() == {"type": "AttemptTimeoutError", "message": "took longer than 0.01 s"}


async def test_a_thread_that_takes_too_long_is_left_behind(bench: Bench) -> None:
    """A thread cannot be stopped: its job fails when it had its time to end, what it returns later is dropped."""
    release, failed = threading.Event(), asyncio.Event()
    bench.backend.on_commit = lambda events: failed.set() if events[-1].type == "job.failed" else None

    def wait() -> str:
        release.wait(SOON_S)
        return "too late"

    bench.employ(cancel_grace_s=0.01)
    job_id = await bench.add(wait, timeout=0.01)
    await bench.worker.claim()
    await asyncio.wait_for(failed.wait(), SOON_S)
    release.set()
    await bench.quiet()
    record = await bench.store.record(job_id)

    assert record.error is not None
    assert record.error.type == "AttemptTimeoutError"


async def test_a_timeout_is_tried_again_like_any_error(bench: Bench) -> None:
    """It counts as an attempt."""
    record = await bench.run(Gate().task, timeout=0.01, retries=1)

    assert (record.state, record.attempt) == ("scheduled", 1)


async def test_arguments_that_fit_no_more_are_tried_again_for_a_while(bench: Bench) -> None:
    """In a rolling deploy another process may take them; the error is on the job meanwhile, and at the end."""
    calls: list[int] = []

    async def changed(n: int) -> None:
        calls.append(n)

    record = await bench.run(changed, args='{"text": "secret"}')
    tries = 1
    while record.state is JobState.SCHEDULED:
        assert record.error is not None
        bench.clock.advance(seconds=300)
        await bench.drain()
        record = await bench.store.record(record.id)
        tries += 1

    assert (record.state, tries, calls) == ("failed", 11, [])
    assert record.error is not None
    assert record.error.type == "ArgumentsError"
    assert "deploy one that takes these" in record.error.message
    assert "secret" not in record.error.message


async def test_arguments_that_fit_again_are_run(bench: Bench) -> None:
    """The process with the new version came meanwhile."""

    async def changed(n: int) -> int:
        return n

    async def known(text: str) -> str:
        return text

    record = await bench.run(changed, args='{"text": "a"}')
    bench.registry = Registry()
    bench.employ()
    options = TaskOptions()
    bench.registry.add(TaskDefinition.of("changed", known, options))
    bench.clock.advance(seconds=300)
    await bench.drain()

    record = await bench.store.record(record.id)
    assert (record.state, record.result) == ("succeeded", '"a"')


async def test_bad_arguments_inside_a_task_are_an_error_of_the_task(bench: Bench) -> None:
    """They are those of another call, and tried again as the policy says."""

    async def submit() -> None:
        raise ArgumentsError("another", [])

    record = await bench.run(submit, retries=1)

    assert record.state == "scheduled"


@pytest.mark.parametrize(
    "value",
    [object(), [object()], {"a": lambda: None}, 10**5000, [10**5000], Decimal, Unwritable()],
    ids=lambda value: type(value).__name__,
)
async def test_a_result_without_a_json_form_fails_the_job(bench: Bench, value: object) -> None:
    """The work is done, so it is not done again; the error says of which type the result is, and what to do."""
    calls: list[int] = []

    async def give() -> object:
        calls.append(1)
        return value

    record = await bench.run(give, retries=3)

    assert (record.state, record.attempt, calls) == ("failed", 1, [1])
    assert record.error is not None
    assert record.error.type == "ResultError"
    assert f"of type {type(value).__name__}, has no JSON form; return" in record.error.message


async def test_a_result_larger_than_the_bound_fails_the_job(bench: Bench) -> None:
    """It is not stored, nor is the work done again; the error names the setting."""

    async def give() -> str:
        return "x" * 1024 * 1024

    record = await bench.run(give, retries=3)

    assert (record.state, record.attempt, record.result) == ("failed", 1, None)
    assert record.error is not None
    assert "1,048,578 bytes" in record.error.message
    assert "ASYNCBG_JOBS__MAX_RESULT_BYTES" in record.error.message


@pytest.mark.parametrize(
    "value", ["\udcff", {1: {2}}, float("nan"), {"a": [float("inf")]}, b"\xff", {"\ud800": "\udfff"}]
)
async def test_a_result_is_kept_as_far_as_json_goes(bench: Bench, value: object) -> None:
    """NaN and infinity are null, a half of a character is a question mark, bytes are base64."""

    async def give() -> object:
        return value

    record = await bench.run(give)

    assert record.state == "succeeded"
    json.loads(record.result or "", parse_constant=pytest.fail).__repr__().encode()


async def test_an_outcome_that_cannot_be_written_costs_the_others_nothing(bench: Bench) -> None:
    """Of jobs that end together one has a result too long for the database: it fails, the others are kept."""

    async def give(length: int) -> str:
        return "x" * length

    limit = (sqlite3.SQLITE_LIMIT_LENGTH, 50_000)
    await bench.backend.database.read(lambda connection: connection.setlimit(*limit))
    bench.task(give)
    ids = [await bench.store.add(task="give", args=json.dumps({"length": length})) for length in (1, 60_000, 2)]
    await bench.drain()
    record = await bench.store.record(ids[1])

    assert await bench.store.states(ids) == ["succeeded", "failed", "succeeded"]
    assert record.error is not None
    assert record.error.as_dict() == {"type": "DataError", "message": "string or blob too big"}


async def test_an_outcome_is_kept_until_the_database_takes_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """A database that cannot be written for a while costs no result and no second run."""
    ran = asyncio.Event()
    runs = []

    async def once() -> str:
        runs.append(1)
        await bench.backend.database.read(lambda c: c.execute("PRAGMA query_only = ON").fetchone())
        ran.set()
        return "kept"

    job_id = await bench.add(once)
    await bench.worker.claim()
    await ran.wait()
    with pytest.raises(DatabaseError, match="read-only"):
        await bench.store.add()
    await bench.backend.database.read(lambda c: c.execute("PRAGMA query_only = OFF").fetchone())
    await bench.quiet()
    record = await bench.store.record(job_id)

    assert (record.state, record.result, runs) == ("succeeded", '"kept"', [1])
    assert [logged.message for logged in caplog.records if "the database cannot be used" in logged.message] != []


# Cancelling


async def test_a_running_job_is_cancelled_through_its_coroutine(bench: Bench) -> None:
    """It sees one CancelledError, can clean up, and is cancelled with the reason."""
    gate = Gate()
    job_id = await bench.add(gate.task)
    await bench.worker.claim()
    await gate.began.wait()
    state = await bench.backend.cancel(job_id, "enough")
    told = bench.worker.cancel(job_id, "enough")
    again = bench.worker.cancel(job_id, "again")
    await bench.quiet()
    record = await bench.store.record(job_id)

    assert (state, told, again, gate.left) == ("running", True, False, "cancelled")
    assert (record.state, record.cancel_reason, record.attempt) == ("cancelled", "enough", 1)


async def test_a_job_that_has_not_begun_yet_is_cancelled(bench: Bench) -> None:
    """Between the claim and the first step of its coroutine nothing is lost."""
    gate = Gate()
    job_id = await bench.add(gate.task)
    await bench.worker.claim()
    bench.worker.cancel(job_id, "enough")
    await bench.quiet()

    assert not gate.began.is_set()
    assert await bench.store.states([job_id]) == ["cancelled"]
    assert bench.worker.is_idle


async def test_a_task_may_end_well_although_it_was_to_be_cancelled(bench: Bench) -> None:
    """A coroutine that catches its cancellation and returns has succeeded."""
    began = asyncio.Event()

    async def stubborn() -> str:
        began.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "finished anyhow"
        return "never"

    job_id = await bench.add(stubborn)
    await bench.worker.claim()
    await began.wait()
    bench.worker.cancel(job_id, "enough")
    await bench.quiet()

    assert (await bench.store.record(job_id)).result == '"finished anyhow"'


async def test_a_task_that_cancels_itself_is_cancelled(bench: Bench) -> None:
    """Where it cancels its own asyncio task; that ends the job, not the worker."""

    async def give_up() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.Event().wait()

    record = await bench.run(give_up, retries=3)

    assert (record.state, record.cancel_reason) == ("cancelled", "the task cancelled itself")


async def _a_cancelled_future() -> None:
    future = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(future.cancel)  # as a pool does with its waiters when it reconnects
    await future


async def _a_cancelled_child() -> None:
    child = asyncio.create_task(asyncio.Event().wait())
    await asyncio.sleep(0)
    child.cancel()
    await child


async def _raised_by_hand() -> None:
    raise asyncio.CancelledError


def _raised_in_a_thread() -> None:
    raise asyncio.CancelledError


def _a_cancelled_executor_future() -> None:
    future: concurrent.futures.Future[None] = concurrent.futures.Future()
    future.cancel()
    future.result()


@pytest.mark.parametrize(
    "task",
    [_a_cancelled_future, _a_cancelled_child, _raised_by_hand, _raised_in_a_thread, _a_cancelled_executor_future],
)
async def test_what_is_cancelled_inside_a_task_is_an_error_of_the_attempt(
    bench: Bench, task: Callable[[], Any]
) -> None:
    """Nobody cancelled this job: it is tried again as its policy says, and fails in the end, saying why."""
    record = await bench.run(task, retries=1)
    assert record.state == "scheduled"

    bench.clock.advance(minutes=10)
    await bench.drain()
    record = await bench.store.record(record.id)

    assert (record.state, record.attempt, record.cancel_reason) == ("failed", 2, None)
    assert record.error is not None
    assert record.error.as_dict() == {
        "type": "CancelledError",
        "message": "something that the task awaited was cancelled; the job was not",
    }


async def test_a_job_that_is_not_here_is_not_cancelled_here(bench: Bench) -> None:
    """The worker says so."""
    assert not bench.worker.cancel("nobody", "enough")


@pytest.mark.parametrize("changes", [{}, {"delay_s": 1}, {"state": "waiting"}])
async def test_a_cancelled_job_never_runs(bench: Bench, changes: dict[str, Any]) -> None:
    """Cancelled while queued, scheduled or waiting."""
    gate = Gate()
    job_id = await bench.add(gate.task, **changes)
    await bench.backend.cancel(job_id, "enough")
    bench.clock.advance(minutes=1)
    await bench.drain()

    assert not gate.began.is_set()
    assert await bench.store.states([job_id]) == ["cancelled"]


# Leases


async def test_a_job_whose_lease_lapsed_is_stopped_and_changes_nothing(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Its worker lets go; the job belongs to whoever claims it next."""
    gate = Gate()
    job_id = await bench.add(gate.task)
    await bench.worker.claim()
    await gate.began.wait()
    bench.clock.advance(minutes=5)
    await bench.backend.rescue()
    rescued = await bench.store.record(job_id)
    bench.worker.stop_lapsed({job_id})
    await bench.quiet()

    assert gate.left == "cancelled"
    assert rescued.state == "queued"
    assert await bench.store.record(job_id) == rescued
    assert any("lost its lease" in record.message for record in caplog.records)


async def test_a_job_that_comes_back_to_its_worker_runs_once_more(bench: Bench) -> None:
    """The lease lapsed while this worker was held up, and it claimed the job again: the earlier attempt is stopped."""
    gate = Gate()
    job_id = await bench.add(gate.task)
    await bench.worker.claim()
    await gate.began.wait()
    bench.clock.advance(minutes=5)
    await bench.backend.rescue()
    gate.began.clear()
    await bench.worker.claim()
    await gate.began.wait()
    active = bench.worker.active
    gate.open.set()
    await bench.quiet()
    record = await bench.store.record(job_id)

    assert (active, bench.worker.active) == (1, 0)
    assert (record.state, record.attempt, record.result) == ("succeeded", 2, '"through"')
    assert bench.worker.is_idle


# Stopping


async def test_a_stop_lets_running_jobs_end(bench: Bench) -> None:
    """Within the grace period a job ends as if nothing were."""
    gate = Gate()
    worker = bench.employ(grace_s=SOON_S)
    job_id = await bench.add(gate.task)
    await worker.claim()
    await gate.began.wait()
    stopping = asyncio.create_task(worker.stop())
    await asyncio.sleep(0)
    gate.open.set()
    await stopping

    assert await bench.store.states([job_id]) == ["succeeded"]


async def test_a_stop_gives_back_what_does_not_end(bench: Bench) -> None:
    """After the grace period the coroutine is cancelled, and its attempt does not count."""
    gate = Gate()
    job_id = await bench.add(gate.task)
    await bench.worker.claim()
    await gate.began.wait()
    await bench.worker.stop()
    record = await bench.store.record(job_id)

    assert (gate.left, record.state, record.attempt, record.crashes) == ("cancelled", "queued", 0, 0)
    assert bench.worker.is_idle


async def test_a_stop_gives_back_what_is_being_claimed(bench: Bench) -> None:
    """A claim that is on its way when the stop comes strands no job."""
    gate = Gate()
    job_id = await bench.add(gate.task, at_most_once=1)
    claiming = asyncio.create_task(bench.worker.claim())
    await asyncio.sleep(0)  # the claim is with the database now
    await bench.worker.stop()
    record = await bench.store.record(job_id)
    await claiming

    assert (record.state, record.attempt, gate.began.is_set()) == ("queued", 0, False)
    assert bench.worker.is_idle


async def test_a_stopped_worker_claims_nothing(bench: Bench) -> None:
    """Its queue is for the next process."""
    await bench.worker.stop()
    job_id = await bench.add(_nothing)
    await bench.worker.claim()

    assert await bench.store.states([job_id]) == ["queued"]


# Progress


async def test_progress_is_coalesced_and_its_last_value_kept(bench: Bench) -> None:
    """A thousand reports in a moment are a handful of events; the last is told before the end, and kept."""

    async def count(progress: Progress = Progress()) -> None:
        for n in range(1_001):
            progress.set(n, total=1_000, message=f"row {n}")
            if n % 100 == 0:
                await asyncio.sleep(0)

    bench.employ(progress_per_s=5)
    record = await bench.run(count)
    seen = [event.payload()["current"] for event in bench.published]

    assert record.progress is not None
    assert (record.progress.current, record.progress.total, record.progress.message) == (1_000, 1_000, "row 1000")
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (0, 1_000)
    assert len(seen) <= 4


async def test_a_quiet_jobs_last_report_is_passed_on(bench: Bench) -> None:
    """The latest value is told and kept within a period although nothing follows it."""
    gate = Gate()

    async def two_steps(progress: Progress = Progress()) -> None:
        progress.set(1)
        progress.set(2)
        await gate()

    bench.employ(progress_per_s=100)
    job_id = await bench.add(two_steps)
    await bench.worker.claim()
    async with asyncio.timeout(SOON_S):
        while len(bench.published) < 2:
            bench.heard.clear()
            await bench.heard.wait()
    gate.open.set()
    await bench.quiet()
    kept = (await bench.store.record(job_id)).progress

    assert [event.payload()["current"] for event in bench.published] == [1, 2]
    assert kept is not None
    assert kept.current == 2


async def test_a_thread_reports_progress(bench: Bench) -> None:
    """``advance`` and ``set`` work outside the event loop."""

    def count(progress: Progress = Progress()) -> None:
        progress.set(0, total=50)
        for _ in range(50):
            progress.advance()

    record = await bench.run(count)

    assert record.progress is not None
    assert (record.progress.current, record.progress.total) == (50, 50)
    assert bench.published[-1].payload()["current"] == 50


@pytest.mark.parametrize(
    ("current", "message"), [(Decimal("1.5"), "x"), (Fraction(3, 2), "x"), (1.5, "a file named \udcff")]
)
async def test_progress_may_be_any_number_and_any_text(bench: Bench, current: Any, message: str) -> None:
    """What JSON has no form for is told as near as it can be, and hurts neither the job nor a stream."""

    async def report(progress: Progress = Progress()) -> None:
        progress.set(current, message=message)

    record = await bench.run(report)

    assert record.state == "succeeded"
    assert record.progress is not None
    assert record.progress.current == 1.5
    assert all(encode(event, "e5") for event in bench.published)
    assert bench.worker.is_idle


@pytest.mark.parametrize("odd", [None, "x", "5", 1j, [1], object()])
async def test_progress_that_is_no_number_is_an_error_where_it_is_set(bench: Bench, odd: Any) -> None:
    """The task's own line says so; nobody who looks at the job stumbles over it."""
    raised: list[TypeError] = []

    async def report(progress: Any = Progress()) -> None:
        calls: list[Callable[[], None]] = [
            lambda: progress.set(odd),
            lambda: progress.set(1, total=odd or "x"),
            lambda: progress.advance(odd),
        ]
        for call in calls:
            try:
                call()
            except TypeError as error:
                raised.append(error)

    record = await bench.run(report)

    assert record.state == "succeeded"
    assert len(raised) == 3
    assert "a number, not" in str(raised[0])


@pytest.mark.parametrize("current", [10**30, -(10**30), 10**400, float("inf"), float("nan"), Decimal("NaN"), True])
async def test_progress_of_any_size_is_told_in_json(bench: Bench, current: Any) -> None:
    """What no JSON number is, is 0 done, and of nobody knows how much."""

    async def report(progress: Progress = Progress()) -> None:
        progress.set(current, total=current, message="\udcff\x1b[2J\0" * 5_000, unit="rows" * 1_000)

    record = await bench.run(report)

    assert record.progress is not None
    text = json.dumps(record.progress.as_dict(), allow_nan=False, ensure_ascii=False)
    assert len(text.encode()) < 10_000
    assert "\x1b" not in text
    assert all(
        json.loads(encode(event, "e5").split(b"data: ")[1], parse_constant=pytest.fail) for event in bench.published
    )


async def test_a_failed_attempt_keeps_its_progress(bench: Bench) -> None:
    """One sees how far it came."""

    async def half(progress: Progress = Progress()) -> None:
        progress.set(5, total=10)
        raise ValueError("halfway")

    record = await bench.run(half)

    assert record.progress is not None
    assert record.progress.current == 5


# Through the engine


async def test_a_result_is_waited_for(engine: Engine) -> None:
    """The handle gives what the task returned, and raises what it ended in otherwise."""

    @engine.task
    async def double(n: int) -> int:
        return 2 * n

    @engine.task
    async def fail() -> None:
        raise ValueError("no")

    assert await (await double.enqueue(4)).result(SOON_S) == 8
    with pytest.raises(JobFailedError, match="ValueError: no"):
        await (await fail.enqueue()).result(SOON_S)


async def test_a_job_is_cancelled_by_its_handle(engine: Engine) -> None:
    """Running or not, whoever waits for the result learns the reason."""
    gate = Gate()

    @engine.task
    async def wait() -> None:
        await gate()

    running = await wait.enqueue()
    await gate.began.wait()
    scheduled = await wait.options(delay=60).enqueue()

    assert await running.cancel("enough") is JobState.RUNNING
    assert await scheduled.cancel("enough") is JobState.CANCELLED
    for job in (running, scheduled):
        with pytest.raises(JobCancelledError, match="enough"):
            await job.result(SOON_S)
        with pytest.raises(JobStateError, match="cancel"):
            await job.cancel()


async def test_a_final_job_is_retried_by_hand_with_its_attempts_kept(engine: Engine) -> None:
    """The history stays; the count goes on."""
    attempts: list[int] = []

    @engine.task
    async def flaky() -> int:
        attempts.append(current_job().attempt)
        if len(attempts) < 3:
            raise ValueError("not yet")
        return len(attempts)

    job = await flaky.enqueue()
    for _ in range(2):
        with pytest.raises(JobFailedError):
            await job.result(SOON_S)
        assert await job.retry() is JobState.QUEUED

    assert await job.result(SOON_S) == 3
    assert attempts == [1, 2, 3]
    assert (await engine.get(job.id)).attempt == 3


async def test_a_job_that_is_not_final_is_not_retried(engine: Engine) -> None:
    """It will run anyhow."""
    job = await engine.enqueue(_nothing_later)

    with pytest.raises(JobStateError, match="retry"):
        await (await engine.task(_nothing).options(delay=60).enqueue()).retry()
    await job.result(SOON_S)


async def test_a_unique_key_is_filled_in_from_the_arguments(engine: Engine) -> None:
    """One open job for each value; the handle of the second call is the first job's."""
    gate = Gate()

    @engine.task(key="user-{user}")
    async def sync(user: int) -> int:
        await gate()
        return user

    first, again, other = await sync.enqueue(1), await sync.enqueue(1), await sync.enqueue(2)
    gate.open.set()

    assert (again.id, again.created, first.created) == (first.id, False, True)
    assert other.id != first.id
    assert await again.result(SOON_S) == 1
    assert (await sync.enqueue(1)).created


async def test_an_idempotency_key_gives_the_earlier_job(engine: Engine) -> None:
    """Also after it ended; another body under the key is refused."""
    submit = functools.partial(engine.submit, "_nothing", {}, owner="ada", idempotency_key="k")
    engine.task(_nothing)
    first = await submit(fingerprint="f")
    await first.result(SOON_S)
    again = await submit(fingerprint="f")

    assert (again.id, again.created, again.state) == (first.id, False, "succeeded")
    with pytest.raises(IdempotencyError, match="use a new key"):
        await submit(fingerprint="other")


async def test_a_full_queue_refuses_more() -> None:
    """The bound is told with a time to come back, and nothing is stored."""
    settings = load_settings(database_url="sqlite:///:memory:", runner={"max_queued": 3})
    async with Engine(settings) as engine:
        task = engine.task(_nothing)
        for _ in range(3):
            await task.options(delay=60).enqueue()
        with pytest.raises(OverloadedError) as caught:
            await task.options(delay=60).enqueue()

    assert caught.value.retry_after_s > 0


async def test_a_lambda_runs_although_it_cannot_last(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """Its job says that it is not durable, and a warning names it once."""
    jobs = [await engine.enqueue(lambda n: n + 1, n) for n in range(3)]

    assert [await job.result(SOON_S) for job in jobs] == [1, 2, 3]
    assert not (await engine.get(jobs[0].id)).durable
    assert len([record for record in caplog.records if "not durable" in record.message]) == 1


async def test_a_job_that_takes_its_time_at_a_stop_keeps_its_lease() -> None:
    """In the grace period jobs are still ours: the heartbeat goes on, and what they end in is kept."""
    settings = load_settings(database_url="sqlite:///:memory:", runner={"lease_s": 0.2, "shutdown_grace_s": SOON_S})
    events: list[str] = []
    engine = Engine(settings)
    gate = Gate()

    @engine.task
    async def slow() -> None:
        await gate()
        await asyncio.sleep(1.3)  # longer than the lease and than the pause between two rescues

    async with engine:
        engine.on("job.queued")(lambda event: events.append(event.type))
        await slow.enqueue()
        await gate.began.wait()
        gate.open.set()

    assert events == ["job.queued"]


async def test_a_stop_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """An engine that starts, works and stops while a job ends has nothing to complain about."""
    gate = Gate()
    async with Engine(load_settings(database_url="sqlite:///:memory:")) as engine:
        await engine.task(gate.task).enqueue()
        await gate.began.wait()
        asyncio.get_running_loop().call_later(0.02, gate.open.set)

    assert [record.message for record in caplog.records] == []


async def test_a_chore_goes_on_after_an_error(caplog: pytest.LogCaptureFixture) -> None:
    """An error is logged once for as long as it lasts, and the chore is done again."""
    caplog.set_level(logging.ERROR, "asyncbg")
    done = asyncio.Event()
    calls = 0

    async def chore() -> None:
        nonlocal calls
        calls += 1
        if calls <= 3:
            raise DatabaseError("the disk is full")
        done.set()

    loop = asyncio.create_task(every(0.001, chore, name="the heartbeat"))
    async with asyncio.timeout(SOON_S):
        await done.wait()
    loop.cancel()
    await asyncio.wait([loop])

    assert [record.message for record in caplog.records] == ["the heartbeat failed and is retried: the disk is full"]


async def _nothing() -> None:
    """Return at once."""


async def _nothing_later() -> None:
    """Return after a turn of the loop."""
    await asyncio.sleep(0)
