"""The parts of one engine and how they are connected. Internal: users call the methods of ``AsyncBG``."""

import random
from dataclasses import dataclass

from asyncbg.bus import EventBus
from asyncbg.core.clock import Clock
from asyncbg.core.error_log import ErrorLog
from asyncbg.core.ids import IdGenerator
from asyncbg.engine.backlog import Backlog
from asyncbg.engine.enqueuer import Enqueuer
from asyncbg.engine.event_relay import EventRelay
from asyncbg.engine.executor import Executor
from asyncbg.engine.job_control import JobControl
from asyncbg.engine.maintenance import Maintenance
from asyncbg.engine.metrics import Telemetry
from asyncbg.engine.registry import InMemoryJobs, Registry
from asyncbg.engine.runner import Runner
from asyncbg.engine.schedule import Schedules
from asyncbg.privacy.encryption import Encryption
from asyncbg.settings import Settings
from asyncbg.store.base import Backend
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from asyncbg.store.sqlite.database_file import sqlite_path


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineParts:
    """The parts of one engine. ``errors`` counts, by part, the errors that affected a single item only."""

    clock: Clock
    errors: ErrorLog
    database: Database
    backend: Backend
    registry: Registry
    in_memory: InMemoryJobs
    bus: EventBus
    executor: Executor
    runner: Runner
    relay: EventRelay
    telemetry: Telemetry
    control: JobControl
    enqueuer: Enqueuer
    schedules: Schedules
    maintenance: Maintenance


def assemble(settings: Settings, *, clock: Clock, rng: random.Random | None = None) -> EngineParts:
    """Create the parts of an engine and connect them. Opens nothing."""
    limits, jobs, errors = settings.runner, settings.jobs, ErrorLog()
    registry, in_memory, telemetry = Registry(), InMemoryJobs(), Telemetry()
    bus = EventBus(buffer=settings.stream.buffer, errors=errors)
    database = Database(sqlite_path(settings.database_url), errors=errors)
    backend = SQLiteBackend(database, clock=clock, encryption=Encryption(settings.privacy.keys()))
    backlog = Backlog(limit=limits.max_queued, max_per_owner=limits.max_queued_per_owner)
    executor = Executor(
        threads=limits.threads, clock=clock, max_result_bytes=jobs.max_result_bytes,
        rng=rng or random.Random(),  # nosec B311  # noqa: S311 - jitter, not a secret
        keeps_tracebacks=jobs.tracebacks,
    )  # fmt: skip
    runner = Runner(
        backend, registry, bus, settings, executor=executor, in_memory=in_memory, clock=clock, errors=errors
    )
    relay = EventRelay(backend, bus, runner, listeners=[telemetry.count, backlog.apply])
    backend.on_commit, backend.on_progress = relay.committed, relay.progressed
    control = JobControl(backend, bus, runner, in_memory)
    enqueuer = Enqueuer(
        backend, registry, control, runner=runner, executor=executor, backlog=backlog, in_memory=in_memory,
        ids=IdGenerator(clock), clock=clock, max_args_bytes=jobs.max_args_bytes,
    )  # fmt: skip
    schedules = Schedules(backend, enqueuer.fire, clock=clock, errors=errors)
    maintenance = Maintenance(
        backend, runner, limits, telemetry=telemetry, relay=relay, schedules=schedules, backlog=backlog,
        registry=registry, clock=clock, errors=errors,
    )  # fmt: skip
    return EngineParts(
        clock=clock, errors=errors, database=database, backend=backend, registry=registry, in_memory=in_memory,
        bus=bus, executor=executor, runner=runner, relay=relay, telemetry=telemetry, control=control,
        enqueuer=enqueuer, schedules=schedules, maintenance=maintenance,
    )  # fmt: skip
