"""How soon the jobs of a killed process run again: after its restart, and at a neighbour.

``python -m tests.faults.rescue_times --rounds 50`` prints the figures of docs/reliability.md and ends with 1 where a
restart took 2 s or a neighbour 20 s. Real programs: the interpreter's start and the imports count. Beside the times
stands what the restarted process used of the processor until then, since that is most of it.
"""

import argparse
import asyncio
import json
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path

from tests.faults.test_lifecycle import PROGRAM, Program, running

RESTART_LIMIT_S, NEIGHBOUR_LIMIT_S = 2.0, 20.0


async def start(stack: AsyncExitStack, path: Path, mode: str, *orders: str) -> Program:
    """Start ``program.py``; it ends with the stack at the latest."""
    command = [sys.executable, str(PROGRAM), str(path), mode, *orders]
    return await stack.enter_async_context(running(command, asyncio.Condition()))


def second_start_ms(path: Path) -> int:
    """When the killed job's second attempt began."""
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT max(at) FROM event WHERE type = 'job.started' AND attempt = 2"
        return int(connection.execute(query).fetchone()[0])


def processor_s(pid: int) -> float:
    """What a process has used of the processor so far, to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def after_restart(directory: Path) -> tuple[float, float]:
    """Seconds from the start of the new process to the second attempt, and of them on the processor."""
    async with AsyncExitStack() as stack:
        first = await start(stack, directory / "jobs.db", "hold", "keep=1")
        await first.says("began")
        await first.kill()
        started_s = time.time()  # compared with the database's own times
        second = await start(stack, directory / "jobs.db", "go")
        await second.says("ended")
        used_s = processor_s(second.process.pid)
    return second_start_ms(directory / "jobs.db") / 1000 - started_s, used_s


async def at_a_neighbour(directory: Path) -> float:
    """Seconds from the kill to the second attempt."""
    async with AsyncExitStack() as stack:
        first = await start(stack, directory / "jobs.db", "hold", "keep=1")
        await first.says("began")
        second = await start(stack, directory / "jobs.db", "go")
        await second.says("running")
        killed_s = time.time()  # compared with the database's own times
        await first.kill()
        await second.says("ended")
    return second_start_ms(directory / "jobs.db") / 1000 - killed_s


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """The median, the 99th percentile (nearest rank) and the longest."""
    ranked = sorted(seconds)
    chosen = {"p50_s": 0.50, "p99_s": 0.99, "max_s": 1.0}
    return {name: round(ranked[math.ceil(share * len(ranked)) - 1], 3) for name, share in chosen.items()}


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """Both, so many times, each in a directory of its own."""
    restarts, used, neighbours = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as directory:
            took_s, used_s = await after_restart(Path(directory))
        restarts.append(took_s)
        used.append(used_s)
        with tempfile.TemporaryDirectory() as directory:
            neighbours.append(await at_a_neighbour(Path(directory)))
    times = {"restart": restarts, "restart_processor": used, "neighbour": neighbours}
    return {name: summary(seconds) for name, seconds in times.items()}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=50)
    chosen = parser.parse_args()
    load_before = os.getloadavg()[0]
    figures = asyncio.run(measure(chosen.rounds))
    load = {"load_before": round(load_before, 1), "load_after": round(os.getloadavg()[0], 1)}
    print(json.dumps({"rounds": chosen.rounds} | load | figures, indent=2))  # noqa: T201 - the report
    is_late = figures["restart"]["max_s"] > RESTART_LIMIT_S or figures["neighbour"]["p99_s"] > NEIGHBOUR_LIMIT_S
    return 1 if is_late else 0


if __name__ == "__main__":
    sys.exit(main())
