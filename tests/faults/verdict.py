"""What a database must hold after its processes were killed: every promise, asked of the file without an engine."""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from asyncbg.core.job import FINAL_STATES, TRANSITIONS, JobState
from asyncbg.store.sqlite import POISON_AFTER

STATE_AFTER = {
    "job.waiting": JobState.WAITING,
    "job.scheduled": JobState.SCHEDULED,
    "job.queued": JobState.QUEUED,
    "job.started": JobState.RUNNING,
    "job.retrying": JobState.SCHEDULED,
    "job.succeeded": JobState.SUCCEEDED,
    "job.failed": JobState.FAILED,
    "job.cancelled": JobState.CANCELLED,
}
FINAL_TYPES = frozenset(f"job.{state}" for state in FINAL_STATES)


@dataclass
class Kills:
    """Which attempts a kill met: (job id, number of the event that began the attempt)."""

    attempts: set[tuple[str, int]] = field(default_factory=set)
    ended_by_themselves: int = 0

    def met(self, running: Iterable[tuple[str, int]]) -> None:
        """Count what ran at one kill; an attempt that no process took up in between is met only once."""
        self.attempts |= set(running)


@dataclass(frozen=True)
class Told:
    """One stored event."""

    seq: int
    type: str
    data: dict[str, Any]


@dataclass
class Story:
    """A job, and its events in order."""

    id: str
    task: str
    batch: str
    state: str
    crashes: int
    error: str | None
    events: list[Told] = field(default_factory=list)

    def first(self, types: Iterable[str]) -> int | None:
        """The number of the first event of one of these types."""
        wanted = frozenset(types)
        return next((event.seq for event in self.events if event.type in wanted), None)

    def events_before(self, seq: int) -> list[Told]:
        """Its events up to a number."""
        return [event for event in self.events if event.seq < seq]

    def replay(self) -> str | None:
        """What is wrong with its history, if anything: each step a legal move, the last one where the job stands."""
        state: JobState | None = None
        for event in self.events:
            following = STATE_AFTER.get(event.type)
            if following is None:
                continue
            if state is not None and following not in TRANSITIONS[state]:
                return f"{self.id} ({self.task}): {state} → {following} at {event.seq}"
            state = following
        return None if state == self.state else f"{self.id} ({self.task}): is {self.state}, its events say {state}"


def read_stories(path: Path) -> tuple[dict[str, Story], int]:
    """Every job with its events, by id in order of acceptance, and the last number given out."""
    with closing(sqlite3.connect(path)) as connection:
        jobs = connection.execute(
            "SELECT n, id, task, batch, state, crashes, error_type FROM job ORDER BY n"
        ).fetchall()
        stories = {row[0]: Story(*row[1:]) for row in jobs}
        for seq, n, event_type, data in connection.execute("SELECT seq, job, type, data FROM event ORDER BY seq"):
            stories[n].events.append(Told(seq, event_type, json.loads(data or "{}")))
        (last,) = connection.execute("SELECT seq FROM log").fetchone()
    return {story.id: story for story in stories.values()}, last


def judge(directory: Path, kills: Kills) -> tuple[dict[str, int], list[str]]:
    """The figures, and the promises that were broken."""
    path = directory / "jobs.db"
    stories, last_seq = read_stories(path)
    diary = _lines(directory / "diary.jsonl")
    deliveries = _lines(directory / "deliveries.jsonl")
    accepted = [words[1] for words in diary if words[0] == "accepted"]
    lost = [job_id for job_id in accepted if job_id not in stories]
    stuck = [story.id for story in stories.values() if story.state not in FINAL_STATES]
    torn = [wrong for story in stories.values() if (wrong := story.replay())]
    posts = Counter((job_id, attempt) for job_id, attempt, _ in deliveries)
    poison, miscounted = _poison(stories, kills)
    broken = {
        "lost": lost,
        "corrupt": _integrity(path),
        "state and events differ": torn,
        "stuck": stuck,
        "event numbers": _numbers(stories, last_seq, diary),
        "batch out of order": _disorder(stories),
        "delivered twice in one attempt": [str(key) for key, times in posts.items() if times > 1],
        "effects": _effects(stories, {job_id for job_id, _ in posts}),
        "acknowledged but not done": _unkept(stories, diary),
        "poison": miscounted,
        "died of something else": ["x"] * kills.ended_by_themselves,
    }
    states = Counter(story.state for story in stories.values())
    figures = {
        "opened": sum(words[0] == "open" for words in diary),
        "acknowledged": len(accepted),
        "acknowledged_cancels": sum(words[0] == "cancel" for words in diary),
        "acknowledged_retries": sum(words[0] == "retry" for words in diary),
        "jobs": len(stories),
        "events": last_seq,
        "attempts_met_by_a_kill": len(kills.attempts),
        "succeeded": states["succeeded"],
        "failed": states["failed"],
        "cancelled": states["cancelled"],
        "poison": poison,
        "at_most_once_interrupted": sum(story.error == "JobInterruptedError" for story in stories.values()),
        "deliveries": len(deliveries),
        "effects": len({job_id for job_id, _ in posts}),
        **{key.replace(" ", "_"): len(found) for key, found in broken.items() if key in {"lost", "corrupt", "stuck"}},
        "duplicates": len(broken["delivered twice in one attempt"]),
    }
    return figures, [f"{key}: {one}" for key, found in broken.items() for one in found[:5]]


def _lines(path: Path) -> list[Any]:
    """The lines of a file; the one that was being written at a kill is none."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def _integrity(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        found = [row[0] for row in connection.execute("PRAGMA integrity_check")]
    return [] if found == ["ok"] else found


def _numbers(stories: dict[str, Story], last_seq: int, diary: list[Any]) -> list[str]:
    """No number is missing or given out twice, and one that was published means in the end what it meant then."""
    stored = {event.seq: (event.type, story.id) for story in stories.values() for event in story.events}
    wrong = [] if sorted(stored) == list(range(1, last_seq + 1)) else [f"not all of 1 to {last_seq} are there"]
    for words in diary:
        if words[0] == "told":
            for seq, event_type, job_id in words[1]:
                if stored.get(seq) != (event_type, job_id):
                    wrong.append(f"{seq} was {event_type} of {job_id}, and is {stored.get(seq)}")
    return wrong


def _disorder(stories: dict[str, Story]) -> list[str]:
    """Jobs that began before an earlier one of their batch was final for the first time; by themselves, not by hand."""
    batches: dict[str, list[Story]] = defaultdict(list)
    for story in stories.values():
        batches[story.batch].append(story)
    wrong = []
    for jobs in batches.values():
        for earlier, later in pairwise(jobs):
            began, ended = later.first({"job.started"}), earlier.first(FINAL_TYPES)
            if began is not None and any(event.data.get("reason") == "retried" for event in later.events_before(began)):
                continue
            if began is not None and (ended is None or began < ended):
                wrong.append(f"{later.id} began at {began}, {earlier.id} ended at {ended}")
    return wrong


def _effects(stories: dict[str, Story], posted: set[str]) -> list[str]:
    """Succeeded jobs without their effect, and effects of jobs that never were."""
    posting = {story.id for story in stories.values() if story.task == "effect"}
    done = {job_id for job_id in posting if stories[job_id].state == "succeeded"}
    return [f"{job_id} has none" for job_id in done - posted] + [f"{job_id} is unknown" for job_id in posted - posting]


def _unkept(stories: dict[str, Story], diary: list[Any]) -> list[str]:
    """Cancels and retries that were acknowledged and left no trace."""
    wrong = []
    for kind, *words in diary:
        if kind not in {"cancel", "retry"} or words[0] not in stories:
            continue
        job_id, state = words
        events = stories[job_id].events
        if kind == "cancel":
            kept = state == "running" or any(event.type == "job.cancelled" for event in events)
        else:
            kept = any(event.data.get("reason") == "retried" for event in events)
        if not kept:
            wrong.append(f"the {kind} of {job_id}")
    return wrong


def _poison(stories: dict[str, Story], kills: Kills) -> tuple[int, list[str]]:
    """How many jobs were given up as poison, and those whose number of kills does not bear it out."""
    met: dict[str, list[int]] = defaultdict(list)
    for job_id, seq in kills.attempts:
        met[job_id].append(seq)
    given_up, wrong = 0, []
    for story in stories.values():
        seen = 0
        for event in story.events:
            if event.data.get("reason") == "retried":
                seen = 0
            seen += event.type == "job.started" and event.seq in met[story.id]
            is_poison = event.type == "job.failed" and event.data["error"]["type"] == "PoisonError"
            given_up += is_poison
            if is_poison is not (seen >= POISON_AFTER and event.type == "job.failed"):
                wrong.append(f"{story.id} was met by {seen} kills at event {event.seq}")
        if seen > POISON_AFTER:
            wrong.append(f"{story.id} was met by {seen} kills")
    return given_up, wrong


def figures_of(report: str) -> tuple[dict[str, int], Sequence[str]]:
    """Read a printed report back."""
    parsed = json.loads(report[report.index("{") :])
    return parsed["figures"], parsed["broken"]
