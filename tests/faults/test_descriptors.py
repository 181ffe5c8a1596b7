"""A process that has no free file descriptor takes nothing for absent that it cannot look at."""

import subprocess
import sys
from pathlib import Path

PLACES = """
import os, resource, sys
from pathlib import Path
from asyncbg.store.sqlite.process_slot import ProcessSlot

database = Path(sys.argv[1])
mine, neighbour = ProcessSlot(database), ProcessSlot(database)
mine.acquire()
neighbour.acquire()
neighbour.beat(0, lease_ms=1)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    pass
print(mine.gone([neighbour.name]), mine.silent([neighbour.name], 10))
try:
    print(mine.held())
except OSError as error:
    print(type(error).__name__)
while taken:
    os.close(taken.pop())
print(mine.gone([neighbour.name]), mine.silent([neighbour.name], 10), mine.held())
neighbour.release()
print(mine.gone([neighbour.name]))
"""
NEIGHBOURS = """
import asyncio, os, resource, sys
from pathlib import Path
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.core.ids import IdGenerator
from asyncbg.core.clock import SystemClock
from asyncbg.core.job import NewJob

async def main() -> None:
    healthy, exhausted = [SQLiteBackend(Database(sys.argv[1])) for _ in range(2)]
    await healthy.open()
    await exhausted.open()
    clock = SystemClock()
    job_id, now_ms = IdGenerator(clock).new(), clock.now_ms()
    await healthy.enqueue(
        [NewJob(job_id, "noop", "default", "me", job_id, "[]", "queued", 0, 1, 0, 0, 0, "{}", "{}", now_ms, now_ms)]
    )
    await healthy.claim(1, lease_s=30)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    taken = []
    try:
        while True:
            taken.append(os.dup(0))
    except OSError:
        pass
    rescued = [await exhausted.rescue() for _ in range(3)]
    while taken:
        os.close(taken.pop())
    record = await healthy.get(job_id)
    print(rescued, record.state.value, record.crashes)
    await healthy.close()
    await exhausted.close()

asyncio.run(main())
"""


def said(program: str, database: Path) -> tuple[list[str], str]:
    """What a program printed, and what it logged."""
    done = subprocess.run(
        [sys.executable, "-c", program, str(database)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout.splitlines(), done.stderr


def test_a_place_that_cannot_be_looked_at_is_not_gone(tmp_path: Path) -> None:
    """Neither gone nor silent, said once; how many are held is an error, not none."""
    lines, log = said(PLACES, tmp_path / "jobs.db")

    assert lines == ["[] []", "OSError", "[] ['1'] ['0', '1']", "['1']"]
    assert log.count("cannot check whether the process in slot 1 is alive") == 1


def test_the_jobs_of_a_healthy_neighbour_are_left_alone(tmp_path: Path) -> None:
    """A process without a free descriptor declares nobody dead: the job runs on, and no crash is counted."""
    lines, _ = said(NEIGHBOURS, tmp_path / "jobs.db")

    assert lines == ["[0, 0, 0] running 0"]
