"""What is known of failed attempts: their tracebacks in the log and on the job, the exception for handlers."""

import asyncio
import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI

from asyncbg.client import Client
from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event
from asyncbg.core.job import Attempt
from asyncbg.engine import Engine
from asyncbg.engine.context import current_job
from asyncbg.engine.failure import describe, traceback_text
from asyncbg.errors import FinalError, JobFailedError, JobNotFoundError, TracebackError
from asyncbg.ops.erasure.email_matcher import EmailMatcher
from asyncbg.ops.erasure.rows import Rows
from asyncbg.ops.open_store import open_store
from asyncbg.ops.rekey import rekey
from asyncbg.privacy import Personal
from asyncbg.settings import JobSettings, RunnerSettings, Settings
from asyncbg.testing import serve
from asyncbg.web.jobs import jobs_router

KEY, OTHER = "6b" * 32, "7c" * 32
ADA = "ada.canary7f3a@canary7f3a.example"


class BusyError(Exception):
    """Come back at once."""

    retry_after_s = 0


def deep(row: dict[str, str]) -> str:
    """Fail two calls below the task."""
    return row["dat"]


async def import_row(email: Annotated[str, Personal("email")] = ADA) -> str:
    """Fail, and quote an argument."""
    with suppress(ZeroDivisionError):
        deep({"date": email})
    return "done"


def find(email: str) -> None:
    """Fail, and quote."""
    raise LookupError(f"no row of {email}")


async def quote(email: Annotated[str, Personal("email")]) -> None:
    """Fail with a cause that quotes the argument."""
    try:
        find(email)
    except LookupError as error:
        raise ValueError(f"cannot import {email}") from error


def settings_in(directory: Path, **jobs: Any) -> Settings:
    """Settings of an engine in a directory."""
    return Settings(
        database_url=f"sqlite:///{directory}/jobs.db", data_dir=directory, runner=RunnerSettings(shutdown_grace_s=1),
        jobs=JobSettings(**jobs),
    )  # fmt: skip


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """A running engine."""
    async with Engine(settings_in(tmp_path)) as engine:
        yield engine


async def failed(engine: Engine, task: Callable[..., Any], *args: Any) -> Attempt:
    """The last attempt of a job that fails."""
    job = await engine.enqueue(task, *args)
    with pytest.raises(JobFailedError):
        await job.result(timeout=5)
    return (await job.attempts())[-1]


# On the job


async def test_a_failed_attempt_keeps_its_traceback(engine: Engine) -> None:
    """From the task down to the line that raised, without the engine's own frames; with who ran it and when."""
    attempt = await failed(engine, import_row)

    assert attempt.traceback is not None
    lines = attempt.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert [line.rpartition(" in ")[2] for line in lines if line.startswith("  File")] == ["import_row", "deep"]
    assert 'return row["dat"]' in attempt.traceback
    assert lines[-1] == "KeyError: 'dat'"
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "failed", engine.backend.place)
    assert attempt.error is not None
    assert attempt.error.as_dict() == {"type": "KeyError", "message": "'dat'"}
    assert attempt.ended_at_ms is not None
    assert attempt.started_at_ms <= attempt.ended_at_ms


async def test_every_attempt_of_a_job_is_told(engine: Engine) -> None:
    """Each that failed with its own error, and the one that succeeded."""

    @engine.task(retries=2)
    async def third_time_lucky() -> str:
        if current_job().attempt < 3:
            raise BusyError(f"attempt {current_job().attempt}")
        return "done"

    job = await third_time_lucky.enqueue()
    await job.result(timeout=5)
    attempts = await engine.attempts(job.id)

    assert [(one.number, one.outcome) for one in attempts] == [(1, "failed"), (2, "failed"), (3, "succeeded")]
    assert [one.error and one.error.message for one in attempts] == ["attempt 1", "attempt 2", None]
    assert [bool(one.traceback) for one in attempts] == [True, True, False]
    assert [one.worker for one in attempts] == [engine.backend.place] * 3


async def test_a_running_attempt_has_no_end_yet_and_a_cancelled_one_says_so(engine: Engine) -> None:
    """Its outcome is None, then ``cancelled``; a job that waits has no attempt; one that is unknown raises."""
    begun = asyncio.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    later = await engine.task(name="later")(wait).options(delay=60).enqueue()
    assert not await engine.attempts(later.id)
    job = await engine.enqueue(wait)
    await begun.wait()
    (running,) = await engine.attempts(job.id)
    assert (running.outcome, running.ended_at_ms, running.worker) == (None, None, engine.backend.place)

    await job.cancel()
    await engine.wait(job.id, 5)
    assert [one.outcome for one in await engine.attempts(job.id)] == ["cancelled"]
    with pytest.raises(JobNotFoundError):
        await engine.attempts("019ab3f0-5a1e-7000-8000-3f1c0de5a7b2")


async def test_causes_are_told_and_nobody_is_named(engine: Engine, tmp_path: Path) -> None:
    """As Python prints them; the job's personal arguments as pseudonyms, in the traceback and on disk."""
    attempt = await failed(engine, quote, ADA)

    assert attempt.traceback is not None
    cause, _, effect = attempt.traceback.partition(
        "The above exception was the direct cause of the following exception:"
    )
    assert "LookupError: no row of [email:" in cause
    assert "ValueError: cannot import [email:" in effect
    assert ADA not in attempt.traceback


async def test_a_timeout_tells_where_the_task_waited(engine: Engine) -> None:
    """The frames of the coroutine, down to what it awaited when its time was over."""

    async def query() -> None:
        await asyncio.Event().wait()

    @engine.task(timeout=0.05)
    async def report() -> None:
        await query()

    attempt = await failed(engine, report)

    assert attempt.traceback is not None
    frames = [line.rpartition(" in ")[2] for line in attempt.traceback.splitlines() if line.startswith("  File")]
    assert frames == ["report", "query", "wait"]
    assert attempt.traceback.endswith("AttemptTimeoutError: took longer than 0.05 s\n")


async def test_an_erasure_takes_tracebacks_along(engine: Engine, tmp_path: Path) -> None:
    """All of a job that names the person, and any other where something was let slip."""
    theirs = await engine.enqueue(quote, ADA)
    others = [await engine.enqueue(import_row, "bob.canary7f3a@canary7f3a.example") for _ in range(2)]
    for job in (theirs, *others):
        await engine.wait(job.id, 5)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection, connection:
        slipped = (await engine.get(others[0].id)).n
        connection.execute("UPDATE failed_attempt SET traceback = ? WHERE job = ?", (f"mail to {ADA}", slipped))
    async with open_store(settings_in(tmp_path)) as store:
        rows = Rows(store, EmailMatcher(ADA))
        assert await rows.erase_tracebacks(await rows.jobs()) == 2

    kept = [(await engine.attempts(job.id))[0].traceback for job in (theirs, *others)]
    assert kept[:2] == [None, None]
    assert "in deep" in str(kept[2])


async def test_the_rows_of_the_last_twenty_attempts_are_kept(engine: Engine, tmp_path: Path) -> None:
    """However often a job is tried again."""

    @engine.task(retries=25)
    async def busy() -> None:
        raise BusyError

    with pytest.raises(JobFailedError):
        await (await busy.enqueue()).result(timeout=10)
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        rows = connection.execute("SELECT min(attempt), max(attempt) FROM failed_attempt").fetchall()
    assert rows == [(7, 26)]


async def test_a_setting_keeps_tracebacks_off_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Who ran it, and the error, are told all the same; the log has the traceback in any case."""
    async with Engine(settings_in(tmp_path, tracebacks=False)) as engine:
        attempt = await failed(engine, import_row)
    assert (attempt.traceback, attempt.outcome) == (None, "failed")
    assert attempt.error is not None
    assert any(record.exc_text and "in deep" in record.exc_text for record in caplog.records)


async def test_a_purge_takes_the_attempts_along(tmp_path: Path) -> None:
    """Nothing of a job outlives it."""
    clock = ManualClock()
    async with Engine(settings_in(tmp_path), clock=clock) as engine:
        await failed(engine, import_row)
        clock.advance(hours=1)
        assert await engine.backend.purge(before_ms=clock.now_ms(), limit=10) == 1
    with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
        assert connection.execute("SELECT count(*) FROM failed_attempt").fetchone() == (0,)


async def test_tracebacks_are_encrypted_and_rekeyed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where arguments are; after a rotation they are read with the new key alone."""

    def stored() -> str:
        with closing(sqlite3.connect(tmp_path / "jobs.db")) as connection:
            return str(connection.execute("SELECT traceback FROM failed_attempt").fetchone()[0])

    def keyed(*keys: str) -> Settings:
        return settings_in(tmp_path).model_copy(update={"privacy": Settings(privacy={"encryption_keys": keys}).privacy})

    async with Engine(keyed(KEY)) as engine:
        job = await engine.enqueue(import_row)
        await engine.wait(job.id, 5)
        assert "in deep" in str((await engine.attempts(job.id))[0].traceback)
    first = stored()
    assert first.startswith("enc:") or "in deep" not in first

    async with open_store(keyed(OTHER, KEY)) as store:
        await rekey(store)
    assert stored() != first
    async with Engine(keyed(OTHER)) as engine:
        assert "in deep" in str((await engine.attempts(job.id))[0].traceback)


# In the log


async def test_the_log_has_the_traceback_with_the_id_of_the_job(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the attempt that is final as an error, of one that is tried again as a warning, without messages."""

    @engine.task(retries=1)
    async def fail(email: Annotated[str, Personal("email")]) -> None:
        raise BusyError(f"not for {email}")

    job = await fail.enqueue(ADA)
    with pytest.raises(JobFailedError):
        await job.result(timeout=5)

    records = [record for record in caplog.records if job.id in record.getMessage()]
    assert [record.levelno for record in records] == [logging.WARNING, logging.ERROR]
    for record in records:
        assert record.exc_text is not None
        assert "in fail" in record.exc_text
        assert record.exc_text.splitlines()[-1].strip() == "BusyError"
        assert "[email:" not in record.exc_text


async def test_a_log_handler_that_raises_costs_no_job(engine: Engine) -> None:
    """The error is on the job."""

    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("the disk of the log is full")

    broken = Broken()
    logging.getLogger("asyncbg").addHandler(broken)
    try:
        attempt = await failed(engine, import_row)
    finally:
        logging.getLogger("asyncbg").removeHandler(broken)
    assert attempt.outcome == "failed"


# The exception itself


async def test_a_handler_gets_the_exception(engine: Engine) -> None:
    """``event.error`` is the very object that the task raised, when it is tried again and when it failed for good."""
    raised, seen = BusyError("no"), []
    is_told = asyncio.Event()

    @engine.on("job.*")
    async def on_any(event: Event) -> None:
        if event.error is not None:
            seen.append((event.type, event.error))
        if event.is_final:
            is_told.set()

    @engine.task(retries=1)
    async def fail() -> None:
        raise raised

    await fail.enqueue()
    await asyncio.wait_for(is_told.wait(), 5)

    assert seen == [("job.retrying", raised), ("job.failed", raised)]


async def test_who_waits_for_the_result_gets_what_the_task_raised_as_the_cause(engine: Engine) -> None:
    """The exception itself, with its traceback."""
    raised = ValueError("no")

    async def fail() -> None:
        raise raised

    job = await engine.enqueue(fail)
    await engine.wait(job.id, 5)
    with pytest.raises(JobFailedError) as caught:
        await job.result(timeout=5)

    assert caught.value.__cause__ is raised


async def test_another_process_gives_the_traceback_as_the_cause(tmp_path: Path) -> None:
    """After a restart the exception is gone, and what was kept of it is told."""
    async with Engine(settings_in(tmp_path)) as engine:
        job = await engine.enqueue(import_row)
        await engine.wait(job.id, 5)
    async with Engine(settings_in(tmp_path)) as engine:
        record = await engine.get(job.id)
        cause = await engine._parts.control.cause_of(record)

    assert isinstance(cause, TracebackError)
    assert "in deep" in cause.traceback
    assert cause.job_id == job.id


# Over HTTP


async def test_attempts_over_http_and_in_the_client(engine: Engine) -> None:
    """``GET /jobs/{id}/attempts``; the client's ``attempts``, and the cause of its JobFailedError."""
    engine.task(name="import_row")(import_row)
    app = FastAPI()
    app.include_router(jobs_router(engine))
    async with serve(app) as server, Client(server.url) as client:
        job = await client.submit("import_row")
        with pytest.raises(JobFailedError) as caught:
            await client.result(job.id, timeout=5)
        (attempt,) = await client.attempts(job.id)
        with pytest.raises(JobNotFoundError):
            await client.attempts("019ab3f0-5a1e-7000-8000-3f1c0de5a7b2")
        async with httpx.AsyncClient(base_url=server.url) as http:
            body = (await http.get(f"/jobs/{job.id}/attempts")).json()

    assert isinstance(caught.value.__cause__, TracebackError)
    assert caught.value.__cause__.traceback == attempt.traceback == body["items"][0]["traceback"]
    assert (attempt.number, attempt.outcome, attempt.worker) == (1, "failed", engine.backend.place)
    assert sorted(body["items"][0]) == [
        "ended_at", "error", "number", "outcome", "started_at", "traceback", "worker",
    ]  # fmt: skip


# In bounded time


class Heavy(Exception):  # noqa: N818 - an error of a user's
    """An error that makes its message when it is asked."""

    def __str__(self) -> str:
        """Five million characters."""
        return MAIL


MAIL = f"write to {ADA} or call +49 30 90182 7310 about 4111 1111 1111 1111; " * 60_000


def nested(depth: int) -> BaseException:
    """A group in a group in a group."""
    error: Exception = ValueError(MAIL)
    for _ in range(depth):
        error = ExceptionGroup("group", [error])
    return error


def caused(depth: int) -> BaseException:
    """A long chain of causes."""
    error = ValueError(MAIL)
    for _ in range(depth):
        error, error.__cause__ = ValueError(MAIL), error
    return error


ERRORS: dict[str, Callable[[], BaseException]] = {
    "a long message": lambda: ValueError(MAIL),
    "a long message that is made": Heavy,
    "a key": lambda: KeyError(MAIL),
    "a list": lambda: ValueError([MAIL] * 100_000),
    "many arguments": lambda: ValueError(*range(1_000_000)),
    "bytes": lambda: ValueError(MAIL.encode()),
    "a number": lambda: ValueError(1 << 40_000_000),
    "groups": lambda: nested(10_000),
    "a wide group": lambda: ExceptionGroup("wide", [ValueError(MAIL)] * 10_000),
    "causes": lambda: caused(10_000),
}


@pytest.mark.parametrize("kind", ERRORS)
def test_any_error_is_described_in_bounded_time(kind: str) -> None:
    """Milliseconds for the message, whatever its size, and for a traceback of at most some 16 KiB: nobody is named."""
    error = ERRORS[kind]()
    times = []
    for _ in range(5):
        began = time.perf_counter()
        described = describe(error)
        times.append(time.perf_counter() - began)
    text = traceback_text(error, lambda text: text)

    assert min(times) < 0.003  # 0.1 to 0.8 ms on an idle machine
    assert len(described.message) <= 2_000
    assert "canary7f3a" not in described.message
    assert len(text) < 40_000


def test_an_endless_recursion_is_shown_by_its_ends() -> None:
    """The first frames tell where it was entered, the last where it turns."""

    def turn(n: int) -> int:
        return turn(n + 1)

    with pytest.raises(RecursionError) as caught:
        turn(0)
    text = traceback_text(caught.value, lambda text: text)

    assert " frames\n" in text
    assert text.count("\n") < 120
    assert text.endswith("maximum recursion depth exceeded\n")


def test_a_cut_leaves_no_half_of_a_secret() -> None:
    """What a cut parts would be known for a secret by nobody, so the end of a text that was cut goes with it."""
    for offset in range(40):
        message = "x" * (1_980 + offset) + f" {ADA} " + "y" * 10_000
        assert "canary" not in describe(ValueError(message)).message
        assert "canary" not in describe(ValueError("z" * 500 + message)).message


async def test_notes_and_groups_are_part_of_the_traceback(engine: Engine) -> None:
    """Each error of a group has its own lines."""

    async def child(text: str) -> None:
        error = FinalError(text)
        error.add_note(f"while it did {text}")
        raise error

    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("one"))
            group.create_task(child("two"))

    attempt = await failed(engine, grouped)

    assert attempt.traceback is not None
    assert attempt.traceback.count("In the group above:") == 2
    for text in ("one", "two"):
        assert f"FinalError: {text}\nwhile it did {text}\n" in attempt.traceback
    assert attempt.traceback.count("in child") == 2
