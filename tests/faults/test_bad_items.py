"""One bad item costs only itself: what it raises, of any class, ends no loop, and the next job runs."""

import asyncio
import functools
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import httpx
import pytest
from fastapi import Depends, FastAPI
from prometheus_client.parser import text_string_to_metric_families

from asyncbg import AsyncBG, Progress, current_job
from asyncbg.core.event import Event
from asyncbg.core.job import JobRecord, JobState
from asyncbg.testing import ManualBG

SOON_S = 10


class Rude(BaseException):
    """Not even an Exception."""


class Unspeakable(Exception):  # noqa: N818 - not an error of ours
    """An error that cannot say what it is."""

    def __str__(self) -> str:
        """Leave the process, or try to."""
        raise SystemExit("no words")


def recurse() -> None:
    """Go on for ever."""
    recurse()


def raising(error: type[BaseException]) -> None:
    """Raise an error of a class as a user's code would."""
    if error is RecursionError:
        recurse()
    if error is BaseExceptionGroup:
        raise BaseExceptionGroup("several", [Rude("x"), ValueError("x")])
    raise error("x")


ERRORS = (
    ValueError,
    ImportError,
    StopIteration,
    StopAsyncIteration,
    RecursionError,
    Unspeakable,
    BaseExceptionGroup,
    Rude,
    asyncio.CancelledError,
    GeneratorExit,
    SystemExit,
    KeyboardInterrupt,
)


async def fine() -> str:
    """The job of somebody else."""
    return "fine"


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine on a file, not started."""
    return AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path, runner={"shutdown_grace_s": 1})


@asynccontextmanager
async def serving(bg: AsyncBG) -> AsyncIterator[httpx.AsyncClient]:
    """The engine in an application, and a client of its routes."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            yield client


async def assert_alive(bg: AsyncBG, client: httpx.AsyncClient) -> None:
    """The engine takes the next job and runs it, and is ready."""
    job = await bg.enqueue(fine)
    assert await job.result(SOON_S) == "fine"
    ready = await client.get("/health/ready")
    assert (ready.status_code, ready.json()) == (200, {"status": "ok", "checks": {"engine": "ok", "database": "ok"}})
    assert {name: times for name, times in bg._parts.runner.loop_restarts.items() if times} == {}


async def metrics(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """All samples by name and label values."""
    text = (await client.get("/metrics")).text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def store(bg: AsyncBG, task: str, *, delay_s: int = 0) -> str:
    """Store a job that names ``task``, as another version of the application may have done."""
    prepared = bg.prepare(fine, (), {})
    prepared.new = prepared.new._replace(task=task)
    if delay_s:
        prepared.new = prepared.new._replace(state="scheduled", run_at_ms=prepared.new.run_at_ms + delay_s * 1000)
    await bg.accept([prepared])
    return prepared.job.id


async def ended(bg: AsyncBG, job_id: str) -> JobRecord:
    """The record of a job that came to its end."""
    record = await bg.wait(job_id, SOON_S)
    assert record.state.is_final
    return record


# What a stored name may lead to


class Proxy:
    """An object that is bound to nothing now, as a context-local of a web framework."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        """Fail for any attribute."""
        raising(self.error)


class Nameless:
    """A callable whose name is a property that raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    @property
    def __module__(self) -> str:  # type: ignore[override]  # a property in the place of a text
        raising(self.error)
        return ""

    def __call__(self) -> None:
        """Do nothing."""


@pytest.fixture
def module() -> Iterator[ModuleType]:
    """A module that is loaded under the name ``odd_package``."""
    made = sys.modules["odd_package"] = ModuleType("odd_package")
    yield made
    del sys.modules["odd_package"]


@pytest.mark.parametrize("error", ERRORS)
async def test_a_stored_name_that_cannot_be_loaded_fails_its_job_alone(
    bg: AsyncBG, module: ModuleType, error: type[BaseException]
) -> None:
    """A lazy module whose import fails, a proxy that is bound to nothing, an object whose name cannot be read."""
    module.__getattr__ = lambda name: raising(error)  # type: ignore[method-assign]  # PEP 562
    module.proxy, module.nameless = Proxy(error), Nameless(error)  # type: ignore[attr-defined]
    async with serving(bg) as client:
        names = ["odd_package:lazy", "odd_package:proxy.send", "odd_package:nameless"]
        records = [await ended(bg, await store(bg, name)) for name in names]

        await assert_alive(bg, client)
        counted = (await metrics(client))["asyncbg_errors_total", "start"]

    assert [record.state for record in records] == [JobState.FAILED] * 3
    types = [record.error.type for record in records if record.error]
    assert types == [error.__name__, error.__name__, "TaskChangedError"]
    assert counted == 3


@pytest.mark.parametrize("error", ERRORS)
async def test_a_stored_name_that_cannot_be_loaded_is_looked_at_while_its_job_waits(
    bg: AsyncBG, module: ModuleType, error: type[BaseException]
) -> None:
    """The metrics, readiness, the job and the list of jobs ask whether its task is known here."""
    module.__getattr__ = lambda name: raising(error)  # type: ignore[method-assign]  # PEP 562
    async with serving(bg) as client:
        job_id = await store(bg, "odd_package:lazy", delay_s=3600)
        answers = [await client.get(path) for path in ("/metrics", "/health/ready", f"/jobs/{job_id}", "/jobs")]

        await assert_alive(bg, client)

    assert [answer.status_code for answer in answers] == [200] * 4


# The loops themselves


async def end_loop(bg: AsyncBG, name: str) -> None:
    """Cancel a loop's task, and wait until that is noticed."""
    next(task for task in asyncio.all_tasks() if task.get_name() == f"asyncbg-{name}").cancel()
    async with asyncio.timeout(SOON_S):
        while name not in bg._parts.runner.loops_down:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)


async def test_readiness_names_a_loop_that_is_down(bg: AsyncBG) -> None:
    """One that ends again and again is down for longer each time."""
    async with serving(bg) as client:
        for _ in range(5):
            async with asyncio.timeout(SOON_S):
                while bg._parts.runner.loops_down:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
            await end_loop(bg, "retention")
        down = await client.get("/health/ready")

    assert (down.status_code, down.json()["detail"]) == (503, "not ready: retention")
    assert down.json()["checks"] == {"engine": "ok", "database": "ok", "retention": "failed"}


@pytest.mark.parametrize("name", ["worker", "schedules", "tail", "renewal", "rescue", "retention", "handlers"])
async def test_a_loop_whose_task_is_cancelled_is_started_again(bg: AsyncBG, name: str) -> None:
    """The metrics count it; jobs are accepted meanwhile and run afterwards."""
    heard = asyncio.Event()

    @bg.on("job.succeeded")
    async def hear(event: Event) -> None:
        heard.set()

    async with serving(bg) as client:
        await end_loop(bg, name)
        job = await bg.enqueue(fine)

        assert await job.result(SOON_S) == "fine"
        async with asyncio.timeout(SOON_S):
            await heard.wait()
            while bg._parts.runner.loops_down:  # noqa: ASYNC110 - nothing tells
                await asyncio.sleep(0.01)
        ready = await client.get("/health/ready")
        counted = await metrics(client)

    assert ready.status_code == 200
    assert counted["asyncbg_loop_restarts_total", name] == 1
    assert sum(value for (sample, *_), value in counted.items() if sample == "asyncbg_loop_restarts_total") == 1


@pytest.mark.parametrize("name", ["asyncbg-settle", "asyncbg-commit"])
async def test_a_write_whose_task_is_cancelled_is_made_all_the_same(bg: AsyncBG, name: str) -> None:
    """Nobody waits for ever, and no job stays running."""
    async with serving(bg) as client:
        jobs = [await bg.enqueue(fine) for _ in range(20)]
        for _ in range(200):
            await asyncio.sleep(0)
            for task in asyncio.all_tasks():
                if task.get_name() == name:
                    task.cancel()

        records = [await ended(bg, job.id) for job in jobs]

        assert {record.state for record in records} == {JobState.SUCCEEDED}
        await assert_alive(bg, client)


async def test_jobs_whose_claim_is_cancelled_are_given_back(tmp_path: Path) -> None:
    """They would run nowhere, and their leases would be renewed for ever."""
    async with ManualBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path) as bg:
        job = await bg.enqueue(fine)
        claiming = asyncio.ensure_future(bg.backend.claim(1, lease_s=30))
        while not bg._parts.database.waiting:  # noqa: ASYNC110 - nothing tells
            await asyncio.sleep(0)
        claiming.cancel()
        await asyncio.wait([claiming])

        await bg.drain()

        record = await bg.get(job.id)
    assert (record.state, record.attempt) == (JobState.SUCCEEDED, 1)


# Event handlers


def handlers(error: type[BaseException]) -> dict[str, Callable[[Event], Any]]:
    """One of each kind that raises."""

    async def awaits(event: Event) -> None:
        raising(error)

    def runs_in_a_thread(event: Event) -> None:
        raising(error)

    class Called:
        async def __call__(self, event: Event) -> None:
            raising(error)

    def gives_awaitable(event: Event) -> Any:
        return awaits(event)

    return {
        "async def": awaits,
        "def": runs_in_a_thread,
        "object": Called(),
        "awaitable": gives_awaitable,
        "partial": functools.partial(awaits),
    }


@pytest.mark.parametrize("error", ERRORS)
async def test_a_handler_that_raises_is_told_and_hurts_nobody(bg: AsyncBG, error: type[BaseException]) -> None:
    """It gets its next event, the other handlers get theirs, and each failure is counted."""
    heard: list[str] = []
    for handler in handlers(error).values():
        bg.on("job.succeeded")(handler)

    @bg.on("job.succeeded")
    async def hear(event: Event) -> None:
        heard.append(event.job_id)

    async with serving(bg) as client:
        await assert_alive(bg, client)
        await assert_alive(bg, client)
        assert await bg.bus.join_handlers(SOON_S)
        counted = await metrics(client)

    assert len(heard) == 2
    assert counted["asyncbg_bus_handler_errors_total",] == counted["asyncbg_errors_total", "handler"] == 10


async def test_a_handler_that_cancels_itself_is_called_again(bg: AsyncBG) -> None:
    """Its loop is started again, and readiness tells until then."""
    heard: list[str] = []

    @bg.on("job.succeeded")
    async def cancels(event: Event) -> None:
        heard.append(event.job_id)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async with serving(bg) as client:
        for times in (1, 2):
            assert await (await bg.enqueue(fine)).result(SOON_S) == "fine"
            async with asyncio.timeout(SOON_S):
                while bg._parts.runner.loop_restarts["handlers"] < times:  # noqa: ASYNC110 - nothing tells
                    await asyncio.sleep(0.01)
        assert (await client.get("/health/ready")).status_code == 200
        counted = await metrics(client)

    assert len(heard) == 2
    assert counted["asyncbg_loop_restarts_total", "handlers"] == 2


# Stored rows


UNREADABLE = {
    "args": ("args = x'00ff'", "args = CAST(x'7bff7d' AS TEXT)"),
    "tags": ("tags = x'ff'",),
    "owner": ("owner = x'ff'", "owner = CAST(x'ff' AS TEXT)"),
    "task": ("task = x'ff'",),
    "batch": ("batch = x'ff'",),
    "queue": ("queue = x'ff'",),
    "progress": ("progress = x'ff'",),
    "cancel_reason": ("cancel_reason = x'ff'",),
    "created_at": ("created_at = 9e999",),
    "run_at": ("run_at = 'x'", "run_at = 9e999"),
}
BROKEN = (
    "args = '{\"a\":'", "args = 'null'", "args = '[1]'", "args = ''", "tags = 'nope'", "tags = '5'",
    "personal = 'nope'", "personal = '[1]'", "progress = '{\"current\":'", "progress = '{\"odd\": 1}'",
    "task = ':'", "task = '.:.'", "batch = 'x'", "attempt = 9223372036854775806",
    "created_at = 'x'", "priority = 'x'", "priority = 1.5", "max_attempts = 'x'", "crashes = 'x'", "started_at = 'x'",
)  # fmt: skip


async def corrupted(bg: AsyncBG, tmp_path: Path, change: str) -> str:
    """A job whose row was changed by another program while nobody looked, due at the next start."""
    async with bg:
        bg.task(fine)
        job = await bg.submit("fine", {}, delay_s=3600)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        connection.execute("UPDATE job SET run_at = 1")
        connection.execute(f"UPDATE job SET {change}")  # noqa: S608 - one of the texts below
        connection.commit()
    return job.id


@pytest.mark.parametrize("change", [change for changes in UNREADABLE.values() for change in changes])
async def test_a_row_that_cannot_be_read_fails_its_job_alone(bg: AsyncBG, tmp_path: Path, change: str) -> None:
    """It keeps no other from being claimed or settled, says why, and can be looked at."""
    job_id = await corrupted(bg, tmp_path, change)

    async with serving(bg) as client:
        await assert_alive(bg, client)
        record = await ended(bg, job_id)
        shown, listed = await client.get(f"/jobs/{job_id}"), await client.get("/jobs")

    assert (record.state, record.error and record.error.type) == (JobState.FAILED, "UnreadableRowError")
    assert (shown.status_code, listed.status_code) == (200, 200)


@pytest.mark.parametrize("change", BROKEN)
async def test_a_row_that_makes_no_sense_costs_its_job_alone(bg: AsyncBG, tmp_path: Path, change: str) -> None:
    """Others run, and every page shows it."""
    job_id = await corrupted(bg, tmp_path, change)

    async with serving(bg) as client:
        await assert_alive(bg, client)
        shown, listed = await client.get(f"/jobs/{job_id}"), await client.get("/jobs")

    assert (shown.status_code, listed.status_code) == (200, 200)


# A job and all that it calls


class Odd:
    """An object every part of which raises."""

    def __init__(self, error: type[BaseException]) -> None:
        self._error = error

    def __str__(self) -> str:
        """Fail."""
        raising(self._error)
        return ""

    __repr__ = __str__

    def __float__(self) -> float:
        """Fail."""
        raising(self._error)
        return 0.0

    def __eq__(self, other: object) -> bool:
        """Fail."""
        raising(self._error)
        return False

    __hash__ = None  # type: ignore[assignment]  # as a class with __eq__ has it

    def __iter__(self) -> Iterator[Any]:
        """Fail."""
        raising(self._error)
        return iter(())


def bodies(error: type[BaseException]) -> tuple[Callable[..., Any], ...]:
    """Tasks that raise."""

    async def at_once() -> None:
        raising(error)

    def in_a_thread() -> None:
        raising(error)

    async def later() -> None:
        await asyncio.sleep(0)
        raising(error)

    async def in_its_clean_up() -> None:
        try:
            await asyncio.sleep(0)
        finally:
            raising(error)

    async def an_odd_error() -> None:
        asked = property(lambda _: raising(error))
        raise type("Odd", (Exception,), {"__str__": lambda _: raising(error), "retry_after_s": asked})

    return at_once, in_a_thread, later, in_its_clean_up, an_odd_error


def dependents(error: type[BaseException]) -> tuple[Callable[..., Any], ...]:
    """Tasks whose providers raise."""

    def provide() -> None:
        raising(error)

    async def open_() -> AsyncIterator[None]:
        raising(error)
        yield

    async def close() -> AsyncIterator[None]:
        yield
        raising(error)

    async def provided(value: Annotated[Any, Depends(provide)]) -> None:
        """Never begin."""

    async def opened(value: Annotated[Any, Depends(open_)]) -> None:
        """Never begin."""

    async def closed(value: Annotated[Any, Depends(close)]) -> None:
        """End, and meet the clean-up."""

    return provided, opened, closed


def outputs(error: type[BaseException]) -> tuple[Callable[..., Any], ...]:
    """Tasks that hand out objects that raise."""

    async def result() -> Any:
        return Odd(error)

    async def reports(progress: Progress = Progress()) -> None:
        progress.set(Odd(error), message=Odd(error))  # type: ignore[arg-type]  # what a task may do

    async def publishes() -> None:
        await current_job().publish("odd.value", {"value": Odd(error)})

    return result, reports, publishes


@pytest.mark.parametrize("error", ERRORS)
async def test_whatever_a_job_calls_may_raise_anything(bg: AsyncBG, error: type[BaseException]) -> None:
    """Each job comes to its end, and the next one runs."""
    async with serving(bg) as client:
        for task in (*bodies(error), *dependents(error), *outputs(error)):
            record = await ended(bg, (await bg.enqueue(bg.task(task))).id)
            assert record.state is JobState.FAILED or task.__name__ in {"closed", "result", "reports"}, task.__name__
        await assert_alive(bg, client)


@pytest.mark.parametrize("error", ERRORS)
async def test_an_argument_that_raises_costs_its_call_alone(bg: AsyncBG, error: type[BaseException]) -> None:
    """It is refused with an error, or its job runs from memory; the next one runs."""

    async def takes(value: Any) -> None:
        """Nothing is done with it."""

    async with serving(bg) as client:
        with suppress(error):
            await ended(bg, (await bg.enqueue(bg.task(takes), Odd(error))).id)
        await assert_alive(bg, client)
