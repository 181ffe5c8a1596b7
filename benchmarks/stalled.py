"""What stalled clients cost the others, and what becomes of them. Run: ``python benchmarks/stalled.py``.

A server process tells paced events to 200 clients, of whom ten stop to read; another one beside it, which sees the same
machine at the same time, tells as many to clients that all read. Compared is the latency of those that read; then the
memory of the server for each stalled one, and how long it is kept. What the kernel holds for a client (its socket
buffers) the server cannot see: they are small here, and the time counts from when bytes of each wait in the server.
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
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import fastapi
import uvicorn

from asyncbg import AsyncBG
from asyncbg.core.event import Event

_STAMP = re.compile(rb"~(\d+)~")
_SMALL = 4_096


def make_event(seq: int, size: int) -> Event:
    """An event of about ``size`` bytes, stamped with the time of now."""
    data = json.dumps({"stamp": f"~{time.perf_counter_ns()}~", "row": seq, "message": "x" * max(0, size - 330)})
    return Event(seq, "row.stored", 1_790_000_000_000, "01a205e4-2a67-7000-8cc9-0ff81f6ff7b5", "import_rows",
                 "01a205e4-2a67-7000-8cc9-0ff81f6ff7b5", "anonymous", 1, data)  # fmt: skip


# In the server's process


async def serve(fd: int) -> None:
    """Publish as told, a line of JSON each on the standard input; answer with what the server costs and holds."""
    bg = AsyncBG()
    app = fastapi.FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router)
    server = uvicorn.Server(uvicorn.Config(app, interface="asgi3", log_level="warning"))
    serving = asyncio.create_task(server.serve(sockets=[socket.socket(fileno=fd)]))
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    seq, loop = 1_000, asyncio.get_running_loop()
    while line := await reader.readline():
        order, began = json.loads(line), loop.time()
        for turn in range(int(order["many"])):
            await asyncio.sleep(max(0.0, began + turn / order["per_s"] - loop.time()))
            seq += 1
            bg.bus.publish([make_event(seq, order["size"])])
        with open("/proc/self/statm") as statm:  # noqa: ASYNC230, PTH123
            kib = int(statm.read().split()[1]) * resource.getpagesize() // 1024
        holds = [c.transport.get_write_buffer_size() for c in server.server_state.connections]  # type: ignore[attr-defined]
        told = bg._streams.statistics()
        said = {"kib": kib, "stalled": told.stalled, "held": sum(size > 0 for size in holds), "connections": len(holds)}
        print(json.dumps(said), flush=True)
    os._exit(0 if serving else 1)


# In the parent's process: the clients


@dataclass
class Client(asyncio.Protocol):
    """One subscriber, that notes how late its events are until it stops to read."""

    late_ms: list[float] = field(default_factory=list)
    taken: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)
    transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        self.opened.set()
        now_ns = time.perf_counter_ns()
        late = [(now_ns - int(stamp)) / 1e6 for stamp in _STAMP.findall(data)]
        self.late_ms += late
        self.taken += len(late)

    def stall(self) -> None:
        """Take nothing any more."""
        assert self.transport is not None
        self.transport.pause_reading()


@dataclass
class Arena:
    """The server's process, and its clients."""

    process: asyncio.subprocess.Process
    port: int

    async def connect(self, many: int) -> list[Client]:
        """Open streams; returns when each has had its first bytes."""
        clients = [Client() for _ in range(many)]
        for client in clients:
            peer = socket.socket()
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
            peer.setblocking(False)
            await asyncio.get_running_loop().sock_connect(peer, ("127.0.0.1", self.port))
            await asyncio.get_running_loop().create_connection(lambda client=client: client, sock=peer)
        await asyncio.gather(*(client.opened.wait() for client in clients))
        return clients

    async def tell(self, *, many: int, per_s: float, size: int = 330) -> dict[str, int]:
        """Have ``many`` events published at that pace; what the server costs and holds then."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"many": many, "per_s": per_s, "size": size}).encode() + b"\n")
        await self.process.stdin.drain()
        return dict(json.loads(await self.process.stdout.readline()))


@contextlib.asynccontextmanager
async def arena() -> AsyncIterator[Arena]:
    """Start a server."""
    with socket.socket() as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SMALL)  # accepted sockets inherit it
        listener.listen(4096)
        process = await asyncio.create_subprocess_exec(
            sys.executable, __file__, "--fd", str(listener.fileno()), pass_fds=[listener.fileno()],
            env=os.environ | {"ASYNCBG_DATABASE_URL": f"sqlite:///{folder}/bench.db"},
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            yield Arena(process, listener.getsockname()[1])
        finally:
            process.kill()
            await process.wait()


@dataclass(frozen=True)
class Pace:
    """The latency from publish to client in ms, and what the server said at the end."""

    p50: float
    p99: float
    said: dict[str, int]


async def paced(here: Arena, others: list[Client], *, seconds: float, per_s: float) -> Pace:
    """Publish for so many seconds; how late the events are that ``others`` get."""
    for client in others:
        client.late_ms.clear()
    many = int(seconds * per_s)
    expected = sum(client.taken for client in others) + many * len(others)
    said = await here.tell(many=many, per_s=per_s)
    while sum(client.taken for client in others) < expected:  # noqa: ASYNC110 - of many clients
        await asyncio.sleep(0.01)
    late = sorted(ms for client in others for ms in client.late_ms)
    return Pace(late[len(late) // 2], late[int(len(late) * 0.99)], said)


async def report(*, clients: int, stalled: int, seconds: float, per_s: float, rounds: int) -> None:
    """Measure two servers side by side, before and while clients of one are stalled; then what it keeps of them."""
    print(
        f"{clients} clients, {per_s:g} events/s of 330 bytes; then {stalled} of them stop to read, and a server beside"
    )
    ratios: list[float] = []
    for turn in range(rounds):
        async with arena() as here, arena() as beside:
            everybody, equals = await here.connect(clients), await beside.connect(clients)
            others, victims = everybody[stalled:], everybody[:stalled]

            async def both(seconds: float) -> tuple[Pace, Pace]:
                return await asyncio.gather(
                    paced(here, others, seconds=seconds, per_s=per_s),  # noqa: B023 - awaited in this round
                    paced(beside, equals[stalled:], seconds=seconds, per_s=per_s),  # noqa: B023
                )

            await both(1)
            even, equal = await both(seconds)
            before = await here.tell(many=0, per_s=1)
            for client in victims:
                client.stall()
            filled = await fill(here, stalled)
            began = time.monotonic()
            burdened, free = await both(seconds)
            said = burdened.said
            kib = (max(filled["kib"], said["kib"]) - before["kib"]) / stalled
            while said["connections"] > clients - stalled and time.monotonic() - began < 60:
                await asyncio.sleep(0.05)
                said = await here.tell(many=0, per_s=1)
            took_s = time.monotonic() - began
        ratios.append(burdened.p99 / free.p99)
        print(
            f"  round {turn + 1}, load average {os.getloadavg()[0]:.1f}: p50 {free.p50:.2f} and {burdened.p50:.2f} ms, "
            f"p99 {free.p99:.2f} and {burdened.p99:.2f} ms: ratio {ratios[-1]:.2f}, before {even.p99 / equal.p99:.2f}; "
            f"{kib:.0f} KiB each, {said['stalled']} closed after {took_s:.1f} s, {said['connections']} left",
            flush=True,
        )
    print(f"  ratio of p99, median of {rounds} rounds: {statistics.median(ratios):.2f}")


async def fill(here: Arena, stalled: int) -> dict[str, int]:
    """Publish until something waits in the server for each stalled client; the others take it all."""
    said = {"held": 0}
    while said["held"] < stalled:
        said = await here.tell(many=10, per_s=200, size=1_000)
    await asyncio.sleep(0.2)
    return said


def main() -> int:
    """Print the report, or be the server."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--stalled", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each pace")
    parser.add_argument("--per-s", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fd:
        asyncio.run(serve(args.fd))
        return 0
    asyncio.run(
        report(clients=args.clients, stalled=args.stalled, seconds=args.seconds, per_s=args.per_s, rounds=args.rounds)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
