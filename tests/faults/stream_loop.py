"""Cuts clients of an event stream and kills its server, then asks of each client whether it saw the log, exactly.

``python -m tests.faults.stream_loop --clients 100 --events 10000 --disconnects 20 --kills 3`` prints the figures of
docs/streams.md and ends with 1 if any client missed an event, got one twice or out of order. Each client follows all
events over a line of its own that is cut so many times; jobs go on publishing meanwhile, and the server, a process of
its own, is ended by SIGKILL and started again on the same database and port.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from asyncbg.client import Client
from asyncbg.core.retry import RetryPolicy
from tests.faults.stream_line import Line
from tests.faults.stream_reader import LibraryReader, PlainReader, Reader
from tests.faults.stream_server import Server, free_port

OWN_EVENTS = 25
JOB_EVENTS = OWN_EVENTS + 3
LEAD = 1_500
"""Events that the publisher may be ahead of the slowest client: more than a stream's buffer holds."""
CUT_S = 1.0
"""For each cut of a client so long is published: it has to meet streams that just begin, and those that go on."""
LEAST_BYTES = 250
"""Of one event on the wire; the cuts are drawn from what surely comes."""
PATIENCE_S = 40.0


@dataclass
class Follower:
    """One client, its line and the task that reads."""

    reader: Reader
    line: Line
    task: "asyncio.Task[None]"


@dataclass
class Storm:
    """What is done to the clients and the server."""

    server: Server
    rng: random.Random
    clients: int
    events: int
    disconnects: int
    kills: int
    followers: list[Follower] = field(default_factory=list)
    _killing: "asyncio.Task[None] | None" = None

    async def run(self) -> None:
        """Publish to the end, and let every client come to it."""
        await self.server.start()
        epoch = self.server.rows("SELECT epoch FROM log")[0][0]
        async with AsyncExitStack() as stack:
            for number in range(self.clients):
                self.followers.append(await stack.enter_async_context(self._follower(number, f"{epoch}-0")))
            try:
                await self._publish()
                await self._all_at(int(self.server.rows("SELECT seq FROM log")[0][0]))
            except TimeoutError:
                return  # a client comes no further: the verdict says which

    @asynccontextmanager
    async def _follower(self, number: int, cursor: str) -> AsyncIterator[Follower]:
        """Every second client is the library's own."""
        places = range(500, self.events * LEAST_BYTES)
        rng = random.Random(self.rng.random())
        line = Line(int(self.server.url.rpartition(":")[2]), cuts=rng.sample(places, self.disconnects), rng=rng)
        reader: Reader = PlainReader() if number % 2 else LibraryReader()
        async with line.open():
            task = asyncio.create_task(reader.follow(f"http://127.0.0.1:{line.port}", cursor))
            try:
                yield Follower(reader, line, task)
            finally:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    async def _publish(self) -> None:
        """Submit jobs that publish, alone and in bursts, for as long as the cuts take; kill the server meanwhile."""
        pause_s = self.disconnects * CUT_S * JOB_EVENTS / self.events
        kill_at = sorted((self.rng.uniform(0.1, 0.9) * self.events for _ in range(self.kills)), reverse=True)
        submitted: list[str] = []
        patient = RetryPolicy(retries=100, cap_s=1)
        async with Client(self.server.url, retry=patient) as client:
            while len(submitted) * JOB_EVENTS < self.events:
                job = await client.submit("announce", {"count": OWN_EVENTS}, idempotency_key=f"job {len(submitted)}")
                submitted.append(job.id)
                while kill_at and len(submitted) * JOB_EVENTS >= kill_at[-1]:
                    kill_at.pop()
                    await self._kill_soon()
                await self._all_at(len(submitted) * JOB_EVENTS - LEAD)
                await asyncio.sleep(self.rng.choice((0, 2 * pause_s)))
            await self._killed()
            for job_id in submitted:
                await client.wait(job_id, timeout=PATIENCE_S)

    async def _kill_soon(self) -> None:
        """Kill the server in a moment, while publishing goes on; one kill after the other."""
        await self._killed()
        self._killing = asyncio.create_task(self._kill(0.3 * self.rng.random()))

    async def _kill(self, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        await self.server.end(signal.SIGKILL)
        await asyncio.sleep(3 * delay_s)
        await self.server.start()

    async def _killed(self) -> None:
        if self._killing is not None:
            await self._killing

    async def _all_at(self, count: int) -> None:
        """Wait until every client has seen so many events. Raises TimeoutError where none comes any further."""
        last, moved_s = -1, time.monotonic()
        while any(len(one.reader.seen) < count for one in self.followers):
            for one in self.followers:
                if one.task.done():
                    await one.task
            seen = sum(len(one.reader.seen) for one in self.followers)
            if seen != last:
                last, moved_s = seen, time.monotonic()
            elif time.monotonic() - moved_s > PATIENCE_S:
                raise TimeoutError
            await asyncio.sleep(0.02)

    def judge(self) -> tuple[dict[str, int], list[str]]:
        """What each client saw beside what the log says."""
        epoch = self.server.rows("SELECT epoch FROM log")[0][0]
        rows = self.server.rows("SELECT seq, type FROM event ORDER BY seq")
        log = [(f"{epoch}-{seq}", str(kind)) for seq, kind in rows]
        place = {told: at for at, told in enumerate(log)}
        broken: list[str] = []
        found: Counter[str] = Counter()
        for number, one in enumerate(self.followers):
            seen, many = one.reader.seen, Counter(one.reader.seen)
            places = [place[told] for told in seen if told in place]
            found["lost"] += sum(told not in many for told in log)
            found["repeated"] += sum(times - 1 for times in many.values())
            found["reordered"] += sum(b < a for a, b in pairwise(places))
            found["invented"] += len(seen) - len(places)
            found["resets"] += one.reader.resets
            found["exact"] += seen == log
            if seen != log:
                broken.append(f"{type(one.reader).__name__} {number} saw {len(seen)} events, the log has {len(log)}")
            if one.line.times_cut != self.disconnects:
                broken.append(f"client {number} was cut {one.line.times_cut} times, not {self.disconnects}")
        cut = sum(one.line.times_cut for one in self.followers)
        connections = sum(one.line.times_connected for one in self.followers)
        figures = {"clients": self.clients, "exact": found["exact"], "events": len(log), "cuts": cut}
        figures |= {"kills": self.kills, "connections": connections, "deliveries": len(log) * self.clients}
        names = ("lost", "repeated", "reordered", "invented", "resets")
        return figures | {name: found[name] for name in names}, broken


async def storm(directory: Path, chosen: argparse.Namespace, seed: int) -> tuple[dict[str, int], list[str]]:
    """Run one; what became of it."""
    server = Server(directory, free_port())
    one = Storm(server, random.Random(seed), chosen.clients, chosen.events, chosen.disconnects, chosen.kills)
    try:
        await one.run()
    finally:
        await server.end(signal.SIGTERM)
    return one.judge()


def main() -> int:
    """Run the storm and print what each client saw of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=5)
    parser.add_argument("--events", type=int, default=300)
    parser.add_argument("--disconnects", type=int, default=3)
    parser.add_argument("--kills", type=int, default=1)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    logging.disable(logging.WARNING)  # the clients tell of every cut
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        figures, broken = asyncio.run(storm(Path(name), chosen, seed))
    took = {"seed": seed, "seconds": round(time.monotonic() - started_s), "load": round(os.getloadavg()[0])}
    print(json.dumps({"figures": figures | took, "broken": broken[:20]}, indent=2))  # noqa: T201 - the report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
