"""The logs of an application with plain logging: what asyncbg says in them is nobody's, without any filter."""

import asyncio
import logging
import os
import re
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG
from asyncbg.privacy import RedactingFilter
from asyncbg.privacy.log_redaction import redact_handlers, redact_own_loggers
from tests.canary.people import Canary
from tests.canary.search import leaks

PERSON = Canary()
TEXT = f"{PERSON.text}\nERROR:shop:FORGED"


async def log_of(place: Path, **variables: str) -> str:
    """What the application writes while it is told of a person in every way it knows."""
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    program = Path(__file__).with_name("library_app.py")
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(program), cwd=place, env={**kept, **variables},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    assert process.stdout is not None
    log = ""
    try:
        async with asyncio.timeout(60):
            while not (found := re.search(r"Uvicorn running on (\S+)", log)):
                line = (await process.stdout.readline()).decode()
                assert line, log
                log += line
            rest = asyncio.create_task(process.stdout.read())
            await provoke(found[1])
            process.send_signal(signal.SIGTERM)
            return log + (await rest).decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def provoke(url: str) -> None:
    """Jobs that go wrong in every way, requests to our routes and to the application's own."""
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        assert (await http.post("/mistake", content=TEXT)).status_code == 500  # and the end of the connection
    async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as http:
        jobs = (await http.post("/order", content=TEXT)).json()["jobs"]
        await http.post("/reuse", content=TEXT)
        for job in jobs[:3]:
            await http.get(f"/bg/jobs/{job}", params={"wait": 10})
        async with http.stream("GET", f"/bg/jobs/{jobs[3]}/events") as stream:
            async for line in stream.aiter_lines():
                if "job.started" in line:
                    break
        await http.post(f"/bg/jobs/{jobs[3]}/cancel", json={"reason": TEXT[:500]})
        for job in jobs[3:]:
            await http.get(f"/bg/jobs/{job}", params={"wait": 10})
        email = quote(PERSON.email)
        for path in (f"/bg/jobs?tag={email}&owner={PERSON.token}", f"/bg/jobs/{email}", f"/bg/jobs/{email}/events",
                     f"/bg/events?follow=false&ticket={PERSON.token}", f"/bg/jobs/{jobs[0]}?x={email}"):  # fmt: skip
            await http.get(path, headers={"X-Forwarded-For": f"{PERSON.email}\tFORGED, 192.0.2.7"})
            await http.get(path, headers={"X-Forwarded-For": PERSON.email})
        await http.post("/bg/jobs", json={"task": PERSON.email, "args": {"text": [TEXT]}})
        await http.post("/say", content=PERSON.email)


async def test_what_asyncbg_says_in_an_application_is_nobodys(tmp_path: Path) -> None:
    """At DEBUG, on plain handlers, tracebacks of tasks included; the application's own lines are its own."""
    log = await log_of(tmp_path)

    own = [line for line in log.splitlines() if "written by the shop" in line]
    assert own == [f"WARNING:shop:written by the shop: {PERSON.email}"]
    assert list(leaks(log.replace(own[0], "").encode())) == []
    assert "FORGED" not in [line.rpartition(":")[2] for line in log.splitlines() if line.startswith("ERROR:shop")]
    for said in (
        "(fail) failed: RuntimeError", "is retried in", "ignored cancellation",
        "event handler __main__:look failed with",
        "are not durable", "failed: ResultError", "jobs added after the response", "ArgumentsError",
        '"GET /bg/jobs HTTP/1.1"', '"GET /bg/jobs/{job_id} HTTP/1.1"', '"GET /bg/events HTTP/1.1"',
        '"POST /order HTTP/1.1"',
    ):  # fmt: skip
        assert said in log, said


async def test_an_application_may_have_all_its_logs_redacted(tmp_path: Path) -> None:
    """One setting: whatever it logs itself, from the start of the lifespan on."""
    log = await log_of(tmp_path, ASYNCBG_PRIVACY__REDACT_LOGS="true")

    assert list(leaks(log.encode())) == []
    assert re.search(r"^WARNING:shop:written by the shop: \[email:\w{8}\]$", log, re.MULTILINE)


@pytest.fixture
def handler() -> Iterator[logging.Handler]:
    """A handler of a logger of somebody else's."""
    handler = logging.Handler()
    logger = logging.getLogger("somebody.else")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


async def test_a_handler_is_as_it_was_when_the_application_stops(handler: logging.Handler) -> None:
    """The filter is on for the lifespan; one that was there already stays."""
    bg = AsyncBG(database_url="sqlite:///:memory:", privacy={"redact_logs": True})
    async with bg.lifespan(FastAPI()):
        assert [type(one) for one in handler.filters] == [RedactingFilter]
    redact_handlers(mask=True)()
    assert handler.filters == []

    handler.addFilter(known := RedactingFilter())
    restore = redact_handlers(mask=True)
    assert handler.filters == [known]
    restore()
    assert handler.filters == [known]


def test_our_loggers_are_guarded_once() -> None:
    """However many engines there are, those of modules too."""
    for _ in range(3):
        redact_own_loggers(mask=True)
    names = ["asyncbg", *(name for name in logging.root.manager.loggerDict if name.startswith("asyncbg."))]

    assert len(names) > 1
    for name in names:
        guards = [one for one in logging.getLogger(name).filters if isinstance(one, RedactingFilter)]
        assert len(guards) == 1, name
