"""Any sequence of accepting, running, dying and steering keeps the invariants of docs/design/delivery.md.

In CI a short run. ``python -m tests.store.test_state_machine --steps 100000`` is the long one.
"""

import argparse
import asyncio
import sqlite3
import tempfile
import time
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event, EventFilter
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import (
    FINAL_STATES,
    TRANSITIONS,
    Cancelled,
    Done,
    Failed,
    JobFailure,
    JobState,
    Lease,
    NewJob,
    Outcome,
    Released,
    Retry,
)
from asyncbg.errors import JobStateError
from asyncbg.store.base import Settlement
from asyncbg.store.sqlite import POISON_AFTER, SQLiteBackend
from asyncbg.store.sqlite.database import Database
from tests.faults.verdict import STATE_AFTER

T = TypeVar("T")
LEASE_S = 30.0
PLACES = 3
BOOM = JobFailure(type="BoomError", message="it went off")
OUTCOMES = st.sampled_from(["done", "done", "retry", "failed", "cancelled", "released"])
steps_taken = 0


class Row(dict[str, Any]):
    """A job as the file holds it."""


class Jobs(RuleBasedStateMachine):
    """Several places on one file, and beside them what must be true of it.

    ``held`` is the model of fencing: the one lease of each running job and when it lapses. ``seen`` are the events so
    far; what each new one does to its job is checked against the table of moves.
    """

    def __init__(self) -> None:
        """Start with an empty file and one place."""
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name) / "jobs.db"
        self.clock = ManualClock()
        self.ids = IdGenerator(self.clock)
        self.places: dict[int, SQLiteBackend] = {}
        self.told: list[Event] = []
        self.seen: list[Event] = []
        self.states: dict[str, JobState] = {}
        self.was_final: set[str] = set()
        self.by_hand: set[str] = set()
        self.asked: set[str] = set()
        self.batches: dict[str, list[str]] = {}
        self.leases: list[Lease] = []
        self.held: dict[str, tuple[Lease, str, int]] = {}
        self.crashes: dict[str, int] = {}
        self.beats: dict[str, int] = {}
        self.doubts: dict[str, int] = {}
        self.gone: set[str] = set()

    def do(self, action: Coroutine[Any, Any, T]) -> T:
        """Wait for one call of a backend."""
        global steps_taken
        steps_taken += 1
        return self.loop.run_until_complete(action)

    # Places come and go

    @initialize()
    def start(self) -> None:
        """One process is there from the beginning."""
        self.open_at(0)

    def open_at(self, number: int) -> None:
        """A process starts; what ran at the place it takes, or at any other whose holder is gone, is taken up."""
        backend = SQLiteBackend(Database(str(self.path), readers=1), clock=self.clock)
        backend.on_commit = self.told.extend
        self.do(backend.open())
        self.places[number] = backend
        self.beats.pop(backend.place, None)
        self.doubts.pop(backend.place, None)
        alive = {other.place for other in self.places.values()} - {backend.place}
        self.forget(lambda name, until_ms: name not in alive or self.has_lapsed(name, until_ms))

    @precondition(lambda self: len(self.places) < PLACES)
    @rule()
    def another_process_starts(self) -> None:
        """It takes the first free place."""
        self.open_at(min(set(range(PLACES)) - set(self.places)))

    @precondition(lambda self: self.places)
    @rule(data=st.data())
    def a_process_dies(self, data: st.DataObject) -> None:
        """Its running jobs stay as they are; the kernel lets go of its place."""
        self.do(self.places.pop(data.draw(st.sampled_from(sorted(self.places)))).close())
        if not self.places:
            self.open_at(0)

    def any_place(self, data: st.DataObject) -> SQLiteBackend:
        """One of the living."""
        return self.places[data.draw(st.sampled_from(sorted(self.places)))]

    # Accepting

    def new(self, **changes: Any) -> NewJob:
        """A job that is due now, but for the changes."""
        job_id, now_ms = self.ids.new(), self.clock.now_ms()
        plain = NewJob(
            id=job_id, task="greet", queue="default", owner="ada", batch=job_id, tags="[]", state="queued", priority=0,
            durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}", created_at_ms=now_ms,
            run_at_ms=now_ms,
        )  # fmt: skip
        return plain._replace(**changes)

    @rule(data=st.data(), priority=st.integers(0, 2), delay_s=st.sampled_from([0, 0, 5]), once=st.booleans())
    def enqueue(self, data: st.DataObject, priority: int, delay_s: int, once: bool) -> None:
        """A job by itself."""
        job = self.new(
            priority=priority, at_most_once=int(once), state="scheduled" if delay_s else "queued",
            run_at_ms=self.clock.now_ms() + delay_s * 1000, retries=1,
        )  # fmt: skip
        self.accept(data, [job])

    @rule(data=st.data(), count=st.integers(2, 4), stops=st.booleans())
    def enqueue_batch(self, data: st.DataObject, count: int, stops: bool) -> None:
        """Jobs that run one after another."""
        jobs = [self.new(stop_on_failure=int(stops)) for _ in range(count)]
        rest = [job._replace(batch=jobs[0].id, state="waiting") for job in jobs[1:]]
        self.accept(data, [jobs[0], *rest])

    def accept(self, data: st.DataObject, jobs: list[NewJob]) -> None:
        """Enqueue at any place; from here on the jobs must exist."""
        accepted = self.do(self.any_place(data).enqueue(jobs))
        assert accepted.ids == tuple(job.id for job in jobs)
        self.batches[jobs[0].id] = list(accepted.ids)
        self.states.update({job.id: JobState(job.state) for job in jobs})
        self.crashes.update(dict.fromkeys(accepted.ids, 0))

    # Running

    @rule(data=st.data(), limit=st.integers(1, 4))
    def claim(self, data: st.DataObject, limit: int) -> None:
        """What is due is taken, highest priority first, oldest first, each job by one place."""
        place = self.any_place(data)
        now_ms = self.clock.now_ms()
        ready = [
            row for row in self.rows().values()
            if row["state"] == "queued" or (row["state"] == "scheduled" and row["run_at"] <= now_ms)
        ]  # fmt: skip
        ready.sort(key=lambda row: (-row["priority"], row["n"]))
        leases = self.do(place.claim(limit, lease_s=LEASE_S)).leases
        assert [lease.id for lease in leases] == [row["id"] for row in ready[:limit]]
        for lease in leases:
            assert lease.id not in self.held, "a running job was claimed"
            self.held[lease.id] = (lease, place.place, self.clock.monotonic_ms() + int(LEASE_S * 1000))
            self.leases.append(lease)

    @precondition(lambda self: self.leases)
    @rule(data=st.data(), kind=OUTCOMES)
    def settle(self, data: st.DataObject, kind: str) -> None:
        """Only the lease that holds can end its attempt; every older one is refused and changes nothing."""
        lease = data.draw(st.sampled_from(self.leases[-12:]))
        holds = lease.id in self.held and self.held[lease.id][0].token == lease.token
        outcome = self.outcome(kind)
        assert self.do(self.any_place(data).settle([Settlement(lease, outcome)])) == [holds]
        if holds:
            del self.held[lease.id]
            self.asked.discard(lease.id)

    def outcome(self, kind: str) -> Outcome:
        """What an attempt ended in."""
        match kind:
            case "done":
                return Done("null")
            case "retry":
                return Retry(BOOM, self.clock.now_ms() + 3_000)
            case "failed":
                return Failed(BOOM)
            case "cancelled":
                return Cancelled("it cancelled itself")
            case _:
                return Released("the process shut down")

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def a_late_word_of_an_attempt(self, data: st.DataObject) -> None:
        """Progress and events of the task itself are fenced too."""
        lease = data.draw(st.sampled_from(self.leases[-12:]))
        holds = lease.id in self.held and self.held[lease.id][0].token == lease.token
        place = self.any_place(data)

        async def late() -> tuple[bool, bool]:
            return await place.report(lease, '{"current": 1}'), await place.record(lease, "work.done", "{}")

        assert self.do(late()) == (holds, holds)

    @rule(data=st.data())
    def renew(self, data: st.DataObject) -> None:
        """The heartbeat prolongs the leases of its own place, and names what runs there."""
        place = self.any_place(data)
        running = self.do(place.renew(lease_s=LEASE_S))
        until_ms = self.clock.monotonic_ms() + int(LEASE_S * 1000)
        mine = {job_id: held for job_id, held in self.held.items() if held[1] == place.place}
        assert set(running) == set(mine)
        for job_id, (lease, name, _) in mine.items():
            self.held[job_id] = (lease, name, until_ms)

    @rule(data=st.data())
    def rescue(self, data: st.DataObject) -> None:
        """Exactly the jobs of the dead, and of lapsed leases where the place that looks did not stand still itself."""
        place = self.any_place(data)
        alive = {other.place for other in self.places.values()}
        stood_still = self.is_late(place.place) or self.clock.monotonic_ms() < self.doubts.get(place.place, 0)
        before = len(self.held)
        rescued = self.do(place.rescue())
        self.forget(lambda name, until_ms: name not in alive or (not stood_still and self.has_lapsed(name, until_ms)))
        assert rescued == before - len(self.held)

    @rule(data=st.data())
    def beat(self, data: st.DataObject) -> None:
        """A process whose loop is blocked counts as alive by its heartbeat's thread."""
        place = self.any_place(data)
        until_ms = self.clock.monotonic_ms() + int(LEASE_S * 1000)
        if self.is_late(place.place):
            self.doubts[place.place] = until_ms
        place.beat(lease_s=LEASE_S)
        self.beats[place.place] = until_ms

    def is_late(self, place: str) -> bool:
        """Whether a place that beats did not do so for half a lease."""
        until_ms = self.beats.get(place)
        return until_ms is not None and until_ms - self.clock.monotonic_ms() < LEASE_S * 500

    def has_lapsed(self, place: str, until_ms: int) -> bool:
        """Whether a lease is over, and its place silent."""
        now_ms = self.clock.monotonic_ms()
        return until_ms < now_ms and self.beats.get(place, 0) < now_ms

    def forget(self, is_lost: Callable[[str, int], bool]) -> None:
        """Leases that hold no more, by place and the time they lapse at."""
        for job_id in [job_id for job_id, (_, place, until_ms) in self.held.items() if is_lost(place, until_ms)]:
            del self.held[job_id]
            self.crashes[job_id] += job_id not in self.asked
            self.asked.discard(job_id)

    # Time

    @rule(seconds=st.sampled_from([1, 4, 31]))
    def time_passes(self, seconds: int) -> None:
        """31 s are longer than a lease."""
        self.clock.advance(seconds=seconds)

    @rule(hours=st.sampled_from([-48, -1, 1, 48]))
    def somebody_sets_the_clock(self, hours: int) -> None:
        """Leases do not care; what is due by the calendar does."""
        self.clock.set_wall(hours=hours)

    # Steering

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """An open job is cancelled, a running one is asked, a final one refuses."""
        job_id = data.draw(st.sampled_from(sorted(self.states)[-12:]))
        state = self.states[job_id]
        try:
            answered = self.do(self.any_place(data).cancel(job_id, "enough"))
        except JobStateError:
            assert state in FINAL_STATES
        else:
            assert answered is (JobState.RUNNING if state is JobState.RUNNING else JobState.CANCELLED)
            if answered is JobState.RUNNING:
                self.asked.add(job_id)

    @precondition(lambda self: self.states)
    @rule(data=st.data())
    def retry(self, data: st.DataObject) -> None:
        """A final job is queued again, any other refuses."""
        job_id = data.draw(st.sampled_from(sorted(self.states)[-12:]))
        state = self.states[job_id]
        try:
            assert self.do(self.any_place(data).retry(job_id)) is JobState.QUEUED
        except JobStateError:
            assert state not in FINAL_STATES
        else:
            assert state in FINAL_STATES
            self.crashes[job_id] = 0

    @rule(data=st.data(), age_s=st.sampled_from([0, 60, 3_600]))
    def purge(self, data: st.DataObject, age_s: int) -> None:
        """Only final jobs go, with all their events."""
        before = self.rows()
        self.do(self.any_place(data).purge(before_ms=self.clock.now_ms() - age_s * 1000, limit=3))
        for job_id in set(before) - set(self.rows()):
            assert before[job_id]["state"] in FINAL_STATES
            del self.states[job_id]
            self.gone.add(job_id)

    # What is always true

    def rows(self) -> dict[str, Row]:
        """Every job in the file, read without the backend."""
        with closing(sqlite3.connect(self.path)) as connection:
            connection.row_factory = sqlite3.Row
            return {row["id"]: Row(dict(row)) for row in connection.execute("SELECT * FROM job ORDER BY n")}

    @invariant()
    def every_change_is_told_and_every_job_is_where_its_events_say(self) -> None:
        """Events are without gaps and in order; each is a legal move; replayed they give the states."""
        new = list(self.told)
        self.told.clear()
        for event in new:
            assert event.seq == len(self.seen) + 1
            self.seen.append(event)
            self.move(event)
        for one in self.batches.values():
            self.batch_is_in_order(one)

    def move(self, event: Event) -> None:
        """What one event does to its job."""
        state, following = self.states[event.job_id], STATE_AFTER.get(event.type)
        if following is None or (event.attempt == 0 and event.type == f"job.{state}" and event.data is None):
            return
        assert following in TRANSITIONS[state], f"{state} to {following}"
        if event.payload().get("reason") == "retried":
            self.by_hand.add(event.job_id)  # runs when asked to, whatever is before it in its batch
        if following is JobState.RUNNING and event.job_id not in self.by_hand:
            batch = next(ids for ids in self.batches.values() if event.job_id in ids)
            assert set(batch[: batch.index(event.job_id)]) <= self.was_final, "a later job of a batch began too early"
        self.states[event.job_id] = following
        if following in FINAL_STATES:
            self.was_final.add(event.job_id)

    def batch_is_in_order(self, ids: list[str]) -> None:
        """A job waits only for one that is not final: no batch is stuck."""
        for position, job_id in enumerate(ids):
            if self.states.get(job_id) is JobState.WAITING:
                earlier = [self.states[other] for other in ids[:position] if other in self.states]
                assert not FINAL_STATES.issuperset(earlier), "a job waits for nobody"

    @invariant()
    def the_file_says_the_same(self) -> None:
        """No accepted job is missing, none is torn, one lease for each running job, three crashes are poison."""
        if not self.path.exists():
            return
        rows = self.rows() if self.places else {}
        assert set(rows) == set(self.states)
        for job_id, row in rows.items():
            assert row["state"] == self.states[job_id]
            assert row["crashes"] == self.crashes[job_id] <= POISON_AFTER
            assert (row["error_type"] == "PoisonError") is (row["state"] == "failed" and row["crashes"] == POISON_AFTER)
        running = {job_id: row["token"] for job_id, row in rows.items() if row["state"] == "running"}
        assert running == {job_id: lease.token for job_id, (lease, _, _) in self.held.items()}
        if self.places:
            counts = self.do(next(iter(self.places.values())).counts())
            states = [row["state"] for row in rows.values()]
            assert counts == {state: states.count(state) for state in JobState if not state.is_final}

    def teardown(self) -> None:
        """Nothing is stuck: whoever is left can bring every job to its end. The log reads as it was told."""
        try:
            if self.places:
                self.finish(next(iter(self.places)))
        finally:
            for backend in self.places.values():
                self.do(backend.close())
            self.loop.close()
            self.directory.cleanup()

    def finish(self, number: int) -> None:
        """Run everything to the end at one place, whose process was started anew: it has stood still itself."""
        self.clock.advance(days=1_000)
        self.do(self.places.pop(number).close())
        self.open_at(number)
        place = self.places[number]
        self.do(place.rescue())
        for _ in range(1 + 2 * len(self.states)):
            leases = self.do(place.claim(100, lease_s=LEASE_S)).leases
            if not leases:
                break
            assert all(self.do(place.settle([Settlement(lease, Done("null")) for lease in leases])))
        assert {row["state"] for row in self.rows().values()} <= FINAL_STATES
        stored, _ = self.do(place.events(after_seq=0, wanted=EventFilter(), limit=100_000))
        told = {event.seq: event for event in self.seen + self.told}
        assert all(told[event.seq] == event for event in stored)
        assert {event.job_id for event in stored} == set(self.states)


def test_any_sequence_keeps_the_invariants() -> None:
    """Accepting, claiming, dying, lapsing, steering, purging, in any order, by three processes on one file."""
    run_state_machine_as_test(
        Jobs,
        settings=settings(
            max_examples=15, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck),
            database=None,
        ),
    )  # fmt: skip


def main() -> None:
    """Take at least so many steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    wanted = parser.parse_args().steps
    started_s = time.monotonic()
    sequences = 0
    while steps_taken < wanted:
        run_state_machine_as_test(
            Jobs,
            settings=settings(
                max_examples=50, stateful_step_count=150, deadline=None, suppress_health_check=list(HealthCheck),
                database=None, phases=(Phase.generate, Phase.shrink),
            ),
        )  # fmt: skip
        sequences += 50
        print(f"{steps_taken} steps in {sequences} sequences, {time.monotonic() - started_s:.0f} s", flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
