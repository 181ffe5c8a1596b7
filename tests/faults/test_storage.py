"""A database that cannot be used: nothing is acknowledged that is not kept, and what passes is recovered from."""

import asyncio
import logging
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import asyncbg.errors
from asyncbg import AsyncBG
from asyncbg.ops.doctor import Status, diagnose
from asyncbg.settings import load_settings
from tests.faults.serving import serving

SOURCE = str(Path(asyncbg.errors.__file__).parents[1])
SOON_S = 20
BIG = "x" * 20_000


async def note(text: str = "") -> int:
    """A job that is over at once."""
    return len(text)


def engine_at(path: Path, **overrides: Any) -> AsyncBG:
    """An engine on a database file."""
    overrides.setdefault("runner", {"shutdown_grace_s": 0})
    bg = AsyncBG(load_settings(database_url=f"sqlite:///{path}", **overrides))
    bg.task(note)
    return bg


@asynccontextmanager
async def served(bg: AsyncBG) -> AsyncIterator[httpx.AsyncClient]:
    """The engine's routes on a real server."""
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with serving(app) as http:
        yield http


def stored(path: Path) -> set[str]:
    """The jobs on disk."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        return {row[0] for row in connection.execute("SELECT id FROM job")}


async def post(http: httpx.AsyncClient, text: str = "") -> httpx.Response:
    """Submit one job."""
    return await http.post("/jobs", json={"task": "note", "args": {"text": text}})


def accepted(answers: list[httpx.Response]) -> set[str]:
    """The jobs that were acknowledged; every other answer is a 503 with Retry-After."""
    for answer in answers:
        if answer.status_code != 202:
            assert answer.status_code == 503, answer.text
            assert int(answer.headers["retry-after"]) >= 1
    return {answer.json()["jobs"][0]["id"] for answer in answers if answer.status_code == 202}


async def readiness(http: httpx.AsyncClient) -> tuple[int, float]:
    """What readiness says, and how long it took to say it."""
    began = time.perf_counter()
    answer = await http.get("/health/ready")
    return answer.status_code, time.perf_counter() - began


async def ready_again(http: httpx.AsyncClient) -> None:
    """Wait until the server is ready."""
    async with asyncio.timeout(SOON_S):
        while (await readiness(http))[0] != 200:  # noqa: ASYNC110 - as a load balancer asks
            await asyncio.sleep(0.1)


def outages(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged as an error."""
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the database is."""
    return tmp_path / "jobs.db"


# Locked


async def test_a_reader_that_never_ends_does_not_fill_the_disk(path: Path) -> None:
    """While somebody stays in a transaction the log grows to a bound; then nothing is accepted until it is over."""
    async with served(engine_at(path)) as http:
        await post(http)
        with closing(sqlite3.connect(path)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM job").fetchone()
            answers: list[httpx.Response] = []
            while not answers or answers[-1].status_code == 202:
                answers += await asyncio.gather(*(post(http, BIG * 20) for _ in range(10)))
            kept = accepted(answers)

            assert (await readiness(http))[0] == 503
            assert os.path.getsize(f"{path}-wal") < 64_000_000  # noqa: ASYNC240, PTH202
            found = {one.check: one for one in await diagnose({"database_url": f"sqlite:///{path}"})}["log"]
            assert found.status is Status.FAILED
            assert str(os.getpid()) in found.finding
        await ready_again(http)
        kept |= accepted([await post(http)])

    assert kept <= stored(path)


async def test_a_locked_database_refuses_and_recovers(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Readiness tells within a second, requests get 503, and all is well again when the lock is gone."""
    async with served(engine_at(path)) as http:
        before = accepted([await post(http)])
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            posts = [asyncio.create_task(post(http)) for _ in range(10)]
            status, took = await readiness(http)
            await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED)
            other.execute("ROLLBACK")
        answers = [await task for task in posts]
        await ready_again(http)
        after = accepted([await post(http)])
        (last,) = after
        final = await http.get(f"/jobs/{last}", params={"wait": 10})

    assert (status, took < 1.0) == (503, True)
    assert 503 in {answer.status_code for answer in answers}
    assert stored(path) == before | accepted(answers) | after
    assert final.json()["state"] == "succeeded"
    assert len(outages(caplog)) == 1
    assert "holds the database" in outages(caplog)[0]


# Full


@contextmanager
def small_disk(place: Path, size: str) -> Iterator[None]:
    """A file system of a few megabytes; skips where none may be mounted."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a tmpfs can be mounted by root only")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


async def test_a_full_disk_loses_nothing_and_recovers(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What was acknowledged is on disk; with space again, what could not be settled is, and posts are taken."""
    disk = tmp_path / "disk"
    with small_disk(disk, "3m"):
        path, ballast = disk / "jobs.db", disk / "ballast"
        bg = engine_at(path)
        gate = asyncio.Event()

        @bg.task
        async def through_gate() -> str:
            await gate.wait()
            return "through"

        async with served(bg) as http:
            held = (await http.post("/jobs", json={"task": "through_gate"})).json()["jobs"][0]["id"]
            with ballast.open("wb") as file:
                file.write(b"x" * 1_500_000)
            answers = [await post(http, BIG) for _ in range(120)]
            status, took = await readiness(http)
            gate.set()
            await asyncio.sleep(0)
            ballast.unlink()
            await ready_again(http)
            answers += [await post(http)]
            settled = await http.get(f"/jobs/{held}", params={"wait": 10})
        kept = stored(path)

    assert answers[-1].status_code == 202
    assert {answer.status_code for answer in answers} == {202, 503}
    assert (status, took < 1.0) == (503, True)
    assert kept == accepted(answers) | {held}
    assert settled.json()["state"] == "succeeded"
    assert len([line for line in outages(caplog) if "disk is full" in line]) in range(1, 3)


# Moved, missing, read-only


async def test_a_file_that_is_moved_away_acknowledges_nothing(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """SQLite would write on into a file that nobody finds again; here it is 503 until the file is back."""
    aside = path.with_name("aside.db")
    async with served(engine_at(path)) as http:
        kept = accepted([await post(http)])
        os.rename(path, aside)  # noqa: PTH104 - quick
        refused = [await post(http) for _ in range(5)]
        status, took = await readiness(http)
        os.rename(aside, path)  # noqa: PTH104 - quick
        await ready_again(http)
        kept |= accepted([await post(http)])

    assert {answer.status_code for answer in refused} == {503}
    assert (status, took < 1.0) == (503, True)
    assert stored(path) == kept
    assert len(outages(caplog)) == 1


async def test_a_directory_that_is_gone_acknowledges_nothing(tmp_path: Path) -> None:
    """A deleted directory takes the database with it: nothing is accepted any more, and the process can be stopped."""
    place = tmp_path / "place"
    place.mkdir()
    async with served(engine_at(place / "jobs.db")) as http:
        await post(http)
        shutil.rmtree(place)
        refused = [await post(http) for _ in range(3)]
        status, _ = await readiness(http)

    assert {answer.status_code for answer in refused} == {503}
    assert status == 503


async def test_a_connection_that_turns_read_only_is_replaced(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever made the writer's connection unusable, the next one is tried without a restart."""
    bg = engine_at(path)
    async with served(bg) as http:
        kept = accepted([await post(http)])
        await bg._parts.database.write(lambda connection: connection.execute("PRAGMA query_only = ON").fetchone())
        first = await post(http)
        await ready_again(http)
        kept |= accepted([first, await post(http)])

    assert stored(path) == kept
    assert len(outages(caplog)) == 1


# Damaged


def filled(path: Path) -> None:
    """A closed database with some jobs in it."""

    async def fill() -> None:
        async with engine_at(path) as bg:
            bg._parts.runner.begin_drain()
            for _ in range(60):
                await bg.submit("note", {"text": BIG}, delay_s=3600)

    with asyncio.Runner() as runner:
        runner.run(fill())


def damage(path: Path, offset: int, count: int = 40_000) -> bytes:
    """Overwrite some bytes; the whole file as it is then."""
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(os.urandom(count))
    return path.read_bytes()


SERVE = "import sys; from asyncbg.cli import main; main(sys.argv[1:])"


def serve(path: Path) -> subprocess.CompletedProcess[str]:
    """Start the service as an operator does, and wait for its end."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    settings = {"ASYNCBG_DATABASE_URL": f"sqlite:///{path}", "ASYNCBG_DATA_DIR": str(path.parent)}
    return subprocess.run(
        [sys.executable, "-c", SERVE, "serve", "--port", "0"],
        env=inherited | settings | {"PYTHONPATH": SOURCE},
        capture_output=True, text=True, timeout=SOON_S, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("offset", [0, 400_000], ids=["the header", "the middle"])
def test_a_damaged_database_stops_the_start(path: Path, offset: int) -> None:
    """Exit 1, one line that says what to do, and not a byte of the file is changed."""
    filled(path)
    before = damage(path, offset)
    ended = serve(path)

    assert ended.returncode == 1, ended.stderr
    assert "damaged" in ended.stderr or "no SQLite database" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert path.read_bytes() == before


def test_a_missing_directory_stops_the_start(tmp_path: Path) -> None:
    """Exit 1, and the line names the directory."""
    place = tmp_path / "nowhere"
    ended = serve(place / "jobs.db")

    assert ended.returncode == 1, ended.stderr
    assert [line for line in ended.stderr.splitlines() if "does not exist; create it" in line] != []
    assert "Traceback" not in ended.stderr


async def test_damage_met_at_run_time_stops_the_accepting(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once a damaged page is met nothing is accepted any more: readiness 503, one line in the log."""
    await asyncio.to_thread(filled, path)
    bg = engine_at(path)
    async with served(bg) as http:
        before = await readiness(http)
        damage(path, 40_960, 1_000_000)
        await http.get("/jobs")
        refused = await post(http)
        after = await readiness(http)

    assert before[0] == 200
    assert (after[0], after[1] < 1.0) == (503, True)
    assert refused.status_code == 503
    assert len([line for line in outages(caplog) if "is damaged" in line]) == 1


# A failing disk


@pytest.mark.parametrize("fault", ["fdatasync,fsync:error=EIO:when=12+5", "pwrite64:error=EIO:when=150+40"])
def test_a_failing_disk_never_acknowledges(path: Path, fault: str) -> None:
    """Of each write that the disk refused the caller is told; the jobs on disk are those that were acknowledged."""
    if not shutil.which("strace"):
        pytest.skip("strace is not installed: apt-get install strace")
    program = str(Path(__file__).with_name("acknowledge.py"))
    ended = subprocess.run(
        ["strace", "-f", "-qqq", "-o", "/dev/null", "-e", f"trace={fault.partition(':')[0]}", "-e", f"inject={fault}",
         sys.executable, program, str(path), "60"],
        env=os.environ | {"PYTHONPATH": SOURCE}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    lines = [line.split(maxsplit=1) for line in ended.stdout.splitlines()]
    said = [line[1] for line in lines if line[0] == "accepted"]
    refused = [line for line in lines if line[0] == "refused"]
    logged = [line[1] for line in lines if line[0] == "logged"]

    assert len(said) + len(refused) == 60, ended.stderr
    assert refused
    assert said
    assert stored(path) == set(said)
    assert 0 < len(logged) <= len(refused)
    assert "the disk reports an error" in logged[0]
