"""Prometheus metrics of one engine: committed events, open jobs, and the counters of the bus."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from asyncbg.bus import BusStatistics
from asyncbg.core.event import Event
from asyncbg.core.job import FINAL_STATES, JobState

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_MAX_SERIES = 1000
_MAX_UNKNOWN = 100
_UNKNOWN = "Jobs of all processes that have not begun, of tasks that this process does not have."
_HERE = "Events that this process committed; job.* are state transitions. asyncbg_all_events has those of all."
_EVERYWHERE = (
    "Events that all processes at this database committed, those that ended included; what others did in the last "
    "second may be missing."
)
_OPEN = "Jobs of all processes at this database that are not final, by state."
_PROCESSES = "Processes that run the jobs of this database now."
_OTHER = ("other", "other")
_BLOCKED = "Times that the event loop of this process was held for too long, by what held it."
_RESTARTED = "Times that a loop of this process's engine ended by itself and was started again."
_SURVIVED = "Errors in this process that cost one job, slot, handler call or item only, by the part that met them."
_BUS_GAUGES = {
    "subscribers": ("asyncbg_streams", "Event streams and other readers open now in this process."),
    "handlers": ("asyncbg_bus_handlers", "Event handlers registered in this process."),
}


class Telemetry(Collector):
    """Counts committed events, and renders all metrics on request."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(self)
        self._events: Counter[tuple[str, str]] = Counter()
        self._before: Counter[tuple[str, str]] = Counter()
        self._at_start: Counter[tuple[str, str]] = Counter()
        self._others: Sequence[str] | None = None
        self._processes = 0
        self.has_changes = False
        """Whether anything was counted since the last :meth:`snapshot`."""
        self._open: Mapping[JobState, int] | None = None
        self._bus: BusStatistics | None = None
        self._blockages: Mapping[str, int] = {}
        self._restarts: Mapping[str, int] = {}
        self._errors: Mapping[str, int] = {}
        self._unknown: Mapping[str, int] = {}

    def count(self, events: Sequence[Event]) -> None:
        """Count stored events by type and task; beyond 1,000 pairs they count as "other"."""
        self.has_changes = True
        self._events.update([(str(event.type), event.task) for event in events])
        if len(self._events) > _MAX_SERIES:
            for pair in list(self._events)[_MAX_SERIES - 1 :]:
                if pair != _OTHER:
                    self._events[_OTHER] += self._events.pop(pair)

    def restore(self, kept: str | None) -> None:
        """Restore the counters of this process slot from ``kept``, a :meth:`snapshot`."""
        self._before, self._at_start = _read_counts(kept), Counter(self._events)

    def snapshot(self) -> str:
        """Return the counters of all processes that held this slot, as JSON for the store."""
        self.has_changes = False
        return json.dumps([[*pair, many] for pair, many in self._of_place().items()])

    def _of_place(self) -> Counter[tuple[str, str]]:
        return self._before + (self._events - self._at_start)

    def expose(
        self,
        open_jobs: Mapping[JobState, int] | None,
        bus: BusStatistics,
        blockages: Mapping[str, int] | None = None,
        *,
        loop_restarts: Mapping[str, int] | None = None,
        errors: Mapping[str, int] | None = None,
        unknown_tasks: Mapping[str, int] | None = None,
        others: Sequence[str] | None = None,
        processes: int = 0,
    ) -> bytes:
        """Return all metrics in Prometheus' text format; ``open_jobs`` is None if the database does not answer.

        ``blockages`` counts by task how often the event loop was blocked, ``loop_restarts`` by name how often one of
        the engine's own loops was restarted, ``errors`` by part those that affected a single item only.
        ``unknown_tasks`` counts by task the jobs that this process cannot run. ``others`` are the snapshots of other
        slots and ``processes`` the number of running processes; None if unknown.
        """
        self._open, self._bus, self._blockages = open_jobs, bus, blockages or {}
        self._restarts, self._errors = loop_restarts or {}, errors or {}
        self._unknown = unknown_tasks or {}
        self._others, self._processes = others, processes
        return generate_latest(self.registry)

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families; called by the registry."""
        yield _event_family("asyncbg_events", _HERE, self._events)
        if self._others is not None:
            everywhere = sum(map(_read_counts, self._others), self._of_place())
            yield _event_family("asyncbg_all_events", _EVERYWHERE, everywhere)
            yield GaugeMetricFamily("asyncbg_processes", _PROCESSES, value=self._processes)
        yield GaugeMetricFamily(
            "asyncbg_database_up", "Whether the database answered this process.", value=float(self._open is not None)
        )
        if self._open is not None:
            yield _open_family(self._open)
            yield _unknown_family(self._unknown)
        if self._bus is not None:
            yield from _bus_families(self._bus)
        yield _counter_family("asyncbg_loop_blocked", _BLOCKED, "task", self._blockages)
        yield _counter_family("asyncbg_loop_restarts", _RESTARTED, "loop", self._restarts)
        yield _counter_family("asyncbg_errors", _SURVIVED, "part", self._errors)


def _read_counts(kept: str | None) -> Counter[tuple[str, str]]:
    """Parse what :meth:`Telemetry.snapshot` returned."""
    return Counter({(kind, task): many for kind, task, many in json.loads(kept or "[]")})


def _event_family(name: str, documentation: str, counts: Mapping[tuple[str, str], int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=["type", "task"])
    for pair, many in sorted(counts.items()):
        family.add_metric(list(pair), many)
    return family


def _open_family(open_jobs: Mapping[JobState, int]) -> Metric:
    family = GaugeMetricFamily("asyncbg_jobs", _OPEN, labels=["state"])
    for state in JobState:
        if state not in FINAL_STATES:
            family.add_metric([state.value], open_jobs.get(state, 0))
    return family


def _unknown_family(unknown: Mapping[str, int]) -> Metric:
    family = GaugeMetricFamily("asyncbg_jobs_unknown_task", _UNKNOWN, labels=["task"])
    ranked = sorted(unknown.items(), key=lambda item: (-item[1], item[0]))
    for task, many in ranked[:_MAX_UNKNOWN]:
        family.add_metric([task], many)
    if rest := sum(many for _, many in ranked[_MAX_UNKNOWN:]):
        family.add_metric(["other"], rest)
    return family


def _counter_family(name: str, documentation: str, label: str, counts: Mapping[str, int]) -> Metric:
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, many in sorted(counts.items()):
        family.add_metric([value], many)
    return family


def _bus_families(bus: BusStatistics) -> Iterator[Metric]:
    for name, value in asdict(bus).items():
        if name in _BUS_GAUGES:
            yield GaugeMetricFamily(*_BUS_GAUGES[name], value=value)
        else:
            words = name.replace("_", " ")
            yield CounterMetricFamily(f"asyncbg_bus_{name}", f"Events of this process's bus: {words}.", value=value)
