"""The log of the real service: one line a record, as text or as JSON, with nobody's data in it."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

_RUNNING = re.compile(r"Uvicorn running on (http://127\.0\.0\.1:\d+)")
_TEXT = re.compile(r"(?:DEBUG|INFO|WARNING|ERROR|CRITICAL): {2,}\S|  ")
"""A record begins with its level, a line of its traceback with blanks."""
CANARIES = ("ada", "canary7f3a", "4111111111111111", "555-0143", "FORGED", "evil")


@dataclass
class Log:
    """A running ``asyncbg serve`` and the lines it writes, to either stream."""

    process: asyncio.subprocess.Process
    url: str = ""
    lines: list[str] = field(default_factory=list)

    async def read(self, until: re.Pattern[str] | None = None) -> None:
        """Go on to a line that matches, or to the end."""
        assert self.process.stdout is not None
        while line := (await self.process.stdout.readline()).decode():
            self.lines.append(line.rstrip("\n"))
            if until is not None and (found := until.search(line)):
                self.url = found[1]
                return


@asynccontextmanager
async def service(place: Path, **variables: str) -> AsyncIterator[Log]:
    """Start the service; when the block ends it has stopped and all its lines are there."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    variables = {"ASYNCBG_RUNNER__SHUTDOWN_GRACE_S": "0", "ASYNCBG_AUTH__ALLOW_ANONYMOUS": "true", **variables}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncbg.cli", "serve", "--port", "0",
        cwd=place, env={**kept, "HOME": str(place), **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    log = Log(process)
    try:
        async with asyncio.timeout(60):
            await log.read(_RUNNING)
            yield log
            process.send_signal(signal.SIGTERM)
            await log.read()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def provoke(url: str) -> None:
    """Ask for all sorts of things with somebody's data in the path and the query, and with line breaks in both."""
    host, port = url.removeprefix("http://").split(":")
    async with httpx.AsyncClient(base_url=url, trust_env=False) as http:
        for method, path in [
            (
                "POST",
                "/send-notification/ada.canary7f3a@canary7f3a.example?message=call+me+at+%28202%29+555-0143,+Ada+canary7f3a",
            ),
            ("POST", "/send-notification/ada.canary7f3a%40canary7f3a.example?message=x%0AINFO:%20%20FORGED"),
            (
                "POST",
                "/send-email/?to_email=ada.canary7f3a@canary7f3a.example&subject=hunter2-canary7f3a&body=4111111111111111",
            ),
            ("POST", "/process/Ada%20canary7f3a"),
            ("POST", "/user/4111111111111111/action?action=canary7f3a"),
            ("GET", "/jobs?tag=ada&cursor=evil"),
            ("GET", "/events?follow=false&ticket=hunter2-canary7f3a"),
            (
                "GET",
                "/nowhere/ada.canary7f3a@canary7f3a.example/4111111111111111%0D%0AINFO:%20%20%20x?password=hunter2-canary7f3a",
            ),
            ("GET", "/task-progress/ada-canary7f3a"),
            ("DELETE", "/process/Ada%20canary7f3a"),
            ("GET", "/proces/ada-canary7f3a"),
        ]:
            await http.request(method, path, headers={"X-Forwarded-For": "1.2.3.4\tada.canary7f3a@canary7f3a.example"})
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"NONSENSE ada.canary7f3a@canary7f3a.example\x1b[2J\r\n\r\n")
    await reader.read()
    writer.close()


async def test_text_lines_are_whole_and_nobodys(tmp_path: Path) -> None:
    """Whatever is asked for, each line is a record of ours and none tells what was in a path or a query."""
    async with service(tmp_path) as log:
        await provoke(log.url)

    text = "\n".join(log.lines)
    assert [line for line in log.lines if not _TEXT.match(line)] == []
    assert [canary for canary in CANARIES if canary.lower() in text.lower()] == []
    assert [line for line in log.lines if not line.replace("\t", " ").isprintable()] == []
    for shown in ("POST /send-notification/", "POST /process/", "GET /jobs", "GET /{...}/{...}/{...}"):
        assert shown in text


async def test_json_lines_are_json_and_nobodys(tmp_path: Path) -> None:
    """With ``log_format`` json every line is an object with the same four members; an access has its parts beside."""
    async with service(tmp_path, ASYNCBG_SERVER__LOG_FORMAT="json") as log:
        await provoke(log.url)

    records = [json.loads(line) for line in log.lines]
    assert all(record.keys() >= {"time", "level", "logger", "message"} for record in records)
    accesses = [record for record in records if record["logger"] == "uvicorn.access"]
    assert accesses[0].keys() >= {"client", "method", "path", "http_version", "status"}
    assert (accesses[0]["method"], accesses[0]["status"]) == ("POST", 202)
    assert accesses[0]["path"].startswith("/send-notification/")
    text = "\n".join(log.lines)
    assert [canary for canary in CANARIES if canary.lower() in text.lower()] == []


async def test_a_job_is_named_by_its_id(tmp_path: Path) -> None:
    """Ids are ours and nobody's data: the line says which job was looked at."""
    async with service(tmp_path) as log, httpx.AsyncClient(base_url=log.url, trust_env=False) as http:
        job = (await http.post("/process/x-canary7f3a")).json()["jobs"][0]
        await http.get(job["url"])

    assert any(f"GET /jobs/{job['id']} HTTP" in line for line in log.lines)


@pytest.mark.parametrize("log_format", ["text", "json"])
async def test_without_masking_no_line_is_forged_either(tmp_path: Path, log_format: str) -> None:
    """``privacy.mask`` off shows data as it came, still one record a line."""
    variables = {"ASYNCBG_PRIVACY__MASK": "false", "ASYNCBG_SERVER__LOG_FORMAT": log_format}
    async with service(tmp_path, **variables) as log:
        await provoke(log.url)

    assert any("ada.canary7f3a@canary7f3a.example" in line for line in log.lines)
    for line in log.lines:
        if log_format == "json":
            json.loads(line)
        else:
            assert _TEXT.match(line), line


async def test_a_worker_logs_the_same_way(tmp_path: Path) -> None:
    """``asyncbg worker`` has no HTTP and the same lines."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncbg.cli", "worker",
        cwd=tmp_path, env={**kept, "HOME": str(tmp_path), "ASYNCBG_SERVER__LOG_FORMAT": "json"},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stderr is not None
    async with asyncio.timeout(60):
        first = json.loads(await process.stderr.readline())
        while "worker started" not in first["message"]:
            first = json.loads(await process.stderr.readline())
        process.send_signal(signal.SIGTERM)
        rest = [json.loads(line) for line in (await process.stderr.read()).splitlines()]
        await process.wait()

    assert {record["logger"] for record in [first, *rest]} == {"asyncbg"}
