"""Schedules: cron expressions, their due slots, and firing each slot once over all processes."""

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from typing import Self
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.errors import AsyncBGError, DatabaseError, NotRunningError, OutageError, OverloadedError
from asyncbg.store.base import Backend

SCHEDULE = "schedule"
"""The owner and the tag of jobs that a schedule creates."""

_NEVER_MS = 2**62
_MAX_SKEW_MS = 86_400_000
_RETRY_MS = 60_000


class ScheduleError(AsyncBGError, ValueError):
    """A cron expression or a time zone is invalid; the message names it."""


@dataclass(frozen=True, slots=True)
class Cron:
    """A cron expression in a time zone. Daylight saving changes are handled as in Debian's cron."""

    expression: str
    zone: tzinfo
    zone_name: str

    @classmethod
    def parse(cls, expression: str, timezone: str | tzinfo) -> Self:
        """Parse an expression of five fields (six: seconds first) and a time zone. Raise ScheduleError."""
        if not isinstance(expression, str):
            raise ScheduleError(f"a cron expression is text, such as '*/5 * * * *', not {type(expression).__name__}")
        cron = cls(" ".join(expression.split()), *_zone(timezone))
        try:
            has_slot = cron.after(0) is not None
        except CronSimError as error:
            raise ScheduleError(
                f"bad cron expression {expression!r}: {error}; write five fields (minute hour day month weekday), "
                "such as '*/5 * * * *'"
            ) from None
        if not has_slot:
            raise ScheduleError(f"the cron expression {expression!r} has no slot: no date matches it")
        return cron

    def after(self, ms: int) -> int | None:
        """Return the first slot after ``ms``, in milliseconds; None if there is none within fifty years."""
        slots = CronSim(self.expression, self._local(ms))
        return next((slot for slot in map(_ms, slots) if slot > ms), None)

    def latest(self, ms: int) -> int | None:
        """Return the last slot at or before ``ms``, in milliseconds, or None."""
        back = next(CronSim(self.expression, self._local(ms + 1000), reverse=True), None)
        slot = None if back is None else _ms(back)
        if slot is None or slot > ms:
            return None
        while (later := self.after(slot)) is not None and later <= ms:
            slot = later
        return slot

    def _local(self, ms: int) -> datetime:
        return datetime.fromtimestamp(ms // 1000, self.zone)


def _zone(timezone: str | tzinfo) -> tuple[tzinfo, str]:
    """Return the zone, and the name that identifies it in the store."""
    if isinstance(timezone, tzinfo):
        return timezone, getattr(timezone, "key", None) or str(timezone)
    if timezone == "UTC":
        return UTC, timezone
    try:
        return ZoneInfo(timezone), timezone
    except (KeyError, ValueError, TypeError, OSError):
        raise ScheduleError(
            f"unknown time zone {timezone!r}; write a name such as 'Europe/Berlin' "
            "(where the system has no time zones, install the package tzdata)"
        ) from None


def _ms(moment: datetime) -> int:
    return int(moment.timestamp()) * 1000


class _Schedule:
    """A task and its cron expression: the last slot fired, by any process, and the next slot."""

    __slots__ = ("cron", "is_known", "last_ms", "name", "next_ms", "task")

    def __init__(self, task: str, cron: Cron, since_ms: int) -> None:
        self.task = task
        self.cron = cron
        self.name = f"{task} {cron.expression} {cron.zone_name}"
        self.is_known = False
        self.advance_to(since_ms)

    def advance_to(self, slot_ms: int) -> None:
        self.last_ms = slot_ms
        self.next_ms = self.cron.after(slot_ms) or _NEVER_MS

    def skip(self, now_ms: int) -> None:
        """Skip the due slot. Where the next slot cannot be computed (a user-defined time zone), retry in a minute."""
        try:
            self.next_ms = self.cron.after(now_ms) or _NEVER_MS
        except BaseException:  # noqa: BLE001 - the error is logged by the caller
            self.next_ms = now_ms + _RETRY_MS


class Schedules:
    """The schedules of one process. The process that advances a slot in the store creates its job."""

    def __init__(
        self,
        backend: Backend,
        fire: Callable[[str, str, int], Awaitable[None]],
        *,
        clock: Clock,
        errors: ErrorLog | None = None,
    ) -> None:
        """``fire(schedule, task, slot_ms)`` stores the job of a slot."""
        self._backend = backend
        self._fire = fire
        self._clock = clock
        self._errors = errors or ErrorLog()
        self._schedules: dict[str, _Schedule] = {}

    def add(self, task: str, cron: Cron) -> None:
        """Run ``task`` at every slot of ``cron`` from now on. Adding the same schedule twice has no effect."""
        schedule = _Schedule(task, cron, self._clock.now_ms())
        self._schedules.setdefault(schedule.name, schedule)

    def rename(self, task: str, new: str) -> None:
        """Move the schedules of a task to its new name."""
        for schedule in [one for one in self._schedules.values() if one.task == task != new]:
            del self._schedules[schedule.name]
            self.add(new, schedule.cron)

    async def start(self) -> None:
        """Load the last fired slots; a new schedule starts now. Raise DatabaseError."""
        await self._load_slots(self._schedules.values(), self._clock.now_ms())

    async def tick(self) -> None:
        """Fire the due slots: of several missed slots of one schedule, the latest.

        Raise DatabaseError, OverloadedError or NotRunningError after all schedules were processed.
        A slot whose job cannot be created is logged and skipped; other schedules and later slots are not affected.
        """
        now_ms = self._clock.now_ms()
        refused: AsyncBGError | None = None
        for schedule in list(self._schedules.values()):
            try:
                await self._tick_one(schedule, now_ms)
            except OutageError:
                raise
            except (OverloadedError, DatabaseError, NotRunningError) as error:  # its slot is retried
                refused = error
            except BaseException as error:
                if ends_task(error):
                    raise
                self._errors.add("schedule", error, "the schedule %s skipped a slot", schedule.name)
                schedule.skip(now_ms)
        if refused is not None:
            raise refused

    async def _tick_one(self, schedule: _Schedule, now_ms: int) -> None:
        if not schedule.is_known:
            await self._load_slots([schedule], schedule.last_ms)
        if schedule.last_ms > now_ms + _MAX_SKEW_MS:  # the clock was far ahead for a while
            await self._load_slots([schedule], now_ms)
        if schedule.next_ms <= now_ms:
            await self._fire_latest(schedule, now_ms)

    async def _load_slots(self, schedules: Iterable[_Schedule], since_ms: int) -> None:
        by_name = {schedule.name: schedule for schedule in schedules}
        if not by_name:
            return
        slots = await self._backend.slots(by_name.keys(), since_ms=since_ms, latest_ms=since_ms + _MAX_SKEW_MS)
        for name, slot_ms in slots.items():
            by_name[name].advance_to(slot_ms)
            by_name[name].is_known = True

    async def _fire_latest(self, schedule: _Schedule, now_ms: int) -> None:
        slot_ms = max(schedule.cron.latest(now_ms) or 0, schedule.next_ms)
        await self._fire(schedule.name, schedule.task, slot_ms)
        schedule.advance_to(slot_ms)
