"""How long it takes to have 1,000 missed events, with 1,000,000 stored. Run: ``python benchmarks/resume.py``.

The log is filled through the store itself: 90,000 jobs of ten events, then 50 of two thousand. Then a server process
is asked for its streams again and again, each time with a cursor that lies 1,000 events of that stream back: the time
from the connection to the last of them. Filters are met by one event in ten, in a hundred or in a thousand, so that up
to all of the log lies between.
"""

import sys

sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import fastapi
import uvicorn

from asyncbg import AsyncBG
from asyncbg.core.job import Done, Lease
from asyncbg.engine.target import prepare_target
from asyncbg.settings import load_settings
from asyncbg.store.base import Settlement

MISSED = 1_000
MARK = b"\ndata: {"
NOTE = json.dumps({"row": 123_456, "message": "another row was stored"})
SHARES = ("most", "tenth", "hundredth", "thousandth")
FEW, MANY, MANY_JOBS = 7, 1_997, 50
"""Events that a small and a large job publishes beside its own three; how many large ones there are."""


def share(n: int) -> str:
    """A name that one in ten, a hundred, a thousand has."""
    return SHARES[3 if n % 1000 == 3 else 2 if n % 100 == 2 else 1 if n % 10 == 1 else 0]


async def fill(path: Path, events: int) -> None:
    """Store so many events as fast as the store takes them; nothing is run."""
    bg = AsyncBG(database_url=f"sqlite:///{path}", runner={"max_queued": 10_000_000})

    async def nothing(n: int) -> None: ...

    tasks = {name: bg.task(name=f"task_{name}")(nothing) for name in (*SHARES, "large")}
    small = max(0, events - MANY_JOBS * (MANY + 3)) // (FEW + 3)
    async with bg:
        bg._parts.runner.begin_drain()
        enqueuer = bg._parts.enqueuer
        for first in range(0, small, 500):
            for n in range(first, min(first + 500, small)):
                prepared = prepare_target(enqueuer, tasks[share(n)].options(owner=f"owner_{share(n)}"), (n,), {})
                last = asyncio.ensure_future(enqueuer.accept([prepared]))
            await last
            await finish(bg, FEW)
        for n in range(MANY_JOBS // 2):
            await enqueuer.accept([prepare_target(enqueuer, tasks["large"], (n + part,), {}) for part in range(2)])
        await finish(bg, MANY)


async def finish(bg: AsyncBG, events: int) -> None:
    """Claim all that is ready, publish so many events of each job, and settle it; until nothing is ready."""
    while leases := (await bg.backend.claim(500, lease_s=3600)).leases:
        told: list[tuple[Lease, int]] = [(lease, lease.n * events + at) for at in range(events) for lease in leases]
        for first in range(0, len(told), 5_000):
            await asyncio.gather(
                *(bg.backend.record(lease, f"note.{share(n)}", NOTE) for lease, n in told[first : first + 5_000])
            )
        await bg.backend.settle([Settlement(lease, Done("null")) for lease in leases])


@dataclass
class Stream:
    """What is asked for: a path with its query, the number of the cursor, and how many events lie after that."""

    name: str
    path: str
    after_seq: int
    missed: int
    took_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)


def streams_of(db: sqlite3.Connection) -> Iterator[Stream]:
    """Every kind of stream; its cursor lies 1,000 of its events back, or all that there are."""

    def stream(name: str, path: str, where: str, *values: object) -> Stream:
        found = db.execute(
            f"SELECT e.seq FROM event e JOIN job j ON j.n = e.job WHERE {where} ORDER BY e.seq DESC LIMIT ?",  # noqa: S608
            (*values, MISSED),
        ).fetchall()
        return Stream(name, path, found[-1][0] - 1, len(found))

    large, batch = db.execute("SELECT id, batch FROM job WHERE task = 'task_large' ORDER BY n DESC").fetchone()
    yield stream("a job's own", f"/jobs/{large}/events", "j.id = ?", large)
    yield stream("no filter", "/events", "1")
    yield stream("job=", f"/events?job={large}", "j.id = ?", large)
    yield stream("batch=", f"/events?batch={batch}", "j.batch = ?", batch)
    yield stream("type=note.*", "/events?type=note.*", "e.type LIKE 'note.%'")
    for name in SHARES:
        yield stream(f"type= ({name})", f"/events?type=note.{name}", "e.type = ?", f"note.{name}")
        yield stream(f"task= ({name})", f"/events?task=task_{name}", "j.task = ?", f"task_{name}")
        yield stream(f"owner= ({name})", f"/events?owner=owner_{name}", "j.owner = ?", f"owner_{name}")


async def resume(port: int, stream: Stream, epoch: str) -> float:
    """Milliseconds from the connection to the last missed event."""
    began = time.perf_counter()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    cursor = f"{epoch}-{stream.after_seq}"
    writer.write(f"GET {stream.path} HTTP/1.1\r\nHost: localhost\r\nLast-Event-ID: {cursor}\r\n\r\n".encode())
    came, tail = 0, b""
    async with asyncio.timeout(10):
        while came < stream.missed:
            chunk = tail + await reader.read(1 << 20)
            came += chunk.count(MARK)
            tail = chunk[1 - len(MARK) :]
    took_ms = (time.perf_counter() - began) * 1000
    writer.close()
    return took_ms


def cpu_ms(pid: int) -> float:
    """Processor time that the threads of a process had."""
    return sum(int(thread.read_text().split()[0]) for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")) / 1e6


async def report(path: Path, server: "Server", turns: int) -> None:
    """Ask for each stream so often, in an order that mixes them."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        epoch, last = db.execute("SELECT epoch, seq FROM log").fetchone()
        jobs = db.execute("SELECT count(*) FROM job").fetchone()[0]
        streams = list(streams_of(db))
    print(f"{last:,} events of {jobs:,} jobs; load average {os.getloadavg()[0]:.1f}")
    for _ in range(turns):
        for stream in random.sample(streams, len(streams)):
            before = cpu_ms(server.pid)
            stream.took_ms.append(await resume(server.port, stream, epoch))
            stream.cpu_ms.append(cpu_ms(server.pid) - before)
    for stream in sorted(streams, key=lambda one: -one.after_seq):
        took, cpu = sorted(stream.took_ms), sorted(stream.cpu_ms)
        last_percent = int(turns * 0.99)
        print(
            f"  {stream.name:<20}{stream.missed:>6} missed of the last {last - stream.after_seq:>9,}   "
            f"p50 {took[turns // 2]:6.1f} ms   p99 {took[last_percent]:6.1f} ms   "
            f"server's CPU p50 {cpu[turns // 2]:6.1f} ms   p99 {cpu[last_percent]:6.1f} ms"
        )
    print(f"load average {os.getloadavg()[0]:.1f}")


@dataclass(frozen=True)
class Server:
    """The server's process and its port."""

    pid: int
    port: int


def serve(path: Path, fd: int) -> None:
    """Be the server, which leaves what it has loaded alone as ``asyncbg serve`` does."""
    gc.freeze()
    bg = AsyncBG(load_settings(database_url=f"sqlite:///{path}"))
    app = fastapi.FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    asyncio.run(server.serve(sockets=[socket.socket(fileno=fd)]))


@contextlib.contextmanager
def serving(path: Path) -> Iterator[Server]:
    """Serve the database in a process of its own."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(128)
        fd = listener.fileno()
        process = subprocess.Popen([sys.executable, __file__, "--serve", path, "--fd", str(fd)], pass_fds=[fd])
        try:
            yield Server(process.pid, listener.getsockname()[1])
        finally:
            process.kill()
            process.wait()


async def run(path: Path, events: int, turns: int) -> None:
    """Fill the log unless it is there, and measure."""
    if not path.exists():  # noqa: ASYNC240 - nothing else runs yet
        began = time.perf_counter()
        await fill(path, events)
        print(f"filled in {time.perf_counter() - began:.0f} s")
    with serving(path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET /health/live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        await reader.read()
        await report(path, server, turns)


def main() -> int:
    """Print the report, or be the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=100)
    parser.add_argument("--database", type=Path, help="keep the log here, and use it again")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args.fd)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(run(args.database or Path(folder, "bench.db"), args.events, args.turns))
    return 0


if __name__ == "__main__":
    sys.exit(main())
