"""Stops a working process for longer than its leases, lets a neighbour take its jobs, and lets it go on.

``python -m tests.faults.stop_loop --rounds 500`` prints the figures of docs/reliability.md and ends with 1 if a job
was completed twice. Two processes share one file. Each round freezes one of them (SIGSTOP) in the midst of its jobs
until the other has completed them all, then thaws it (SIGCONT): its own attempts end too, but late.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

from asyncbg.engine import Engine
from asyncbg.engine.context import current_job
from asyncbg.settings import load_settings
from tests.faults.kill_loop import end, fork
from tests.faults.verdict import FINAL_TYPES, read_stories
from tests.faults.victim import Diary

LEASE_S = 0.3
JOBS = 4
LONGEST_ROUND_S = 30.0


class Peer:
    """One of the two processes."""

    def __init__(self, directory: Path, name: str) -> None:
        """Share the database in ``directory``; ``name`` tells its words from the other's."""
        self.name = name
        self.diary = Diary(directory / "ended.jsonl")
        runner = {"lease_s": LEASE_S, "concurrency": JOBS, "shutdown_grace_s": 1}
        self.engine = Engine(load_settings(database_url=f"sqlite:///{directory / 'jobs.db'}", runner=runner))
        self.engine.task(name="work")(self.work)

    async def work(self, n: int) -> int:
        """Take a moment, and note that the end was reached, whoever may hear of it."""
        await asyncio.sleep(0.1)
        self.diary.note(self.name, current_job().id, current_job().attempt)
        return n

    async def run(self) -> None:
        """Run jobs until killed."""
        async with self.engine:
            await asyncio.Event().wait()


class Pair:
    """Both processes, and one engine that only enqueues and looks."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        """Nothing runs yet."""
        self.path = directory / "jobs.db"
        self.rng = rng
        runner = {"lease_s": LEASE_S}
        self.engine = Engine(load_settings(database_url=f"sqlite:///{self.path}", runner=runner))
        self.task = self.engine.task(name="work")(_never)

    async def rounds(self, count: int, pids: list[int]) -> None:
        """Freeze one or the other, again and again."""
        async with self.engine:
            self.engine._parts.runner.begin_drain()
            for number in range(count):
                async with asyncio.timeout(LONGEST_ROUND_S):
                    await self._round(self.rng.choice(pids))
                if (number + 1) % 50 == 0:
                    print(f"{number + 1} rounds", flush=True)  # noqa: T201 - a long run tells how far it is
            await asyncio.sleep(2 * LEASE_S)  # the last late ends

    async def _round(self, pid: int) -> None:
        jobs = [await self.task.enqueue(n) for n in range(2 * JOBS)]
        await asyncio.sleep(self.rng.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGSTOP)
        try:
            frozen_s = time.monotonic()
            for job in jobs:
                try:
                    await job.result(timeout=4.0)  # no longer: it may have been stopped within a write
                except TimeoutError:
                    break
            await asyncio.sleep(max(0.0, 1.2 * LEASE_S - (time.monotonic() - frozen_s)))
        finally:
            os.kill(pid, signal.SIGCONT)
        for job in jobs:
            await job.result()


async def _never(n: int) -> int:
    raise AssertionError("this engine runs nothing")


def judge(directory: Path) -> tuple[dict[str, int], list[str]]:
    """What became of the jobs, and what should not have."""
    stories, _ = read_stories(directory / "jobs.db")
    with closing(sqlite3.connect(directory / "jobs.db")) as connection:
        intact = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    ended = Counter(json.loads(line)[1] for line in (directory / "ended.jsonl").read_text().splitlines())
    completed = {job_id: sum(event.type in FINAL_TYPES for event in story.events) for job_id, story in stories.items()}
    broken = [f"{job_id} was completed {times} times" for job_id, times in completed.items() if times != 1]
    broken += [wrong for story in stories.values() if (wrong := story.replay())]
    broken += [] if intact else ["the database is damaged"]
    figures = {
        "jobs": len(stories),
        "taken_over": sum(story.crashes > 0 for story in stories.values()),
        "ends_reached_twice": sum(times > 1 for times in ended.values()),
        "completed_twice": sum(times > 1 for times in completed.values()),
        "not_completed": sum(times == 0 for times in completed.values()),
        "failed": sum(story.state != "succeeded" for story in stories.values()),
    }
    return figures, broken


def main() -> int:
    """Run the rounds and print what became of the jobs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        pids = [fork(lambda name=name: Peer(directory, name).run()) for name in ("one", "two")]  # type: ignore[misc]  # a default binds it
        try:
            asyncio.run(Pair(directory, random.Random(seed)).rounds(chosen.rounds, pids))
        finally:
            for pid in pids:
                end(pid, signal.SIGKILL)
        figures, broken = judge(directory)
    figures = {"rounds": chosen.rounds, "seed": seed, "seconds": round(time.monotonic() - started_s)} | figures
    print(json.dumps({"figures": figures, "broken": broken[:20]}, indent=2))  # noqa: T201 - the report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
