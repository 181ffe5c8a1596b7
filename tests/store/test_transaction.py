"""A job within the caller's own transaction: there with its commit, and never there after its rollback."""

import asyncio
import functools
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from asyncbg.core.event import Event, EventFilter
from asyncbg.core.job import JobState
from asyncbg.engine import Engine, Job
from asyncbg.errors import (
    ArgumentsError,
    DatabaseError,
    IdempotencyError,
    JobNotFoundError,
    OverloadedError,
    TransactionError,
)
from asyncbg.settings import load_settings
from asyncbg.store.base import JobQuery

SOON_S = 10


async def greet(name: str) -> str:
    """A task."""
    return f"hello {name}"


async def dial(connection: str) -> str:
    """A task with an argument of that name."""
    return f"dialling {connection}"


async def take_all(**anything: str) -> list[str]:
    """A task that takes any argument by name."""
    return sorted(anything)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """The jobs' database."""
    return tmp_path / "jobs.db"


@pytest.fixture
async def engine(path: Path) -> AsyncIterator[Engine]:
    """A running engine."""
    async with Engine(load_settings(database_url=f"sqlite:///{path}", runner={"max_queued": 50})) as one:
        yield one


@pytest.fixture
async def connection(engine: Engine, path: Path) -> AsyncIterator[aiosqlite.Connection]:
    """The caller's own connection, with a table of the caller's."""
    async with aiosqlite.connect(path, isolation_level=None) as one:
        await one.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, item TEXT)")
        yield one


async def jobs_of(engine: Engine) -> list[str]:
    """The ids of all jobs, oldest first."""
    return [record.id for record in reversed(await engine.backend.list(JobQuery(limit=1000)))]


async def log_of(engine: Engine) -> list[Event]:
    """All stored events."""
    events, _ = await engine.backend.events(after_seq=0, wanted=EventFilter(), limit=10_000)
    return list(events)


async def test_a_job_is_there_with_the_commit(engine: Engine, connection: aiosqlite.Connection) -> None:
    """Nobody else sees it before; then it runs without anything else happening."""
    await connection.execute("BEGIN IMMEDIATE")
    await connection.execute("INSERT INTO orders (item) VALUES ('tea')")
    job = await engine.enqueue(greet, "Ada", connection=connection)

    with pytest.raises(JobNotFoundError):
        await engine.get(job.id)
    assert await log_of(engine) == []
    await connection.execute("COMMIT")

    assert await jobs_of(engine) == [job.id]
    assert await job.result(SOON_S) == "hello Ada"
    assert job.created


async def test_a_rollback_leaves_nothing(engine: Engine, connection: aiosqlite.Connection) -> None:
    """No row, no event, and no number of the log that is missing afterwards."""
    await connection.execute("BEGIN IMMEDIATE")
    await connection.execute("INSERT INTO orders (item) VALUES ('tea')")
    gone = await engine.enqueue(greet, "Ada", connection=connection)
    await connection.execute("ROLLBACK")

    kept = await engine.enqueue(greet, "Grace")
    await kept.result(SOON_S)

    assert await jobs_of(engine) == [kept.id]
    assert [event.seq for event in await log_of(engine)] == [1, 2, 3]
    with pytest.raises(JobNotFoundError):
        await gone.refresh()


async def test_numbers_go_on_without_gaps(engine: Engine, connection: aiosqlite.Connection) -> None:
    """Whether a job comes through a transaction or the engine's own, kept or rolled back: the log has no hole."""
    jobs: list[Job] = []
    for number in range(12):
        jobs.append(await engine.enqueue(greet, f"own {number}"))
        await connection.execute("BEGIN IMMEDIATE")
        joined = [await engine.enqueue(greet, f"{number}.{n}", connection=connection) for n in range(3)]
        await connection.execute("COMMIT" if number % 3 else "ROLLBACK")
        jobs += joined if number % 3 else []
    for job in jobs:
        await job.result(SOON_S)

    events = await log_of(engine)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert await jobs_of(engine) == [job.id for job in jobs]


async def test_streams_get_the_events_in_order(engine: Engine, connection: aiosqlite.Connection) -> None:
    """A subscriber is told of every event once and in order, though the commit was somebody else's."""
    told: list[int] = []
    with engine.bus.subscribe(EventFilter()) as live:
        jobs = []
        for number in range(10):
            await connection.execute("BEGIN IMMEDIATE")
            jobs.append(await engine.enqueue(greet, str(number), connection=connection))
            await connection.execute("COMMIT")
            jobs.append(await engine.enqueue(greet, "between"))
        async with asyncio.timeout(SOON_S):
            while len(told) < 3 * len(jobs):
                await live.wait()
                told += [event.seq for event in live.take()]

    assert told == list(range(1, 61))


async def test_the_options_work_within_a_transaction(engine: Engine, connection: aiosqlite.Connection) -> None:
    """``options(connection=…)`` goes with the others; both ways of enqueueing take it."""
    task = engine.task(name="greet")(greet)
    await connection.execute("BEGIN IMMEDIATE")
    late = await task.options(connection=connection, delay=3600, tags=["vip"]).enqueue("Ada")
    other = await engine.enqueue(task.options(connection=connection, delay=3600), "Grace")
    await connection.execute("COMMIT")

    record = await engine.get(late.id)
    assert (record.state, record.tags) == (JobState.SCHEDULED, ("vip",))
    assert (await engine.get(other.id)).state is JobState.SCHEDULED


async def test_idempotency_keys_work_within_a_transaction(engine: Engine, connection: aiosqlite.Connection) -> None:
    """The second enqueue gets the first job, also before the commit; another body is refused, the rest stays."""
    call = engine.task(name="greet")(greet).options(connection=connection, idempotency_key="once")
    await connection.execute("BEGIN IMMEDIATE")
    first, second = await call.enqueue("Ada"), await call.enqueue("Ada")
    await connection.execute("COMMIT")
    await connection.execute("BEGIN IMMEDIATE")
    third = await call.enqueue("Ada")
    await connection.execute("COMMIT")

    assert (first.created, second.created, third.created) == (True, False, False)
    assert {first.id, second.id, third.id} == {first.id}
    assert await jobs_of(engine) == [first.id]


async def test_a_refused_enqueue_leaves_the_transaction_as_it_was(
    engine: Engine, connection: aiosqlite.Connection
) -> None:
    """What came before it is committed as if it had not been tried."""
    task = engine.task(name="greet")(greet)
    await engine.submit("greet", {"name": "Ada"}, idempotency_key="once", fingerprint="one")
    await connection.execute("BEGIN IMMEDIATE")
    await connection.execute("INSERT INTO orders (item) VALUES ('tea')")
    kept = await engine.enqueue(task, "Grace", connection=connection)
    with pytest.raises(IdempotencyError):
        await task.options(connection=connection, idempotency_key="once").enqueue("Ada")
    await connection.execute("COMMIT")

    assert await kept.result(SOON_S) == "hello Grace"
    assert list(await connection.execute_fetchall("SELECT item FROM orders")) == [("tea",)]


async def test_the_connection_is_left_as_it_was(engine: Engine, connection: aiosqlite.Connection) -> None:
    """A connection with rows and text of its own kind works, and keeps them."""
    connection.row_factory = lambda cursor, row: {"row": row}  # type: ignore[assignment]  # sqlite3 takes any callable
    connection.text_factory = bytes
    await connection.execute("BEGIN IMMEDIATE")
    job = await engine.enqueue(greet, "Ada", connection=connection)
    await connection.execute("COMMIT")

    rows: list[Any] = list(await connection.execute_fetchall("SELECT 'x'"))
    assert rows == [{"row": (b"x",)}]
    assert await job.result(SOON_S) == "hello Ada"


async def test_a_connection_that_begins_by_itself_will_do(engine: Engine, path: Path) -> None:
    """sqlite3's default opens a transaction at the first write; that one is joined."""
    async with aiosqlite.connect(path) as connection:
        await connection.execute("CREATE TABLE notes (text TEXT)")
        await connection.execute("INSERT INTO notes VALUES ('x')")
        job = await engine.enqueue(greet, "Ada", connection=connection)
        await connection.commit()

    assert await job.result(SOON_S) == "hello Ada"


async def test_without_an_open_transaction_it_is_refused(engine: Engine, connection: aiosqlite.Connection) -> None:
    """Nothing could be rolled back, so the caller has made a mistake."""
    with pytest.raises(TransactionError, match="no transaction is open"):
        await engine.enqueue(greet, "Ada", connection=connection)
    assert await jobs_of(engine) == []


async def test_another_database_is_refused(engine: Engine, tmp_path: Path) -> None:
    """A transaction somewhere else cannot hold this engine's jobs, even where the right file is attached."""
    for target in (tmp_path / "other.db", ":memory:"):
        async with aiosqlite.connect(target, isolation_level=None) as connection:
            await connection.execute(f"ATTACH '{tmp_path / 'jobs.db'}' AS jobs")
            await connection.execute("BEGIN")
            with pytest.raises(TransactionError, match="another database"):
                await engine.enqueue(greet, "Ada", connection=connection)


async def test_the_same_file_by_another_name_is_taken(engine: Engine, path: Path, tmp_path: Path) -> None:
    """What counts is the file, not how it is spelt."""
    spelt = tmp_path / "elsewhere" / ".." / "jobs.db"
    (tmp_path / "elsewhere").mkdir()
    async with aiosqlite.connect(spelt, isolation_level=None) as connection:
        await connection.execute("BEGIN IMMEDIATE")
        job = await engine.enqueue(greet, "Ada", connection=connection)
        await connection.execute("COMMIT")

    assert await job.result(SOON_S) == "hello Ada"


async def test_a_database_in_memory_is_refused() -> None:
    """It has no second connection."""
    async with (
        Engine(load_settings(database_url="sqlite:///:memory:")) as engine,
        aiosqlite.connect(":memory:", isolation_level=None) as connection,
    ):
        await connection.execute("BEGIN")
        with pytest.raises(TransactionError, match="in memory"):
            await engine.enqueue(greet, "Ada", connection=connection)


async def test_a_closed_connection_is_refused(engine: Engine, path: Path) -> None:
    """It has no transaction any more."""
    connection = await aiosqlite.connect(path)
    await connection.close()

    with pytest.raises(TransactionError, match="not open"):
        await engine.enqueue(greet, "Ada", connection=connection)


@pytest.mark.parametrize("argument", ["Ada", object()])
async def test_a_job_that_is_not_durable_is_refused(
    engine: Engine, connection: aiosqlite.Connection, argument: object
) -> None:
    """Memory cannot be rolled back."""

    async def closure(value: Any) -> None:
        """Has no lasting name."""

    await connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(TransactionError, match="not durable"):
        await engine.enqueue(closure, argument, connection=connection)
    await connection.execute("ROLLBACK")


async def test_a_task_may_have_an_argument_called_connection(engine: Engine, connection: aiosqlite.Connection) -> None:
    """What is no aiosqlite connection is the task's; ``options`` and ``partial`` keep the two apart."""
    task = engine.task(name="dial")(dial)
    plain = await engine.enqueue(task, connection="eth0")
    assert await plain.result(SOON_S) == "dialling eth0"

    await connection.execute("BEGIN IMMEDIATE")
    jobs = [
        await task.options(connection=connection).enqueue(connection="eth1"),
        await engine.enqueue(functools.partial(dial, "eth1"), connection=connection),
    ]
    assert await jobs_of(engine) == [plain.id]
    await connection.execute("COMMIT")
    assert [await job.result(SOON_S) for job in jobs] == ["dialling eth1"] * 2


@pytest.mark.parametrize("target", [greet, take_all])
async def test_what_is_no_connection_is_refused(engine: Engine, path: Path, target: Callable[..., Any]) -> None:
    """A transaction is never lost silently; None means that there is none."""
    with sqlite3.connect(path) as other, pytest.raises(TransactionError, match="aiosqlite connection, not Connection"):
        await engine.enqueue(target, connection=other)
    other.close()

    job = await engine.enqueue(greet, "Ada", connection=None)
    assert await job.result(SOON_S) == "hello Ada"


async def test_bad_arguments_write_nothing(engine: Engine, connection: aiosqlite.Connection) -> None:
    """They are checked before the transaction is touched."""
    await connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(ArgumentsError):
        await engine.enqueue(greet, connection=connection)
    await connection.execute("COMMIT")
    assert await jobs_of(engine) == []


async def test_the_bound_of_waiting_jobs_holds(engine: Engine, connection: aiosqlite.Connection) -> None:
    """A full queue refuses a job within a transaction too, and has room again after the rollback."""
    task = engine.task(name="greet")(greet)
    await connection.execute("BEGIN IMMEDIATE")
    for _ in range(50):
        await task.options(connection=connection, delay=3600).enqueue("Ada")
    with pytest.raises(OverloadedError):
        await engine.enqueue(task, "Ada", connection=connection)
    await connection.execute("ROLLBACK")

    async with asyncio.timeout(SOON_S):
        while True:
            try:
                await (await engine.enqueue(task, "Grace")).result(SOON_S)
                break
            except OverloadedError as error:
                await asyncio.sleep(error.retry_after_s / 10)


async def test_a_transaction_that_can_never_write_is_told(engine: Engine, connection: aiosqlite.Connection) -> None:
    """A plain BEGIN that has read an older state gets a clear error, not a wait."""
    await connection.execute("BEGIN")
    await connection.execute_fetchall("SELECT * FROM orders")
    await (await engine.enqueue(greet, "Grace")).result(SOON_S)

    with pytest.raises(DatabaseError, match="BEGIN IMMEDIATE"):
        await engine.enqueue(greet, "Ada", connection=connection)
    await connection.execute("ROLLBACK")


async def test_waiting_for_oneself_ends_in_an_error(engine: Engine, connection: aiosqlite.Connection) -> None:
    """Without ``connection=`` the engine waits for the caller's own transaction: not for ever, and it recovers."""
    await connection.execute("BEGIN IMMEDIATE")
    async with asyncio.timeout(15):
        with pytest.raises(DatabaseError, match="connection="):
            await engine.enqueue(greet, "Ada")
    await connection.execute("ROLLBACK")

    assert await (await engine.enqueue(greet, "Grace")).result(SOON_S) == "hello Grace"


async def test_another_process_runs_what_was_committed(engine: Engine, connection: aiosqlite.Connection) -> None:
    """An engine that only shares the file notices the commit by itself."""
    async with Engine(engine.settings) as other:
        with other.bus.subscribe(EventFilter()) as live:
            await connection.execute("BEGIN IMMEDIATE")
            job = await engine.enqueue(greet, "Ada", connection=connection)
            await connection.execute("COMMIT")
            seen: list[str] = []
            async with asyncio.timeout(SOON_S):
                while len(seen) < 3:
                    await live.wait()
                    seen += [event.type for event in live.take()]

        assert seen == ["job.queued", "job.started", "job.succeeded"]
        assert (await other.get(job.id)).state is JobState.SUCCEEDED
