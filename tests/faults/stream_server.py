"""The server of the stream storms: uvicorn with the application of ``stream_app.py``, a process of its own."""

import asyncio
import os
import socket
import sqlite3
import sys
from contextlib import closing, suppress
from pathlib import Path

import aiohttp


class Server:
    """The server's process, on one database and one port for all its lives."""

    def __init__(self, directory: Path, port: int, *arguments: str, app: str = "stream_app:app") -> None:
        """``arguments`` are uvicorn's; ``app`` is a file of this directory. Nothing runs yet."""
        self.path = directory / "jobs.db"
        self.url = f"http://127.0.0.1:{port}"
        self._port = port
        self._arguments = arguments
        self._app = app
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it; returns when it answers."""
        inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
        settings = {
            "ASYNCBG_DATABASE_URL": f"sqlite:///{self.path}",
            "ASYNCBG_STREAM__RETRY_MS": "100",
            "ASYNCBG_STREAM__HEARTBEAT_S": "2",
            "ASYNCBG_STREAM__BUFFER": "50",
            "ASYNCBG_RUNNER__WATCHDOG_S": "0",
        }
        self._process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "uvicorn", "--app-dir", str(Path(__file__).parent), self._app,
            "--port", str(self._port), "--log-level", "error", *self._arguments, env=inherited | settings,
        )  # fmt: skip
        async with aiohttp.ClientSession() as session:
            while True:
                assert self._process.returncode is None, "the server ended before it answered"
                with suppress(aiohttp.ClientError):
                    async with session.get(self.url + "/health/ready") as answer:
                        if answer.status == 200:
                            return
                await asyncio.sleep(0.02)

    async def end(self, number: int) -> int | None:
        """Send a signal and wait for the end; the exit code."""
        if self._process is None:
            return None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    def rows(self, query: str) -> list[tuple[str | int, ...]]:
        """What the database holds."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
            return connection.execute(query).fetchall()


def free_port() -> int:
    """A port that nobody has now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
