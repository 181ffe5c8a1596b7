"""A process that is killed at random moments loses nothing it acknowledged; the long form is in docs/reliability.md."""

import asyncio
import os
import sys
from pathlib import Path

from tests.faults.verdict import figures_of

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"


async def run_module(name: str, *arguments: str) -> str:
    """Run a module of the tests as its command line does; what it printed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", name, *arguments,
        cwd=ROOT, env=os.environ | {"PYTHONPATH": f"{SOURCE}"}, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    printed, _ = await process.communicate()
    assert process.returncode == 0, printed.decode()
    return printed.decode()


async def test_ten_kills_lose_nothing() -> None:
    """Nothing acknowledged is lost, torn, stuck or delivered twice by one attempt, whenever the kill came."""
    figures, broken = figures_of(await run_module("tests.faults.kill_loop", "--cycles", "10"))

    assert broken == []
    assert figures["acknowledged"] > 0
    assert (figures["lost"], figures["corrupt"], figures["stuck"], figures["duplicates"]) == (0, 0, 0, 0)


async def test_a_frozen_process_completes_nothing_twice() -> None:
    """One that is stopped for longer than its leases ends its attempts too late: they were completed elsewhere."""
    figures, broken = figures_of(await run_module("tests.faults.stop_loop", "--rounds", "5"))

    assert broken == []
    assert (figures["completed_twice"], figures["not_completed"]) == (0, 0)


async def test_no_job_is_taken_for_lost_while_it_runs() -> None:
    """Attempts of more than ten leases, some of which hold their event loop for longer than one, are each made once."""
    figures, broken = figures_of(await run_module("tests.faults.long_runs", "--runs", "60"))

    assert broken == []
    assert (figures["attempts"], figures["false_rescues"], figures["crashes"]) == (60, 0, 0)
    assert figures["leases_seen_lapsed"] > 0
