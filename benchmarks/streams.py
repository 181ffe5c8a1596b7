"""Event streams beside their peers and the raw limit, in one run on one machine. Run: ``python benchmarks/streams.py``.

Each contestant is a uvicorn process of its own that tells the same events to the same number of clients:

* ``bare``: ready bytes, one ``send`` an event: the limit of what an ASGI server can deliver
* ``joined``: ready bytes, all that is queued in one ``send``: the limit with bursts
* ``asyncbg``, ``sse-starlette``, ``fastapi.sse``

Throughput: events as fast as the clients take them (at most 500 on their way), singly or in bursts of 20; the pace
publishes at a fixed rate and measures from the call of publish to the client; idle streams cost memory and tasks.
"""

import sys

sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import contextlib
import json
import os
import re
import resource
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import fastapi
import uvicorn

from asyncbg import AsyncBG
from asyncbg.core.event import Event, encode

CONTESTANTS = ("bare", "joined", "asyncbg", "sse-starlette", "fastapi.sse")
WINDOW = 500
MARK = b"~"
"""Stands in every event twice, around the time it was published."""
_STAMP = re.compile(rb"~(\d+)~")


def make_event(seq: int) -> Event:
    """An event of the size of a real one, stamped with the time of now."""
    data = json.dumps({"stamp": f"~{time.perf_counter_ns()}~", "row": seq, "message": "another row was stored"})
    return Event(seq, "row.stored", 1_790_000_000_000, "01a205e4-2a67-7000-8cc9-0ff81f6ff7b5", "import_rows",
                 "01a205e4-2a67-7000-8cc9-0ff81f6ff7b5", "anonymous", 1, data)  # fmt: skip


class Contestant(Protocol):
    """An application with ``/events``, and how to tell its subscribers something."""

    app: Any

    def publish(self, events: list[Event]) -> None:
        """Tell them; returns at once."""
        ...


class Bare:
    """Ready bytes; every queued event is a ``send`` of its own."""

    def __init__(self, *, joins: bool = False) -> None:
        self._joins = joins
        self._subscribers: list[tuple[deque[bytes], asyncio.Event]] = []
        self.app = self._serve

    def publish(self, events: list[Event]) -> None:
        frames = [encode(event, "bench") for event in events]
        for queued, wake in self._subscribers:
            queued.extend(frames)
            wake.set()

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        queued: deque[bytes] = deque()
        wake = asyncio.Event()
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": ready\n\n", "more_body": True})
        self._subscribers.append((queued, wake))
        while True:
            await wake.wait()
            wake.clear()
            while queued:
                chunk = b"".join(queued) if self._joins else queued.popleft()
                if self._joins:
                    queued.clear()
                await send({"type": "http.response.body", "body": chunk, "more_body": True})


class Ours:
    """The library's router; events are told on the bus, as after a commit."""

    def __init__(self) -> None:
        self._bg = AsyncBG(stream={"max_subscribers": 100_000, "buffer": 10 * WINDOW})
        self.app = fastapi.FastAPI(lifespan=self._bg.lifespan)
        self.app.include_router(self._bg.router)

    def publish(self, events: list[Event]) -> None:
        self._bg.bus.publish(events)


class Queued:
    """What the peers' manuals show: a queue for each subscriber and a generator that yields from it."""

    def __init__(self) -> None:
        self.app = fastapi.FastAPI()
        self._queues: list[asyncio.Queue[Event]] = []

    def publish(self, events: list[Event]) -> None:
        for queue in self._queues:
            for event in events:
                queue.put_nowait(event)

    async def _events(self) -> AsyncIterator[tuple[str, str, str]]:
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._queues.append(queue)
        while True:
            event = await queue.get()
            body = json.dumps(event.envelope("bench"), ensure_ascii=False, separators=(",", ":"))
            yield f"bench-{event.seq}", event.type, body


class SseStarlette(Queued):
    """sse-starlette's EventSourceResponse."""

    def __init__(self) -> None:
        super().__init__()
        from sse_starlette import EventSourceResponse, ServerSentEvent

        async def events() -> AsyncIterator[Any]:
            async for event_id, kind, body in self._events():
                yield ServerSentEvent(data=body, event=kind, id=event_id, sep="\n")

        @self.app.get("/events")
        async def stream() -> Any:
            return EventSourceResponse(events())


class FastapiSse(Queued):
    """FastAPI's own EventSourceResponse."""

    def __init__(self) -> None:
        super().__init__()
        from fastapi.sse import EventSourceResponse, ServerSentEvent

        @self.app.get("/events", response_class=EventSourceResponse)
        async def stream() -> AsyncIterator[ServerSentEvent]:
            async for event_id, kind, body in self._events():
                yield ServerSentEvent(raw_data=body, event=kind, id=event_id)


MAKERS: dict[str, Callable[[], Contestant]] = {
    "bare": Bare,
    "joined": lambda: Bare(joins=True),
    "asyncbg": Ours,
    "sse-starlette": SseStarlette,
    "fastapi.sse": FastapiSse,
}


# In the server's process


class Publisher:
    """Does what the parent says, a line of JSON each on the standard input; answers on the standard output."""

    def __init__(self, contestant: Contestant) -> None:
        self._contestant = contestant
        self._seq = 1_000
        self._told = 0
        self._taken = 0
        self._room = asyncio.Event()

    async def obey(self) -> None:
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        jobs: set[asyncio.Task[None]] = set()
        while line := await reader.readline():
            order = json.loads(line)
            match order.pop("do"):
                case "taken":
                    self._taken = order["many"]
                    self._room.set()
                case "flood":
                    jobs.add(asyncio.create_task(self._flood(**order)))
                case "pace":
                    jobs.add(asyncio.create_task(self._pace(**order)))
                case "cost":
                    used = resource.getrusage(resource.RUSAGE_SELF)
                    with open("/proc/self/statm") as statm:  # noqa: ASYNC230, PTH123
                        kib = int(statm.read().split()[1]) * resource.getpagesize() // 1024
                    cost = {"cpu_s": used.ru_utime + used.ru_stime, "kib": kib, "tasks": len(asyncio.all_tasks())}
                    print(json.dumps(cost), flush=True)

    async def _flood(self, *, many: int, burst: int) -> None:
        self._told = self._taken = 0
        while self._told < many:
            while self._told + burst > self._taken + WINDOW:
                self._room.clear()
                await self._room.wait()
            self._publish(burst)
            await asyncio.sleep(0)

    async def _pace(self, *, many: int, per_s: float) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        for turn in range(many):
            await asyncio.sleep(max(0.0, began + turn / per_s - loop.time()))
            self._publish(1)

    def _publish(self, many: int) -> None:
        self._contestant.publish([make_event(self._seq + n) for n in range(1, many + 1)])
        self._seq += many
        self._told += many


async def serve(name: str, fd: int) -> None:
    """Be the contestant until the standard input closes."""
    contestant = MAKERS[name]()
    config = uvicorn.Config(contestant.app, interface="asgi3", log_level="warning")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=fd)]))
    while not server.started:  # noqa: ASYNC110 - it has no event
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    await Publisher(contestant).obey()
    os._exit(0 if serving else 1)


# In the parent's process: the clients


@dataclass
class Client(asyncio.Protocol):
    """One subscriber: counts events, and notes how late they are if asked."""

    on_taken: Callable[[], object]
    wants_times: bool = False
    taken: int = 0
    marks: int = 0
    late_ms: list[float] = field(default_factory=list)
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.opened.set()
        self.marks += data.count(MARK)
        if self.wants_times:
            now_ns = time.perf_counter_ns()
            self.late_ms += [(now_ns - int(stamp)) / 1e6 for stamp in _STAMP.findall(data)]
        self.taken = self.marks // 2
        self.on_taken()


class Arena:
    """A contestant's process and the clients of its streams."""

    def __init__(self, process: asyncio.subprocess.Process, port: int) -> None:
        self._process = process
        self._port = port
        self._pulse = asyncio.Event()
        self.clients: list[Client] = []

    async def open(self, many: int, *, wants_times: bool = False) -> None:
        """Open more streams; returns when each has had its first bytes."""
        fresh = [Client(self._pulse.set, wants_times) for _ in range(many)]
        for client in fresh:
            await asyncio.get_running_loop().create_connection(lambda client=client: client, "127.0.0.1", self._port)
        await asyncio.gather(*(client.opened.wait() for client in fresh))
        self.clients += fresh
        await asyncio.sleep(0.3)

    async def tell(self, **order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        await self._process.stdin.drain()

    async def cost(self) -> dict[str, float]:
        """Processor seconds, resident KiB and asyncio tasks of the server's process."""
        assert self._process.stdout is not None
        await self.tell(do="cost")
        return dict(json.loads(await self._process.stdout.readline()))

    async def all_have(self, many: int) -> None:
        """Wait until every client has taken ``many`` events; the server hears how far the slowest is."""
        acknowledged = 0
        while (slowest := min(client.taken for client in self.clients)) < many:
            if slowest - acknowledged >= WINDOW // 5:
                acknowledged = slowest
                await self.tell(do="taken", many=slowest)
            self._pulse.clear()
            await asyncio.wait_for(self._pulse.wait(), 60)


@contextlib.asynccontextmanager
async def arena(name: str) -> AsyncIterator[Arena]:
    """Start a contestant."""
    with socket.socket() as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(("127.0.0.1", 0))
        listener.listen(4096)
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--serve", name, "--fd", str(listener.fileno()), pass_fds=[listener.fileno()],
            env=os.environ | {"ASYNCBG_DATABASE_URL": f"sqlite:///{folder}/bench.db"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            await process.stdout.readline()
            yield Arena(process, listener.getsockname()[1])
        finally:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Flood:
    """Events delivered a second, and what one delivery costs the server."""

    per_s: float
    cpu_us: float


async def flood(name: str, *, clients: int, deliveries: int, burst: int) -> Flood:
    """Events as fast as they are taken."""
    many = max(burst, deliveries // clients // burst * burst)
    async with arena(name) as here:
        await here.open(clients)
        before, began = await here.cost(), time.perf_counter()
        await here.tell(do="flood", many=many, burst=burst)
        await here.all_have(many)
        took, after = time.perf_counter() - began, await here.cost()
    return Flood(clients * many / took, (after["cpu_s"] - before["cpu_s"]) / (clients * many) * 1e6)


async def pace(name: str, *, clients: int, per_s: float, seconds: float) -> tuple[float, float]:
    """The latency from publish to client in ms: median and 99th percentile."""
    many = int(per_s * seconds)
    async with arena(name) as here:
        await here.open(clients, wants_times=True)
        await here.tell(do="pace", many=many, per_s=per_s)
        await here.all_have(many)
        late = sorted(ms for client in here.clients for ms in client.late_ms)
    return late[len(late) // 2], late[int(len(late) * 0.99)]


async def idle(name: str, *, streams: int) -> tuple[float, float]:
    """KiB and asyncio tasks an idle stream, beyond what the server has without any."""
    async with arena(name) as here:
        await here.open(10)
        before = await here.cost()
        for _ in range(streams // 250):
            await here.open(250)
        after = await here.cost()
    many = streams // 250 * 250
    return (after["kib"] - before["kib"]) / many, (after["tasks"] - before["tasks"]) / many


async def report(names: list[str], rounds: int, scale: float, seconds: float, streams: int) -> None:
    """Print every table; the contestants take turns, so that all see the same machine."""
    for clients in (100, 1_000):
        for burst in (1, 20):
            found: dict[str, list[Flood]] = {name: [] for name in names}
            for _ in range(rounds):
                for name in names:
                    deliveries = int((400_000 if burst == 1 else 2_000_000) * scale)
                    found[name].append(await flood(name, clients=clients, deliveries=deliveries, burst=burst))
            print(f"\n{clients} clients, {'single events' if burst == 1 else 'bursts of 20'}")
            limit = "bare" if burst == 1 else "joined"
            for name, floods in found.items():
                per_s = statistics.median(one.per_s for one in floods)
                cpu_us = statistics.median(one.cpu_us for one in floods)
                ratios = ""
                if limit in found:
                    share = statistics.median(a.per_s / b.per_s for a, b in zip(floods, found[limit], strict=True))
                    cost = statistics.median(a.cpu_us / b.cpu_us for a, b in zip(floods, found[limit], strict=True))
                    ratios = f"   {share:5.2f} of {limit}'s deliveries, {cost:5.2f} times its cost"
                print(f"  {name:<14}{per_s:>12,.0f} deliveries/s {cpu_us:>7.2f} us{ratios}", flush=True)
    for clients, per_s in ((100, 50.0), (1_000, 5.0)):
        print(f"\n{clients} clients, {per_s:g} events/s: from publish to client")
        for name in names:
            times = [await pace(name, clients=clients, per_s=per_s, seconds=seconds) for _ in range(rounds)]
            p50, p99 = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"  {name:<14} p50 {p50:7.2f} ms   p99 {p99:7.2f} ms", flush=True)
    print(f"\n{streams} idle streams")
    for name in names:
        kib, tasks = await idle(name, streams=streams)
        print(f"  {name:<14}{kib:8.1f} KiB {tasks:6.2f} tasks a stream", flush=True)


def main() -> int:
    """Print the report, or be one of the servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default=",".join(CONTESTANTS), help="contestants, with commas between")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of deliveries")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each pace")
    parser.add_argument("--streams", type=int, default=5_000, help="idle ones")
    parser.add_argument("--serve", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard if soft < 20_000 else soft, hard))
    if args.serve:
        asyncio.run(serve(args.serve, args.fd))
        return 0
    asyncio.run(report(args.only.split(","), args.rounds, args.scale, args.seconds, args.streams))
    return 0


if __name__ == "__main__":
    sys.exit(main())
