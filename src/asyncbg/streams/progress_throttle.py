"""The rate limit on progress in one stream: each job's latest value, at most a set number of times a second."""

from asyncbg.bus import Published


class ProgressThrottle:
    """Sends the progress of a job at once, or holds the latest value for its interval. Times are loop seconds."""

    __slots__ = ("_held", "_interval_s", "_sent_at")

    def __init__(self, per_s: float) -> None:
        """Allow ``per_s`` progress events a second for each job."""
        self._interval_s = 1 / per_s
        self._held: dict[str, Published] = {}
        self._sent_at: dict[str, float] = {}
        """Jobs in the order of their last send, so that the intervals that end first are at the front."""

    def admit(self, progress: Published, now: float) -> bool:
        """Whether to send ``progress`` at once. If not, it is held and replaces the value held before."""
        job_id = progress.event.job_id
        sent_at = self._sent_at.get(job_id)
        if sent_at is not None and now < sent_at + self._interval_s:
            self._held[job_id] = progress
            return False
        self._held.pop(job_id, None)
        self.note_sent(job_id, now)
        return True

    @property
    def is_holding(self) -> bool:
        """Whether any progress is held."""
        return bool(self._held)

    @property
    def is_idle(self) -> bool:
        """Whether no job is within its interval, so that nothing is due or has to be expired."""
        return not self._sent_at

    def release(self, job_id: str) -> Published | None:
        """Return the held progress of a job whose attempt ended, to be sent regardless of the rate."""
        return self._held.pop(job_id, None)

    def due(self, now: float) -> list[Published]:
        """Return the held progress whose interval has ended, and drop jobs that reported nothing since."""
        expired = []
        for job_id, sent_at in self._sent_at.items():
            if now < sent_at + self._interval_s:
                break
            expired.append(job_id)
        ready = []
        for job_id in expired:
            del self._sent_at[job_id]
            if (progress := self._held.pop(job_id, None)) is not None:
                ready.append(progress)
                self.note_sent(job_id, now)
        return ready

    def next_due(self) -> float | None:
        """Return when to call ``due`` next; None where nothing is held."""
        return next(iter(self._sent_at.values())) + self._interval_s if self._held else None

    def note_sent(self, job_id: str, now: float) -> None:
        """Record that the job's progress was sent at ``now``."""
        self._sent_at.pop(job_id, None)
        self._sent_at[job_id] = now
