"""The watchdog: whoever holds the event loop is named, counted and told of; nobody else is."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncbg.bus import Subscription
from asyncbg.core.event import Event, EventFilter
from asyncbg.engine import Engine
from asyncbg.engine.metrics import Telemetry
from asyncbg.engine.watchdog import LOOP_BLOCKED
from asyncbg.settings import Settings, load_settings

HELD_S = 0.4
SOON_S = 10
HERE = Path(__file__).name


async def hold_the_loop(seconds: float) -> str:
    """A task that sleeps the wrong way, and ends at once."""
    time.sleep(seconds)  # noqa: ASYNC251 - the very thing
    return "done"


async def hold_then_go_on() -> None:
    """A task that holds the loop in the middle."""
    await asyncio.sleep(0)
    json.JSONDecoder(object_hook=_sleepy).decode("{}")
    await asyncio.sleep(0.01)


def _sleepy(_: Any) -> None:
    time.sleep(HELD_S)


def sleep_in_a_thread(seconds: float) -> None:
    """A plain function has a thread."""
    time.sleep(seconds)


async def compute_in_slices() -> None:
    """Much to do, but with room for others."""
    end = time.monotonic() + HELD_S
    while time.monotonic() < end:
        sum(range(1000))
        await asyncio.sleep(0)


def settings(directory: Path, **runner: Any) -> Settings:
    """A database of its own."""
    return load_settings(database_url=f"sqlite:///{directory / 'jobs.db'}", runner=runner)


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """An engine with the watchdog as it is by default."""
    async with Engine(settings(tmp_path)) as one:
        yield one


async def next_blockage(live: Subscription) -> Event:
    """The next event that is published to ``live``."""
    while not (events := live.take()):
        assert await live.wait(SOON_S)
    return events[0]


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the watchdog said."""
    return [record.getMessage() for record in caplog.records if "event loop blocked" in record.getMessage()]


async def test_a_job_that_holds_the_loop_is_told_of_on_the_job(engine: Engine) -> None:
    """The event lies before the job's final one, and names the task, the line and the time."""
    engine.task(name="greedy")(hold_the_loop)
    job = await engine.submit("greedy", {"seconds": HELD_S})

    assert await job.result(SOON_S) == "done"

    events = [event async for event in job.events()]
    assert [event.type for event in events] == ["job.queued", "job.started", LOOP_BLOCKED, "job.succeeded"]
    data = events[2].payload()
    assert data["task"] == "greedy"
    assert data["line"].endswith(f"{HERE}:{hold_the_loop.__code__.co_firstlineno + 2} in hold_the_loop")
    assert not data["line"].startswith("/")
    assert HELD_S - 0.1 < data["seconds"] < SOON_S


async def test_the_innermost_line_of_the_application_is_named(engine: Engine) -> None:
    """Not the library that was called there, nor what that called in turn, unless it is the application's again."""
    job = await engine.enqueue(hold_then_go_on)
    await job.result(SOON_S)

    told = [event async for event in job.events() if event.type == LOOP_BLOCKED]

    assert [event.payload()["line"].rpartition(" ")[2] for event in told] == ["_sleepy"]


async def test_a_blockage_is_one_warning_and_one_count(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """However long it lasts; the next one is another. The metrics name the task."""
    engine.task(name="greedy")(hold_the_loop)
    for _ in range(2):
        await (await engine.submit("greedy", {"seconds": 3 * HELD_S / 2})).result(SOON_S)

    assert len(warnings(caplog)) == 2
    assert "blocked for more than 0.25 s by greedy at" in warnings(caplog)[0]
    assert f"{HERE}:" in warnings(caplog)[0]
    assert engine._parts.runner.blockages == {"greedy": 2}
    exposed = Telemetry().expose(None, engine.bus.statistics(), engine._parts.runner.blockages).decode()
    assert 'asyncbg_loop_blocked_total{task="greedy"} 2.0' in exposed


async def test_what_is_no_job_is_named_by_its_coroutine(engine: Engine) -> None:
    """A route or another coroutine of the application is told to those who listen; nothing is stored."""
    with engine.bus.subscribe(EventFilter(types=frozenset({LOOP_BLOCKED}))) as live:
        await asyncio.create_task(hold_the_loop(HELD_S))
        event = await next_blockage(live)

    assert (event.seq, event.job_id, event.task) == (0, "", "hold_the_loop")
    assert engine._parts.runner.blockages == {"hold_the_loop": 1}


async def test_what_does_not_hold_the_loop_is_not_told_of(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """A plain function runs in a thread; a coroutine that lets others run is welcome, however long it takes."""
    threaded = await engine.enqueue(sleep_in_a_thread, HELD_S)
    sliced = await engine.enqueue(compute_in_slices)
    brief = await engine.enqueue(hold_the_loop, 0.05)

    for job in (threaded, sliced, brief):
        await job.result(SOON_S)

    assert warnings(caplog) == []
    assert engine._parts.runner.blockages == {}


async def test_a_crowd_that_is_quick_each_is_not_told_of(engine: Engine, caplog: pytest.LogCaptureFixture) -> None:
    """The loop is late where much is ready at once, but nobody holds it: there is nobody to name."""

    async def brief() -> None:
        time.sleep(0.02)  # noqa: ASYNC251 - a share of the loop

    await asyncio.gather(*(brief() for _ in range(40)))
    await asyncio.sleep(0.1)

    assert warnings(caplog) == []


async def test_the_limit_can_be_set(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """``runner.watchdog_s`` is how long the loop may be held."""
    async with Engine(settings(tmp_path, watchdog_s=0.05)) as engine:
        await (await engine.enqueue(hold_the_loop, 0.15)).result(SOON_S)

        assert sum(engine._parts.runner.blockages.values()) == 1
    assert "0.05 s" in warnings(caplog)[0]


def watchdogs() -> set[threading.Thread]:
    """The watchdogs of this process."""
    return {thread for thread in threading.enumerate() if thread.name == "asyncbg-watchdog"}


async def test_zero_turns_it_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Then there is no thread and nothing is told."""
    before = watchdogs()
    async with Engine(settings(tmp_path, watchdog_s=0)) as engine:
        assert watchdogs() == before
        await (await engine.enqueue(hold_the_loop, HELD_S)).result(SOON_S)

        assert engine._parts.runner.blockages == {}
    assert warnings(caplog) == []


async def test_its_thread_ends_with_the_engine(tmp_path: Path) -> None:
    """A stopped engine leaves no thread; a started one has one."""
    before = watchdogs()  # an engine that another test keeps open has one of its own
    async with Engine(settings(tmp_path)):
        assert len(watchdogs() - before) == 1

    assert watchdogs() == before


_STOPPED = """
import asyncio, sys
from asyncbg.engine import Engine
from asyncbg.settings import load_settings

async def main():
    async with Engine(load_settings(database_url="sqlite:///" + sys.argv[1])) as engine:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        await asyncio.sleep(0.6)
        print(dict(engine._parts.runner.blockages), flush=True)

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs SIGSTOP")
def test_a_process_that_was_stopped_blocked_nothing(tmp_path: Path) -> None:
    """A process that stood still as a whole and went on held no loop, however late its ticks are."""
    command = [sys.executable, "-c", _STOPPED, str(tmp_path / "jobs.db")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for _ in range(3):
            os.kill(process.pid, signal.SIGSTOP)
            time.sleep(0.6)  # the time that is to be lost
            os.kill(process.pid, signal.SIGCONT)
            time.sleep(0.1)
        told, _ = process.communicate("\n", timeout=SOON_S)

    assert told == "{}\n"
