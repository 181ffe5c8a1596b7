"""Requests a second of a route with asyncbg's BackgroundTasks against FastAPI's. Run: ``python benchmarks/http.py``.

Each server is a process of its own (uvicorn, one worker); the load comes from raw keep-alive connections in this
process, which wait for each answer before they ask again. The two are measured in turn, several times.
"""

import sys

sys.path.pop(0)  # this file would stand before the standard library's http

import argparse
import asyncio
import contextlib
import os
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator

import fastapi
import uvicorn

from asyncbg import AsyncBG, BackgroundTasks

REQUEST = b"POST /signup?email=ada%40example.com HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


async def send_welcome(email: str) -> None:
    """The work behind both routes: nothing, so that only the machinery is measured."""


def theirs() -> fastapi.FastAPI:
    """The route with FastAPI's BackgroundTasks."""
    app = fastapi.FastAPI()

    @app.post("/signup")
    async def signup(email: str, background_tasks: fastapi.BackgroundTasks) -> dict[str, str]:
        background_tasks.add_task(send_welcome, email)
        return {"message": "welcome"}

    return app


def ours() -> fastapi.FastAPI:
    """The same route with asyncbg's."""
    bg = AsyncBG()
    app = fastapi.FastAPI(lifespan=bg.lifespan)

    @app.post("/signup")
    async def signup(email: str, background_tasks: BackgroundTasks) -> dict[str, str]:
        background_tasks.add_task(send_welcome, email)
        return {"message": "welcome"}

    return app


@contextlib.contextmanager
def serving(name: str) -> Iterator[int]:
    """Serve one of the two in a process of its own; the port."""
    with socket.socket() as listener, tempfile.TemporaryDirectory() as folder:
        listener.bind(("127.0.0.1", 0))
        listener.listen(1024)
        environment = os.environ | {"ASYNCBG_DATABASE_URL": f"sqlite:///{folder}/bench.db"}
        command = [sys.executable, __file__, "--serve", name, "--fd", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], env=environment)
        try:
            yield listener.getsockname()[1]
        finally:
            process.terminate()
            process.wait(30)


async def ask(port: int, until: float) -> int:
    """One connection: asks, reads the whole answer, asks again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    answered = 0
    while time.perf_counter() < until:
        writer.write(REQUEST)
        head = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in head[:16]:
            raise SystemExit(f"the server answered {head[:60]!r}")
        length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
        await reader.readexactly(length)
        answered += 1
    writer.close()
    return answered


async def measure(port: int, connections: int, seconds: float) -> float:
    """Requests a second, after a short warm-up."""
    await asyncio.gather(*(ask(port, time.perf_counter() + 0.5) for _ in range(connections)))
    until = time.perf_counter() + seconds
    answered = await asyncio.gather(*(ask(port, until) for _ in range(connections)))
    return sum(answered) / seconds


def main() -> int:
    """Print the report, or be one of the servers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    parser.add_argument("--fd", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        # Not uvicorn's own fd=: it takes the socket for a UNIX one and leaves Nagle's algorithm on.
        server = uvicorn.Server(uvicorn.Config({"ours": ours, "theirs": theirs}[args.serve](), log_level="warning"))
        server.run(sockets=[socket.socket(fileno=args.fd)])
        return 0
    rates: dict[str, list[float]] = {"theirs": [], "ours": []}
    for _ in range(args.rounds):
        for name, found in rates.items():
            with serving(name) as port:
                found.append(asyncio.run(measure(port, args.connections, args.seconds)))
    for name, found in rates.items():
        shown = "FastAPI's BackgroundTasks" if name == "theirs" else "asyncbg's BackgroundTasks"
        print(f"{shown:<32}{statistics.median(found):>10,.0f} requests/s  ({min(found):,.0f} to {max(found):,.0f})")
    ratios = [mine / other for mine, other in zip(rates["ours"], rates["theirs"], strict=True)]
    print(f"{'asyncbg / FastAPI':<32}{statistics.median(ratios):>10.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
