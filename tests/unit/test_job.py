"""A job moves only as the one table says: the code, the database and every walk of operations agree on it."""

import asyncio
import itertools
import json
import sqlite3
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.store.conftest import LEASE_S, Store

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import Event, EventType
from asyncbg.core.job import (
    FINAL_STATES,
    TRANSITIONS,
    Cancelled,
    Done,
    Failed,
    JobFailure,
    JobState,
    Lease,
    Outcome,
    ProgressValue,
    Released,
    Retry,
)
from asyncbg.errors import JobStateError
from asyncbg.store.sqlite import MIGRATIONS, SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import MEMORY

BOOM = JobFailure(type="BoomError", message="it went off")
PAIRS = list(itertools.product(JobState, JobState))
STATE_AFTER = {f"job.{state}": state for state in JobState} | {
    EventType.STARTED.value: JobState.RUNNING,
    EventType.RETRYING.value: JobState.SCHEDULED,
}


@pytest.mark.parametrize("state", list(JobState))
def test_a_state_is_final_where_only_a_retry_by_hand_leads_out(state: JobState) -> None:
    """Succeeded, failed and cancelled lead to queued and to nothing else."""
    assert state.is_final is (state in FINAL_STATES) is (TRANSITIONS[state] == {JobState.QUEUED})


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_database_holds_the_same_table(pair: tuple[JobState, JobState]) -> None:
    """The trigger lets a job move exactly where the table does; staying is no move."""
    now, then = pair
    with closing(sqlite3.connect(MEMORY)) as connection:
        connection.executescript(MIGRATIONS[0])
        insert_in(connection, now)
        refused = ""
        try:
            connection.execute(f"UPDATE job SET state = ?, {shape(then)}", (then,))  # noqa: S608 - our own words
        except sqlite3.IntegrityError as error:
            refused = str(error)

    allowed = then in TRANSITIONS[now] or then is now
    assert refused == ("" if allowed else "the transition table forbids this move of a job")


def insert_in(connection: sqlite3.Connection, state: JobState) -> None:
    """Put a job in a state; what the schema demands of that state is filled in."""
    plain: dict[str, Any] = dict.fromkeys(("task", "queue", "owner", "args", "personal"), "x")
    plain |= dict.fromkeys(("n", "durable", "at_most_once", "stop_on_failure", "retries", "priority"), 1)
    plain |= {"id": "j1", "batch": "j1", "created_at": 1, "run_at": 1, "state": state.value}
    if state is JobState.RUNNING:
        plain |= {"token": 1, "lease_until": 1}
    if state.is_final:
        plain["finished_at"] = 1
    if state is JobState.FAILED:
        plain["error_type"] = "BoomError"
    names, marks = ", ".join(plain), ", ".join("?" * len(plain))
    connection.execute(f"INSERT INTO job ({names}) VALUES ({marks})", list(plain.values()))  # noqa: S608


def shape(state: JobState) -> str:
    """The columns as the schema demands them of a state."""
    running, final, failed = state is JobState.RUNNING, state.is_final, state is JobState.FAILED
    return (
        f"token = {1 if running else 'NULL'}, lease_until = {1 if running else 'NULL'}, "
        f"finished_at = {1 if final else 'NULL'}, error_type = {repr('BoomError') if failed else 'NULL'}"
    )


def test_values_have_the_json_form_of_the_contract() -> None:
    """Progress and errors are objects with exactly these names."""
    progress = ProgressValue(current=1, total=2, message="half", unit="rows")

    assert progress.as_dict() == {"current": 1, "total": 2, "message": "half", "unit": "rows"}
    assert BOOM.as_dict() == {"type": "BoomError", "message": "it went off"}


def test_progress_is_always_json() -> None:
    """What is no number to JSON is no progress: a reader in a browser would stumble over NaN."""
    progress = ProgressValue(current=float("nan"), total=float("inf"))

    assert json.loads(json.dumps(progress.as_dict(), allow_nan=False)) == {
        "current": 0, "total": None, "message": "", "unit": "",
    }  # fmt: skip


# Random walks


@dataclass
class Walk:
    """What was done to a store, and the leases that are held."""

    store: Store
    ids: list[str] = field(default_factory=list)
    leases: list[Lease] = field(default_factory=list)
    lost: list[Lease] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)

    async def step(self, operation: tuple[Any, ...]) -> None:
        """Do one thing; what a job's state forbids is refused with that state."""
        match operation:
            case ("enqueue", count, changes):
                self.ids += await self.store.add_chain(count, **changes)
            case ("claim", limit):
                self.leases += await self.store.claim(limit)
            case ("settle", nth, outcome) if self.leases:
                lease = self.leases.pop(nth % len(self.leases))
                assert await self.store.settle(lease, self.verdict(lease, outcome))
                self.lost.append(lease)
            case ("settle late", nth) if self.lost:
                assert not await self.store.settle(self.lost[nth % len(self.lost)], Done('"late"'))
            case ("cancel" | "retry" as verb, nth) if self.ids:
                await self.steer(verb, self.ids[nth % len(self.ids)])
            case ("vanish",):
                self.store.clock.advance(seconds=LEASE_S + 1)
                assert await self.store.backend.rescue() == len(self.leases)
                self.lost += self.leases
                self.leases.clear()
            case ("wait", seconds):
                self.store.clock.advance(seconds=seconds)
                await self.store.backend.renew(lease_s=LEASE_S)

    async def steer(self, verb: str, job_id: str) -> None:
        """Cancel or retry a job: allowed exactly where its state allows it."""
        before = (await self.store.record(job_id)).state
        steer = self.store.backend.retry(job_id) if verb == "retry" else self.store.backend.cancel(job_id, "enough")
        if before.is_final is (verb == "retry"):
            assert await steer == (await self.store.record(job_id)).state
        else:
            with pytest.raises(JobStateError):
                await steer

    def verdict(self, lease: Lease, outcome: Outcome) -> Outcome:
        """As a worker decides: a retry is due some time from now, and after the last attempt there is none."""
        if not isinstance(outcome, Retry):
            return outcome
        if lease.attempt >= lease.max_attempts:
            return Failed(outcome.error)
        return Retry(outcome.error, self.store.clock.now_ms() + outcome.run_at_ms)

    async def check(self) -> None:
        """What holds after any walk."""
        events = await self.store.log()
        assert events == self.store.told
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        records = [await self.store.record(job_id) for job_id in self.ids]
        running = {record.id for record in records if record.state is JobState.RUNNING}
        assert running == {lease.id for lease in self.leases}
        for record in records:
            told = [event for event in events if event.job_id == record.id]
            check_story(told)
            assert STATE_AFTER[told[-1].type] == record.state
            assert record.state.is_final is (record.finished_at_ms is not None)
            assert record.state is not JobState.FAILED or record.error is not None
            assert record.attempt <= record.max_attempts
        for batch in {record.batch for record in records}:
            check_batch([record.state for record in records if record.batch == batch])


def check_story(told: list[Event]) -> None:
    """Each event follows from the one before it by a move of the table; an attempt is counted when it starts.

    An attempt that was given back does not count: the next one has its number.
    """
    states = [STATE_AFTER[event.type] for event in told]
    for now, then in itertools.pairwise(states):
        assert then in TRANSITIONS[now], f"{now} to {then}"
    starts = [0, *(event.attempt for event in told if event.type == EventType.STARTED)]
    assert all(now - before in {0, 1} for before, now in itertools.pairwise(starts))


def check_batch(states: list[JobState]) -> None:
    """A job waits only while another one of its batch is not over: no batch is ever stuck."""
    if JobState.WAITING in states:
        assert any(not state.is_final and state is not JobState.WAITING for state in states)


CHANGES = st.fixed_dictionaries(
    {},
    optional={
        "priority": st.integers(-1, 1),
        "retries": st.integers(0, 2),
        "stop_on_failure": st.integers(0, 1),
        "at_most_once": st.integers(0, 1),
        "delay_s": st.integers(1, 60),
    },
)
OUTCOMES = st.sampled_from(
    [Done("1"), Failed(BOOM), Cancelled("enough"), Released("shut down"), Retry(BOOM, 0), Retry(BOOM, 20_000)]
)
NTH = st.integers(0, 9)
OPERATIONS = st.one_of(
    st.tuples(st.just("enqueue"), st.integers(1, 3), CHANGES),
    st.tuples(st.just("claim"), st.integers(1, 3)),
    st.tuples(st.just("settle"), NTH, OUTCOMES),
    st.tuples(st.just("settle"), NTH, OUTCOMES),
    st.tuples(st.just("settle late"), NTH),
    st.tuples(st.just("cancel"), NTH),
    st.tuples(st.just("retry"), NTH),
    st.just(("vanish",)),
    st.tuples(st.just("wait"), st.integers(0, 25)),
)


@settings(max_examples=150, deadline=None)
@given(st.lists(OPERATIONS, min_size=5, max_size=40))
async def test_no_walk_of_operations_breaks_a_rule(operations: list[tuple[Any, ...]]) -> None:
    """Accept, claim, settle, cancel, retry, lose the worker, wait: in any order, the rules hold after it."""
    clock = ManualClock()
    backend = SQLiteBackend(Database(MEMORY), clock=clock)
    await backend.open()
    try:
        walk = Walk(Store(backend, clock))
        for operation in operations:
            await walk.step(operation)
        await walk.check()
    finally:
        await backend.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(OPERATIONS, min_size=5, max_size=30))
async def test_whatever_happened_every_job_can_be_brought_to_an_end(operations: list[tuple[Any, ...]]) -> None:
    """Running on from any point, with every attempt succeeding, no job is left behind."""
    clock = ManualClock()
    backend = SQLiteBackend(Database(MEMORY), clock=clock)
    await backend.open()
    try:
        walk = Walk(Store(backend, clock))
        for operation in operations:
            await walk.step(operation)
        idle = 0
        while idle < 3:
            walk.leases += await walk.store.claim()
            idle = 0 if walk.leases else idle + 1
            await asyncio.gather(*(walk.store.settle(lease) for lease in walk.leases))
            walk.leases.clear()
            clock.advance(minutes=2)
        await walk.check()
        assert sum((await backend.counts()).values()) == 0
    finally:
        await backend.close()
