"""Runs jobs for longer than ten leases, some of which hold the event loop for longer than one: none may be rescued.

``python -m tests.faults.long_runs --runs 10000`` prints the figures of docs/reliability.md and ends with 1 if a job
that ran was taken for lost. Two processes share one file and run hundreds of jobs each: coroutines that wait, ones
that block their event loop, asleep or computing, and plain functions in threads. A third process enqueues and looks:
its event loop is never held, so that somebody asks for lost jobs every second.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from asyncbg.engine import Engine
from asyncbg.engine.context import current_job
from asyncbg.settings import load_settings
from tests.faults.kill_loop import end, fork
from tests.faults.verdict import Story, read_stories
from tests.faults.victim import Diary

LEASE_S = 1.0
RUN_S = 10.5 * LEASE_S
HELD_S = 1.5 * LEASE_S
PERCENT = {"block": 2, "burn": 1, "in_thread": 10, "wait": 87}
CONCURRENCY, THREADS = 500, 80
LOOK_S = 0.05
SLICE = 100
LONGEST_S = 3_600.0
RESCUED = "its worker was lost"
LOST_LEASE = "lost its lease"


class Peer:
    """One of the two processes that run the jobs."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        """Share the database in ``directory``; ``rng`` draws when a job begins to hold the event loop."""
        self.rng = rng
        self.diary = Diary(directory / "diary.jsonl")
        self.engine = _engine(directory)
        for function in (self.wait, self.block, self.burn):
            self.engine.task(name=function.__name__)(function)
        self.engine.task(name="in_thread")(self.in_thread)

    async def wait(self) -> float:
        """Leave the event loop to others all the time."""
        return await self._run(lambda held_s: None)

    async def block(self) -> float:
        """Hold the event loop, asleep."""
        return await self._run(time.sleep)

    async def burn(self) -> float:
        """Hold the event loop, computing: the heartbeat must get at the interpreter's lock as well."""
        return await self._run(_compute)

    def in_thread(self) -> float:
        """Run in a thread."""
        began_s = self._begin()
        time.sleep(RUN_S)
        return time.monotonic() - began_s

    async def _run(self, hold: Callable[[float], None]) -> float:
        began_s = self._begin()
        before_s = self.rng.uniform(0.0, RUN_S)
        await asyncio.sleep(before_s)
        hold(HELD_S)
        await asyncio.sleep(RUN_S - before_s)
        return time.monotonic() - began_s

    def _begin(self) -> float:
        self.diary.note("began", current_job().id)
        return time.monotonic()

    async def run(self) -> None:
        """Run jobs until killed; what the engine warns of is noted."""
        logging.disable(logging.NOTSET)
        logging.getLogger("asyncbg").addHandler(Noting(self.diary))
        async with self.engine:
            await asyncio.Event().wait()


class Noting(logging.Handler):
    """Notes each warning by its form, without what is filled in."""

    def __init__(self, diary: Diary) -> None:
        """Append to ``diary``."""
        super().__init__(logging.WARNING)
        self.diary = diary

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        self.diary.note("warned", record.msg)


class Onlooker:
    """The process that enqueues and looks, and runs nothing."""

    def __init__(self, directory: Path) -> None:
        """Look at the file beside its engine, as any reader may."""
        self.path = directory / "jobs.db"
        self.engine = _engine(directory)
        for name in PERCENT:
            self.engine.task(name=name)(_never)
        self.lapsed: set[str] = set()

    async def watch(self, runs: int, rng: random.Random) -> None:
        """Enqueue so many jobs, and look until all are final."""
        kinds = [name for name, percent in PERCENT.items() for _ in range(percent)]
        names = [kinds[number % len(kinds)] for number in range(runs)]
        rng.shuffle(names)
        async with self.engine, asyncio.timeout(LONGEST_S):
            self.engine._parts.runner.begin_drain()
            for first in range(0, runs, SLICE):
                await asyncio.gather(*[self.engine.submit(name, {}) for name in names[first : first + SLICE]])
            with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as connection:
                while any((await self.engine.backend.counts()).values()):
                    self._look(connection)
                    await asyncio.sleep(LOOK_S)

    def _look(self, connection: sqlite3.Connection) -> None:
        """See which running jobs only the heartbeat of their process keeps."""
        lapsed = "SELECT id FROM job WHERE state = 'running' AND lease_until < ?"
        self.lapsed |= {row[0] for row in connection.execute(lapsed, (self.engine.clock.monotonic_ms(),))}


def _engine(directory: Path) -> Engine:
    runner = {"lease_s": LEASE_S, "concurrency": CONCURRENCY, "threads": THREADS}
    return Engine(load_settings(database_url=f"sqlite:///{directory / 'jobs.db'}", runner=runner))


def _compute(seconds: float) -> None:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        pass


async def _never() -> None:
    raise AssertionError("this engine runs nothing")


def judge(directory: Path, onlooker: Onlooker) -> tuple[dict[str, float], list[str]]:
    """What became of the jobs, and what should not have."""
    stories = list(read_stories(directory / "jobs.db")[0].values())
    with closing(sqlite3.connect(directory / "jobs.db")) as connection:
        lasted = {job_id: float(text) for job_id, text in connection.execute("SELECT id, result FROM job") if text}
    diary = [json.loads(line) for line in (directory / "diary.jsonl").read_text().splitlines()]
    began = Counter(words[1] for words in diary if words[0] == "began")
    lost_leases = [words[1] for words in diary if words[0] == "warned" and LOST_LEASE in words[1]]
    broken = [wrong for story in stories for wrong in _wrongs(story, began[story.id], lasted.get(story.id, 0.0))]
    broken += [f"warned: {text}" for text in lost_leases]
    kinds = Counter(story.task for story in stories)
    figures = {
        "jobs": len(stories),
        "slots": 2 * CONCURRENCY,
        "shortest_run_s": round(min(lasted.values(), default=0.0), 3),
        "longest_run_s": round(max(lasted.values(), default=0.0), 3),
        "blocking": kinds["block"],
        "computing": kinds["burn"],
        "in_threads": kinds["in_thread"],
        "leases_seen_lapsed": len(onlooker.lapsed),
        "attempts": sum(_times(story, "job.started") for story in stories),
        "false_rescues": sum(_rescues(story) for story in stories),
        "crashes": sum(story.crashes for story in stories),
        "lost_lease_warnings": len(lost_leases),
    }
    return figures, broken


def _wrongs(story: Story, began: int, lasted_s: float) -> list[str]:
    """What is wrong with a job that was to run once, for longer than ten leases."""
    told = {
        f"was rescued {_rescues(story)} times": _rescues(story) > 0,
        f"counts {story.crashes} crashes": story.crashes > 0,
        f"was begun {began} times, and {_times(story, 'job.started')} by its events": (
            began != 1 or _times(story, "job.started") != 1
        ),
        f"ran for {lasted_s:.3f} s and is {story.state}": lasted_s <= 10 * LEASE_S or story.state != "succeeded",
    }
    return [f"{story.id} ({story.task}) {text}" for text, is_wrong in told.items() if is_wrong]


def _times(story: Story, event_type: str) -> int:
    return sum(event.type == event_type for event in story.events)


def _rescues(story: Story) -> int:
    return sum(event.data.get("reason") == RESCUED for event in story.events)


def main() -> int:
    """Run the jobs and print what became of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=60)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    rng = random.Random(random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed)
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        seeds = [rng.getrandbits(32) for _ in range(2)]
        pids = [fork(lambda seed=seed: Peer(directory, random.Random(seed)).run()) for seed in seeds]  # type: ignore[misc]  # a default binds it
        onlooker = Onlooker(directory)
        try:
            asyncio.run(onlooker.watch(chosen.runs, rng))
        finally:
            for pid in pids:
                end(pid, signal.SIGKILL)
        figures, broken = judge(directory, onlooker)
    load = os.getloadavg()
    figures |= {"seconds": round(time.monotonic() - started_s), "load_1_min": round(load[0], 1)}
    print(json.dumps({"figures": figures, "broken": broken[:20]}, indent=2))  # noqa: T201 - the report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
