"""What a file must hold after a power cut: all that was acknowledged before it, and nothing that never was."""

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import FINAL_EVENTS, Event
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import Done, JobState, NewJob
from asyncbg.errors import AsyncBGError
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from tests.faults.power_shim import Acknowledged, Committing, Rows, read_rows
from tests.faults.power_work import Asked, Promised, Purging, Told
from tests.faults.verdict import STATE_AFTER, Story, read_stories

_URGENT = 2**30
_BOOTED_MS = 1_000
_NOTHING: Rows = frozenset()


@dataclass(slots=True)
class Verdict:
    """What became of one image: rows acknowledged before the cut, those of them that are lost, and what is wrong."""

    checked: int = 0
    lost: int = 0
    jobs_checked: int = 0
    jobs_lost: int = 0
    corrupt: bool = False
    wrong: list[str] = field(default_factory=list)


class Expected:
    """Follows a recording up to any point: what a cut there must leave."""

    def __init__(self, rows: Rows = _NOTHING, ids: Iterable[str] = ()) -> None:
        """Begin with a store that holds these rows, the jobs among them being ``ids``."""
        self.commits: list[Rows] = [rows]
        self.acknowledged = 0
        self.asked = set(ids)
        self.promised: dict[str, list[JobState]] = defaultdict(list)
        self.told: list[Event] = []
        self.may_be_gone: set[str] = set()
        self._last_type: dict[str, str] = {}

    def follow(self, entry: object) -> None:
        """Take the next entry of the log."""
        match entry:
            case Committing(rows):
                self.commits.append(rows)
            case Acknowledged():
                self.acknowledged = len(self.commits) - 1
            case Asked(ids):
                self.asked.update(ids)
            case Promised(job, state):
                self.promised[job].append(state)
            case Told(events):
                self.told += events
                self._last_type.update((event.job_id, event.type) for event in events if event.type in STATE_AFTER)
            case Purging():
                self.may_be_gone.update(job for job, kind in self._last_type.items() if kind in FINAL_EVENTS)


def judge_file(path: Path, expected: Expected) -> Verdict:
    """Ask the file, with SQLite alone; this recovers it, so hand over a copy."""
    promised = set(expected.promised) - expected.may_be_gone
    safe = expected.commits[expected.acknowledged]
    verdict = Verdict(checked=len(safe), jobs_checked=len(promised))
    try:
        rows, stories, last_seq, purged = read_all(path)
    except sqlite3.Error as error:
        verdict.corrupt, verdict.lost, verdict.jobs_lost = True, len(safe), len(promised)
        verdict.wrong.append(f"the file is damaged: {error}")
        return verdict
    verdict.lost = 0 if rows in expected.commits[expected.acknowledged :] else len(safe - rows)
    verdict.jobs_lost = len(promised - stories.keys())
    verdict.wrong += _wrong_commit(rows, expected)
    verdict.wrong += _wrong_stories(stories, expected, last_seq, purged)
    verdict.wrong += [f"{job} was never asked for" for job in stories.keys() - expected.asked]
    return verdict


async def judge_store(path: Path, expected: Expected, now_ms: int) -> list[str]:
    """Start the store on the file an hour after, on a machine that has just booted: what is lost or does not work."""
    clock = ManualClock(_BOOTED_MS)
    clock.set_wall(milliseconds=now_ms + 3_600_000 - _BOOTED_MS)
    backend = SQLiteBackend(Database(str(path)), clock=clock)
    try:
        await backend.open()
        try:
            wrong = await _use(backend, clock)
        finally:
            await backend.close()
        _, stories, last_seq, purged = read_all(path)
    except (AsyncBGError, sqlite3.Error) as error:
        return [f"the store does not work: {error}"]
    return [*wrong, *_wrong_stories(stories, expected, last_seq, purged)]


async def _use(backend: SQLiteBackend, clock: ManualClock) -> list[str]:
    """Nothing runs any more; a job is accepted, runs and ends."""
    wrong = ["a job runs, and nobody runs it"] if (await backend.counts())[JobState.RUNNING] else []
    job_id, now_ms = IdGenerator(clock).new(), clock.now_ms()
    job = NewJob(
        id=job_id, task="greet", queue="default", owner="ada", batch=job_id, tags="[]", state=str(JobState.QUEUED),
        priority=_URGENT, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
        created_at_ms=now_ms, run_at_ms=now_ms,
    )  # fmt: skip
    await backend.enqueue([job])
    leases = (await backend.claim(1, lease_s=30.0)).leases
    kept = await backend.settle([Settlement(lease, Done("null")) for lease in leases])
    record = await backend.get(job_id)
    if list(kept) != [True] or record is None or record.state is not JobState.SUCCEEDED:
        wrong.append("a new job does not come to its end")
    return wrong


def read_all(path: Path) -> tuple[Rows, dict[str, Story], int, int]:
    """Every row, every job with its events, the last number given out and the last purged; raises sqlite3.Error."""
    with closing(sqlite3.connect(path)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
        if found != ["ok"]:
            raise sqlite3.DatabaseError(found[0])
        rows = read_rows(connection)
        log = connection.execute("SELECT purged FROM log").fetchone() if rows else None
    if log is None:
        return rows, {}, 0, 0
    stories, last_seq = read_stories(path)
    return rows, stories, last_seq, log[0]


def _wrong_commit(rows: Rows, expected: Expected) -> list[str]:
    """Every row of every table is as one commit left it, the last one acknowledged or a later one."""
    if rows in expected.commits[expected.acknowledged :]:
        return []
    earlier = [at for at, known in enumerate(expected.commits[: expected.acknowledged]) if known == rows]
    if earlier:
        return [f"{expected.acknowledged - earlier[-1]} acknowledged commits are lost"]
    return ["the rows are those of no commit"]


def _wrong_stories(stories: dict[str, Story], expected: Expected, last_seq: int, purged: int) -> Iterator[str]:
    """Each job got to what was promised, published events mean what they meant, and replayed they give the states."""
    yield from _broken_promises(stories, expected)
    yield from _changed_events(stories, expected)
    yield from (wrong for story in stories.values() if (wrong := story.replay()))
    stored = sorted(event.seq for story in stories.values() for event in story.events if event.seq > purged)
    if stored != list(range(purged + 1, last_seq + 1)):
        yield f"of the events {purged + 1} to {last_seq} some are missing"


def _broken_promises(stories: dict[str, Story], expected: Expected) -> Iterator[str]:
    """Each job is in the state it was acknowledged to be in, or in one that came after it."""
    for job, states in expected.promised.items():
        if job not in stories:
            if job not in expected.may_be_gone:
                yield f"{job}, which was {states[-1]}, is lost"
            continue
        reached = [STATE_AFTER.get(event.type) for event in stories[job].events]
        yield from (f"{job} was {state}, and never got there" for state in states if state not in reached)


def _changed_events(stories: dict[str, Story], expected: Expected) -> Iterator[str]:
    """What was published under a number, and is not there, or is something else."""
    stored = {event.seq: (job, event.type, event.data) for job, story in stories.items() for event in story.events}
    for event in expected.told:
        if event.job_id in stories or event.job_id not in expected.may_be_gone:
            meant = (event.job_id, event.type, json.loads(event.data or "{}"))
            if stored.get(event.seq) != meant:
                yield f"event {event.seq} was {meant}, and is {stored.get(event.seq)}"
