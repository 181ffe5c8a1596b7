"""A process that was frozen and thaws does nothing to the work of the attempt that was given its job meanwhile."""

import asyncio
import os
import signal
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from asyncbg.core.clock import ManualClock, SystemClock
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Done, Lease, NewJob
from asyncbg.engine.context import CurrentJob
from asyncbg.engine.options import CallOptions
from asyncbg.engine.progress import ProgressReporter
from asyncbg.errors import JobStateError, LeaseLostError
from asyncbg.ops.open_store import open_store
from asyncbg.service.integrations.uploads import Upload, Uploads
from asyncbg.service.server import service_engine
from asyncbg.settings import Settings, load_settings
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database

SOON_S = 60.0
ROWS = 300_000
LEASE_S = 0.5


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """The service on a directory of the test's own, with short leases."""
    return load_settings(
        database_url=f"sqlite:///{tmp_path / 'jobs.db'}", data_dir=tmp_path / "data", runner={"lease_s": LEASE_S}
    )


@asynccontextmanager
async def worker(settings: Settings) -> AsyncIterator[asyncio.subprocess.Process]:
    """A process of the service that runs jobs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", "from asyncbg.cli import main; main()", "worker",
        env=os.environ
        | {
            "ASYNCBG_DATABASE_URL": settings.database_url,
            "ASYNCBG_DATA_DIR": str(settings.data_dir),
            "ASYNCBG_RUNNER__LEASE_S": str(LEASE_S),
        },
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def received(settings: Settings) -> Upload:
    """An upload of so many rows, as the service keeps it."""
    uploads = Uploads(
        settings.data_dir / "uploads", max_bytes=1 << 30, min_free_bytes=0, clock=SystemClock()
    )  # fmt: skip
    await uploads.open()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"name,city\n"
        for first in range(0, ROWS, 10_000):
            yield b"".join(b"name %d,city\n" % n for n in range(first, first + 10_000))

    return await uploads.receive(chunks(), file_name="people.csv")


async def submitted(settings: Settings, upload: Upload) -> str:
    """A job that imports the upload, at its first and last attempt."""
    engine = service_engine(settings)
    definition = engine._parts.registry.get("process_csv")
    args = {"user_id": 1, "upload": upload.token, "file_name": upload.file_name, "size": upload.size}
    bound = definition.arguments.validate(definition.name, args)
    async with open_store(settings, create=True) as store:
        new = engine._parts.enqueuer.prepare(definition, bound, CallOptions()).new
        return (await store.enqueue([new._replace(retries=0)])).ids[0]


def rows(settings: Settings, query: str) -> list[Any]:
    """What the database holds."""
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


async def until(ask: Callable[[], bool]) -> None:
    """Look until it is so; the other process has no way to say it."""
    async with asyncio.timeout(SOON_S):
        while not ask():  # noqa: ASYNC110 - nothing to wait for but another process
            await asyncio.sleep(0.005)


async def test_a_thawed_process_leaves_the_import_of_another_attempt_alone(settings: Settings, tmp_path: Path) -> None:
    """It neither ends the import, nor removes the upload, nor stores a row twice, nor tells anybody that it failed."""
    upload = await received(settings)

    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(worker(settings))
        await until(lambda: _has_tables(settings))
        await submitted(settings, upload)
        await until(lambda: _stored(settings) > 0)
        freeze(first, settings)
        assert _stored(settings) < ROWS, "it was frozen too late"
        await stack.enter_async_context(worker(settings))
        await until(lambda: rows(settings, "SELECT attempt, state FROM job") == [(2, "running")])
        first.send_signal(signal.SIGCONT)
        await until(lambda: rows(settings, "SELECT state FROM job") != [("running",)])
        await until(lambda: not list((settings.data_dir / "uploads").glob("*.csv")))

    assert rows(settings, "SELECT state, attempt, error_type FROM job") == [("succeeded", 2, None)]
    assert rows(settings, "SELECT status, rows_stored FROM import") == [("completed", ROWS)]
    assert rows(settings, "SELECT count(*) FROM import_row") == [(ROWS,)]
    assert (settings.data_dir / "notifications.log").read_text("utf-8").count("\n") == 1
    assert rows(settings, "SELECT count(*) FROM event WHERE type LIKE 'csv.%'") == [(1,)]


def freeze(process: asyncio.subprocess.Process, settings: Settings) -> None:
    """Stop a process while it is in no transaction: there it would hold the lock of the database."""
    path = settings.database_url.removeprefix("sqlite:///")
    with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
        while True:
            process.send_signal(signal.SIGSTOP)
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                process.send_signal(signal.SIGCONT)
                time.sleep(0.001)
            else:
                connection.execute("ROLLBACK")
                return


def _stored(settings: Settings) -> int:
    return sum(stored for (stored,) in rows(settings, "SELECT rows_stored FROM import"))


def _has_tables(settings: Settings) -> bool:
    try:
        return bool(rows(settings, "SELECT 1 FROM sqlite_master WHERE name = 'import_of_owner'"))
    except sqlite3.OperationalError:  # there is no file yet
        return False


# One attempt whose lease was taken, beside the one that has it


@pytest.fixture
async def stolen(tmp_path: Path) -> AsyncIterator[tuple[SQLiteBackend, CurrentJob, Lease]]:
    """A store, the attempt that lost its lease, and the lease of the attempt that has it now."""
    clock = ManualClock()
    store = SQLiteBackend(Database(str(tmp_path / "jobs.db")), clock=clock)
    await store.open()
    job_id, now_ms = IdGenerator(clock).new(), clock.now_ms()
    await store.enqueue(
        [NewJob(job_id, "noop", "default", "me", job_id, "[]", "queued", 0, 1, 0, 0, 0, "{}", "{}", now_ms, now_ms)]
    )
    (old,) = (await store.claim(1, lease_s=30)).leases
    clock.advance(seconds=31)
    assert await store.rescue() == 1
    (new,) = (await store.claim(1, lease_s=30)).leases
    yield store, CurrentJob(old, ProgressReporter(store, per_s=10), clock.now_ms), new
    await store.close()


Effect = Callable[[SQLiteBackend, CurrentJob], Awaitable[object]]


async def _write(store: SQLiteBackend, job: CurrentJob) -> None:
    await store.database.write(job.guard)


async def _publish(store: SQLiteBackend, job: CurrentJob) -> None:
    await job.publish("work.done", {"n": 1})


async def _ask(store: SQLiteBackend, job: CurrentJob) -> None:
    await job.require_lease()


@pytest.mark.parametrize("effect", [_write, _publish, _ask])
async def test_whatever_an_attempt_does_without_its_lease_is_refused(
    stolen: tuple[SQLiteBackend, CurrentJob, Lease], effect: Effect
) -> None:
    """A write in the jobs' database, an event of its own, and the question before an effect elsewhere."""
    store, job, _ = stolen
    job.bind_loop()

    with pytest.raises(LeaseLostError):
        await effect(store, job)


async def test_its_progress_is_neither_kept_nor_told(stolen: tuple[SQLiteBackend, CurrentJob, Lease]) -> None:
    """And the attempt that has the lease is heard."""
    store, job, new = stolen
    told: list[int] = []
    store.on_progress = lambda events: told.extend(event.attempt for event in events)

    assert not await store.report(job.lease, '{"current":9}')
    assert await store.report(new, '{"current":1}')

    record = await store.get(job.id)
    assert record is not None
    assert record.progress is not None
    assert (record.progress.current, told) == (1, [2])


async def test_who_cleans_up_after_a_job_leaves_one_that_was_retried_alone(
    stolen: tuple[SQLiteBackend, CurrentJob, Lease],
) -> None:
    """A handler of the final event that comes late finds that the job is not final any more."""
    store, job, new = stolen
    with pytest.raises(JobStateError):
        await store.database.write(store.guard_ended(job.id))
    await store.settle([Settlement(new, Done("null"))])
    await store.database.write(store.guard_ended(job.id))
    await store.retry(job.id)

    with pytest.raises(JobStateError):
        await store.database.write(store.guard_ended(job.id))
