"""What a task sees while it runs: injected dependencies, its progress, its job."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import date
from decimal import Decimal
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import anyio.from_thread
import anyio.to_thread
import fastapi
import pytest
import uncalled_for
from fastapi import Request
from fastapi.concurrency import run_in_threadpool

from asyncbg.core.event_model import EventModel
from asyncbg.engine import Engine, Job
from asyncbg.engine.context import CurrentJob, current_job
from asyncbg.engine.dependencies import Dependencies, Depends, signature_of
from asyncbg.engine.progress import Progress, _warn_of_unknown_thread
from asyncbg.engine.threads import Threads
from asyncbg.errors import ArgumentsError, JobCancelledError, JobFailedError, NotRunningError
from asyncbg.settings import RunnerSettings, Settings

steps: list[str] = []
THREADS = Threads(4)


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    steps.clear()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running engine on a real database."""
    settings = Settings(
        database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path, runner=RunnerSettings(shutdown_grace_s=1)
    )
    async with Engine(settings) as engine:
        yield engine


# Providers of every kind


def plain() -> str:
    """A function."""
    return "plain"


async def coroutine() -> str:
    """A coroutine function."""
    return "coroutine"


def generator() -> Iterator[str]:
    """A generator."""
    steps.append("open")
    try:
        yield "generator"
    finally:
        steps.append("close")


async def async_generator() -> AsyncIterator[str]:
    """An async generator."""
    steps.append("open")
    try:
        yield "async generator"
    finally:
        steps.append("close")


@contextmanager
def context_manager() -> Iterator[str]:
    """A context manager."""
    steps.append("open")
    yield "context manager"
    steps.append("close")


@asynccontextmanager
async def async_context_manager() -> AsyncIterator[str]:
    """An async context manager."""
    steps.append("open")
    yield "async context manager"
    steps.append("close")


class Service:
    """A class as a provider, with a dependency of its own."""

    def __init__(self, name: str = fastapi.Depends(plain)) -> None:
        """Made when the task runs."""
        self.name = name

    def __str__(self) -> str:
        """Its name."""
        return f"service {self.name}"


class Factory:
    """An object as a provider."""

    async def __call__(self) -> str:
        """Provide."""
        return "factory"


class GeneratorFactory:
    """An object that provides by a generator."""

    def __call__(self) -> Iterator[str]:
        """Provide and clean up."""
        steps.append("open")
        yield "generator factory"
        steps.append("close")


@lru_cache
def cached() -> str:
    """As settings are often provided."""
    return "cached"


PROVIDERS: dict[str, tuple[Callable[..., Any], bool]] = {
    "plain": (plain, False),
    "coroutine": (coroutine, False),
    "generator": (generator, True),
    "async generator": (async_generator, True),
    "context manager": (context_manager, True),
    "async context manager": (async_context_manager, True),
    "service plain": (Service, False),
    "factory": (Factory(), False),
    "generator factory": (GeneratorFactory(), True),
    "cached": (cached, False),
    "partial": (partial(lambda word: word, word="partial"), False),
    "lambda": (lambda: "lambda", False),
}


STYLES = ["ours", "fastapi", "ours annotated", "fastapi annotated", "uncalled-for"]
OF_OURS_ONLY = {"generator", "async generator", "generator factory", "service plain"}
"""uncalled-for's own Depends takes context managers, not generators, and only its own dependencies below."""


@pytest.mark.parametrize(
    ("kind", "style"),
    [(kind, style) for kind in PROVIDERS for style in STYLES if style != "uncalled-for" or kind not in OF_OURS_ONLY],
)
async def test_any_provider_serves_in_any_style(kind: str, style: str) -> None:
    """Functions, generators, context managers, classes and objects; ours and FastAPI's Depends, also in Annotated."""
    provider, is_closed = PROVIDERS[kind]
    depends: Any = {"ours": Depends, "fastapi": fastapi.Depends, "uncalled-for": uncalled_for.Depends}[style.split()[0]]

    def default(it: Any = depends(provider)) -> None: ...  # noqa: B008 - a marker
    def annotated(it: Annotated[Any, depends(provider)]) -> None: ...

    dependencies = Dependencies(signature_of(annotated if "annotated" in style else default))
    async with dependencies.resolved({}, THREADS) as values:
        assert str(values["it"]) == kind
        assert steps == (["open"] if is_closed else [])

    assert steps == (["open", "close"] if is_closed else [])


async def test_a_class_in_annotated_provides_itself() -> None:
    """FastAPI's short form: ``Annotated[Service, Depends()]``."""

    def function(it: Annotated[Service, fastapi.Depends()]) -> None: ...

    async with Dependencies(signature_of(function)).resolved({}, THREADS) as values:
        assert str(values["it"]) == "service plain"


async def test_dependencies_are_nested_shared_and_closed_in_reverse() -> None:
    """One that two others need is made once; the last opened is closed first."""

    async def pool() -> AsyncIterator[str]:
        steps.append("open pool")
        yield "pool"
        steps.append("close pool")

    def session(pool: Annotated[str, fastapi.Depends(pool)]) -> Iterator[str]:
        steps.append("open session")
        yield f"session of {pool}"
        steps.append("close session")

    async def mailer(pool: str = Depends(pool)) -> str:
        return f"mailer of {pool}"

    def function(session: str = Depends(session), mailer: str = fastapi.Depends(mailer)) -> None: ...

    async with Dependencies(signature_of(function)).resolved({}, THREADS) as values:
        assert values == {"session": "session of pool", "mailer": "mailer of pool"}

    assert steps == ["open pool", "open session", "close session", "close pool"]


async def test_a_plain_provider_does_not_block_the_event_loop() -> None:
    """It runs in a worker thread, as FastAPI's do, and so do both halves of a plain generator."""
    threads: list[int] = []

    def blocking() -> Iterator[str]:
        threads.append(threading.get_ident())
        yield "it"
        threads.append(threading.get_ident())

    def ident() -> int:
        return threading.get_ident()

    def function(one: int = Depends(ident), two: str = Depends(blocking)) -> None: ...

    async with Dependencies(signature_of(function)).resolved({}, THREADS) as values:
        threads.append(values["one"])

    assert len(threads) == 3
    assert threading.get_ident() not in threads


async def test_what_is_given_is_not_resolved() -> None:
    """A dependency given by name replaces its provider, which is not asked."""

    def function(it: str = Depends(generator)) -> None: ...

    async with Dependencies(signature_of(function)).resolved({"it": "mine"}, THREADS) as values:
        assert values["it"] == "mine"
    assert steps == []


async def test_an_error_in_the_task_reaches_the_generators() -> None:
    """So that a session can roll back; it is raised on."""

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        except KeyError:
            steps.append("rolled back")
            raise

    def function(it: str = Depends(session)) -> None: ...

    with pytest.raises(KeyError):
        async with Dependencies(signature_of(function)).resolved({}, THREADS):
            raise KeyError("the task failed")
    assert steps == ["rolled back"]


async def test_a_provider_that_needs_a_request_is_told_at_once(engine: Engine) -> None:
    """Where a task runs there is no request: adding the job raises and names what is missing."""

    def user(request: Request) -> str:
        return request.headers["x-user"]

    def session(user: str = fastapi.Depends(user)) -> str:
        return f"session of {user}"

    async def task(session: str = fastapi.Depends(session)) -> str:
        return session

    with pytest.raises(ArgumentsError, match="session: its provider needs 'request', which only a request has"):
        await engine.enqueue(task)

    job = await engine.enqueue(task, session="given")
    assert await job.result(timeout=5) == "given"


# In a job


async def test_dependencies_live_as_long_as_the_attempt(engine: Engine) -> None:
    """Opened when the job runs, not when it is added; closed when the task is over, before the job is final."""

    async def task(it: str = Depends(async_generator)) -> str:
        steps.append("run")
        return it

    job = await engine.enqueue(task)

    assert await job.result(timeout=5) == "async generator"
    assert steps == ["open", "run", "close"]


async def test_each_attempt_gets_its_own(engine: Engine) -> None:
    """A retry resolves anew."""

    class NowError(Exception):
        retry_after_s = 0

    @engine.task(retries=1)
    async def task(it: Annotated[str, fastapi.Depends(generator)]) -> str:
        if current_job().attempt == 1:
            raise NowError
        return it

    job = await engine.enqueue(task)

    assert await job.result(timeout=5) == "generator"
    assert steps == ["open", "close"] * 2


@pytest.mark.parametrize("style", ["plain", "coroutine", "generator", "at the end"])
async def test_a_provider_that_raises_fails_the_job(engine: Engine, style: str) -> None:
    """Its error is the job's, whether it is raised before the task runs or when the provider is closed."""

    def fails() -> str:
        raise ConnectionError("no database")

    async def fails_later() -> str:
        raise ConnectionError("no database")

    def fails_at_first() -> Iterator[str]:
        raise ConnectionError("no database")
        yield ""

    async def fails_at_the_end() -> AsyncIterator[str]:
        yield ""
        raise ConnectionError("no database")

    provider: Callable[..., Any] = {
        "plain": fails, "coroutine": fails_later, "generator": fails_at_first, "at the end": fails_at_the_end,
    }[style]  # fmt: skip

    async def task(it: str = Depends(provider)) -> None:
        steps.append("ran")

    job = await engine.enqueue(task)

    with pytest.raises(JobFailedError, match="ConnectionError: no database"):
        await job.result(timeout=5)
    assert steps == (["ran"] if style == "at the end" else [])


async def test_a_cancelled_job_closes_what_it_had_open(engine: Engine) -> None:
    """Also where the task is in the middle of something."""
    taken = asyncio.Event()

    async def task(one: str = Depends(generator), two: str = Depends(async_generator)) -> None:
        taken.set()
        await asyncio.Event().wait()

    job = await engine.enqueue(task)
    await taken.wait()
    await job.cancel("no longer wanted")

    with pytest.raises(JobCancelledError, match="no longer wanted"):
        await job.result(timeout=5)
    assert steps == ["open", "open", "close", "close"]


async def test_a_plain_task_and_a_provider_see_the_job(engine: Engine) -> None:
    """``current_job()`` works in coroutines, in worker threads, and in providers of either kind."""

    def in_a_provider() -> str:
        return current_job().id

    async def in_an_async_provider() -> str:
        return current_job().id

    def task(one: str = Depends(in_a_provider), two: str = Depends(in_an_async_provider)) -> list[str]:
        return [one, two, current_job().id]

    async def async_task() -> list[str]:
        return [current_job().id, await asyncio.to_thread(lambda: current_job().id)]

    one, two = await engine.enqueue(task), await engine.enqueue(async_task)

    assert await one.result(timeout=5) == [one.id] * 3
    assert await two.result(timeout=5) == [two.id] * 2


async def test_context_variables_of_a_job_are_its_own(engine: Engine) -> None:
    """What one job sets, no other sees; what a provider on the event loop sets, its task sees."""
    word = contextvars.ContextVar("word", default="unset")

    async def provider() -> None:
        word.set("by the provider")

    async def task(_: None = Depends(provider)) -> str:
        found = word.get()
        word.set("by the task")
        return found

    def plain_task() -> str:
        found = word.get()
        word.set("by the thread")
        return found

    jobs = [await engine.enqueue(each) for each in (task, plain_task, task, plain_task)]

    assert [await job.result(timeout=5) for job in jobs] == ["by the provider", "unset"] * 2


async def test_the_job_tells_who_and_what_it_is(engine: Engine) -> None:
    """Id, task, owner, batch, attempt, tags."""

    @engine.task(name="tell", retries=2)
    async def tell() -> list[Any]:
        job = current_job()
        return [job.id, job.task, job.owner, job.batch, job.attempt, job.max_attempts, list(job.tags)]

    job = await tell.options(tags=["a", "b"], owner="ada").enqueue()

    assert await job.result(timeout=5) == [job.id, "tell", "ada", job.id, 1, 3, ["a", "b"]]


async def test_a_task_publishes_events_of_its_own(engine: Engine) -> None:
    """They are stored, in order, among the engine's; the engine's names are refused."""

    async def task() -> None:
        await current_job().publish("email.sent", {"parts": 2})
        await current_job().publish("email.read")
        for name in ("job.succeeded", "stream.bye", "loop.blocked", "no spaces please", ""):
            with pytest.raises(ValueError, match="not a valid event name"):
                await current_job().publish(name)

    job = await engine.enqueue(task)
    events = [event async for event in job.events()]

    assert [event.type for event in events] == [
        "job.queued", "job.started", "email.sent", "email.read", "job.succeeded",
    ]  # fmt: skip
    assert events[2].data == '{"parts":2}'


class ParcelWeighed(EventModel):
    """It was put on the scales."""

    event_type = "parcel.weighed"

    kg: Decimal
    on: date


async def test_a_task_publishes_instances_of_a_class(engine: Engine) -> None:
    """The class gives the type, the instance the data in its JSON form; nothing may stand beside it."""
    event = ParcelWeighed(kg=Decimal("1.50"), on=date(2026, 11, 22))

    async def task() -> None:
        await current_job().publish(event)
        with pytest.raises(TypeError, match="ParcelWeighed contains its data; pass no other data"):
            await current_job().publish(event, {"kg": 2})

    job = await engine.enqueue(task)
    [told] = [told async for told in job.events() if not told.type.startswith("job.")]
    await job.result(timeout=20)

    assert told.type == "parcel.weighed"
    assert told.payload() == {"kg": "1.50", "on": "2026-11-22"}


@pytest.mark.parametrize(
    ("name", "data", "what"),
    [
        (None, {}, "a name and a mapping of its data, not NoneType and dict"),
        (5, {}, "not int and dict"),
        ("email.sent", [1], "not str and list"),
        ("email.sent", "text", "not str and str"),
        ("a" * 256, {}, "at most 255 characters, not 256"),
    ],
)
async def test_what_is_no_event_is_named(engine: Engine, name: Any, data: Any, what: str) -> None:
    """The error says what was given and what is taken."""

    async def task() -> None:
        await current_job().publish(name, data)

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError, match=what):
        await job.result(timeout=20)


async def test_progress_advances_by_numbers_only(engine: Engine) -> None:
    """As it is set: the error names what was given."""

    async def task(progress: Progress = Progress()) -> None:
        progress.advance(None)  # type: ignore[arg-type]

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError, match="n of a progress report should be a number, not NoneType"):
        await job.result(timeout=20)


async def test_a_class_without_a_type_is_not_published(engine: Engine) -> None:
    """What was forgotten is said when it is used."""

    class Unnamed(EventModel):
        """It happened."""

    async def task() -> None:
        await current_job().publish(Unnamed())

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError, match="not a valid event name; use noun"):
        await job.result(timeout=20)


def test_outside_a_job_there_is_none() -> None:
    """The error says where ``current_job()`` works."""
    with pytest.raises(NotRunningError, match="inside a task"):
        current_job()


async def numbers(count: int) -> AsyncIterator[int]:
    """Something to go through."""
    for number in range(count):
        yield number


async def test_progress_outside_a_job_keeps_quiet() -> None:
    """A task can be called in a unit test, and be awaited inline."""
    progress = Progress()
    progress.set(1, total=2)
    progress.advance()
    assert [number async for number in progress.track(numbers(3))] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_progress_keeps_what_is_not_said_again(engine: Engine, kind: str) -> None:
    """``set`` changes what it is given; the last value is on the job, and one event tells it before the final one."""
    is_followed = threading.Event()

    def report(progress: Progress = Progress()) -> None:
        is_followed.wait(5)
        progress.set(1, total=10, message="reading", unit="rows")
        progress.set(2)
        progress.advance(3)
        progress.advance()

    async def report_async(progress: Progress = Progress()) -> None:
        await asyncio.to_thread(is_followed.wait, 5)
        report(progress)

    reporters: dict[str, Callable[..., Awaitable[None] | None]] = {"async": report_async, "thread": report}
    job: Job = await engine.enqueue(reporters[kind])
    events = []
    async for event in job.events():
        events.append(event)
        is_followed.set()

    last = [event for event in events if event.type == "job.progress"][-1]
    assert last.data == '{"current":6,"total":10,"message":"reading","unit":"rows"}'
    record = await engine.get(job.id)
    assert record.progress is not None
    assert record.progress.current == 6


async def test_track_counts_what_the_loop_is_done_with(engine: Engine) -> None:
    """An item counts when its turn of the loop is over, so an error leaves the number of those done."""

    async def task(progress: Progress = Progress()) -> None:
        async for number in progress.track(numbers(10), total=10):
            if number == 4:
                raise LookupError("the fifth is missing")

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError):
        await job.result(timeout=5)

    progress = (await engine.get(job.id)).progress
    assert progress is not None
    assert (progress.current, progress.total) == (4, 10)


# From other threads


def in_a_thread(function: Callable[[], Any]) -> Any:
    """Call it in a bare thread, whose context is empty, and return what it returns or raises."""
    ended: list[Any] = []

    def run() -> None:
        try:
            ended.append(function())
        except Exception as error:  # noqa: BLE001 - handed on
            ended.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return ended[0]


async def in_an_executor(function: Callable[[], Any]) -> Any:
    """Call it in the loop's default executor, whose context is empty."""
    return await asyncio.get_running_loop().run_in_executor(None, function)


async def in_a_bare_thread(function: Callable[[], Any]) -> Any:
    """Call it in a thread that a thread has started."""
    return await asyncio.to_thread(in_a_thread, function)


WITH_CONTEXT = [asyncio.to_thread, run_in_threadpool, anyio.to_thread.run_sync]
WITHOUT_CONTEXT = [in_an_executor, in_a_bare_thread]


@pytest.mark.parametrize("started", [*WITH_CONTEXT, *WITHOUT_CONTEXT])
async def test_the_progress_parameter_works_in_any_thread(engine: Engine, started: Any) -> None:
    """It knows its job, from the first report on."""

    def crunch(progress: Progress) -> None:
        progress.set(2, total=3)

    async def task(progress: Progress = Progress()) -> None:
        await started(lambda: crunch(progress))

    job = await engine.enqueue(task)
    await job.result(timeout=5)
    record = await engine.get(job.id)

    assert record.progress is not None
    assert (record.progress.current, record.progress.total) == (2, 3)


@pytest.mark.parametrize("started", [*WITH_CONTEXT, *WITHOUT_CONTEXT])
async def test_a_job_that_is_handed_over_works_in_any_thread(engine: Engine, started: Any) -> None:
    """Its progress, and events of the task's own: in a thread ``publish`` is done when it returns."""

    def work(here: CurrentJob) -> None:
        here.report(1)
        here.publish("rows.read", {"rows": 1})
        with pytest.raises(ValueError, match="not a valid event name"):
            here.publish("job.mine")

    async def task() -> None:
        here = current_job()
        await started(lambda: work(here))
        await here.publish("rows.written")

    job = await engine.enqueue(task)
    types = [event.type async for event in job.events()]

    assert [name for name in types if name.startswith("rows")] == ["rows.read", "rows.written"]
    assert "job.progress" in types


async def test_publishing_works_wherever_a_task_may_be(engine: Engine) -> None:
    """In a plain task as a statement, by ``asyncio.run``, from a loop of its own, and by way of anyio."""

    def task() -> None:
        here = current_job()
        here.publish("one.published")
        asyncio.run(here.publish("two.published"))

        async def elsewhere() -> None:
            await here.publish("three.published")

        asyncio.run(elsewhere())
        anyio.from_thread.run(here.publish, "four.published")

    job = await engine.enqueue(task)
    types = [event.type async for event in job.events()]

    assert types[2:-1] == ["one.published", "two.published", "three.published", "four.published"]
    assert types[-1] == "job.succeeded"


@pytest.mark.parametrize("started", WITH_CONTEXT)
async def test_current_job_is_known_where_the_context_goes_along(engine: Engine, started: Any) -> None:
    """A task, and what it runs by to_thread and its like."""

    async def task() -> str:
        found: CurrentJob = await started(current_job)
        return found.id

    job = await engine.enqueue(task)
    assert await job.result(timeout=5) == job.id


@pytest.mark.parametrize("started", WITHOUT_CONTEXT)
async def test_where_the_job_cannot_be_known_the_error_says_what_to_do(
    engine: Engine, started: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A bare thread starts with an empty context; a ``Progress`` that is no parameter is reported as lost, once."""
    unbound = Progress()

    async def task() -> str:
        for _ in range(2):
            await started(lambda: unbound.set(1))
        found = await started(lambda: in_a_thread(current_job))
        return str(found)

    _warn_of_unknown_thread.cache_clear()
    job = await engine.enqueue(task)

    assert "pass what it returns" in await job.result(timeout=5)
    assert sum("progress was reported outside a job" in line for line in caplog.messages) == 1
