"""How many accepted jobs wait, in all and for each owner: what goes beyond a bound is refused before it costs anything.

Counted in memory as jobs are admitted and begin, and put right by a count in the store when nothing is on its way.
What only other processes do is seen by that count.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from asyncbg.core.event import Event, EventType
from asyncbg.errors import OverloadedError, QuotaError

_RETRY_AFTER_S = 1.0
_PATIENCE = 5
_RECOUNTED = 20_000
"""Jobs that one recount of owners may look at."""
_CHANGE = {EventType.STARTED.value: -1, EventType.RETRYING.value: 1}


class Backlog:
    """The jobs that are accepted and not running yet. ``reserve`` and ``confirm`` go in pairs."""

    __slots__ = ("_changes", "_limit", "_max_per_owner", "_owners", "_pending", "_skipped", "_total")

    def __init__(self, *, limit: int, max_per_owner: int | None = None) -> None:
        """Refuse beyond ``limit`` jobs in all, and beyond ``max_per_owner`` of one owner (None: no such bound)."""
        self._limit = limit
        self._max_per_owner = max_per_owner
        self._total = 0
        self._owners: Counter[str] = Counter()
        self._pending = 0
        self._changes = 0
        self._skipped = 0

    @property
    def total(self) -> int:
        """How many jobs wait, as far as is known here."""
        return self._total

    @property
    def max_per_owner(self) -> int | None:
        """The bound of one owner's jobs; None: the owners are not told apart."""
        return self._max_per_owner

    def track(self, owners: Iterable[str]) -> None:
        """Count these owners' jobs too, from the next recount on."""
        for owner in owners:
            self._owners.setdefault(owner, 0)

    def owners_to_recount(self) -> list[str]:
        """The owners whose recount is due, in turn: so many that their jobs are counted in a few milliseconds."""
        if self._max_per_owner is None:
            return []
        return list(islice(self._owners, max(1, _RECOUNTED // self._max_per_owner)))

    def reserve(self, owners: Sequence[str]) -> None:
        """Make room for jobs, one for each name. Raises OverloadedError, QuotaError; nothing is changed then."""
        more = len(owners)
        if self._total + more > self._limit:
            raise OverloadedError(f"{self._limit} jobs wait already; come back later", retry_after_s=_RETRY_AFTER_S)
        if self._max_per_owner is not None:
            for owner, wanted in Counter(owners).items():
                if self._owners[owner] + wanted > self._max_per_owner:
                    raise QuotaError(
                        f"{self._max_per_owner} jobs of this owner wait already; come back when some have begun",
                        retry_after_s=_RETRY_AFTER_S,
                    )
        self._pending += more
        self._add(owners, 1)

    def confirm(self, admitted: int, not_stored: Sequence[str]) -> None:
        """The store has answered for ``admitted`` jobs: give back the room of those it did not take."""
        self._pending -= admitted
        if not_stored:
            self._add(not_stored, -1)

    def apply(self, events: Iterable[Event]) -> None:
        """Take note of what this process has committed."""
        for event in events:
            change = _CHANGE.get(event.type)
            if change is not None:
                self._add((event.owner,), change)
            elif event.type == "job.cancelled" and not event.attempt:
                self._add((event.owner,), -1)

    def snapshot(self) -> tuple[int, int]:
        """What to hand to :meth:`recount` with a count that begins now."""
        return self._changes, self._pending

    def recount(self, total: int, owners: Mapping[str, int], snapshot: tuple[int, int]) -> None:
        """Put the numbers right, of these owners and in all.

        A count that jobs on their way may have blurred is used only after several such.
        """
        changes, pending = snapshot
        if (pending or self._pending or self._changes != changes) and self._skipped < _PATIENCE:
            self._skipped += 1
            return
        self._skipped = 0
        self._total = total + self._pending
        for owner, many in owners.items():
            self._owners.pop(owner, None)  # and to the end of the line
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
