"""Stops a server that has many open streams, and asks what each of them heard, and when the server was gone.

``python -m tests.faults.stream_stop --streams 1000`` prints the figures of docs/streams.md and ends with 1 if a stream
got no goodbye, or half of one. ``--workers 2`` stops uvicorn's supervisor. A job publishes until just before the
signal; none runs then, since a running one would be given its grace period.
"""

import argparse
import asyncio
import json
import os
import resource
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from asyncbg.client import Client
from tests.faults.stream_server import Server, free_port

AT_ONCE = 50
"""Connections opened at once: no more than any server lets wait."""
EVENTS = 100


@dataclass
class Listener(asyncio.Protocol):
    """One stream: all it was sent, and when it ended."""

    opened: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    ended_s: float = 0.0
    heard: bytearray = field(default_factory=bytearray)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for all events."""
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"GET /events HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n")

    def data_received(self, data: bytes) -> None:
        """Keep what came."""
        self.heard += data
        if b"retry: " in self.heard:
            self.opened.set()

    def connection_lost(self, error: Exception | None) -> None:
        """Note when it ended."""
        self.ended_s = time.monotonic()
        self.ended.set()

    @property
    def heard_goodbye(self) -> bool:
        """Whether the last frame is the goodbye, and the body ended as HTTP has it."""
        return self.heard.count(b"event: stream.bye\n") == 1 and self.heard.endswith(b"\r\n0\r\n\r\n")


async def listen(port: int, streams: int) -> list[Listener]:
    """Open the streams; returns when each has had its first bytes."""
    listeners: list[Listener] = []
    while len(listeners) < streams:
        fresh = [Listener() for _ in range(min(AT_ONCE, streams - len(listeners)))]
        loop = asyncio.get_running_loop()
        await asyncio.gather(*(loop.create_connection(lambda one=one: one, "127.0.0.1", port) for one in fresh))  # type: ignore[misc]  # a default binds it
        await asyncio.gather(*(one.opened.wait() for one in fresh))
        listeners += fresh
    return listeners


async def stop(directory: Path, streams: int, workers: int) -> tuple[dict[str, float], list[str]]:
    """Open the streams, publish, stop the server; what became of them."""
    port = free_port()
    server = Server(directory, port, *(("--workers", str(workers)) if workers > 1 else ()))
    try:
        await server.start()
        listeners = await listen(port, streams)
        async with Client(server.url) as client:
            job = await client.submit("announce", {"count": EVENTS})
            await client.wait(job.id)
        told_s = time.monotonic()
        code = await server.end(signal.SIGTERM)
        gone_s = time.monotonic()
        await asyncio.gather(*(one.ended.wait() for one in listeners))
    finally:
        await server.end(signal.SIGKILL)
    goodbyes = sum(one.heard_goodbye for one in listeners)
    figures = {
        "streams": streams,
        "goodbyes": goodbyes,
        "last_goodbye_s": round(max(one.ended_s for one in listeners) - told_s, 3),
        "exit_s": round(gone_s - told_s, 3),
        "exit_code": code if code is not None else -1,
    }
    return figures, [] if goodbyes == streams else [f"{streams - goodbyes} streams got no whole goodbye"]


def main() -> int:
    """Stop a server and print what its streams heard."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1)
    chosen = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(soft, 2 * chosen.streams + 200)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
    load = round(os.getloadavg()[0], 1)
    with tempfile.TemporaryDirectory() as name:
        figures, broken = asyncio.run(stop(Path(name), chosen.streams, chosen.workers))
    print(json.dumps({"figures": figures | {"load": load}, "broken": broken}, indent=2))  # noqa: T201 - the report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
