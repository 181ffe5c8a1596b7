"""Does anything grow? A million no-op jobs through one process. Run: ``python benchmarks/soak.py``.

Finished jobs are kept for two seconds. Prints resident memory, open files, threads, and the size of the database and
of its log along the way. Flat is right.
"""

import sys

sys.path.pop(0)  # this folder holds an http.py, which would stand before the standard library's

import argparse
import asyncio
import os
import tempfile
import threading
import time
from pathlib import Path

from asyncbg import AsyncBG

MIB = 1024 * 1024


def resident_mib() -> float:
    """Resident memory of this process (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def open_files() -> int:
    """How many files this process has open (Linux)."""
    return len(list(Path("/proc/self/fd").iterdir()))


def size_mib(path: Path) -> float:
    """The size of a file, 0 where there is none."""
    return path.stat().st_size / MIB if path.exists() else 0.0


async def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=1_000_000)
    parser.add_argument("--retention", type=float, default=2.0, help="seconds a finished job is kept")
    args = parser.parse_args()
    done = 0
    with tempfile.TemporaryDirectory() as folder:
        database = Path(folder) / "soak.db"
        bg = AsyncBG(database_url=f"sqlite:///{database}", runner={"retention_s": args.retention})

        @bg.task(name="noop")
        async def noop(number: int) -> None:
            nonlocal done
            done += 1

        print(f"{'jobs':>10}{'jobs/s':>10}{'RSS MiB':>10}{'files':>8}{'threads':>9}{'database MiB':>14}{'log MiB':>9}")
        start_s, every = time.perf_counter(), max(1, args.jobs // 10)
        async with bg:
            for first in range(0, args.jobs, 100):
                await asyncio.gather(*(noop.enqueue(number) for number in range(first, min(first + 100, args.jobs))))
                if (first + 100) % every == 0 or first + 100 >= args.jobs:
                    print(
                        f"{done:>10,}{done / (time.perf_counter() - start_s):>10,.0f}{resident_mib():>10.1f}"
                        f"{open_files():>8}{threading.active_count():>9}"
                        f"{size_mib(database):>14.1f}{size_mib(Path(f'{database}-wal')):>9.1f}",
                        flush=True,
                    )
            while done < args.jobs:  # noqa: ASYNC110 - an event would cost the jobs
                await asyncio.sleep(0.05)
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
