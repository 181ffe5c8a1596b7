"""The probe of readiness: a job is stored and claimed, and nothing of it is left."""

from asyncbg.core.clock import Clock
from asyncbg.core.job import NewJob
from asyncbg.store.sqlite.attempt import AttemptLanes
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.enqueue import EnqueueLanes
from asyncbg.store.sqlite.event_log import Log


class ProbeLane:
    """Goes through the very lanes that jobs go through."""

    def __init__(self, clock: Clock, enqueues: EnqueueLanes, attempts: AttemptLanes) -> None:
        """Made by the backend."""
        self._clock = clock
        self._enqueues = enqueues
        self._attempts = attempts

    def probe(self, tx: Transaction, items: list[None]) -> list[None]:
        """Within a savepoint that is rolled back; the numbers and the notes go back with it."""
        log = Log.of(tx)
        seq, n, notes = log.seq, log.n, len(tx.notes)
        tx.connection.execute("SAVEPOINT probe")
        now_ms = self._clock.now_ms()
        job = NewJob(
            id="probe", task="probe", queue="probe", owner="", batch="probe", tags="[]", state="queued",
            priority=2**40, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
            created_at_ms=now_ms, run_at_ms=now_ms,
        )  # fmt: skip
        self._enqueues.insert(tx, [job])
        self._attempts.claim_one(tx, 1, 1.0, ())
        tx.connection.execute("ROLLBACK TO probe")
        tx.connection.execute("RELEASE probe")
        log.seq, log.n = seq, n
        del tx.notes[notes:]
        return [None] * len(items)
