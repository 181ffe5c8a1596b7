"""SIGTERM under uvicorn and our own commands: nothing new is claimed, what runs is given back, a second signal ends."""

import asyncio
import os
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.test_lifecycle import SOON_S, SOURCE

HERE = Path(__file__).parent
UVICORN = ("uvicorn", "--app-dir", str(HERE), "stopping_app:app", "--log-level", "warning")
SERVE = ("asyncbg.cli", "serve")
SCRIPT = (str(HERE / "stopping_script.py"), "--app-dir", str(HERE))
CLAIM_MS = 100
"""No claim later than that after SIGTERM."""
AT_ONCE_S = 1.0
"""Half a second on an idle machine, far below the grace period of a minute on a busy one."""


class Server:
    """A server in a process group of its own, and what it is asked over HTTP."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, path: Path) -> None:
        self.process, self.path = process, path
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=SOON_S)

    async def is_ready(self) -> int:
        """Wait until it takes work; when that was."""
        async with asyncio.timeout(SOON_S):
            while True:
                assert self.process.returncode is None, "it ended before it was ready"
                with suppress(httpx.TransportError):
                    if (await self.http.get("/health/ready")).status_code == 200:
                        return time.time_ns() // 1_000_000
                await asyncio.sleep(0.02)

    async def submit(self, task: str, **args: Any) -> str:
        """Add a job; its id."""
        answer = await self.http.post("/jobs", json={"task": task, "args": args})
        return str(answer.json()["jobs"][0]["id"])

    async def runs(self, job_id: str) -> None:
        """Wait until a job runs."""
        await self._until(job_id, lambda job: job["state"] == "running")

    async def has_begun(self, job_id: str) -> None:
        """Wait until the function of a job runs: it reports progress first."""
        await self._until(job_id, lambda job: job["progress"] is not None)

    async def _until(self, job_id: str, holds: Callable[[dict[str, Any]], bool]) -> None:
        async with asyncio.timeout(SOON_S):
            while not holds((await self.http.get(f"/jobs/{job_id}")).json()):  # noqa: ASYNC110 - another process
                await asyncio.sleep(0.02)

    def tell(self, number: int, *, group: bool = False) -> int:
        """Send a signal, to the whole group as a terminal does; when that was."""
        (os.killpg if group else os.kill)(self.process.pid, number)
        return time.time_ns() // 1_000_000

    async def ends_when_told_again(self, number: int) -> None:
        """Signal the whole group until it ends. Two signals of a kind that wait to be handled are one to the kernel."""
        for _ in range(3):
            self.tell(number, group=True)
            with suppress(TimeoutError):
                async with asyncio.timeout(AT_ONCE_S):
                    await self.process.wait()
                    return
        raise AssertionError("it goes on")

    async def ends(self) -> tuple[int, float]:
        """Wait for its end; its exit code, and how long that took."""
        began = time.monotonic()
        async with asyncio.timeout(SOON_S):
            code = await self.process.wait()
        return code, time.monotonic() - began

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """What the database holds."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()


Start = Callable[..., Any]


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Start servers on one database: ``await start(UVICORN, "--workers", "2")``; none outlives the test."""
    async with AsyncExitStack() as stack:

        async def begin(command: tuple[str, ...], *more: str, holds: str = "yes", grace_s: float = 0.3) -> Server:
            port = free_port()
            settings = {
                "ASYNCBG_DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
                "ASYNCBG_DATA_DIR": str(tmp_path),
                "ASYNCBG_RUNNER__SHUTDOWN_GRACE_S": str(grace_s),
                "ASYNCBG_RUNNER__CANCEL_GRACE_S": "0.3",
                "ASYNCBG_RUNNER__CONCURRENCY": "4",
                "ASYNCBG_DEMO__ITEM_S": "60",
                "HOLDS": holds,
            }
            words = (sys.executable, *(() if command is SCRIPT else ("-m",)), *command, *more)
            if "worker" not in command:
                words = (*words, "--port", str(port))
            return await stack.enter_async_context(serving(words, settings, port, tmp_path / "jobs.db"))

        yield begin


@asynccontextmanager
async def serving(words: tuple[str, ...], settings: dict[str, str], port: int, path: Path) -> AsyncIterator[Server]:
    """A server that does not outlive the block, nor do its children."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    process = await asyncio.create_subprocess_exec(
        *words, env=inherited | settings | {"PYTHONPATH": SOURCE}, cwd=path.parent, start_new_session=True
    )
    server = Server(process, port, path)
    try:
        yield server
    finally:
        await server.http.aclose()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def listen(server: Server, heard: list[str], opened: asyncio.Event) -> None:
    """Follow all events to the end of the stream; keep the names of the frames."""
    async with server.http.stream("GET", "/events") as answer:
        async for line in answer.aiter_lines():
            opened.set()
            if line.startswith("event: "):
                heard.append(line.removeprefix("event: "))


@asynccontextmanager
async def listening(server: Server) -> AsyncIterator[tuple[list[str], asyncio.Task[None]]]:
    """An open stream: what it hears, and the task that listens."""
    heard: list[str] = []
    opened = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        task = group.create_task(listen(server, heard, opened))
        await asyncio.wait_for(opened.wait(), SOON_S)
        yield heard, task


@pytest.mark.parametrize("more", [(), ("--workers", "2"), ("--reload",)], ids=["one process", "two workers", "reload"])
async def test_a_stop_under_uvicorn_loses_nothing(start: Start, more: tuple[str, ...]) -> None:
    """No claim 100 ms after SIGTERM, streams say goodbye, what runs is given back and goes on at the next start."""
    server = await start(UVICORN, *more)
    await server.is_ready()
    held = await server.submit("hold")
    for _ in range(40):
        await server.submit("short")
    await server.runs(held)
    async with listening(server) as (heard, stream):
        told_ms = server.tell(signal.SIGTERM)
        await asyncio.wait_for(stream, SOON_S)
    _, took_s = await server.ends()
    passed_on_ms = 600 if more else 0  # uvicorn's supervisors look for signals every half a second
    last_start_ms = server.rows("SELECT max(at) FROM event WHERE type = 'job.started'")[0][0]

    assert heard[-1] == "stream.bye"
    assert took_s < 5
    assert last_start_ms - told_ms < CLAIM_MS + passed_on_ms
    assert server.rows(f"SELECT state, attempt, crashes FROM job WHERE id = '{held}'") == [("queued", 0, 0)]  # noqa: S608
    assert server.rows("SELECT count(*) FROM job WHERE state = 'running'") == [(0,)]

    second = await start(UVICORN, holds="no")
    ready_ms = await second.is_ready()
    record = (await second.http.get(f"/jobs/{held}", params={"wait": 5})).json()
    ((again_ms,),) = second.rows(
        f"SELECT max(at) FROM event JOIN job ON job.n = event.job WHERE id = '{held}' AND type = 'job.started'"  # noqa: S608
    )

    assert (record["state"], record["attempt"], record["result"]) == ("succeeded", 1, "done")
    assert again_ms - ready_ms < 1_000


async def test_a_thread_that_does_not_listen_holds_up_no_exit(start: Start) -> None:
    """Its job is reported and given back; the process ends all the same."""
    server = await start(UVICORN)
    await server.is_ready()
    job_id = await server.submit("deaf")
    await server.has_begun(job_id)
    server.tell(signal.SIGTERM)
    _, took_s = await server.ends()

    assert took_s < 5
    assert server.rows("SELECT state, attempt FROM job") == [("queued", 0)]
    assert server.rows("SELECT type FROM event ORDER BY seq")[-2:] == [("job.cancel_ignored",), ("job.queued",)]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("more", [("--workers", "2"), ("--reload",)], ids=["two workers", "reload"])
async def test_a_second_signal_to_all_ends_uvicorn_at_once(start: Start, more: tuple[str, ...], number: int) -> None:
    """As Ctrl-C or a process manager sends it: the first one is passed on by a supervisor too, which is no second."""
    server = await start(UVICORN, *more, grace_s=60)
    await server.is_ready()
    await server.runs(await server.submit("hold"))
    async with listening(server) as (_, stream):
        server.tell(number, group=True)
        await asyncio.wait_for(stream, SOON_S)
    assert server.process.returncode is None
    await server.ends_when_told_again(number)


async def test_a_second_sigterm_ends_uvicorn_at_once(start: Start) -> None:
    """uvicorn itself would wait for the grace period."""
    server = await start(UVICORN, grace_s=60)
    await server.is_ready()
    await server.runs(await server.submit("hold"))
    async with listening(server) as (_, stream):
        server.tell(signal.SIGTERM)
        await asyncio.wait_for(stream, SOON_S)
    server.tell(signal.SIGTERM)
    code, took_s = await server.ends()

    assert (code, took_s < AT_ONCE_S) == (-signal.SIGTERM, True)


@pytest.mark.parametrize("more", [("--workers", "2"), ("--reload",)], ids=["two workers", "reload"])
async def test_a_second_sigterm_ends_a_script_of_ones_own_at_once(start: Start, more: tuple[str, ...]) -> None:
    """It asked for that before it gave the process to uvicorn; the signals go to the supervisor alone."""
    server = await start(SCRIPT, *more, grace_s=60)
    await server.is_ready()
    await server.runs(await server.submit("hold"))
    async with listening(server) as (heard, stream):
        server.tell(signal.SIGTERM)
        await asyncio.wait_for(stream, SOON_S)
    server.tell(signal.SIGTERM)
    code, took_s = await server.ends()

    assert heard[-1] == "stream.bye"
    assert (code, took_s < AT_ONCE_S) == (128 + signal.SIGTERM, True)


@pytest.mark.parametrize("more", [("--workers", "2"), ("--reload",)], ids=["two workers", "reload"])
async def test_a_second_sigterm_ends_our_own_server_at_once(start: Start, more: tuple[str, ...]) -> None:
    """Whichever process of it gets them."""
    server = await start(SERVE, *more, grace_s=60)
    await server.is_ready()
    answer = await server.http.post("/start-task/one", params={"items_count": 5})
    await server.runs(answer.json()["jobs"][0]["id"])
    async with listening(server) as (heard, stream):
        server.tell(signal.SIGTERM)
        await asyncio.wait_for(stream, SOON_S)
    server.tell(signal.SIGTERM)
    code, took_s = await server.ends()

    assert heard[-1] == "stream.bye"
    assert took_s < AT_ONCE_S
    assert code in {-signal.SIGTERM, 128 + signal.SIGTERM}


async def test_our_own_server_gives_back_what_runs(start: Start) -> None:
    """After the grace period, whichever of its processes runs it."""
    server = await start(SERVE, "--workers", "2")
    await server.is_ready()
    answer = await server.http.post("/start-task/one", params={"items_count": 5})
    await server.runs(answer.json()["jobs"][0]["id"])
    async with listening(server) as (heard, _):
        server.tell(signal.SIGTERM)
    _, took_s = await server.ends()

    assert heard[-1] == "stream.bye"
    assert took_s < 5
    assert server.rows("SELECT state, attempt, crashes FROM job") == [("queued", 0, 0)]


@pytest.mark.parametrize("twice", [False, True])
async def test_a_worker_stops_like_a_server(start: Start, twice: bool) -> None:
    """One signal gives back what runs, a second one ends it at once."""
    server = await start(SERVE)
    await server.is_ready()
    job_id = (await server.http.post("/start-task/one", params={"items_count": 5})).json()["jobs"][0]["id"]
    await server.runs(job_id)
    worker = await start(("asyncbg.cli", "worker"), grace_s=60 if twice else 0.3)
    server.tell(signal.SIGTERM)
    await server.ends()
    async with asyncio.timeout(SOON_S):
        while server.rows("SELECT state FROM job") != [("running",)]:  # noqa: ASYNC110 - another process
            await asyncio.sleep(0.02)
    worker.tell(signal.SIGTERM)
    if twice:
        await asyncio.sleep(0.3)  # the first one has arrived
        worker.tell(signal.SIGTERM)
    code, took_s = await worker.ends()

    assert took_s < (AT_ONCE_S if twice else 5)
    assert code == (-signal.SIGTERM if twice else 0)
    if not twice:
        assert server.rows("SELECT state, attempt, crashes FROM job") == [("queued", 0, 0)]
