"""Starts, stops and deaths of whole processes: what was accepted is finished, once, by whoever is left."""

import asyncio
import os
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import asyncbg.errors
from asyncbg.engine import Engine
from asyncbg.settings import load_settings

PROGRAM = Path(__file__).with_name("program.py")
SOURCE = str(Path(asyncbg.errors.__file__).parents[1])
SOON_S = 20
"""No test waits so long unless it fails."""

WITHOUT_PRIVILEGE = """
import ctypes, os, sys
ctypes.CDLL(None).prctl(24, 1, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_DAC_OVERRIDE
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a program without CAP_DAC_OVERRIDE: even root is then held to the permissions of files."""


@dataclass
class Program:
    """A running ``program.py``, and the lines it has printed, each as its words."""

    process: asyncio.subprocess.Process
    heard: asyncio.Condition
    lines: list[list[str]] = field(default_factory=list)
    is_over: bool = False

    async def listen(self) -> None:
        """Take its lines until it ends."""
        assert self.process.stdout is not None
        async for text in self.process.stdout:
            async with self.heard:
                self.lines.append(text.decode().split())
                self.heard.notify_all()
        async with self.heard:
            self.is_over = True
            self.heard.notify_all()

    def said(self, word: str) -> list[list[str]]:
        """The lines that begin with a word."""
        return [line for line in self.lines if line[0] == word]

    async def says(self, word: str, times: int = 1) -> list[list[str]]:
        """Wait until it has printed so many lines that begin with a word; gives them."""
        async with asyncio.timeout(SOON_S), self.heard:
            await self.heard.wait_for(lambda: self.is_over or len(self.said(word)) >= times)
        assert len(self.said(word)) >= times, f"it ended before it said {word!r} so often: {self.lines}"
        return self.said(word)

    async def ends(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        async with asyncio.timeout(SOON_S), self.heard:
            await self.heard.wait_for(lambda: self.is_over)
        return await self.process.wait()

    async def stop(self) -> int:
        """Ask it to end, as an operator does; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return await self.ends()

    async def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        await self.process.wait()

    @property
    def threads_left(self) -> list[str]:
        """The threads that were left when it was done."""
        (last,) = self.said("threads")
        return last[1:]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "jobs.db"


@pytest.fixture
async def run(path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Start programs: ``await run("go", "keep=3")``; what is left of them is killed after the test."""
    heard = asyncio.Condition()
    async with AsyncExitStack() as stack:

        async def start(mode: str, *orders: str, database: Path = path, privileged: bool = True) -> Program:
            command = [sys.executable, str(PROGRAM), str(database), mode, *orders]
            if not privileged and os.geteuid() == 0:
                command = [sys.executable, "-c", WITHOUT_PRIVILEGE, *command]
            return await stack.enter_async_context(running(command, heard))

        yield start


@asynccontextmanager
async def running(command: list[str], heard: asyncio.Condition) -> AsyncIterator[Program]:
    """A process that does not outlive the block."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    process = await asyncio.create_subprocess_exec(
        *command, env=inherited | {"PYTHONPATH": SOURCE}, stdout=asyncio.subprocess.PIPE, limit=2**20
    )
    program = Program(process, heard)
    listening = asyncio.create_task(program.listen())
    try:
        yield program
    finally:
        if process.returncode is None:
            process.kill()
        await listening
        await process.wait()


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A directory with a database file in it, neither of which may be written."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        with closing(sqlite3.connect(place / "jobs.db")) as connection:
            connection.execute("CREATE TABLE other (n INTEGER)")
        (place / "jobs.db").chmod(0o444)
        place.chmod(0o555)
        yield place / "jobs.db"
        place.chmod(0o755)


def rows(path: Path, columns: str, order: str = "n") -> list[tuple[Any, ...]]:
    """What the database holds of its jobs, read without an engine."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(f"SELECT {columns} FROM job ORDER BY {order}").fetchall()  # noqa: S608 - our own words


def starts(path: Path) -> list[tuple[str, int]]:
    """Every attempt that was begun: the job's id, and when."""
    query = "SELECT job.id, event.at FROM event JOIN job ON job.n = event.job WHERE type = 'job.started' ORDER BY seq"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(query).fetchall()


Run = Callable[..., Any]


# Starting and stopping


async def test_a_program_ends_with_nothing_left(run: Run, path: Path) -> None:
    """After its jobs, one of them in a worker thread, no thread holds up the exit, and the file is whole."""
    program = await run("once", "keep=3", "in_thread=2")

    assert await program.ends() == 0
    assert program.threads_left == []
    assert rows(path, "DISTINCT state") == [("succeeded",)]


async def test_a_program_stopped_while_it_is_idle_ends_at_once(run: Run) -> None:
    """SIGTERM ends every loop and every connection."""
    program = await run("go")
    await program.says("running")

    assert await program.stop() == 0
    assert program.threads_left == []


def letter(path: Path) -> Path:
    """A file that is no database."""
    path.write_text("Dear Ada, " * 1000)
    return path


def newer(path: Path) -> Path:
    """A database that a newer version wrote."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE schema_version (component TEXT PRIMARY KEY, version INTEGER NOT NULL)")
        connection.execute("INSERT INTO schema_version VALUES ('engine', 99)")
        connection.commit()
    return path


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (lambda path: path.parent / "nowhere" / "jobs.db", "does not exist; create it"),
        (lambda path: path.parent, "cannot be opened"),
        (letter, "no SQLite database; check ASYNCBG_DATABASE_URL"),
        (newer, "version 99 of its engine tables"),
    ],
    ids=["a missing directory", "a directory", "not a database", "a newer version"],
)
async def test_a_start_that_fails_leaves_nothing(
    run: Run, path: Path, place: Callable[[Path], Path], words: str
) -> None:
    """The error says what is the matter; no thread and no half-open file keep the process from ending."""
    program = await run("go", database=place(path))

    assert await program.ends() == 0
    assert program.lines[0][0] == "refused"
    assert program.lines[0][1] in ("DatabaseError", "OutageError")
    assert words in " ".join(program.lines[0])
    assert program.threads_left == []


async def test_a_start_on_a_file_that_may_not_be_written_fails(run: Run, unwritable: Path) -> None:
    """It is told at the start, not at the first job."""
    program = await run("go", database=unwritable, privileged=False)

    assert await program.ends() == 0
    assert program.lines[0][0] == "refused"
    assert program.lines[0][1] in ("DatabaseError", "OutageError")
    assert "read-only" in " ".join(program.lines[0])
    assert program.threads_left == []


async def test_a_stop_gives_running_jobs_back(run: Run, path: Path) -> None:
    """After SIGTERM their attempts do not count, and the next process runs them as if nothing were."""
    first = await run("hold", "keep=2", "keep_once=1")
    await first.says("began", 3)

    assert await first.stop() == 0
    assert first.threads_left == []
    assert rows(path, "state, attempt, crashes") == [("queued", 0, 0)] * 3
    second = await run("go")
    assert {line[2] for line in await second.says("began", 3)} == {"1"}
    await second.says("ended", 3)
    assert await second.stop() == 0
    assert rows(path, "state, attempt, crashes") == [("succeeded", 1, 0)] * 3


# Dying


async def test_a_restarted_process_takes_up_its_jobs_within_a_second(run: Run, path: Path) -> None:
    """What ran when it was killed runs again right away: no lease has to lapse first."""
    first = await run("hold", "keep=20")
    await first.says("began", 20)
    await first.kill()
    second = await run("go")
    ((_, opening_ms),) = await second.says("running")
    await second.says("ended", 20)
    await second.stop()

    assert rows(path, "DISTINCT state, attempt, crashes") == [("succeeded", 2, 1)]
    assert max(at_ms for _, at_ms in starts(path)[20:]) - int(opening_ms) < 1_000


async def test_another_process_takes_up_the_jobs_of_a_dead_one(run: Run, path: Path) -> None:
    """It notices by itself that the other is gone, long before the leases lapse."""
    dying = await run("hold", "keep=5")
    await dying.says("began", 5)
    living = await run("go")
    await living.says("running")
    await dying.kill()
    await living.says("ended", 5)
    await living.stop()

    assert rows(path, "DISTINCT state, attempt, crashes") == [("succeeded", 2, 1)]


async def test_a_job_that_keeps_killing_its_process_is_given_up(run: Run, path: Path) -> None:
    """After three crashes it fails as poison, and the process lives and works on."""
    for number in range(3):
        program = await run("go", *(["crash=1"] if number == 0 else []))
        await program.says("crashes")
        assert await program.ends() == -signal.SIGKILL
    survivor = await run("once", "keep=1")

    assert await survivor.ends() == 0
    assert rows(path, "task, state, crashes, error_type") == [
        ("crash", "failed", 3, "PoisonError"),
        ("keep", "succeeded", 0, None),
    ]


async def test_what_died_with_its_process_is_told(run: Run, path: Path) -> None:
    """A job that may run at most once, or whose function is gone, fails and says why; none is lost in silence."""
    program = await run("hold", "keep_once=1", "lambda=1", "keep=1")
    await program.says("began", 3)
    await program.kill()
    successor = await run("go")
    await successor.says("ended", 1)
    await successor.stop()

    assert rows(path, "task, state, error_type, attempt")[0] == ("keep_once", "failed", "JobInterruptedError", 1)
    assert rows(path, "durable, state, error_type")[1] == (0, "failed", "NotDurableError")
    assert rows(path, "task, state, attempt")[2] == ("keep", "succeeded", 2)


async def test_an_accepted_job_survives_the_kill_of_its_process(run: Run, path: Path) -> None:
    """Whatever was acknowledged before the kill is in the file, whole."""
    program = await run("hold", "keep=500")
    await program.says("enqueued", 50)
    await program.kill()
    acknowledged = {line[1] for line in program.said("enqueued")}
    with closing(sqlite3.connect(path)) as connection:
        check = connection.execute("PRAGMA integrity_check").fetchone()

    assert check == ("ok",)
    assert acknowledged <= {job_id for (job_id,) in rows(path, "id")}


# Together


async def test_two_processes_share_one_file(run: Run, path: Path) -> None:
    """Both work, and each job is run by one of them, once."""
    one, two = await asyncio.gather(run("go", "keep=150"), run("go", "keep=150"))
    await asyncio.gather(one.says("enqueued", 150), two.says("enqueued", 150))
    async with asyncio.timeout(SOON_S), one.heard:
        await one.heard.wait_for(lambda: len(one.said("ended")) + len(two.said("ended")) >= 300)
    assert (await one.stop(), await two.stop()) == (0, 0)
    ended = [line[1] for program in (one, two) for line in program.said("ended")]

    assert len(ended) == len(set(ended)) == 300
    assert len(starts(path)) == 300
    assert rows(path, "DISTINCT state, attempt, crashes") == [("succeeded", 1, 0)]


async def test_an_event_of_one_process_reaches_a_subscriber_in_another(run: Run, path: Path) -> None:
    """All of a job's events, its own ones among them, in order, while the job runs elsewhere."""
    async with Engine(load_settings(database_url=f"sqlite:///{path}")) as here:
        here._parts.runner.begin_drain()
        other = await run("go")
        await other.says("running")
        job = await here.task(name="keep")(_keep).enqueue()
        seen = [event.type async for event in job.events()]

        assert seen == ["job.queued", "job.started", "work.done", "job.succeeded"]
        assert (await here.get(job.id)).result == '"go"'
        assert await other.stop() == 0


async def test_a_job_that_runs_in_another_process_is_cancelled(run: Run, path: Path) -> None:
    """The wish reaches the process that runs it, and its end reaches whoever asked."""
    async with Engine(load_settings(database_url=f"sqlite:///{path}")) as here:
        here._parts.runner.begin_drain()
        other = await run("hold")
        job = await here.task(name="keep")(_keep).enqueue()
        await other.says("began")
        await job.cancel("enough")
        last = [event async for event in job.events()][-1]

        assert (last.type, last.payload()) == ("job.cancelled", {"reason": "enough"})
        assert await other.stop() == 0


async def _keep() -> str:
    """What the other process knows under this name."""
    return "here"
