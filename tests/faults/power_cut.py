"""Cuts the power of a working store again and again, then asks each file that is left for all that was acknowledged.

``python -m tests.faults.power_cut --images 2000`` prints the figures of docs/reliability.md and ends with 1 if any
promise was broken. The store works on a watched disk (power_shim.py); at a point of what it wrote the power goes, the
disk keeps some of what was not synced and spoils some (power_disk.py says what is assumed of it). That image is read by
SQLite alone, then opened by the store. ``--synchronous NORMAL`` or ``OFF`` shows that the loss would be found.
"""

import argparse
import asyncio
import random
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.power_disk import Deleted, Disk, Files, Opened, SyncBegan, Synced, Truncated, Written
from tests.faults.power_shim import Acknowledged
from tests.faults.power_verdict import Expected, Verdict, judge_file, judge_store, read_all
from tests.faults.power_work import DATABASE, Recording, record

IMAGES_OF_ONE_RECORDING = 100
BEGAN_MS = 1_800_000_000_000
_LOG_HEADER = 32


@dataclass
class Count:
    """What became of some images."""

    images: int = 0
    rows: int = 0
    rows_lost: int = 0
    jobs: int = 0
    jobs_lost: int = 0
    images_with_loss: int = 0
    corrupt: int = 0
    broken: int = 0

    def add(self, verdict: Verdict) -> None:
        """Count one image."""
        self.images += 1
        self.rows += verdict.checked
        self.rows_lost += verdict.lost
        self.jobs += verdict.jobs_checked
        self.jobs_lost += verdict.jobs_lost
        self.images_with_loss += verdict.lost > 0
        self.corrupt += verdict.corrupt
        self.broken += bool(verdict.wrong)


@dataclass
class Report:
    """The figures, by what the disk was at when the power went, and the promises that were broken."""

    phases: dict[str, Count] = field(default_factory=lambda: defaultdict(Count))
    total: Count = field(default_factory=Count)
    broken: list[str] = field(default_factory=list)
    recordings: int = 0

    def add(self, phase: str, cut: str, verdict: Verdict) -> None:
        """Count one image."""
        self.phases[phase].add(verdict)
        self.total.add(verdict)
        self.broken += [f"{cut} ({phase}): {one}" for one in verdict.wrong]

    def lines(self) -> Iterator[str]:
        """The table."""
        heads = ("cut during", "images", "rows", "lost", "jobs", "lost", "with loss", "corrupt", "broken")
        yield "{:<36}{:>8}{:>10}{:>8}{:>9}{:>7}{:>11}{:>9}{:>8}".format(*heads)
        for name, one in [*sorted(self.phases.items()), ("all", self.total)]:
            figures = (one.images, one.rows, one.rows_lost, one.jobs, one.jobs_lost)
            yield "{:<36}{:>8}{:>10}{:>8}{:>9}{:>7}{:>11}{:>9}{:>8}".format(
                name, *figures, one.images_with_loss, one.corrupt, one.broken
            )


async def cut_again_and_again(
    images: int, seed: int, *, synchronous: str = "FULL", rounds: int = 60, keep: Path | None = None
) -> Report:
    """Record, cut and judge until there were so many images; ``keep`` takes those that broke a promise.

    Every second recording goes on from an image that the one before it left: a cut, a recovery, and a cut again.
    """
    report = Report()
    files: Files = {}
    now_ms = BEGAN_MS
    for first in range(0, images, IMAGES_OF_ONE_RECORDING):
        rng = random.Random(f"{seed} {first}")
        with tempfile.TemporaryDirectory() as name:
            place = lay(Path(name), files)
            recording = await record(place, rng, now_ms=now_ms, synchronous=synchronous, rounds=rounds)
        report.recordings += 1
        last = await _cut(recording, min(IMAGES_OF_ONE_RECORDING, images - first), rng, report, keep)
        files = last if report.recordings % 2 else {}
        now_ms = recording.now_ms
        print(f"{report.total.images} images", flush=True)  # noqa: T201 - a long run tells how far it is
    return report


async def _cut(recording: Recording, images: int, rng: random.Random, report: Report, keep: Path | None) -> Files:
    """Draw images of one recording, each phase as often as any other, and judge them; the last whole one."""
    phases = _phases(recording)
    cuts = sorted((rng.choice(phases[phase]), phase) for phase in rng.choices(sorted(phases), k=images))
    disk, expected, at, last = Disk(recording.files), expect(recording.files), 0, Files()
    for cut, phase in cuts:
        for entry in recording.log[at:cut]:
            disk.apply(entry)
            expected.follow(entry)
        at = cut
        files = disk.cut(rng)
        verdict = await judge(files, expected, recording.now_ms, rng)
        report.add(phase, f"recording {report.recordings}, entry {cut}", verdict)
        if not verdict.wrong:
            last = files
        elif keep is not None:
            lay(keep / f"{report.recordings}-{cut}", files)
    return last


async def judge(files: Files, expected: Expected, now_ms: int, rng: random.Random) -> Verdict:
    """Let SQLite alone read an image, and the store work on it; old shared memory may lie there too."""
    with tempfile.TemporaryDirectory() as name:
        verdict = judge_file(lay(Path(name, "alone"), files) / DATABASE, expected)
        if not verdict.corrupt:
            stale = {f"{DATABASE}-shm": rng.randbytes(32_768)} if rng.random() < 0.5 else {}
            place = lay(Path(name, "store"), {**files, **stale})
            verdict.wrong += await judge_store(place / DATABASE, expected, now_ms)
    return verdict


def lay(directory: Path, files: Files) -> Path:
    """Write an image into a directory; returns the directory."""
    directory.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return directory


def expect(files: Files) -> Expected:
    """What is there to begin with."""
    with tempfile.TemporaryDirectory() as name:
        rows, stories, _, _ = read_all(lay(Path(name), files) / DATABASE)
    return Expected(rows, stories)


def _phases(recording: Recording) -> dict[str, list[int]]:
    """Where the power can go: the numbers of the entries that have not happened then, by what they are."""
    phases: dict[str, list[int]] = defaultdict(list)
    beginning = "the start after a cut" if recording.files else "the creation of the file"
    is_beginning = True
    for at, entry in enumerate(recording.log):
        phases[beginning if is_beginning else _phase(entry)].append(at)
        is_beginning = is_beginning and not isinstance(entry, Acknowledged)
    return phases


def _phase(entry: object) -> str:
    """What the disk is at just before this entry."""
    match entry:
        case Written(file, 0, data) if file.endswith("-wal") and len(data) == _LOG_HEADER:
            return "the log's restart"
        case Written(file):
            return f"a write to {_what(file)}"
        case SyncBegan(file) | Synced(file):
            return f"a sync of {_what(file)}"
        case Opened() | Deleted() | Truncated():
            return "an open, delete or truncate"
        case _:
            return "an acknowledgement"


def _what(file: str) -> str:
    return "the log" if file.endswith("-wal") else "the database"


def main() -> int:
    """Run the loop and print what became of the promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--synchronous", choices=["FULL", "NORMAL", "OFF"], default="FULL")
    parser.add_argument("--keep", type=Path, default=None, help="a directory for the images that broke a promise")
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    started_s = time.monotonic()
    report = asyncio.run(cut_again_and_again(chosen.images, seed, synchronous=chosen.synchronous, keep=chosen.keep))
    lines = [*report.lines(), *report.broken[:20]]
    about = f"synchronous {chosen.synchronous}, {report.recordings} recordings, seed {seed}"
    print(f"{about}, {time.monotonic() - started_s:.0f} s", *lines, sep="\n")  # noqa: T201 - the report
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
