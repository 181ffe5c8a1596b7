"""What every backend does, whatever it is made of: accept, claim, settle, steer, rescue, purge, tell."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from asyncbg.core.clock import ManualClock
from asyncbg.core.event import EventFilter
from asyncbg.core.job import (
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
from asyncbg.errors import IdempotencyError, JobNotFoundError, JobStateError
from asyncbg.store.base import JobQuery
from tests.store.conftest import LEASE_S, Store

Another = Callable[[], Awaitable[Store]]
BOOM = JobFailure(type="BoomError", message="it went off")


def later(store: Store, seconds: float) -> int:
    """A time from now."""
    return store.clock.now_ms() + int(seconds * 1000)


# Accepting


async def test_an_accepted_job_is_kept_as_it_was_handed_over(store: Store) -> None:
    """Every field of the new job is on its record."""
    job_id = await store.add(
        task="mail", queue="slow", owner="eve", tags='["a","b"]', priority=7, retries=2, args='{"to":"x"}',
        personal='{"to":"email"}',
    )  # fmt: skip
    record = await store.record(job_id)

    assert (record.task, record.queue, record.owner, record.tags, record.priority) == (
        "mail", "slow", "eve", ("a", "b"), 7,
    )  # fmt: skip
    assert (record.args, record.personal, record.state, record.durable) == ('{"to":"x"}', {"to": "email"}, "queued", 1)
    assert (record.attempt, record.max_attempts, record.batch) == (0, 3, job_id)
    assert (record.created_at_ms, record.run_at_ms) == (store.clock.now_ms(), store.clock.now_ms())
    assert (record.started_at_ms, record.finished_at_ms, record.result, record.error) == (None, None, None, None)


async def test_a_batch_is_named_by_its_first_job(store: Store) -> None:
    """The first is queued, the others wait, and the ids come back in order."""
    jobs = store.chain(3)
    accepted = await store.backend.enqueue(jobs)

    assert accepted.ids == tuple(job.id for job in jobs)
    assert accepted.created == (True, True, True)
    assert await store.states(accepted.ids) == ["queued", "waiting", "waiting"]
    assert {(await store.record(job_id)).batch for job_id in accepted.ids} == {jobs[0].id}


@pytest.mark.parametrize("changes", [{}, {"delay_s": 5}, {"state": "waiting"}])
async def test_the_first_event_of_a_job_names_its_state(store: Store, changes: dict[str, object]) -> None:
    """job.queued, job.scheduled or job.waiting, before any attempt."""
    job_id = await store.add(**changes)
    (event,) = await store.log()

    assert event.type == f"job.{(await store.record(job_id)).state}"
    assert (event.job_id, event.task, event.owner, event.attempt) == (job_id, "greet", "ada", 0)
    assert event.at_ms == store.clock.now_ms()


async def test_many_callers_get_the_ids_of_their_own_jobs(store: Store) -> None:
    """Batches that share a commit are not mixed up."""
    batches = [store.chain(1 + number % 3) for number in range(60)]
    accepted = await asyncio.gather(*(store.backend.enqueue(jobs) for jobs in batches))

    assert [one.ids for one in accepted] == [tuple(job.id for job in jobs) for jobs in batches]
    assert len(await store.backend.list(JobQuery(limit=500))) == sum(map(len, batches))


async def test_a_job_that_cannot_be_stored_spoils_no_other(store: Store) -> None:
    """One batch of a commit breaks a rule of the schema: its caller is told, the others are accepted."""
    good, bad = [store.job(), store.job()], store.job(state="nonsense")
    results = await asyncio.gather(
        store.backend.enqueue([good[0]]),
        store.backend.enqueue([bad]),
        store.backend.enqueue([good[1]]),
        return_exceptions=True,
    )

    assert isinstance(results[1], Exception)
    assert [job.id for job in await store.backend.list(JobQuery())] == [good[1].id, good[0].id]
    assert [event.job_id for event in store.told] == [good[0].id, good[1].id]


# Claiming


async def test_a_claimed_job_is_running_under_a_token(store: Store) -> None:
    """The lease has what an attempt needs; the job says that it runs and since when."""
    lease = await store.start(task="mail", args='{"to":"x"}', retries=1, tags='["t"]')
    record = await store.record(lease.id)

    assert (lease.task, lease.args, lease.attempt, lease.max_attempts) == ("mail", '{"to":"x"}', 1, 2)
    assert (lease.owner, lease.tags, lease.batch, lease.durable) == ("ada", '["t"]', lease.id, 1)
    assert (record.state, record.attempt, record.started_at_ms) == ("running", 1, store.clock.now_ms())
    assert await store.story(lease.id) == ["job.queued", "job.started"]


async def test_a_job_is_claimed_once(store: Store) -> None:
    """Claims made at the same time share the queue out among them."""
    ids = [await store.add() for _ in range(10)]
    claims = await asyncio.gather(*(store.claim(3) for _ in range(5)))

    assert [lease.id for leases in claims for lease in leases] == ids
    assert [len(leases) for leases in claims] == [3, 3, 3, 1, 0]


async def test_the_highest_priority_goes_first_then_the_oldest(store: Store) -> None:
    """Equal priorities keep the order they were accepted in."""
    added = [(await store.add(priority=priority), priority) for priority in (0, 5, -1, 5, 0)]
    expected = [job_id for job_id, _ in sorted(added, key=lambda one: -one[1])]

    assert [lease.id for lease in await store.claim()] == expected


async def test_a_claim_takes_no_more_than_its_limit(store: Store) -> None:
    """The rest stays queued."""
    ids = [await store.add() for _ in range(3)]

    assert [lease.id for lease in await store.claim(2)] == ids[:2]
    assert await store.states(ids) == ["running", "running", "queued"]


async def test_a_skipped_task_is_left_to_others(store: Store) -> None:
    """Only jobs of other tasks are taken, however high the priority of the skipped."""
    await store.add(task="unknown", priority=9)
    known = await store.add()

    assert [lease.id for lease in await store.claim(skip={"unknown"})] == [known]


async def test_a_scheduled_job_is_taken_when_it_is_due(store: Store) -> None:
    """Not a millisecond earlier, and by way of queued."""
    job_id = await store.add(delay_s=5)
    store.clock.advance(milliseconds=4_999)
    early = await store.claim()
    store.clock.advance(milliseconds=1)
    due = await store.claim()

    assert early == []
    assert [lease.id for lease in due] == [job_id]
    assert await store.story(job_id) == ["job.scheduled", "job.queued", "job.started"]


async def test_a_claim_says_when_the_next_job_is_due(store: Store) -> None:
    """The earliest of the scheduled ones; None where none is."""
    none = await store.backend.claim(1, lease_s=LEASE_S)
    await store.add(delay_s=9)
    await store.add(delay_s=3)
    some = await store.backend.claim(1, lease_s=LEASE_S)

    assert none.next_due_ms is None
    assert some.next_due_ms == later(store, 3)


async def test_every_claim_has_a_token_of_its_own(store: Store) -> None:
    """A job that is claimed again cannot be settled with the first token."""
    first = await store.start()
    await store.settle(first, Released("again"))
    second = await store.claim_one()

    assert second.id == first.id
    assert second.token != first.token


# Settling


@pytest.mark.parametrize(
    ("outcome", "state", "event_type", "data"),
    [
        (Done('{"n":1}'), "succeeded", "job.succeeded", {}),
        (Failed(BOOM), "failed", "job.failed", {"error": BOOM.as_dict()}),
        (Cancelled("enough"), "cancelled", "job.cancelled", {"reason": "enough"}),
    ],
)
async def test_a_final_outcome_ends_the_job(
    store: Store, outcome: Outcome, state: str, event_type: str, data: dict[str, object]
) -> None:
    """State, time, result or error, and the event are written together."""
    lease = await store.start()
    store.clock.advance(seconds=2)

    assert await store.settle(lease, outcome)
    record, last = await store.record(lease.id), (await store.log())[-1]
    assert (record.state, record.finished_at_ms) == (state, store.clock.now_ms())
    assert record.result == (outcome.result if isinstance(outcome, Done) else None)
    assert record.error == (outcome.error if isinstance(outcome, Failed) else None)
    assert record.cancel_reason == (outcome.reason if isinstance(outcome, Cancelled) else None)
    assert (last.type, last.attempt, last.payload()) == (event_type, 1, data)


async def test_a_retry_is_scheduled_and_counted(store: Store) -> None:
    """The job waits for its next attempt, keeps its last error, and the event says how long."""
    lease = await store.start(retries=1)
    await store.settle(lease, Retry(BOOM, later(store, 2.5)))
    record, last = await store.record(lease.id), (await store.log())[-1]
    store.clock.advance(seconds=2.5)
    again = await store.claim_one()

    assert (record.state, record.run_at_ms, record.error) == ("scheduled", store.clock.now_ms(), BOOM)
    assert (last.type, last.payload()) == ("job.retrying", {"error": BOOM.as_dict(), "delay_s": 2.5})
    assert (again.id, again.attempt) == (lease.id, 2)


async def test_a_released_attempt_does_not_count(store: Store) -> None:
    """The job is queued at once and its next attempt has the same number."""
    lease = await store.start()
    await store.settle(lease, Released("the process shut down"))
    record = await store.record(lease.id)

    assert (record.state, record.attempt) == ("queued", 0)
    assert (await store.claim_one()).attempt == 1


async def test_an_attempt_is_settled_once(store: Store) -> None:
    """The second outcome is refused and changes nothing."""
    lease = await store.start()

    assert await store.settle(lease, Done("1"))
    assert not await store.settle(lease, Failed(BOOM))
    assert (await store.record(lease.id)).result == "1"
    assert await store.story(lease.id) == ["job.queued", "job.started", "job.succeeded"]


async def test_of_two_outcomes_in_one_commit_the_first_holds(store: Store) -> None:
    """Also when both are written together."""
    lease = await store.start()

    held = await asyncio.gather(*(store.settle(lease, outcome) for outcome in (Done("1"), Failed(BOOM))))

    assert held == [True, False]
    assert (await store.record(lease.id)).result == "1"


async def lapsed(store: Store) -> tuple[Lease, Lease]:
    """A lease that lapsed, and the one that came after it, of the same job."""
    old = await store.start()
    store.clock.advance(seconds=LEASE_S + 1)
    assert await store.backend.rescue() == 1
    return old, await store.claim_one()


async def test_a_lapsed_token_changes_nothing(store: Store) -> None:
    """Outcome, progress and events of an attempt that was taken away are refused."""
    old, new = await lapsed(store)
    before, events = await store.record(old.id), len(await store.log())

    assert not await store.settle(old, Done('"late"'))
    assert not await store.backend.report(old, '{"current": 9}')
    assert not await store.backend.record(old, "email.sent", "{}")
    assert await store.record(old.id) == before
    assert len(await store.log()) == events
    assert await store.settle(new)


@pytest.mark.parametrize("old_first", [True, False])
async def test_a_lapsed_token_changes_nothing_beside_a_live_one(store: Store, old_first: bool) -> None:
    """Also when both attempts of a job speak in the same commit."""
    old, new = await lapsed(store)
    leases = [old, new] if old_first else [new, old]
    expected = [lease is new for lease in leases]

    reports = await asyncio.gather(
        *(store.backend.report(lease, f'{{"current": {lease.attempt}}}') for lease in leases)
    )
    kept = (await store.record(new.id)).progress
    records = await asyncio.gather(*(store.backend.record(lease, "a.b", "{}") for lease in leases))
    settled = await asyncio.gather(*(store.settle(lease, Done(str(lease.attempt))) for lease in leases))

    assert (reports, records, settled) == (expected, expected, expected)
    assert kept == ProgressValue(current=2)
    assert (await store.record(new.id)).result == "2"


async def test_one_bad_outcome_spoils_no_other(store: Store) -> None:
    """An outcome that cannot be written is told to its worker; the others of the commit are."""
    leases = [await store.start() for _ in range(3)]
    outcomes: list[Outcome] = [Done("1"), Retry(BOOM, 2**80), Done("3")]
    results = await asyncio.gather(
        *(store.settle(lease, outcome) for lease, outcome in zip(leases, outcomes, strict=True)),
        return_exceptions=True,
    )

    assert [result for result in results if result is True] == [True, True]
    assert await store.states([lease.id for lease in leases]) == ["succeeded", "running", "succeeded"]


# Batches


async def test_the_jobs_of_a_batch_run_one_after_another(store: Store) -> None:
    """The next is queued when the one before it is final, never earlier."""
    ids = await store.add_chain(3)
    order = []
    while leases := await store.claim():
        (lease,) = leases
        order.append(lease.id)
        assert await store.settle(lease)

    assert order == ids
    assert await store.story(ids[2]) == ["job.waiting", "job.queued", "job.started", "job.succeeded"]


async def test_batches_go_on_side_by_side(store: Store) -> None:
    """Settling the heads of many batches in one commit releases the next of each."""
    chains = [await store.add_chain(2) for _ in range(5)]
    heads = await store.claim()
    await asyncio.gather(*(store.settle(lease) for lease in heads))

    assert [lease.id for lease in heads] == [chain[0] for chain in chains]
    assert [lease.id for lease in await store.claim()] == [chain[1] for chain in chains]


@pytest.mark.parametrize("outcome", [Failed(BOOM), Cancelled("enough")])
async def test_a_failed_job_does_not_stop_its_batch(store: Store, outcome: Outcome) -> None:
    """The next job of the batch runs all the same."""
    ids = await store.add_chain(2)
    await store.settle(await store.claim_one(), outcome)

    assert (await store.claim_one()).id == ids[1]


@pytest.mark.parametrize("outcome", [Failed(BOOM), Cancelled("enough")])
async def test_a_batch_may_stop_on_failure(store: Store, outcome: Outcome) -> None:
    """The rest of such a batch is cancelled when a job of it does not succeed."""
    ids = await store.add_chain(4, stop_on_failure=1)
    await store.settle(await store.claim_one())
    await store.settle(await store.claim_one(), outcome)

    assert (await store.states(ids))[2:] == ["cancelled", "cancelled"]
    assert (await store.states(ids))[0] == "succeeded"
    assert await store.story(ids[3]) == ["job.waiting", "job.cancelled"]
    assert await store.claim() == []


async def test_a_batch_that_stops_on_failure_stops_when_its_queued_job_is_cancelled(store: Store) -> None:
    """It makes no difference whether the job that did not succeed was running."""
    ids = await store.add_chain(3, stop_on_failure=1)
    await store.backend.cancel(ids[0], "enough")

    assert await store.states(ids) == ["cancelled"] * 3


async def test_a_retry_keeps_its_batch_waiting(store: Store) -> None:
    """A job that will be tried again is not over."""
    ids = await store.add_chain(2, retries=1)
    await store.settle(await store.claim_one(), Retry(BOOM, later(store, 60)))

    assert await store.states(ids) == ["scheduled", "waiting"]
    assert await store.claim() == []


async def test_a_waiting_job_with_a_delay_is_scheduled_on_its_turn(store: Store) -> None:
    """Its turn does not make it run before its time."""
    first, second = store.chain(2)
    second = second._replace(run_at_ms=later(store, 60))
    await store.backend.enqueue([first, second])
    await store.settle(await store.claim_one())
    early = await store.claim()
    store.clock.advance(seconds=60)

    assert early == []
    assert (await store.claim_one()).id == second.id
    assert await store.story(second.id) == ["job.waiting", "job.scheduled", "job.queued", "job.started"]


@pytest.mark.parametrize("position", [0, 1])
async def test_cancelling_a_job_lets_its_batch_go_on(store: Store, position: int) -> None:
    """The next one takes the place of a cancelled job; none overtakes one that is not over."""
    ids = await store.add_chain(3)
    await store.backend.cancel(ids[position], "enough")
    order = []
    while leases := await store.claim():
        order += [lease.id for lease in leases]
        await asyncio.gather(*(store.settle(lease) for lease in leases))

    assert order == [job_id for job_id in ids if job_id != ids[position]]


async def test_a_waiting_job_does_not_overtake_a_running_one(store: Store) -> None:
    """Cancelling the second of three while the first runs leaves the third waiting."""
    ids = await store.add_chain(3)
    head = await store.claim_one()
    await store.backend.cancel(ids[1], "enough")
    while_head_runs = await store.states(ids)
    await store.settle(head)

    assert while_head_runs == ["running", "cancelled", "waiting"]
    assert (await store.claim_one()).id == ids[2]


async def test_a_later_job_that_was_retried_by_hand_holds_up_no_earlier_one(store: Store) -> None:
    """It runs by itself, also while it is queued or running: the batch goes on as if it were not there."""
    ids = await store.add_chain(3)
    await store.backend.cancel(ids[2], "enough")
    await store.backend.retry(ids[2])
    await store.backend.cancel(ids[0], "enough")

    assert await store.states(ids) == ["cancelled", "queued", "queued"]


# Leases


async def test_a_renewed_lease_does_not_lapse(store: Store) -> None:
    """The heartbeat prolongs every lease of the place and names its jobs."""
    lease = await store.start()
    store.clock.advance(seconds=LEASE_S - 1)
    renewed = await store.backend.renew(lease_s=LEASE_S)
    store.clock.advance(seconds=LEASE_S - 1)

    assert renewed == {lease.id: None}
    assert await store.backend.rescue() == 0
    assert await store.settle(lease)


async def test_a_heartbeat_brings_the_wish_to_cancel(store: Store) -> None:
    """The place that runs a job learns the reason."""
    lease = await store.start()
    await store.backend.cancel(lease.id, "enough")

    assert await store.backend.renew(lease_s=LEASE_S) == {lease.id: "enough"}


async def test_a_lapsed_job_is_run_again(store: Store) -> None:
    """It is queued with a reason; the lost attempt counts as a crash and takes no retry away."""
    old, new = await lapsed(store)
    record = await store.record(old.id)

    assert (new.attempt, new.max_attempts, record.crashes) == (2, 2, 1)
    assert await store.story(old.id) == ["job.queued", "job.started", "job.queued", "job.started"]


async def test_a_job_that_keeps_losing_its_worker_is_poison(store: Store) -> None:
    """After three lost attempts it fails instead of taking down another process."""
    job_id = await store.add(retries=10)
    for _ in range(3):
        await store.claim_one()
        store.clock.advance(seconds=LEASE_S + 1)
        await store.backend.rescue()
    record = await store.record(job_id)

    assert (record.state, record.crashes, record.attempt) == ("failed", 3, 3)
    assert record.error is not None
    assert record.error.type == "PoisonError"
    assert (await store.log())[-1].payload()["error"]["type"] == "PoisonError"


async def test_a_job_that_runs_at_most_once_fails_when_it_is_interrupted(store: Store) -> None:
    """It is never run a second time."""
    lease = await store.start(at_most_once=1, retries=5)
    store.clock.advance(seconds=LEASE_S + 1)
    await store.backend.rescue()
    record = await store.record(lease.id)

    assert (record.state, record.error.type if record.error else "") == ("failed", "JobInterruptedError")
    assert await store.claim() == []


async def test_an_interrupted_job_that_was_to_be_cancelled_is_cancelled(store: Store) -> None:
    """The wish to cancel outlives the worker."""
    lease = await store.start()
    await store.backend.cancel(lease.id, "enough")
    store.clock.advance(seconds=LEASE_S + 1)
    await store.backend.rescue()
    record = await store.record(lease.id)

    assert (record.state, record.cancel_reason) == ("cancelled", "enough")


async def test_a_rescue_lets_the_batch_of_a_poisoned_job_go_on(store: Store) -> None:
    """A job that was given up is final for its batch too."""
    ids = await store.add_chain(2, at_most_once=1)
    await store.claim_one()
    store.clock.advance(seconds=LEASE_S + 1)
    await store.backend.rescue()

    assert (await store.claim_one()).id == ids[1]


# Progress and a task's own events


async def test_progress_is_kept_on_the_job(store: Store) -> None:
    """The latest report counts; the last one comes with the outcome."""
    lease = await store.start()
    await store.backend.report(lease, '{"current": 1, "total": 3}')
    await asyncio.gather(*(store.backend.report(lease, f'{{"current": {n}, "total": 9}}') for n in range(5)))
    running = (await store.record(lease.id)).progress
    await store.settle(lease, progress='{"current": 9, "total": 9, "message": "done"}')

    assert running == ProgressValue(current=4, total=9)
    assert (await store.record(lease.id)).progress == ProgressValue(current=9, total=9, message="done")


async def test_progress_stays_where_the_outcome_brings_none(store: Store) -> None:
    """An attempt that reported nothing new wipes nothing out."""
    lease = await store.start()
    await store.backend.report(lease, '{"current": 1}')
    await store.settle(lease, Failed(BOOM))

    assert (await store.record(lease.id)).progress == ProgressValue(current=1)


async def test_a_task_stores_events_of_its_own(store: Store) -> None:
    """They stand between the job's own, with data and attempt."""
    lease = await store.start()
    await store.backend.record(lease, "email.sent", '{"to": 1}')
    await store.settle(lease)
    events = await store.log(jobs=frozenset({lease.id}))

    assert [event.type for event in events] == ["job.queued", "job.started", "email.sent", "job.succeeded"]
    assert (events[2].payload(), events[2].attempt) == ({"to": 1}, 1)


# Steering


@pytest.mark.parametrize("changes", [{}, {"delay_s": 5}, {"state": "waiting"}])
async def test_a_job_that_does_not_run_is_cancelled_at_once(store: Store, changes: dict[str, object]) -> None:
    """Queued, scheduled or waiting: final, with the reason, and never claimed."""
    job_id = await store.add(**changes)

    assert await store.backend.cancel(job_id, "enough") is JobState.CANCELLED
    store.clock.advance(minutes=1)
    record = await store.record(job_id)
    assert (record.state, record.cancel_reason) == ("cancelled", "enough")
    assert (await store.log())[-1].payload() == {"reason": "enough"}
    assert await store.claim() == []


@pytest.mark.parametrize("outcome", [Retry(BOOM, 1), Released("shut down"), Cancelled("other words")])
async def test_a_running_job_that_is_to_be_cancelled_is_not_run_again(store: Store, outcome: Outcome) -> None:
    """Whatever its attempt ends in short of success or failure, it ends cancelled."""
    lease = await store.start(retries=5)

    assert await store.backend.cancel(lease.id, "enough") is JobState.RUNNING
    await store.settle(lease, outcome)
    assert await store.states([lease.id]) == ["cancelled"]


@pytest.mark.parametrize("outcome", [Done("1"), Failed(BOOM)])
async def test_a_wish_to_cancel_that_comes_too_late_does_not_hide_what_happened(store: Store, outcome: Outcome) -> None:
    """A job that ended meanwhile has its own end."""
    lease = await store.start()
    await store.backend.cancel(lease.id, "enough")
    await store.settle(lease, outcome)
    record = await store.record(lease.id)

    assert record.state == ("succeeded" if isinstance(outcome, Done) else "failed")
    assert record.cancel_reason is None


@pytest.mark.parametrize("outcome", [Done("1"), Failed(BOOM), Cancelled("enough")])
async def test_a_final_job_cannot_be_cancelled(store: Store, outcome: Outcome) -> None:
    """The error names the job and its state."""
    lease = await store.start()
    await store.settle(lease, outcome)

    with pytest.raises(JobStateError) as caught:
        await store.backend.cancel(lease.id, "again")
    assert (caught.value.job_id, caught.value.state) == (lease.id, (await store.record(lease.id)).state)


async def test_a_job_that_is_not_there_cannot_be_steered(store: Store) -> None:
    """Cancel and retry name the missing job."""
    with pytest.raises(JobNotFoundError):
        await store.backend.cancel("nobody", "enough")
    with pytest.raises(JobNotFoundError):
        await store.backend.retry("nobody")


@pytest.mark.parametrize("outcome", [Done("1"), Failed(BOOM), Cancelled("enough")])
async def test_a_final_job_is_run_again_on_demand(store: Store, outcome: Outcome) -> None:
    """Attempts stay counted, as many retries as at first are allowed again, what it ended in is wiped."""
    lease = await store.start(retries=2)
    await store.settle(lease, outcome, progress='{"current": 1}')
    store.clock.advance(seconds=5)

    assert await store.backend.retry(lease.id) is JobState.QUEUED
    record = await store.record(lease.id)
    assert (record.state, record.attempt, record.max_attempts) == ("queued", 1, 4)
    assert (record.finished_at_ms, record.result, record.error) == (None, None, None)
    assert (record.cancel_reason, record.progress) == (None, None)
    again = await store.claim_one()
    assert (again.id, again.attempt) == (lease.id, 2)
    assert (await store.story(lease.id))[-2:] == ["job.queued", "job.started"]


@pytest.mark.parametrize("state", ["queued", "running", "scheduled", "waiting"])
async def test_a_job_that_is_not_final_cannot_be_retried(store: Store, state: str) -> None:
    """It will run anyhow."""
    if state == "running":
        job_id = (await store.start()).id
    else:
        job_id = await store.add(state=state, **({"delay_s": 5} if state == "scheduled" else {}))

    with pytest.raises(JobStateError):
        await store.backend.retry(job_id)
    assert await store.states([job_id]) == [state]


async def test_a_job_whose_function_is_gone_cannot_be_retried(store: Store) -> None:
    """A job that is not durable is run by the process that has its function, once."""
    lease = await store.start(durable=0, place=store.backend.place)
    await store.settle(lease, Failed(BOOM))

    with pytest.raises(JobStateError, match="not durable"):
        await store.backend.retry(lease.id)


async def test_of_two_steps_in_one_commit_the_second_sees_the_first(store: Store) -> None:
    """A cancel beside a cancel finds the job cancelled."""
    job_id = await store.add()
    results = await asyncio.gather(
        store.backend.cancel(job_id, "one"), store.backend.cancel(job_id, "two"), return_exceptions=True
    )

    assert results[0] is JobState.CANCELLED
    assert isinstance(results[1], JobStateError)
    assert (await store.record(job_id)).cancel_reason == "one"


# Keys


async def test_the_same_idempotency_key_gives_the_same_job(store: Store) -> None:
    """Also when the first is final already."""
    first = store.job(idempotency_key="k", fingerprint="f")
    await store.backend.enqueue([first])
    again = await store.backend.enqueue([store.job(idempotency_key="k", fingerprint="f")])
    await store.settle(await store.claim_one())
    once_more = await store.backend.enqueue([store.job(idempotency_key="k", fingerprint="f")])

    assert (again.ids, again.created) == ((first.id,), (False,))
    assert (once_more.ids, once_more.created) == ((first.id,), (False,))
    assert len(await store.backend.list(JobQuery())) == 1
    found = await store.backend.find_by_key("ada", "k")
    assert found is not None
    assert found.id == first.id


async def test_equal_keys_of_one_commit_make_one_job(store: Store) -> None:
    """Callers that come at the same time agree on whose job it is."""
    accepted = await asyncio.gather(
        *(store.backend.enqueue([store.job(idempotency_key="k", fingerprint="f")]) for _ in range(5))
    )

    assert len({one.ids for one in accepted}) == 1
    assert [one.created for one in accepted].count((True,)) == 1


async def test_another_body_under_the_same_key_is_refused(store: Store) -> None:
    """Nothing of that batch is stored; the neighbours in the commit are."""
    await store.add(idempotency_key="k", fingerprint="f")
    neighbour = store.job()
    refused, accepted = await asyncio.gather(
        store.backend.enqueue([store.job(), store.job(idempotency_key="k", fingerprint="other")]),
        store.backend.enqueue([neighbour]),
        return_exceptions=True,
    )

    assert isinstance(refused, IdempotencyError)
    assert not isinstance(accepted, BaseException)
    assert accepted.ids == (neighbour.id,)
    assert len(await store.backend.list(JobQuery())) == 2


async def test_a_refused_batch_leaves_no_key_behind(store: Store) -> None:
    """The keys of a batch that was not stored are free for the next one of the same commit."""
    await store.add(idempotency_key="taken", fingerprint="f")
    fresh = store.job(idempotency_key="fresh", fingerprint="f")
    refused, accepted = await asyncio.gather(
        store.backend.enqueue(
            [
                store.job(idempotency_key="fresh", fingerprint="f"),
                store.job(idempotency_key="taken", fingerprint="other"),
            ]
        ),
        store.backend.enqueue([fresh]),
        return_exceptions=True,
    )

    assert isinstance(refused, IdempotencyError)
    assert not isinstance(accepted, BaseException)
    assert (accepted.ids, accepted.created) == ((fresh.id,), (True,))
    assert await store.states([fresh.id]) == ["queued"]


async def test_idempotency_keys_are_each_owners_own(store: Store) -> None:
    """Nobody meets the jobs of somebody else by guessing a key."""
    mine = await store.add(owner="ada", idempotency_key="k", fingerprint="f")
    theirs = await store.add(owner="eve", idempotency_key="k", fingerprint="other")

    assert mine != theirs
    assert await store.backend.find_by_key("bob", "k") is None


@pytest.mark.parametrize("key", ["1", "1e3", "true", "null", 'a"b', "ä'; --", "[0]"])
async def test_a_key_is_compared_as_the_text_it_is(store: Store, key: str) -> None:
    """Keys that look like numbers or JSON are text."""
    first = await store.add(idempotency_key=key, fingerprint="f", unique_key=key)

    assert await store.add(idempotency_key=key, fingerprint="f") == first
    assert await store.add(unique_key=key) == first


async def test_a_unique_key_allows_one_open_job(store: Store) -> None:
    """While a job of the key is open it is the answer; after it a new one is made; other tasks are free."""
    first = await store.add(unique_key="u")
    while_queued = await store.add(unique_key="u")
    other_task = await store.add(task="mail", unique_key="u", priority=-1)
    lease = await store.claim_one()
    while_running = await store.add(unique_key="u")
    await store.settle(lease)
    afterwards = await store.add(unique_key="u")

    assert while_queued == while_running == first
    assert len({first, other_task, afterwards}) == 3


async def test_unique_keys_are_each_owners_own(store: Store) -> None:
    """Two owners have a job of the same key open at once, also within one commit, and neither learns of the other's."""
    hers, his = await store.add(owner="ada", unique_key="u"), await store.add(owner="eve", unique_key="u")
    both = [store.job(owner=owner, unique_key="u") for owner in ("ada", "eve", "bob", "bob")]
    accepted = await store.backend.enqueue(both)

    assert hers != his
    assert accepted.ids[:2] == (hers, his)
    assert accepted.created == (False, False, True, False)


async def test_a_job_is_not_retried_beside_another_of_its_unique_key(store: Store) -> None:
    """One open job for a key stays one, also by hand."""
    lease = await store.start(unique_key="u")
    await store.settle(lease, Failed(BOOM))
    await store.add(unique_key="u")

    with pytest.raises(JobStateError, match="key"):
        await store.backend.retry(lease.id)
    assert await store.states([lease.id]) == ["failed"]


async def test_a_batch_that_begins_with_an_earlier_job_still_runs(store: Store) -> None:
    """Where the first job of a batch is there already, the next one heads the batch."""
    await store.add(unique_key="u", priority=-9)
    first, second, third = store.chain(3)
    accepted = await store.backend.enqueue([first._replace(unique_key="u"), second, third])
    lease = await store.claim_one()
    await store.settle(lease)

    assert accepted.created == (False, True, True)
    assert lease.id == second.id
    assert (await store.record(third.id)).batch == second.id
    assert await store.states([third.id]) == ["queued"]


# Reading


async def test_jobs_are_listed_newest_first_page_by_page(store: Store) -> None:
    """The number of the last job of a page is the cursor of the next."""
    ids = [await store.add() for _ in range(7)]
    listed, before_n = [], None
    while page := await store.backend.list(JobQuery(limit=3, before_n=before_n)):
        listed += [job.id for job in page]
        before_n = page[-1].n

    assert listed == ids[::-1]


async def test_jobs_are_picked_by_what_is_asked(store: Store) -> None:
    """State, task, tag, owner and batch narrow, alone and together."""
    mail = await store.add(task="mail", owner="eve", tags='["x","1"]')
    chain = await store.add_chain(2, tags='["x"]')

    async def ids(query: JobQuery) -> list[str]:
        return [job.id for job in await store.backend.list(query)]

    assert await ids(JobQuery(task="mail")) == [mail]
    assert await ids(JobQuery(owner="ada")) == chain[::-1]
    assert await ids(JobQuery(tag="x")) == [*chain[::-1], mail]
    assert await ids(JobQuery(tag="1")) == [mail]
    assert await ids(JobQuery(batch=chain[0])) == chain[::-1]
    assert await ids(JobQuery(states=frozenset({JobState.WAITING}))) == [chain[1]]
    assert await ids(JobQuery(states=frozenset({JobState.WAITING, JobState.QUEUED}), task="greet")) == chain[::-1]
    assert await ids(JobQuery(task="mail", owner="ada")) == []


async def test_open_jobs_are_counted_by_state(store: Store) -> None:
    """Final jobs are not counted, every other state is there."""
    await store.settle(await store.start())
    await store.start()
    await store.add_chain(3)
    await store.add(delay_s=5)

    assert await store.backend.counts() == {
        JobState.QUEUED: 1, JobState.WAITING: 2, JobState.SCHEDULED: 1, JobState.RUNNING: 1,
    }  # fmt: skip


async def test_jobs_that_have_not_begun_are_counted_by_task(store: Store) -> None:
    """A job that runs counts no more; one that is released counts again; a task without any is left out."""
    await store.add(task="mail")
    await store.add(task="mail", delay_s=5)
    lease = await store.start(task="greet", priority=1)

    assert {(one.task, one.state, one.many) for one in await store.backend.waiting()} == {
        ("mail", JobState.QUEUED, 1), ("mail", JobState.SCHEDULED, 1),
    }  # fmt: skip
    await store.settle(lease, Released("the process shut down"))
    assert ("greet", JobState.QUEUED, 1) in {(one.task, one.state, one.many) for one in await store.backend.waiting()}


async def test_jobs_of_an_owner_are_counted_up_to_a_bound(store: Store) -> None:
    """Whoever has reached the bound is counted no further; one without jobs has none."""
    for _ in range(3):
        await store.add(owner="ada")
    await store.add(owner="eve")

    assert await store.backend.waiting_of(["ada", "eve", "bob"], 2) == {"ada": 2, "eve": 1, "bob": 0}
    assert await store.backend.owners() == ["ada", "eve"]


async def test_jobs_that_live_in_another_process_are_left_to_it(store: Store) -> None:
    """Whatever their priority, a job that is not durable is claimed at its place only."""
    await store.add(durable=0, place="another", priority=9)
    here = await store.add(durable=0, place=store.backend.place)
    durable = await store.add(priority=1)

    assert [lease.id for lease in await store.claim()] == [durable, here]


async def test_tasks_beside_a_skipped_one_keep_their_order(store: Store) -> None:
    """Highest priority first, oldest first, over all tasks that are known."""
    await store.add(task="unknown", priority=9)
    first = await store.add(task="a")
    second = await store.add(task="b", priority=1)
    third = await store.add(task="a")
    fourth = await store.add(durable=0, place=store.backend.place)

    assert [lease.id for lease in await store.claim(3, skip={"unknown"})] == [second, first, third]
    assert [lease.id for lease in await store.claim(skip={"unknown"})] == [fourth]


async def test_what_is_not_there_is_none(store: Store) -> None:
    """An unknown id is no error."""
    assert await store.backend.get("nobody") is None


# Telling


async def test_commits_tell_exactly_what_is_stored(store: Store) -> None:
    """Every stored event is told once, numbered from one without a gap, in the order of the log."""
    await asyncio.gather(*(store.add_chain(2, retries=1) for _ in range(5)))
    while leases := await store.claim(3):
        await asyncio.gather(*(store.backend.record(lease, "a.b", '{"x": 1}') for lease in leases))
        await asyncio.gather(*(store.settle(lease, Failed(BOOM)) for lease in leases[1:]))
        await store.settle(leases[0])

    assert store.told == await store.log()
    assert [event.seq for event in store.told] == list(range(1, len(store.told) + 1))


async def test_an_event_is_told_before_its_caller_goes_on(store: Store) -> None:
    """Whoever gets an answer finds the bus knowing of it."""
    job_id = await store.add()
    told_then = [event.job_id for event in store.told]
    lease = await store.claim_one()
    started_then = store.told[-1].type
    await store.settle(lease)

    assert (told_then, started_then, store.told[-1].type) == ([job_id], "job.started", "job.succeeded")


async def test_nothing_is_told_of_what_was_refused(store: Store) -> None:
    """An error is not an event."""
    with pytest.raises(JobNotFoundError):
        await store.backend.cancel("nobody", "enough")

    assert store.told == []


NAMES = st.sampled_from(["a", "b"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    types=st.frozensets(st.sampled_from(["job.*", "job.queued", "a.b", "a.*", "*", "*.b", "job.?ueued"]), max_size=2),
    tasks=st.frozensets(NAMES, max_size=2),
    owner=st.none() | NAMES,
    nth_job=st.none() | st.integers(0, 3),
    nth_batch=st.none() | st.integers(0, 3),
    after_seq=st.integers(0, 12),
    limit=st.integers(1, 20),
)
async def test_the_log_and_a_live_filter_agree(
    store: Store,
    types: frozenset[str],
    tasks: frozenset[str],
    owner: str | None,
    nth_job: int | None,
    nth_batch: int | None,
    after_seq: int,
    limit: int,
) -> None:
    """A subscriber that reads the log misses nothing and gets nothing else than one that was told."""
    if not store.told:
        for task, owned_by in (("a", "a"), ("b", "a"), ("a", "b")):
            await store.add_chain(2, task=task, owner=owned_by)
        for lease in await store.claim():
            await store.backend.record(lease, "a.b", "{}")
            await store.settle(lease)
    jobs = sorted({event.job_id for event in store.told})
    wanted = EventFilter(
        types=types, tasks=tasks, owner=owner,
        jobs=frozenset() if nth_job is None else frozenset({jobs[nth_job]}),
        batches=frozenset() if nth_batch is None else frozenset({store.told[nth_batch].batch}),
    )  # fmt: skip
    expected = [event for event in store.told if event.seq > after_seq and wanted.matches(event)]

    found, reached = await store.backend.events(after_seq=after_seq, wanted=wanted, limit=limit)

    assert list(found) == expected[:limit]
    assert reached == (found[-1].seq if len(found) == limit else max(after_seq, len(store.told)))


async def test_the_log_is_read_up_to_a_given_event(store: Store) -> None:
    """A reader that knows a whole part of the log reads no further."""
    for _ in range(5):
        await store.add()
    found, reached = await store.backend.events(after_seq=1, wanted=EventFilter(), limit=10, up_to_seq=3)

    assert ([event.seq for event in found], reached) == ([2, 3], 3)


async def test_an_empty_log_has_no_part(store: Store) -> None:
    """The position before the first event."""
    position = await store.backend.position()

    assert (position.first_seq, position.last_seq) == (1, 0)
    assert await store.backend.events(after_seq=0, wanted=EventFilter(), limit=10) == ([], 0)


# Chores


async def test_old_final_jobs_are_purged_with_their_events(store: Store) -> None:
    """Open jobs and young ones stay, whatever their age or number."""
    old_open = await store.add(delay_s=10**6)
    old = await store.start()
    await store.settle(old)
    store.clock.advance(days=1)
    before_ms = store.clock.now_ms()
    young = await store.start()
    await store.settle(young)

    assert await store.backend.purge(before_ms=before_ms, limit=10) == 1
    assert await store.backend.get(old.id) is None
    assert await store.states([old_open, young.id]) == ["scheduled", "succeeded"]
    assert {event.job_id for event in await store.log()} == {old_open, young.id}


async def test_a_job_with_many_events_is_purged_whole(store: Store) -> None:
    """However many a job has, none is left, those of its neighbour stay, and the log says how far it is gone."""
    lease = await store.start()
    for _ in range(3):
        await asyncio.gather(*(store.backend.record(lease, "page.read", "{}") for _ in range(500)))
    await store.settle(lease)
    last_seq = (await store.backend.position()).last_seq
    store.clock.advance(days=1)
    before_ms = store.clock.now_ms()
    young = await store.start()
    await store.settle(young)

    assert await store.backend.purge(before_ms=before_ms, limit=10) == 1
    assert {event.job_id for event in await store.log()} == {young.id}
    assert (await store.backend.position()).first_seq == last_seq + 1


async def test_a_purge_deletes_no_more_than_its_limit(store: Store) -> None:
    """The rest is for the next call."""
    for _ in range(5):
        await store.settle(await store.start())
    store.clock.advance(days=1)
    purged = [await store.backend.purge(before_ms=store.clock.now_ms(), limit=2) for _ in range(4)]

    assert purged == [2, 2, 1, 0]


async def test_a_number_is_never_given_out_twice(store: Store) -> None:
    """After a purge of everything the log goes on where it was, and says from where on it is whole."""
    await store.settle(await store.start())
    last_seq = (await store.backend.position()).last_seq
    store.clock.advance(days=1)
    await store.backend.purge(before_ms=store.clock.now_ms(), limit=10)
    empty = await store.backend.position()
    job_id = await store.add()
    (event,) = await store.log()

    assert (empty.first_seq, empty.last_seq) == (last_seq + 1, last_seq)
    assert (event.seq, event.job_id) == (last_seq + 1, job_id)


async def test_a_purged_key_is_free_again(store: Store) -> None:
    """What was forgotten is not answered with."""
    lease = await store.start(idempotency_key="k", fingerprint="f")
    await store.settle(lease)
    store.clock.advance(days=1)
    await store.backend.purge(before_ms=store.clock.now_ms(), limit=10)

    assert await store.add(idempotency_key="k", fingerprint="other") != lease.id


async def test_a_probe_leaves_nothing_behind(store: Store) -> None:
    """It writes and claims, and neither a job, an event, a number nor a due job is changed by it."""
    due = await store.add(delay_s=1)
    store.clock.advance(seconds=2)
    before = await store.backend.position()
    await asyncio.gather(store.backend.probe(), store.backend.probe())
    job_id = await store.add()

    assert await store.states([due]) == ["scheduled"]
    assert [event.job_id for event in store.told] == [due, job_id]
    assert (await store.backend.position()).last_seq == before.last_seq + 1


# Sharing


async def test_a_store_is_found_again_as_it_was_left(another: Another) -> None:
    """Jobs, events, the epoch and the numbering survive."""
    one = await another()
    job_id = await one.add(args='{"a":1}')
    epoch = one.backend.epoch
    await one.backend.close()
    two = await another()

    assert two.backend.epoch == epoch
    assert (await two.record(job_id)).args == '{"a":1}'
    await two.add()
    assert [event.seq for event in await two.log()] == [1, 2]


async def test_stores_at_one_place_share_jobs_out(another: Another) -> None:
    """Each job is claimed by one of them; the places have names of their own."""
    one, two = await another(), await another()
    ids = [await one.add() for _ in range(40)]
    claims = await asyncio.gather(*(store.claim(5) for _ in range(6) for store in (one, two)))

    assert sorted(lease.id for leases in claims for lease in leases) == sorted(ids)
    assert one.backend.place != two.backend.place
    assert one.backend.epoch == two.backend.epoch


async def test_events_of_all_are_numbered_in_one_order(another: Another) -> None:
    """The log is the one truth: both told, together, exactly what it holds."""
    one, two = await another(), await another()
    await asyncio.gather(*(store.add_chain(2) for _ in range(20) for store in (one, two)))

    assert sorted(one.told + two.told) == await one.log() == await two.log()


async def test_a_cancel_reaches_the_store_that_runs_the_job(another: Another) -> None:
    """By its heartbeat, whoever asked for it."""
    one, two = await another(), await another()
    lease = await one.start()
    await two.backend.cancel(lease.id, "enough")

    assert await one.backend.renew(lease_s=LEASE_S) == {lease.id: "enough"}
    assert await two.backend.renew(lease_s=LEASE_S) == {}


async def test_jobs_of_a_place_that_was_left_are_taken_up_at_once(another: Another) -> None:
    """No lease needs to lapse; those of a living place are left alone."""
    gone, alive, rescuer = await another(), await another(), await another()
    lost, kept = await gone.start(), await alive.start()
    await gone.backend.close()

    assert await rescuer.backend.rescue() == 1
    assert await rescuer.states([lost.id, kept.id]) == ["queued", "running"]


async def test_whoever_takes_a_place_again_takes_up_its_jobs(another: Another) -> None:
    """A restarted process begins with what it was doing."""
    gone = await another()
    lost = await gone.start()
    await gone.backend.close()
    back = await another()

    assert back.backend.place == gone.backend.place
    assert (await back.claim_one()).id == lost.id


async def test_jobs_that_lived_only_in_a_place_that_is_gone_fail(another: Another) -> None:
    """Queued, scheduled, waiting or running: without their function they can never run."""
    gone, rescuer = await another(), await another()
    bound = {"durable": 0, "place": gone.backend.place}
    running = (await gone.start(**bound)).id
    others = [await gone.add(**bound), await gone.add(**bound, delay_s=5), *(await gone.add_chain(2, **bound))]
    durable = await gone.add()
    await gone.backend.close()
    await rescuer.backend.rescue()
    errors = [(await rescuer.record(job_id)).error for job_id in [running, *others]]

    assert [error and error.type for error in errors] == ["NotDurableError"] * 5
    assert await rescuer.states([durable]) == ["queued"]


async def test_a_job_that_lives_in_one_place_is_claimed_there_only(another: Another) -> None:
    """Another process has not its function."""
    here, there = await another(), await another()
    job_id = await here.add(durable=0, place=here.backend.place)

    assert await there.claim() == []
    assert [lease.id for lease in await here.claim()] == [job_id]


async def test_a_clock_that_was_set_back_disturbs_no_order(store: Store, clock: ManualClock) -> None:
    """Events are ordered by number, not by time."""
    first = await store.add()
    clock.advance(hours=-1)
    second = await store.add()

    assert [event.job_id for event in await store.log()] == [first, second]
    assert [lease.id for lease in await store.claim()] == [first, second]
