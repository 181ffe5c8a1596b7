"""How often one stream tells the progress of a job: at most so many times a second, and always the latest value."""

from asyncbg.bus import Published


class ProgressPacer:
    """Lets a job's progress through, or holds the latest value until the job's next turn. Times are loop seconds."""

    __slots__ = ("_held", "_interval_s", "_sent_at")

    def __init__(self, per_s: float) -> None:
        """Let each job's progress through ``per_s`` times a second."""
        self._interval_s = 1 / per_s
        self._held: dict[str, Published] = {}
        self._sent_at: dict[str, float] = {}
        """In the order of time, so that what is over is at the front."""

    def admit(self, progress: Published, now: float) -> bool:
        """Whether to send ``progress`` at once. False: it is held, in the place of the one held before."""
        job_id = progress.event.job_id
        sent_at = self._sent_at.get(job_id)
        if sent_at is not None and now < sent_at + self._interval_s:
            self._held[job_id] = progress
            return False
        self._held.pop(job_id, None)
        self.note(job_id, now)
        return True

    @property
    def is_holding(self) -> bool:
        """Whether any progress waits for its turn."""
        return bool(self._held)

    @property
    def is_idle(self) -> bool:
        """Whether no job has had a turn lately, so that there is nothing to send nor to forget."""
        return not self._sent_at

    def release(self, job_id: str) -> Published | None:
        """What is held of a job whose attempt ended: to be sent now, whatever the pace."""
        return self._held.pop(job_id, None)

    def due(self, now: float) -> list[Published]:
        """What was held and has its turn now. Forgets the jobs that were quiet."""
        over = []
        for job_id, sent_at in self._sent_at.items():
            if now < sent_at + self._interval_s:
                break
            over.append(job_id)
        ready = []
        for job_id in over:
            del self._sent_at[job_id]
            if (progress := self._held.pop(job_id, None)) is not None:
                ready.append(progress)
                self.note(job_id, now)
        return ready

    def next_due(self) -> float | None:
        """When ``due`` is worth a call, if anything is held."""
        return next(iter(self._sent_at.values())) + self._interval_s if self._held else None

    def note(self, job_id: str, now: float) -> None:
        """The job's progress was sent now."""
        self._sent_at.pop(job_id, None)
        self._sent_at[job_id] = now
