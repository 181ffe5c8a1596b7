"""A job that reports its progress a thousand times a second. Run: ``python benchmarks/progress.py``.

What a report costs the job (processor time of its thread, the clock's own cost taken off), how many frames a second its
streams get, and how late the last value is: once when the job goes quiet, once when it ends right after a report.
"""

import sys

sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import json
import os
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import fastapi
import uvicorn

from asyncbg import AsyncBG, Progress

PER_S = 1_000
TIGHT = 20_000


@dataclass
class Costs:
    """Microseconds of one report, in a row and at the pace."""

    tight: float = 0.0
    paced: float = 0.0


def tight_us(progress: Progress) -> float:
    """One report among many in a row: the best of five."""
    best = float("inf")
    for _ in range(5):
        began = time.thread_time_ns()
        for n in range(TIGHT):
            progress.set(n, total=TIGHT)
        best = min(best, (time.thread_time_ns() - began) / TIGHT / 1000)
    return best


async def paced_us(seconds: float, report: Callable[[int], object]) -> float:
    """The median of one report each millisecond, with cold caches and a clock around it."""
    loop, spent = asyncio.get_running_loop(), []
    began = loop.time()
    for n in range(int(seconds * PER_S)):
        await asyncio.sleep(max(0.0, began + n / PER_S - loop.time()))
        before = time.thread_time_ns()
        report(n)
        spent.append((time.thread_time_ns() - before) / 1000)
    return statistics.median(spent)


@dataclass
class Stream(asyncio.Protocol):
    """A client of the job's stream: when each progress came, and how late the marked ones were."""

    path: str
    came_s: list[float] = field(default_factory=list)
    late_ms: list[float] = field(default_factory=list)
    over: asyncio.Event = field(default_factory=asyncio.Event)
    _rest: bytes = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % self.path.encode())

    def data_received(self, data: bytes) -> None:
        now_ns = time.perf_counter_ns()
        *frames, self._rest = (self._rest + data).split(b"\n\n")
        for frame in frames:
            if b"event: job.progress" in frame:
                self.came_s.append(now_ns / 1e9)
                message = json.loads(frame.partition(b"data: ")[2])["data"]["message"]
                if message:
                    self.late_ms.append((now_ns - int(message)) / 1e6)
            elif b"event: job.succeeded" in frame:
                self.over.set()

    @property
    def most_a_second(self) -> int:
        """The most frames in any second."""
        return max(sum(begin <= came < begin + 1 for came in self.came_s) for begin in self.came_s)


@asynccontextmanager
async def serving(app: fastapi.FastAPI) -> AsyncIterator[int]:
    """Serve ``app`` here; the port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        task = asyncio.create_task(server.serve(sockets=[listener]))
        while not server.started:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
        server.should_exit = True
        await task


async def report(streams: int, seconds: float) -> None:
    """Run the job with so many streams, and print what was seen."""
    costs = Costs()
    bg = AsyncBG(runner={"watchdog_s": 0})

    @bg.task
    async def work(progress: Progress = Progress()) -> None:
        costs.tight = tight_us(progress)
        clock_us = await paced_us(1, lambda n: None)
        costs.paced = await paced_us(seconds, lambda n: progress.set(n, total=seconds * PER_S, message="")) - clock_us
        progress.set(1, message=str(time.perf_counter_ns()))  # within a period: it has to wait for its turn
        await asyncio.sleep(0.5)
        progress.set(2, message="")
        await asyncio.sleep(0.01)
        progress.set(3, message=str(time.perf_counter_ns()))  # the end comes before its turn

    app = fastapi.FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    async with serving(app) as port:
        job = await work.options(delay=0.5).enqueue()
        clients = [Stream(f"/jobs/{job.id}/events") for _ in range(streams)]
        for client in clients:
            await asyncio.get_running_loop().create_connection(lambda client=client: client, "127.0.0.1", port)
        await asyncio.gather(*(client.over.wait() for client in clients))
    print(f"{PER_S} reports/s for {seconds:g} s, {streams} streams; load average {os.getloadavg()[0]:.1f}")
    print(f"  a report costs the job {costs.tight:.2f} us in a row, {costs.paced:.2f} us one each millisecond")
    print(f"  frames a second and stream: at most {max(client.most_a_second for client in clients)}")
    for where, at in (("where the job went quiet", 0), ("before its end", 1)):
        late = sorted(client.late_ms[at] for client in clients)
        print(f"  the last value came after {late[len(late) // 2]:.1f} ms (at most {late[-1]:.1f}) {where}")


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ASYNCBG_DATABASE_URL"] = f"sqlite:///{folder}/bench.db"
        asyncio.run(report(args.streams, args.seconds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
