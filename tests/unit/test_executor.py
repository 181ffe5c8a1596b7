"""One run of a task: its body once, its providers, its threads; as a job, and awaited inline."""

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Self

import fastapi
import pytest
from anyio.to_thread import current_default_thread_limiter
from fastapi.concurrency import run_in_threadpool

from asyncbg.engine import Engine
from asyncbg.engine.context import current_job
from asyncbg.engine.dependencies import Depends
from asyncbg.errors import ArgumentsError, InvalidTaskError, JobFailedError
from asyncbg.settings import RunnerSettings, Settings

steps: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_happened() -> None:
    steps.clear()


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running engine with two worker threads."""
    runner = RunnerSettings(shutdown_grace_s=1, threads=2)
    async with Engine(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path, runner=runner)) as it:
        yield it


# Providers that swallow


def plain_generator() -> Iterator[str]:
    """A session that rolls back and does not raise again."""
    with suppress(Exception):
        yield "session"


async def async_generator() -> AsyncIterator[str]:
    """The same, async."""
    with suppress(Exception):
        yield "session"


@contextmanager
def context_manager() -> Iterator[str]:
    """The same as a context manager."""
    with suppress(Exception):
        yield "session"


@asynccontextmanager
async def async_context_manager() -> AsyncIterator[str]:
    """The same as an async context manager."""
    with suppress(Exception):
        yield "session"


class UnitOfWork:
    """A class that suppresses."""

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> bool:
        """Swallow."""
        return True


class AsyncUnitOfWork:
    """An async class that suppresses."""

    async def __aenter__(self) -> Self:
        """Begin."""
        return self

    async def __aexit__(self, *error: object) -> bool:
        """Swallow."""
        return True


def nested(session: Annotated[Any, fastapi.Depends(plain_generator)]) -> Any:
    """One that swallows, below one that does not."""
    return session


SWALLOWERS = [
    plain_generator, async_generator, context_manager, async_context_manager, UnitOfWork, AsyncUnitOfWork, nested,
]  # fmt: skip


@pytest.mark.parametrize("provider", SWALLOWERS)
@pytest.mark.parametrize("kind", ["async", "plain", "inline"])
async def test_a_provider_cannot_make_an_error_undone(engine: Engine, provider: Any, kind: str) -> None:
    """The body runs once, with what was provided, and its own error is the run's."""

    async def charge(session: Any = Depends(provider)) -> None:  # noqa: B008 - a marker
        steps.append("Depends" if isinstance(session, fastapi.params.Depends) else "provided")
        raise ValueError("card refused")

    def charge_plain(session: Any = Depends(provider)) -> None:  # noqa: B008 - a marker
        steps.append("provided")
        raise ValueError("card refused")

    if kind == "inline":
        with pytest.raises(ValueError, match="card refused"):
            await engine.task(charge)()
    else:
        job = await engine.enqueue(charge_plain if kind == "plain" else charge)
        with pytest.raises(JobFailedError, match="ValueError: card refused"):
            await job.result(timeout=5)
    assert steps == ["provided"]


@pytest.mark.parametrize("outer", SWALLOWERS[:-1])
async def test_a_provider_cannot_hide_that_another_failed(engine: Engine, outer: Any) -> None:
    """The body does not run without what it depends on."""

    def broken() -> str:
        raise ConnectionError("no database")

    async def task(session: Any = Depends(outer), database: str = Depends(broken)) -> None:  # noqa: B008
        steps.append("ran")

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError, match="ConnectionError: no database"):
        await job.result(timeout=5)
    assert steps == []


async def test_a_provider_may_put_another_error_in_the_place_of_the_tasks(engine: Engine) -> None:
    """As a session does that tells a lost connection from a mistake."""

    async def session() -> AsyncIterator[str]:
        try:
            yield "session"
        except ValueError as error:
            raise ConnectionError("the database went away") from error

    async def task(session: str = Depends(session)) -> None:
        raise ValueError

    job = await engine.enqueue(task)
    with pytest.raises(JobFailedError, match="ConnectionError: the database went away"):
        await job.result(timeout=5)


# Which call of a provider


@pytest.mark.parametrize("depends", [fastapi.Depends, Depends])
async def test_use_cache_says_whether_a_provider_is_called_again(engine: Engine, depends: Callable[..., Any]) -> None:
    """Once for all that depend on it, or once for each that asks so."""

    def number() -> int:
        steps.append("called")
        return len(steps)

    def below(fresh: int = depends(number, use_cache=False)) -> int:
        return fresh

    async def task(
        one: int = depends(number),
        same: int = depends(number),
        fresh: int = depends(number, use_cache=False),
        below: int = depends(below),
    ) -> list[int]:
        return [one, same, fresh, below]

    assert await (await engine.enqueue(task)).result(timeout=5) == [1, 1, 2, 3]


async def test_what_a_function_returns_is_given_as_it_is(engine: Engine) -> None:
    """Also where it could be entered: a client that all share is not closed by the first task that uses it."""
    shared = AsyncUnitOfWork()

    def client() -> AsyncUnitOfWork:
        return shared

    async def task(client: AsyncUnitOfWork = fastapi.Depends(client)) -> bool:  # noqa: B008
        return client is shared

    assert await (await engine.enqueue(task)).result(timeout=5)


async def test_a_query_parameter_of_a_provider_has_its_default(engine: Engine) -> None:
    """A provider that routes use too gets values, never FastAPI's markers; one without a default needs a request."""

    def page(limit: int = fastapi.Query(10)) -> int:
        return limit

    def language(accept_language: str = fastapi.Header()) -> str:
        return accept_language

    async def task(limit: int = Depends(page)) -> int:
        return limit

    async def localized(language: str = Depends(language)) -> str:
        return language

    assert await (await engine.enqueue(task)).result(timeout=5) == 10
    with pytest.raises(ArgumentsError, match="its provider needs 'accept_language', which only a request has"):
        await engine.enqueue(localized)


async def test_a_provider_that_depends_on_itself_is_named(engine: Engine) -> None:
    """Rather than a stack that overflows."""

    def original() -> str:
        return "original"

    def override(it: str = Depends(original)) -> str:
        return f"override of {it}"

    async def task(it: str = Depends(original)) -> str:
        return it

    app = fastapi.FastAPI()
    app.dependency_overrides[original] = override
    engine._parts.executor.overrides.add(app)

    with pytest.raises(RecursionError, match="override depends on itself"):
        await engine.enqueue(task)


# Threads


@pytest.fixture
async def busy_server() -> AsyncIterator[None]:
    """Every thread of the server's default limiter is taken, as by routes that wait."""
    limiter = current_default_thread_limiter()
    release = threading.Event()
    loop, held = asyncio.get_running_loop(), []

    def hold(begun: asyncio.Event) -> None:
        loop.call_soon_threadsafe(begun.set)
        release.wait(10)

    for _ in range(int(limiter.total_tokens)):
        begun = asyncio.Event()
        held.append(asyncio.create_task(run_in_threadpool(hold, begun)))
        await begun.wait()
    yield
    release.set()
    await asyncio.gather(*held)


@pytest.mark.usefixtures("busy_server")
async def test_nothing_waits_for_the_servers_threads(engine: Engine) -> None:
    """Plain tasks, inline calls and plain providers run in threads of asyncbg's own, whatever the routes do."""

    def session() -> Iterator[str]:
        yield "session"

    def name() -> str:
        return "name"

    @engine.task
    def task(session: str = Depends(session), name: str = Depends(name)) -> list[str]:
        return [session, name]

    assert await asyncio.wait_for(task(), 5) == ["session", "name"]
    assert await (await task.enqueue()).result(timeout=5) == ["session", "name"]


async def test_what_a_provider_releases_waits_for_no_thread(engine: Engine) -> None:
    """A pool of one, five jobs, two threads: who has it can give it back while others wait in every thread."""
    pool = threading.Semaphore(1)

    def connection() -> Iterator[str]:
        assert pool.acquire(timeout=5)
        yield "connection"
        pool.release()

    async def task(connection: str = Depends(connection)) -> str:
        await asyncio.sleep(0)
        return connection

    jobs = [await engine.enqueue(task) for _ in range(5)]
    assert [await job.result(timeout=10) for job in jobs] == ["connection"] * 5


async def test_an_inline_call_that_is_cancelled_raises_at_once(engine: Engine) -> None:
    """Its thread goes on and keeps its seat until it ends; the next call waits for a free one."""
    release = threading.Event()
    entered = threading.Semaphore(0)

    @engine.task
    def hold() -> None:
        entered.release()
        release.wait(10)

    calls = [asyncio.create_task(hold()) for _ in range(2)]
    await asyncio.to_thread(lambda: [entered.acquire(timeout=5) for _ in calls])
    for call in calls:
        call.cancel()
    await asyncio.wait(calls, timeout=1)
    assert all(call.cancelled() for call in calls)

    later = asyncio.create_task(hold())
    assert not await asyncio.to_thread(entered.acquire, timeout=0.1)
    release.set()
    await asyncio.wait_for(later, 5)


async def test_a_job_that_is_cancelled_in_a_provider_does_not_run(engine: Engine) -> None:
    """The thread of a plain provider is waited for; what it opened is closed, and the body is not begun."""
    opening, release = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def session() -> Iterator[str]:
        loop.call_soon_threadsafe(opening.set)
        release.wait(5)
        steps.append("open")
        yield "session"
        steps.append("close")

    async def task(session: str = Depends(session)) -> None:
        steps.append("ran")

    job = await engine.enqueue(task)
    await opening.wait()
    await job.cancel("enough")
    release.set()

    assert (await engine.wait(job.id, 5)).state == "cancelled"
    assert steps[0] == "open"
    assert "ran" not in steps


async def test_inline_calls_work_on_one_event_loop_after_another(tmp_path: Path) -> None:
    """A task is called in unit tests whose engine never starts, each on a loop of its own."""
    engine = Engine(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))

    @engine.task
    def task() -> str:
        return "done"

    async def many() -> list[str]:
        return await asyncio.gather(*(task() for _ in range(200)))

    for _ in range(2):
        assert await asyncio.to_thread(asyncio.run, many()) == ["done"] * 200


# What cannot be a task


def yields() -> Iterator[int]:
    """A generator."""
    yield 1


async def yields_async() -> AsyncIterator[int]:
    """An async generator."""
    yield 1


class Yields:
    """An object whose call is a generator."""

    def __call__(self) -> Iterator[int]:
        """Yield."""
        yield 1


async def greet(name: str) -> str:
    """A task."""
    return f"Hello {name}"


@pytest.mark.parametrize("function", [yields, yields_async, Yields(), functools.partial(yields)])
async def test_a_generator_is_no_task(engine: Engine, function: Any) -> None:
    """What it yields has no meaning: registering and adding say so at once."""
    with pytest.raises(InvalidTaskError, match="cannot be a task: it is a generator"):
        engine.task(name="counted")(function)
    with pytest.raises(InvalidTaskError, match="cannot be a task: it is a generator"):
        await engine.enqueue(function)


async def test_a_call_in_the_place_of_a_function_is_explained(engine: Engine) -> None:
    """``add_task(send(email))`` has called it already."""
    with pytest.raises(InvalidTaskError, match=r"pass the function .* add_task\(greet, …\), not add_task\(greet\(…"):
        await engine.enqueue(greet("Ada"))  # type: ignore[arg-type]
    with pytest.raises(InvalidTaskError, match="'builtins:str' cannot be a task: it is of type str"):
        await engine.enqueue("greet")  # type: ignore[arg-type]
    with pytest.raises(InvalidTaskError, match="it has no name"):
        engine.task(functools.partial(greet, "Ada"))


async def test_a_registered_method_is_explained_when_it_is_used(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Its jobs would have no ``self``: one warning when the class is made, an error for every way to call it."""

    class Mailer:
        @engine.task(key="{to}")
        async def send(self, to: str) -> None: ...

        @staticmethod
        @engine.task
        async def count(to: str) -> int:
            return len(to)

    [warning] = [record.message for record in caplog.records if "Mailer.send" in record.message]
    assert "is not registered as a task: its jobs have no object to pass as self; register a function" in warning
    mailer: Any = Mailer()
    calls: list[Awaitable[Any]] = [
        mailer.send("Ada"), mailer.send.enqueue("Ada"), mailer.send.enqueue("Ada", "Grace"),
        Mailer.send.enqueue(mailer, "Ada"), mailer.send.options(priority=1).enqueue("Ada"),
        engine.enqueue(mailer.send, "Ada", "Grace"),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(InvalidTaskError, match=r"'send' cannot be a task: it is the method .* as self; register"):
            await call
    assert engine._parts.registry.names == ["count"]
    assert await (await mailer.count.enqueue("Ada")).result(timeout=5) == 3


class Greeter:
    """An object with a method."""

    def __init__(self, word: str = "Hello") -> None:
        """Know a word."""
        self.word = word

    async def greet(self, name: str) -> str:
        """Greet."""
        return f"{self.word} {name}"


async def test_a_method_that_is_added_needs_its_object(engine: Engine) -> None:
    """Bound, or with the object as its first argument; without either the error says what is missing."""
    assert await (await engine.enqueue(Greeter().greet, "Ada")).result(timeout=5) == "Hello Ada"
    assert await (await engine.enqueue(Greeter.greet, Greeter("Hi"), "Ada")).result(timeout=5) == "Hi Ada"
    with pytest.raises(ArgumentsError, match=r"Greeter.greet is a method: pass that of an object"):
        await engine.enqueue(Greeter.greet, name="Ada")


# Coroutines that nobody awaits


async def forgets() -> None:
    """Call another coroutine function and drop what it gives."""
    greet("Ada")  # type: ignore[unused-coroutine]


def forgets_plain() -> None:
    """The same in a thread."""
    greet("Ada")  # type: ignore[unused-coroutine]


async def returns_it() -> Awaitable[str]:
    """Return it instead of awaiting it."""
    return greet("Ada")


@pytest.mark.parametrize("task", [forgets, forgets_plain, returns_it])
@pytest.mark.parametrize("inline", [False, True])
async def test_a_coroutine_that_nobody_awaits_is_an_error(engine: Engine, task: Any, inline: bool) -> None:
    """What it was to do was not done: the job fails, each time, and says what was not awaited."""
    for _ in range(2):
        if inline:
            with pytest.raises(Exception, match="called greet and never awaited it, so it did not run"):
                await engine.task(task)()
        else:
            job = await engine.enqueue(task)
            with pytest.raises(JobFailedError, match=r"UnawaitedError: .*called greet and never awaited it"):
                await job.result(timeout=5)


async def test_a_plain_function_may_hand_on_a_coroutine(engine: Engine) -> None:
    """As a lambda does around a coroutine function: it is awaited."""
    assert await (await engine.enqueue(lambda: greet("Ada"))).result(timeout=5) == "Hello Ada"


async def test_the_error_of_the_task_comes_before_what_it_did_not_await(engine: Engine) -> None:
    """It is a note of that error."""

    @engine.task
    async def fail() -> None:
        greet("Ada")  # type: ignore[unused-coroutine]
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        await fail()
    assert caught.value.__notes__ == ["never awaited: greet"]


# Errors of the task's own use of asyncbg


async def test_bad_arguments_for_another_task_are_an_error_like_any_other(engine: Engine) -> None:
    """Only the job's own arguments cannot become better by another attempt."""

    @engine.task(retries=1)
    async def parent() -> None:
        steps.append(f"attempt {current_job().attempt}")
        error = ArgumentsError("child", [])
        error.retry_after_s = 0  # type: ignore[attr-defined]
        raise error

    job = await parent.enqueue()
    with pytest.raises(JobFailedError, match="ArgumentsError"):
        await job.result(timeout=5)
    assert steps == ["attempt 1", "attempt 2"]
