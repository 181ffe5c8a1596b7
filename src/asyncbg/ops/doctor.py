"""Diagnosis of an installation: machine, files, stored data and mail server, each finding with its remedy."""

import asyncio
import contextlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from asyncbg.auth import audit, keys, sessions, tickets
from asyncbg.core.clock import Clock, SystemClock, rfc3339
from asyncbg.core.event import dump
from asyncbg.engine.registry import NO_SUCH_TASK
from asyncbg.errors import SettingsError
from asyncbg.ops.open_store import database_file
from asyncbg.privacy.encryption import Encryption
from asyncbg.service.integrations import activity, imports
from asyncbg.settings import Settings, SmtpSettings, load_settings
from asyncbg.store.sqlite import MIGRATIONS
from asyncbg.store.sqlite.database_file import OLDEST_SQLITE
from asyncbg.store.sqlite.process_slot import ProcessSlot
from asyncbg.store.sqlite.statement import load_statements
from asyncbg.store.sqlite.wal_limit import MOST_BYTES, WANTED_BYTES

SQL = load_statements("doctor.sql")

_KNOWN = {
    "engine": len(MIGRATIONS), "activity": len(activity.MIGRATIONS), "audit": len(audit.MIGRATIONS),
    "imports": len(imports.MIGRATIONS), "keys": len(keys.MIGRATIONS), "seal": 1,
    "sessions": len(sessions.MIGRATIONS), "tickets": len(tickets.MIGRATIONS),
}  # fmt: skip
_MOST_TASKS = 5
_WAL_BUG = ((3, 7, 0), (3, 51, 2))
_WAL_BUG_FIXED = frozenset({(3, 44, 6), (3, 50, 7)})
"""https://www.sqlite.org/wal.html#walresetbug; ``wal_limit.py`` says how it is avoided."""
_NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre", "gfs2", "ocfs2", "fuse"}
)
_VOLATILE = frozenset({"tmpfs", "ramfs"})
_MOUNTS = Path("/proc/self/mountinfo")
_SMTP_TIMEOUT_S = 3.0
_MIB = 1 << 20
_FREE_NEEDED, _FREE_WANTED = 64 * _MIB, 1024 * _MIB
_BUILT_MS = 1_767_225_600_000  # 2026-01-01: a correct clock is later
_CLOCK_SLACK_MS = 60_000
_OVERDUE_MS = 60_000


class Status(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of a check, and its remedy (empty if the check passed)."""

    check: str
    status: Status
    finding: str
    remedy: str = ""

    def as_dict(self) -> dict[str, str]:
        """Return the JSON form."""
        return asdict(self)


def ok(check: str, finding: str) -> Finding:
    """Return a passed check."""
    return Finding(check=check, status=Status.OK, finding=finding)


def warning(check: str, finding: str, remedy: str) -> Finding:
    """Return a warning: it works, but may fail later."""
    return Finding(check=check, status=Status.WARNING, finding=finding, remedy=remedy)


def failed(check: str, finding: str, remedy: str) -> Finding:
    """Return a failed check."""
    return Finding(check=check, status=Status.FAILED, finding=finding, remedy=remedy)


async def diagnose(overrides: Mapping[str, Any] | None = None, *, clock: Clock | None = None) -> list[Finding]:
    """Run every check; changes nothing. With invalid settings, only the checks that need none are run."""
    clock = clock or SystemClock()
    try:
        settings = load_settings(**(overrides or {}))
        path = database_file(settings)
    except SettingsError as error:
        remedy = "correct the setting; `asyncbg settings show --sources` shows where each comes from"
        return [failed("settings", str(error), remedy), check_sqlite(sqlite3.sqlite_version_info), check_clock(clock)]
    slot = ProcessSlot(path)
    return [
        ok("settings", f"profile {settings.profile} loads"),
        check_sqlite(sqlite3.sqlite_version_info),
        *check_filesystems(settings, path),
        check_database_access(path),
        check_data_dir_access(settings.data_dir),
        check_disk(path),
        check_log(path),
        *check_content(path, slot, clock, settings.privacy.keys()),
        check_processes(slot),
        await check_smtp(settings.smtp),
    ]


# Machine


def check_sqlite(version: tuple[int, ...]) -> Finding:
    """Whether this version of SQLite is supported."""
    name = "SQLite " + ".".join(map(str, version[:3]))
    if version < OLDEST_SQLITE:
        return failed("sqlite", f"{name} is too old", "use a Python with SQLite 3.38 or newer, preferably 3.51.3")
    first, last = _WAL_BUG
    if first <= version[:3] <= last and version[:3] not in _WAL_BUG_FIXED:
        return ok("sqlite", f"{name}; its WAL-reset bug is avoided: only one process at a time checkpoints")
    return ok("sqlite", name)


def check_clock(clock: Clock, newest_ms: int = 0) -> Finding:
    """Whether the wall clock is plausible: not before this release, nor before stored events."""
    now_ms = clock.now_ms()
    remedy = "set the clock and synchronize it with NTP"
    if now_ms < _BUILT_MS:
        return failed("clock", f"the wall clock shows {rfc3339(now_ms)}", remedy)
    if now_ms < newest_ms - _CLOCK_SLACK_MS:
        return warning(
            "clock", f"the wall clock shows {rfc3339(now_ms)}, the newest event {rfc3339(newest_ms)}", remedy
        )
    return ok("clock", rfc3339(now_ms))


def check_filesystems(settings: Settings, path: Path) -> Iterator[Finding]:
    """Whether the file systems of the database and the data directory are reliable."""
    mounts = _MOUNTS.read_text("utf-8", "replace") if _MOUNTS.exists() else ""
    for check, place in (("database file system", path.parent), ("data file system", settings.data_dir)):
        yield check_filesystem(check, filesystem_of(_existing(place), mounts))


def check_filesystem(check: str, kind: str) -> Finding:
    """Whether this kind of file system is reliable."""
    if kind in _NETWORK or kind.startswith("fuse."):
        return warning(check, f"{kind}: locks and syncs of network and user-space file systems are unreliable",
                    "move it to a disk of this machine")  # fmt: skip
    if kind in _VOLATILE:
        return warning(check, f"{kind}: nothing on it survives a restart of the machine", "move it to a disk")
    return ok(check, kind or "of unknown kind")


def filesystem_of(path: Path, mounts: str) -> str:
    """Return the file system type of ``path`` from a Linux ``mountinfo`` (proc(5)); empty if unknown."""
    best: tuple[int, str] = (-1, "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        fields, kind = left.split(), right.split()
        if len(fields) < 5 or not kind:
            continue
        mount = Path(fields[4].replace("\\040", " "))
        if path.is_relative_to(mount) and len(mount.parts) >= best[0]:  # the last mount on a path is the visible one
            best = (len(mount.parts), kind[0])
    return best[1]


def check_disk(path: Path) -> Finding:
    """Whether the disk has enough free space."""
    free = shutil.disk_usage(_existing(path)).free
    finding, remedy = f"{free // _MIB:,} MiB free", "free some space, or move the database to a larger disk"
    if free < _FREE_NEEDED:
        return failed("disk", finding, remedy)
    return warning("disk", finding, remedy) if free < _FREE_WANTED else ok("disk", finding)


# Files


def check_database_access(path: Path) -> Finding:
    """Whether the database is writable, and not readable by other users."""
    check = "database permissions"
    if not path.parent.is_dir():
        return failed(check, f"the directory {path.parent} does not exist", "create it, or set ASYNCBG_DATABASE_URL")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return failed(check, f"the directory {path.parent} is not writable", "give it to the user that runs asyncbg")
    if not path.exists():
        return ok(check, f"{path} does not exist yet; the first start creates it")
    if not os.access(path, os.R_OK | os.W_OK):
        return failed(check, f"{path} is not writable", "give it to the user that runs asyncbg")
    if path.stat().st_mode & 0o077:
        return warning(check, f"{path} is accessible to other users", f"chmod 600 {path}")
    return ok(check, f"{path} is accessible to its owner only")


def check_data_dir_access(data_dir: Path) -> Finding:
    """Whether the data directory is writable, by its owner only."""
    check = "data permissions"
    if not data_dir.exists():
        parent = _existing(data_dir)
        if not os.access(parent, os.W_OK | os.X_OK):
            return failed(check, f"{data_dir} cannot be created: {parent} is not writable", "set ASYNCBG_DATA_DIR")
        return ok(check, f"{data_dir} does not exist yet; it is created when needed")
    if not data_dir.is_dir():
        return failed(check, f"{data_dir} is not a directory", "move the file away, or set ASYNCBG_DATA_DIR")
    if not os.access(data_dir, os.R_OK | os.W_OK | os.X_OK):
        return failed(check, f"{data_dir} is not writable", "give it to the user that runs asyncbg")
    if data_dir.stat().st_mode & 0o022:
        return warning(check, f"other users may write to {data_dir}", f"chmod 700 {data_dir}")
    return ok(check, f"{data_dir} is writable by its owner only")


def check_log(path: Path) -> Finding:
    """Whether a reader prevents checkpoints of the write-ahead log."""
    log = Path(f"{path}-wal")
    size = log.stat().st_size if log.exists() else 0
    finding = f"{size // _MIB} MiB of {MOST_BYTES // _MIB}"
    if size <= WANTED_BYTES:
        return ok("log", finding)
    who = ", ".join(map(str, processes_with(path))) or "unknown"
    finding = f"{finding}: a reader holds a transaction open; the database is open in the processes {who}"
    return failed("log", finding, "end the reading process: an open shell, a long backup or report")


def processes_with(path: Path) -> list[int]:
    """Return the processes that have the file open, as far as /proc shows them (proc(5))."""
    target = str(path.resolve())
    found: set[int] = set()
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):
            if os.readlink(link) == target:  # noqa: PTH115 - compared as a string
                found.add(int(link.parts[2]))
    return sorted(found)


def check_processes(slot: ProcessSlot) -> Finding:
    """Whether a task has blocked the event loop of a running process."""
    try:
        return check_loops(slot.read_notes())
    except OSError as error:
        remedy = "run the doctor as the user that runs asyncbg, with free file descriptors"
        return failed("event loop", f"the processes cannot be inspected: {_reason(error)}", remedy)


def check_loops(notes: Mapping[str, str]) -> Finding:
    """Whether a task has blocked an event loop, according to the notes of the processes."""
    held: list[str] = []
    for name, text in sorted(notes.items()):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            held += [
                f"{one['task']} at {one['line']} ({one['times']} times, process {name})"
                for one in json.loads(text or "[]")
            ]
    if held:
        remedy = "await there, or declare the task with def, which runs in a thread"
        return warning("event loop", f"blocked by {'; '.join(held)}", remedy)
    return ok("event loop", "not blocked" if notes else "no process runs jobs of this database")


# Stored data


def check_content(path: Path, slot: ProcessSlot, clock: Clock, keys: Sequence[bytes] = ()) -> list[Finding]:
    """Check schema, jobs, encryption and clock by the content of the database."""
    if not path.is_file() or not path.stat().st_size:
        return [ok("schema", "no tables yet"), ok("jobs", "none yet"), check_clock(clock)]
    try:
        with contextlib.closing(_connect(path)) as connection:
            schema = check_schema(connection)
            if schema.status is not Status.OK:
                return [schema, check_clock(clock)]
            newest = connection.execute(SQL["newest"]).fetchone()
            jobs, sealed = check_jobs(connection, slot, clock), check_encryption(connection, keys)
            return [schema, jobs, sealed, check_clock(clock, newest[0] if newest else 0)]
    except sqlite3.Error as error:
        name = getattr(error, "sqlite_errorname", type(error).__name__)
        remedy = "check that it is a database of asyncbg; if it is damaged, restore a backup"
        return [failed("schema", f"{path} cannot be read ({name})", remedy), check_clock(clock)]


def check_schema(connection: sqlite3.Connection) -> Finding:
    """Whether the schema is of this version."""
    try:
        found = dict(connection.execute(SQL["versions"]).fetchall())
    except sqlite3.OperationalError as error:
        if "no such table" not in str(error):
            raise
        found = {}
    newer = [(name, version) for name, version in found.items() if version > _KNOWN.get(name, 0)]
    older = [(name, version) for name, version in ({"engine": 0} | found).items() if version < _KNOWN.get(name, 0)]
    if newer:
        finding = ", ".join(f"{name} {version} (this asyncbg knows {_KNOWN.get(name, 0)})" for name, version in newer)
        return failed("schema", f"written by a newer asyncbg: {finding}", "upgrade asyncbg, or use another database")
    if older:
        finding = ", ".join(f"{name} {version} of {_KNOWN[name]}" for name, version in older)
        return warning("schema", f"version {finding}", "the next start migrates it; make a backup first")
    return ok("schema", f"version {found['engine']}")


def check_jobs(connection: sqlite3.Connection, slot: ProcessSlot, clock: Clock) -> Finding:
    """Whether jobs are lost, have crashed processes, are overdue, or belong to unknown tasks."""
    running = dict(connection.execute(SQL["running"]).fetchall())
    lost = sum(running[name] for name in slot.gone(running))
    crashed, crashes = connection.execute(SQL["crashed"]).fetchone()
    poison = connection.execute(SQL["poison"]).fetchone()[0]
    before_ms = clock.now_ms() - _OVERDUE_MS
    overdue = connection.execute(SQL["overdue"], {"before_ms": before_ms}).fetchone()[0]
    asked = {"before_ms": before_ms, "reason": dump({"reason": NO_SUCH_TASK})}
    unknown = dict(connection.execute(SQL["unknown"], asked).fetchall())
    found = [
        (lost, f"{lost} running without a process", "start `asyncbg serve` or `asyncbg worker`, which recovers them"),
        (poison, f"{poison} failed after crashes", "`asyncbg jobs list --state failed`; fix the task, then retry them"),
        (crashed, f"{crashed} unfinished crashed a process (up to {crashes} times)", "see the log of that process"),
        (overdue, f"{overdue} queued for more than a minute", _OVERDUE),
        (len(unknown), _unknown_tasks(unknown), _UNKNOWN),
    ]  # fmt: skip
    bad = [(finding, remedy) for many, finding, remedy in found if many]
    if bad:
        return warning("jobs", "; ".join(finding for finding, _ in bad), "; ".join(remedy for _, remedy in bad))
    return ok("jobs", "none lost, none crashing")


def _unknown_tasks(unknown: Mapping[str, int]) -> str:
    named = ", ".join(f"{task} ({many})" for task, many in list(unknown.items())[:_MOST_TASKS])
    more = f" and of {len(unknown) - _MOST_TASKS} more" if len(unknown) > _MOST_TASKS else ""
    return f"{sum(unknown.values())} of tasks that no process has registered: {named}{more}"


def check_encryption(connection: sqlite3.Connection, keys: Sequence[bytes]) -> Finding:
    """Whether every encrypted value can be decrypted with one of the keys."""
    try:
        known = Encryption(keys).key_ids
    except SettingsError as error:
        return failed("encryption", str(error), "install the package it names")
    used = dict(connection.execute(SQL["sealed"]).fetchall())
    missing = sorted(used.keys() - set(known))
    if missing:
        many = sum(used[key] for key in missing)
        finding = f"{many} values are encrypted with keys that are not set, with the ids {', '.join(missing)}"
        return failed("encryption", finding, "add the keys to ASYNCBG_PRIVACY__ENCRYPTION_KEYS")
    if used.keys() - set(known[:1]):
        return warning("encryption", "some values are encrypted with an older key", "run `asyncbg rekey`")
    return ok("encryption", f"on, with the key of id {known[0]}" if known else "off")


_UNKNOWN = (
    "start a process that has the task, or cancel its jobs: `asyncbg jobs cancel --match 'task:NAME state:queued'`"
)
_OVERDUE = (
    "start `asyncbg serve` or `asyncbg worker` where none runs; else raise ASYNCBG_RUNNER__CONCURRENCY, or see what "
    "blocks the tasks"
)


def _connect(path: Path) -> sqlite3.Connection:
    """Return a read-only connection."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None)
    connection.execute("PRAGMA query_only = ON")
    return connection


# Mail server


async def check_smtp(smtp: SmtpSettings, *, timeout_s: float = _SMTP_TIMEOUT_S) -> Finding:
    """Whether the mail server accepts connections; no command is sent."""
    server = f"{smtp.host} port {smtp.port}"
    try:
        async with asyncio.timeout(min(timeout_s, smtp.timeout_s)):
            _, writer = await asyncio.open_connection(smtp.host, smtp.port)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    except (OSError, TimeoutError) as error:
        reason = _reason(error)
        remedy = "set ASYNCBG_SMTP__HOST and ASYNCBG_SMTP__PORT, or check why it does not respond"
        if smtp == SmtpSettings():
            return warning("smtp", f"no mail server is set, and {server} does not respond: {reason}", remedy)
        return failed("smtp", f"{server} does not respond: {reason}", remedy)
    return ok("smtp", f"{server} responds")


def _reason(error: OSError | TimeoutError) -> str:
    if isinstance(error, TimeoutError):
        return "timeout"
    return os.strerror(error.errno).lower() if error.errno and error.errno > 0 else "unknown host name"


def _existing(path: Path) -> Path:
    """Return the path, or its nearest existing parent directory."""
    path = path.absolute().resolve()
    return next(place for place in (path, *path.parents) if place.exists())
