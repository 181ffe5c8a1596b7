"""The erasure of one person, from cancelling jobs to verification, beside a running service or without one."""

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from asyncbg.auth.audit import COMMAND_LINE, Audit, AuditOutcome, open_audit
from asyncbg.errors import DatabaseError, JobNotFoundError, JobStateError
from asyncbg.ops.erasure.email_matcher import EmailMatcher
from asyncbg.ops.erasure.files import erase_files, uploads_with
from asyncbg.ops.erasure.rows import TABLES, FoundJob, Rows
from asyncbg.ops.erasure.verification import Verification, verify_erased
from asyncbg.ops.open_store import empty_log
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database_file import translate

_REASON = "the person it was for is forgotten"
_POLL_S = 0.1
_LOG_S = 3.0
"""A service empties its log within about a second, unless a reader prevents it."""
_MOST_PASSES = 5


@dataclass(slots=True)
class Erasure:
    """Counts of erased data. ``running`` jobs keep their data: erase again when they have ended."""

    person: str
    jobs: int = 0
    tracebacks: int = 0
    cancelled: int = 0
    events: int = 0
    activity: int = 0
    imports: int = 0
    tickets: int = 0
    audit: int = 0
    log_lines: int = 0
    files: int = 0
    running: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    is_log_empty: bool = False
    checked: Verification = field(default_factory=Verification)

    @property
    def is_complete(self) -> bool:
        """Whether no erasable data of the person remains."""
        return self.is_log_empty and not (self.running or self.unreadable or self.checked.found)

    def as_dict(self) -> dict[str, Any]:
        """Return the JSON form."""
        return {"ok": self.is_complete, **asdict(self)}


async def erase_person(
    store: SQLiteBackend, database: Path, data_dir: Path, address: EmailMatcher, *, wait_s: float
) -> Erasure:
    """Erase the person: waiting jobs are cancelled, running ones have ``wait_s`` seconds to end.

    A service may accept and run jobs meanwhile; data that it adds is erased too. The erasure is recorded in the audit
    log.
    """
    audit = await open_audit(store.database)
    try:
        done = await _erase_and_verify(store, audit, database, data_dir, address, wait_s)
    except OSError as error:
        raise DatabaseError(
            f"{error.filename} cannot be read ({error.strerror}), so the erasure is not complete; run it again"
        ) from error
    outcome = AuditOutcome.DONE if done.is_complete else AuditOutcome.FAILED
    reason = f"{done.jobs} jobs" + (f", {done.audit} rows of this log" if done.audit else "")
    await audit.record("person.forget", done.person, who=COMMAND_LINE, outcome=outcome, reason=reason)
    return done


async def _erase_and_verify(
    store: SQLiteBackend, audit: Audit, database: Path, data_dir: Path, address: EmailMatcher, wait_s: float
) -> Erasure:
    done = Erasure(person=address.replacement)
    rows = Rows(store, address)
    for _ in range(_MOST_PASSES):
        if not await _erase_pass(rows, store, data_dir, address, done, wait_s):
            break
    done.audit = await audit.pseudonymize(address.redacted)
    done.unreadable = sorted(rows.findings.unreadable)
    done.elsewhere |= await rows.elsewhere()

    def verify() -> None:
        done.is_log_empty = empty_log(database, wait_s=max(_LOG_S, wait_s))
        done.checked = verify_erased(database, data_dir, address, longer=rows.findings.longer)

    await asyncio.to_thread(verify)
    if done.is_log_empty and str(database) in done.checked.found and not (done.running or done.elsewhere):
        await asyncio.to_thread(_rebuild, database)
        await asyncio.to_thread(verify)
    return done


async def _erase_pass(
    rows: Rows, store: SQLiteBackend, data_dir: Path, address: EmailMatcher, done: Erasure, wait_s: float
) -> int:
    """Erase once from every store. Return the number of erased items, without running jobs."""
    tokens = await asyncio.to_thread(uploads_with, data_dir, address)
    jobs = await rows.jobs(tokens)
    if any(job.is_open for job in jobs):
        done.cancelled += await _cancel(store, [job for job in jobs if job.is_open], wait_s)
        jobs = await rows.jobs(tokens)
    running = [job for job in jobs if job.is_open]
    done.running = [job.id for job in running]
    ended = [job for job in jobs if not job.is_open]
    tracebacks = await rows.erase_tracebacks(ended)
    rewritten = await rows.rewrite_jobs(ended)
    erased = {table: await rows.erase(table) for table in TABLES}
    kept = frozenset(token for token in tokens for job in running if token in (job.texts["args"] or ""))
    files = await asyncio.to_thread(erase_files, data_dir, address, kept=kept)
    rows.findings.longer |= files.longer
    done.jobs += rewritten
    done.tracebacks += tracebacks
    done.events += erased["event"]
    done.activity += erased["activity"]
    done.imports += erased["import"] + erased["import_row"] + erased["import_rejection"]
    done.imports += erased["import_rejected_row"]
    done.tickets += erased["stream_ticket"]
    done.log_lines += files.lines
    done.files += files.removed
    done.elsewhere |= dict.fromkeys(files.elsewhere, 1)
    return rewritten + tracebacks + sum(erased.values()) + files.lines + files.removed


async def _cancel(store: SQLiteBackend, jobs: list[FoundJob], wait_s: float) -> int:
    """Cancel unfinished jobs and wait for running ones. Return how many are final."""
    for job in jobs:
        try:
            await store.cancel(job.id, _REASON)
        except (JobStateError, JobNotFoundError):
            continue  # it has become final meanwhile
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + wait_s
    left = [job.id for job in jobs]
    while left:
        records = [await store.get(job_id) for job_id in left]
        left = [record.id for record in records if record is not None and not record.state.is_final]
        if loop.time() >= deadline_s:
            break
        await asyncio.sleep(_POLL_S if left else 0)
    return len(jobs) - len(left)


def _rebuild(database: Path) -> None:
    """Rewrite the whole database, to remove remnants in unused parts of pages. Raises DatabaseError."""
    try:
        with closing(sqlite3.connect(database, timeout=30, isolation_level=None)) as connection:
            for statement in ("PRAGMA secure_delete = ON", "PRAGMA wal_autocheckpoint = 0", "VACUUM"):
                connection.execute(statement)
    except sqlite3.Error as error:
        raise translate(error) from error
