"""Taking up the jobs of processes that are gone."""

import json

from asyncbg.core.clock import Clock
from asyncbg.core.event import EventType
from asyncbg.store.sqlite.batch import release_next
from asyncbg.store.sqlite.database import Transaction
from asyncbg.store.sqlite.event_log import tell_refs
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.statement import SQL, read_json

SLICE = 1_000
"""Jobs of dead places that one commit ends; those that ran there are no more than had slots."""

POISON_AFTER = 3
"""A job that took its process down this often is failed instead of run again."""

WORKER_LOST = "its worker was lost"
"""Why a job is queued again whose process is gone."""
_LOST = ("NotDurableError", "its function lived only in a process that is gone; hand over a module-level function")
_INTERRUPTED = ("JobInterruptedError", "its process ended while it ran, and it may run at most once")
_POISON = ("PoisonError", f"it took its process down {POISON_AFTER} times; mend it, then retry it")


class RescueLane:
    """Finds lost jobs by the places that are dead and the leases that have lapsed."""

    def __init__(self, clock: Clock, slot: ProcessSlot) -> None:
        """Made by the backend."""
        self._clock = clock
        self._slot = slot

    def rescue(self, tx: Transaction, items: list[list[str]]) -> list[int]:
        """Queue them again, or end them; returns how many there were. An item names places known to be gone.
        ``SLICE`` or more were found: there may be more of them.

        The locks of the other places are tried here: who takes a place from now on cannot claim a job before this
        transaction has ended.
        """
        now_ms, monotonic_ms = self._clock.now_ms(), self._clock.monotonic_ms()
        busy = read_json(tx.connection, "busy_places", {})
        gone = json.dumps(sorted({*(place for item in items for place in item), *self._slot.gone(busy)}))
        silent = json.dumps(self._slot.silent(busy, monotonic_ms))
        lost = read_json(tx.connection, "find_lost", {"gone": gone, "monotonic_ms": monotonic_ms, "silent": silent})
        bound = read_json(tx.connection, "find_bound", {"gone": gone, "limit": SLICE})
        fates: dict[tuple[str, str], list[int]] = {}
        ended: list[tuple[str, bool]] = []
        for n, at_most_once, durable, crashes, _, cancel_reason, batch, stops in lost:
            fate = _fate(at_most_once, durable, crashes, cancel_reason)
            fates.setdefault(fate, []).append(n)
            if fate[0] != "queued":
                ended.append((batch, bool(stops)))
        for n, _, batch, stops in bound:
            fates.setdefault(_LOST, []).append(n)
            ended.append((batch, bool(stops)))
        for fate, ns in fates.items():
            self._apply_fate(tx, fate, ns, now_ms)
        release_next(tx, ended, now_ms)
        return [len(lost) + len(bound)] * len(items)

    def _apply_fate(self, tx: Transaction, fate: tuple[str, str], ns: list[int], now_ms: int) -> None:
        text = json.dumps(ns)
        match fate:
            case ("queued", reason):
                tx.connection.execute(SQL["requeue_lost"], {"ns": text})
                tell_refs(tx, ns, EventType.QUEUED, now_ms, {"reason": reason})
            case ("cancelled", reason):
                tx.connection.execute(SQL["cancel_lost"], {"ns": text, "now_ms": now_ms})
                tell_refs(tx, ns, EventType.CANCELLED, now_ms, {"reason": reason})
            case (error_type, message):
                tx.connection.execute(
                    SQL["fail_lost"], {"ns": text, "now_ms": now_ms, "type": error_type, "message": message}
                )
                tell_refs(tx, ns, EventType.FAILED, now_ms, {"error": {"type": error_type, "message": message}})


def _fate(at_most_once: int, durable: int, crashes: int, cancel_reason: str | None) -> tuple[str, str]:
    """What becomes of a job whose process is gone: (state or error type, reason or message)."""
    if cancel_reason is not None:
        return ("cancelled", cancel_reason)
    if not durable:
        return _LOST
    if at_most_once:
        return _INTERRUPTED
    if crashes + 1 >= POISON_AFTER:
        return _POISON
    return ("queued", WORKER_LOST)
