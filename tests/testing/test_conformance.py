"""The conformance kit: green on our own streams, and red exactly where an endpoint is wrong."""

import asyncio
import copy
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from fastapi import FastAPI
from fastapi.sse import EventSourceResponse, ServerSentEvent

from asyncbg.testing import (
    AppFailedError,
    ConformanceError,
    LiveServer,
    ManualBG,
    Outcome,
    serve,
    sse_conformance,
)
from asyncbg.testing.conformance import CHECKS
from tests.testing.broken_endpoints import BROKEN, Endpoint, right

SILENCE_S = 1.0
"""How long is waited for what never comes; where everything comes, the kit's own patience costs nothing."""
PATIENCE_S = 10.0
SILENT = {"silence first", "events held back", "a gap", "gzip that is not flushed", "an event without data"}


async def nothing() -> None:
    """A task."""


async def ended_stream(bg: ManualBG, prefix: str) -> str:
    """The path of the stream of a job that is final."""
    job = await bg.enqueue(nothing)
    await bg.drain()
    return f"{prefix}/jobs/{job.id}/events"


@pytest.fixture
def bg_settings(bg_settings: dict[str, Any]) -> dict[str, Any]:
    """Streams with quick heartbeats."""
    return bg_settings | {"stream": {"heartbeat_s": 0.2}}


async def test_our_own_streams_pass_every_check_in_process(bg: ManualBG, bg_app: FastAPI) -> None:
    """All checks are made on ``/events`` and on a job's own stream, and all pass."""
    report = await sse_conformance(
        bg_app,
        "/bg/events",
        make_event=lambda: bg.enqueue(nothing),
        ended=await ended_stream(bg, "/bg"),
        heartbeat_s=0.2,
    )

    report.raise_for_failures()
    assert [result.name for result in report.skipped] == []
    assert len(report.passed) == len(CHECKS)


async def test_our_own_streams_pass_every_check_on_the_wire(bg: ManualBG, bg_live: LiveServer) -> None:
    """Behind a URL too; only what an application does after a disconnect is not to be seen from there."""
    report = await sse_conformance(
        f"{bg_live.url}/bg/",
        make_event=lambda: bg.enqueue(nothing),
        ended=(await ended_stream(bg, "")),
        heartbeat_s=0.2,
    )

    report.raise_for_failures()
    assert [result.name for result in report.skipped] == ["disconnect"]


async def test_a_right_endpoint_passes() -> None:
    """The small endpoint of these tests is right unless it is made wrong; it does not compress."""
    endpoint = right()

    report = await sse_conformance(
        endpoint, make_event=endpoint.make, ended="/ended", heartbeat_s=0.05, timeout_s=PATIENCE_S
    )

    assert [result.name for result in report.skipped] == ["gzip"]
    report.raise_for_failures()


@pytest.mark.parametrize("what", BROKEN)
async def test_a_wrong_endpoint_fails_the_checks_that_say_so(what: str) -> None:
    """Each mistake turns exactly the checks red that are about it."""
    wrong, expected = BROKEN[what]
    endpoint: Endpoint = copy.deepcopy(wrong)

    report = await sse_conformance(
        endpoint, make_event=endpoint.make, ended="/ended", timeout_s=SILENCE_S if what in SILENT else PATIENCE_S
    )

    assert {result.name for result in report.failed} == expected, "\n".join(map(str, report.failed))


async def test_a_finding_says_what_was_told_wrong() -> None:
    """The ids that were expected and those that came, and the difference in words."""
    endpoint = right(replay_from=lambda cursor: cursor - 1)

    report = await sse_conformance(endpoint, make_event=endpoint.make, timeout_s=PATIENCE_S)

    assert "sends 'e-6' instead of 'e-9'" in report["resume"].detail
    assert "expected the ids ['e-7', 'e-8', 'e-9'], got ['e-6', 'e-7', 'e-8']" in report["resume"].detail


async def test_an_endpoint_that_goes_on_without_its_client_fails() -> None:
    """What ignores the disconnect is cancelled after a while, and the check says so."""
    endpoint = right(is_deaf=True)

    report = await sse_conformance(endpoint, timeout_s=0.2)

    assert report["disconnect"].outcome is Outcome.FAILED
    assert not endpoint.listeners


async def test_a_missing_heartbeat_fails() -> None:
    """A stream that was promised to be heard of every 20 ms says nothing for a second."""
    endpoint = right(heartbeat_s=None)

    report = await sse_conformance(endpoint, heartbeat_s=0.02)

    assert [result.name for result in report.failed] == ["heartbeat"]


async def test_what_cannot_be_checked_is_skipped_with_the_reason() -> None:
    """Without a way to make events or an ended stream, the checks of both say what to give."""
    report = await sse_conformance(right())

    report.raise_for_failures()
    assert "make_event=" in report["resume"].detail
    assert "ended=" in report["end-204"].detail
    assert "heartbeat_s=" in report["heartbeat"].detail


async def test_the_report_reads_as_a_table_and_raises() -> None:
    """A line for each check with its reference where it failed; the error has the whole report."""
    report = await sse_conformance(right(headers={}))

    assert str(report).splitlines()[-1].endswith("skipped")
    assert "WHATWG HTML 9.2.3" in str(report)
    with pytest.raises(ConformanceError, match="content-type") as raised:
        report.raise_for_failures()
    assert raised.value.report is report
    with pytest.raises(KeyError, match="there are status"):
        report["speed"]


async def test_bad_targets_are_refused() -> None:
    """A URL without a scheme, a path without a slash, an app that does not start: each is told at once."""
    with pytest.raises(ValueError, match="http://"):
        await sse_conformance("localhost:8000")
    with pytest.raises(ValueError, match="slash"):
        await sse_conformance(right(), "events")

    @asynccontextmanager
    async def fails(_: FastAPI) -> AsyncIterator[None]:
        raise RuntimeError("no database")
        yield

    with pytest.raises(AppFailedError, match="no database"):
        await sse_conformance(FastAPI(lifespan=fails))


async def test_what_it_finds_in_fastapis_own_event_stream() -> None:
    """FastAPI's EventSourceResponse, used as its documentation does, with ids and no more."""
    app = FastAPI()
    log: list[int] = []
    more = asyncio.Condition()

    async def make() -> None:
        async with more:
            log.append(len(log))
            more.notify_all()

    @app.get("/events", response_class=EventSourceResponse)
    async def events() -> Any:
        at = len(log)
        while True:
            async with more:
                while len(log) <= at:
                    await more.wait()
            yield ServerSentEvent(data={"n": at}, event="thing", id=f"e-{at}")
            at += 1

    report = await sse_conformance(app, make_event=make, timeout_s=SILENCE_S)

    assert {result.name for result in report.failed} == {
        "no-transform", "first-bytes", "retry", "head", "resume", "resume-absence", "resume-splice",
    }  # fmt: skip


async def test_a_server_that_is_not_there_is_told(unused_tcp_port: int) -> None:
    """Nobody answers at the URL: that is no finding but an error."""
    with pytest.raises(aiohttp.ClientConnectionError):
        await sse_conformance(f"http://127.0.0.1:{unused_tcp_port}")


async def test_a_live_server_of_any_app() -> None:
    """``serve`` runs what is no FastAPI application too."""
    endpoint = right()
    async with serve(endpoint) as server:
        report = await sse_conformance(server.url, make_event=endpoint.make)

    report.raise_for_failures()
