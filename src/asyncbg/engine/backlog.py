"""The backlog: counts accepted jobs that wait, in total and by owner, and rejects jobs beyond the limits.

Jobs are counted in memory as they are accepted and started. A count in the store corrects the numbers regularly, and
includes the work of other processes.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from asyncbg.core.event import Event, EventType
from asyncbg.errors import OverloadedError, QuotaError

_RETRY_AFTER_S = 1.0
_PATIENCE = 5
_RECOUNTED = 20_000
"""Maximum number of jobs read by one recount of owners."""
_CHANGE = {EventType.STARTED.value: -1, EventType.RETRYING.value: 1}


class Backlog:
    """The number of jobs that are accepted and not running yet. Call ``confirm`` after each ``reserve``."""

    __slots__ = ("_changes", "_limit", "_max_per_owner", "_owners", "_pending", "_skipped", "_total")

    def __init__(self, *, limit: int, max_per_owner: int | None = None) -> None:
        """Reject jobs beyond ``limit`` in total, and beyond ``max_per_owner`` of one owner (None: unlimited)."""
        self._limit = limit
        self._max_per_owner = max_per_owner
        self._total = 0
        self._owners: Counter[str] = Counter()
        self._pending = 0
        self._changes = 0
        self._skipped = 0

    @property
    def total(self) -> int:
        """Number of waiting jobs, as far as this process knows."""
        return self._total

    @property
    def max_per_owner(self) -> int | None:
        """Maximum number of waiting jobs of one owner; None: unlimited."""
        return self._max_per_owner

    def track(self, owners: Iterable[str]) -> None:
        """Include these owners in the next recount."""
        for owner in owners:
            self._owners.setdefault(owner, 0)

    def owners_to_recount(self) -> list[str]:
        """Return the owners to recount next: as many as can be counted in a few milliseconds."""
        if self._max_per_owner is None:
            return []
        return list(islice(self._owners, max(1, _RECOUNTED // self._max_per_owner)))

    def reserve(self, owners: Sequence[str]) -> None:
        """Reserve capacity for one job of each owner. Raise OverloadedError, QuotaError; nothing is reserved then."""
        more = len(owners)
        if self._total + more > self._limit:
            raise OverloadedError(f"{self._limit} jobs are waiting already; retry later", retry_after_s=_RETRY_AFTER_S)
        if self._max_per_owner is not None:
            for owner, wanted in Counter(owners).items():
                if self._owners[owner] + wanted > self._max_per_owner:
                    raise QuotaError(
                        f"{self._max_per_owner} jobs of this owner are waiting already; retry when some have started",
                        retry_after_s=_RETRY_AFTER_S,
                    )
        self._pending += more
        self._add(owners, 1)

    def confirm(self, admitted: int, not_stored: Sequence[str]) -> None:
        """Confirm ``admitted`` reservations after the write, and release those of jobs that were not stored."""
        self._pending -= admitted
        if not_stored:
            self._add(not_stored, -1)

    def apply(self, events: Iterable[Event]) -> None:
        """Update the counts from events committed by this process."""
        for event in events:
            change = _CHANGE.get(event.type)
            if change is not None:
                self._add((event.owner,), change)
            elif event.type == "job.cancelled" and not event.attempt:
                self._add((event.owner,), -1)

    def snapshot(self) -> tuple[int, int]:
        """Return the state to pass to :meth:`recount` with a count that starts now."""
        return self._changes, self._pending

    def recount(self, total: int, owners: Mapping[str, int], snapshot: tuple[int, int]) -> None:
        """Correct the total and the counts of these owners.

        A count that overlapped with writes is used only after several of them in a row.
        """
        changes, pending = snapshot
        if (pending or self._pending or self._changes != changes) and self._skipped < _PATIENCE:
            self._skipped += 1
            return
        self._skipped = 0
        self._total = total + self._pending
        for owner, many in owners.items():
            self._owners.pop(owner, None)  # reinserted at the end, so that owners are recounted in turn
            if many:
                self._owners[owner] = many

    def _add(self, owners: Sequence[str], sign: int) -> None:
        self._changes += 1
        self._total = max(0, self._total + sign * len(owners))
        if self._max_per_owner is None:
            return
        for owner in owners:
            self._owners[owner] += sign
            if self._owners[owner] <= 0:
                del self._owners[owner]
