"""How fast the engine is, with the raw limits of this machine beside it. Run: ``python benchmarks/engine.py``.

One run prints durable enqueues a second, no-op jobs drained a second by one process, and the latency from enqueue to
start; beside them what a bare group commit through aiosqlite and bare asyncio tasks do here, now.
"""

import sys

sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiosqlite

from asyncbg import AsyncBG

CALLERS = (1, 64, 100)


def say(name: str, value: float, unit: str, note: str = "") -> None:
    """One line of the report."""
    print(f"{name:<46}{value:>12,.2f} {unit:<10}{note}", flush=True)


async def fan(callers: int, each: int, call: Callable[[], Awaitable[Any]]) -> float:
    """Let ``callers`` coroutines make ``each`` calls; returns calls a second."""

    async def caller() -> None:
        for _ in range(each):
            await call()

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(callers)))
    return callers * each / (time.perf_counter() - start)


class BareGroupCommit:
    """The raw limit: rows of the size of a job, gathered while a commit is on its way; nothing else is done."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.connection = connection
        self.pending: list[tuple[str, asyncio.Future[None]]] = []
        self.task: asyncio.Task[None] | None = None

    async def add(self) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.pending.append(("x" * 200, future))
        if self.task is None:
            self.task = asyncio.create_task(self.commit())
        await future

    async def commit(self) -> None:
        while self.pending:
            batch, self.pending = self.pending, []

            def write(batch: list[tuple[str, asyncio.Future[None]]] = batch) -> None:
                raw = self.connection._conn  # the limit is measured in one hop, as the engine does it
                raw.execute("BEGIN IMMEDIATE")
                raw.execute(
                    f"INSERT INTO row (text) VALUES {','.join(['(?)'] * len(batch))}",  # noqa: S608 - placeholders
                    [text for text, _ in batch],
                )
                raw.execute("COMMIT")

            await self.connection._execute(write)
            for _, future in batch:
                future.set_result(None)
        self.task = None


async def bare(folder: Path, scale: float) -> None:
    """The raw limits."""
    async with aiosqlite.connect(folder / "bare.db", isolation_level=None) as connection:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "secure_delete = ON"):
            await connection.execute(f"PRAGMA {pragma}")
        await connection.execute("CREATE TABLE row (n INTEGER PRIMARY KEY, text TEXT)")
        writer = BareGroupCommit(connection)
        for callers in CALLERS:
            each = int(scale * (500 if callers == 1 else 300))
            say(f"limit: aiosqlite group commit, {callers} callers", await fan(callers, each, writer.add), "rows/s")

    async def nothing() -> None:
        pass

    tasks, start = int(100_000 * scale), time.perf_counter()
    for _ in range(tasks // 100):
        await asyncio.gather(*(asyncio.create_task(nothing()) for _ in range(100)))
    say("limit: bare asyncio tasks", tasks / (time.perf_counter() - start), "tasks/s")


async def enqueues(url: str, scale: float) -> None:
    """Durable enqueues a second; the runner rests, so that only accepting is measured."""
    bg = AsyncBG(database_url=url)

    @bg.task(name="noop")
    async def noop(number: int) -> None: ...

    async with bg:
        bg._parts.runner.begin_drain()
        for callers in CALLERS:
            each = int(scale * (500 if callers == 1 else 300))
            say(f"durable enqueues, {callers} callers", await fan(callers, each, lambda: noop.enqueue(1)), "jobs/s")


async def drain(url: str, jobs: int) -> None:
    """No-op jobs a second, from a restart with a backlog to the last outcome on disk."""
    bg = AsyncBG(database_url=url)

    @bg.task(name="noop")
    async def noop(number: int) -> None: ...

    async with bg:
        bg._parts.runner.begin_drain()
        backlog = sum((await bg.backend.counts()).values())
        for start in range(backlog, jobs, 500):
            await asyncio.gather(*(noop.enqueue(number) for number in range(start, min(jobs, start + 500))))
    start_s = time.perf_counter()
    async with bg:
        while backlog := sum((await bg.backend.counts()).values()):  # noqa: ASYNC110 - an event would cost the jobs
            await asyncio.sleep(min(0.05, backlog / 100_000))
        say("no-op jobs drained by one process", jobs / (time.perf_counter() - start_s), "jobs/s", f"of {jobs:,}")


async def latency(url: str, jobs: int) -> None:
    """From the call of ``enqueue`` to the first line of the task, one job at a time."""
    bg = AsyncBG(database_url=url)
    started: list[float] = []
    begun = asyncio.Event()

    @bg.task(name="stamp")
    async def stamp() -> None:
        started.append(time.perf_counter())
        begun.set()

    waits = []
    async with bg:
        for _ in range(jobs):
            begun.clear()
            start = time.perf_counter()
            await stamp.enqueue()
            await begun.wait()
            waits.append((started[-1] - start) * 1000)
            await asyncio.sleep(0.002)
    say("enqueue to start, p50", statistics.median(waits), "ms")
    say("enqueue to start, p99", statistics.quantiles(waits, n=100)[98], "ms")


async def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0, help="size of the run; 0.1 is quick and rough")
    scale = parser.parse_args().scale
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {platform.machine()}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        await bare(folder, scale)
        await enqueues(f"sqlite:///{folder}/enqueue.db", scale)
        await drain(f"sqlite:///{folder}/drain.db", int(50_000 * scale))
        await latency(f"sqlite:///{folder}/latency.db", int(500 * scale) + 10)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
