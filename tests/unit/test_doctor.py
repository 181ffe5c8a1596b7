"""The doctor: each check on something healthy and on something that is not."""

import asyncio
import json
import os
import sqlite3
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from asyncbg.cli import run
from asyncbg.core.clock import ManualClock
from asyncbg.engine import Engine
from asyncbg.ops import doctor
from asyncbg.ops.doctor import Finding, Status
from asyncbg.settings import Settings, SmtpSettings

MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /mnt/share rw - nfs4 server:/share rw
31 22 0:41 / /mnt/my\\040files rw - fuse.sshfs user@host: rw
32 22 0:42 / /run rw - tmpfs tmpfs rw
"""


@pytest.fixture
def overrides(tmp_path: Path) -> Mapping[str, Any]:
    """Settings on a directory of the test's own."""
    return {"database_url": f"sqlite:///{tmp_path / 'doctor.db'}", "data_dir": tmp_path / "data"}


async def examined(overrides: Mapping[str, Any], **changed: Any) -> dict[str, Finding]:
    """All findings by check."""
    return {found.check: found for found in await doctor.diagnose({**overrides, **changed})}


async def nothing() -> None:
    """A task."""


async def test_a_fresh_directory_is_well(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """Nothing is broken where nothing is yet, and looking creates nothing."""
    findings = await examined(overrides)

    assert Status.FAILED not in {found.status for found in findings.values()}
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - in a coroutine


async def test_every_finding_that_is_not_well_has_a_remedy(overrides: Mapping[str, Any]) -> None:
    """And one that is well needs none."""
    for found in (await examined(overrides)).values():
        assert bool(found.remedy) == (found.status is not Status.OK), found


async def test_a_running_service_is_well(overrides: Mapping[str, Any]) -> None:
    """The schema is current and no job is lost while a process runs the jobs."""
    async with Engine(Settings(**overrides)) as engine:
        await (await engine.task(nothing).enqueue()).result(20)
        findings = await examined(overrides)

    for check in ("settings", "database permissions", "schema", "jobs", "clock"):
        assert findings[check].status is Status.OK, findings[check]


@pytest.mark.parametrize(
    ("version", "status"),
    [((3, 37, 2), Status.FAILED), ((3, 40, 1), Status.OK), ((3, 51, 2), Status.OK), ((3, 51, 3), Status.OK)],
)
def test_every_sqlite_that_is_taken_may_be_shared(version: tuple[int, ...], status: Status) -> None:
    """Also one with the WAL-reset bug (3.7.0 to 3.51.2): the lock of the checkpoints keeps it from happening."""
    found = doctor.check_sqlite(version)

    assert found.status is status
    assert ("WAL-reset bug is avoided" in found.finding) == ((3, 38, 0) <= version < (3, 51, 3))


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [
        ("/var/lib/x", "ext4", Status.OK),
        ("/mnt/share/db", "nfs4", Status.WARNING),
        ("/mnt/my files", "fuse.sshfs", Status.WARNING),
        ("/run/x", "tmpfs", Status.WARNING),
        ("/mnt/shared", "ext4", Status.OK),
    ],
)
def test_a_file_system_that_cannot_be_relied_on_is_told(path: str, kind: str, status: Status) -> None:
    """Network, user-space and memory file systems are warned of; the longest mount point counts."""
    assert doctor.filesystem_of(Path(path), MOUNTS) == kind
    assert doctor.check_filesystem("database", kind).status is status


def test_where_mounts_are_unknown_nothing_is_claimed() -> None:
    """Without a list of mounts the kind is unknown, and that is no warning."""
    assert doctor.filesystem_of(Path("/x"), "") == ""
    assert doctor.check_filesystem("database", "").status is Status.OK


def test_a_clock_that_cannot_be_right_is_told() -> None:
    """Before asyncbg was made it is broken; before the newest event it is doubtful."""
    now = ManualClock()

    assert doctor.check_clock(now).status is Status.OK
    assert doctor.check_clock(ManualClock(0)).status is Status.FAILED
    assert doctor.check_clock(now, now.now_ms() + 3_600_000).status is Status.WARNING


async def test_open_files_are_told(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """A database that others may read, and a data directory that others may write."""
    async with Engine(Settings(**overrides)):
        pass
    (tmp_path / "doctor.db").chmod(0o644)
    (tmp_path / "data").mkdir(exist_ok=True)
    (tmp_path / "data").chmod(0o777)

    findings = await examined(overrides)

    assert findings["database permissions"].status is Status.WARNING
    assert "chmod 600" in findings["database permissions"].remedy
    assert findings["data permissions"].status is Status.WARNING


async def test_a_missing_directory_is_told(tmp_path: Path) -> None:
    """The directory of the database must be there; the service does not create it."""
    findings = await examined({"database_url": f"sqlite:///{tmp_path / 'no' / 'doctor.db'}", "data_dir": tmp_path})

    assert findings["database permissions"].status is Status.FAILED


async def test_a_file_that_is_no_database_is_told(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """It cannot be read, and the remedy says what to do."""
    (tmp_path / "doctor.db").write_bytes(b"name,city\n" * 500)

    assert (await examined(overrides))["schema"].status is Status.FAILED


async def test_a_newer_schema_is_told(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """A database of a newer version needs a newer asyncbg; an older one is brought up to date."""
    async with Engine(Settings(**overrides)):
        pass
    statuses = []
    for version in (99, 0):
        with sqlite3.connect(tmp_path / "doctor.db") as connection:
            connection.execute("UPDATE schema_version SET version = ? WHERE component = 'engine'", (version,))
        connection.close()
        statuses.append((await examined(overrides))["schema"].status)

    assert statuses == [Status.FAILED, Status.WARNING]


@pytest.mark.parametrize("component", ["activity", "audit", "imports", "keys", "sessions", "tickets", "of the future"])
async def test_newer_tables_of_any_part_are_told(overrides: Mapping[str, Any], tmp_path: Path, component: str) -> None:
    """Also of a part that this version has never heard of: the finding names it, the remedy is an upgrade."""
    async with Engine(Settings(**overrides)):
        pass
    with sqlite3.connect(tmp_path / "doctor.db") as connection:
        connection.execute("INSERT OR REPLACE INTO schema_version VALUES (?, 99)", (component,))
    connection.close()

    schema = (await examined(overrides))["schema"]

    assert schema.status is Status.FAILED
    assert f"{component} 99" in schema.finding
    assert "upgrade asyncbg" in schema.remedy


async def test_jobs_of_removed_tasks_are_named(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """A process has looked at one more than a minute ago and left it: the task, its jobs, how to cancel them."""
    async with Engine(Settings(**overrides)) as old:
        old._parts.runner.stop_claiming()

        @old.task(name="gone")
        async def gone() -> None: ...

        for _ in range(2):
            await old.submit("gone", {})
    async with Engine(Settings(**overrides)) as new:
        async with asyncio.timeout(10):
            while (await new.backend.position()).last_seq < 6:  # noqa: ASYNC110 - of the log itself
                await asyncio.sleep(0.01)
    with sqlite3.connect(tmp_path / "doctor.db") as connection:
        connection.execute("UPDATE event SET at = 1")
        connection.execute("UPDATE job SET run_at = 1")
    connection.close()

    jobs = (await examined(overrides))["jobs"]

    assert "2 of tasks that no process has registered: gone (2)" in jobs.finding
    assert "--match" in jobs.remedy


async def test_lost_and_poisonous_jobs_are_told(overrides: Mapping[str, Any], tmp_path: Path) -> None:
    """Running without a process, failed as poison, unfinished after a crash: each with what to do."""
    async with Engine(Settings(**overrides)) as engine:
        task = engine.task(nothing)
        for _ in range(3):
            await task.options(delay=3600).enqueue()
    with sqlite3.connect(tmp_path / "doctor.db") as connection:
        connection.execute("DROP TRIGGER job_moves")
        connection.execute("UPDATE job SET state = 'running', token = 1, lease_until = 1, place = '7' WHERE n = 1")
        connection.execute("UPDATE job SET state = 'failed', finished_at = 1, error_type = 'PoisonError' WHERE n = 2")
        connection.execute("UPDATE job SET crashes = 2 WHERE n = 3")
    connection.close()

    found = (await examined(overrides))["jobs"]

    assert found.status is Status.WARNING
    assert (
        found.finding
        == "1 running without a process; 1 failed after crashes; 1 unfinished crashed a process (up to 2 times)"
    )


async def test_the_mail_server_is_reached() -> None:
    """A connection is enough; one that was set and does not answer is broken."""
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        reached = await doctor.check_smtp(SmtpSettings(host="127.0.0.1", port=port))
    missed = await doctor.check_smtp(SmtpSettings(host="127.0.0.1", port=port))

    assert reached.status is Status.OK
    assert missed.status is Status.FAILED
    assert missed.finding == f"127.0.0.1 port {port} does not respond: connection refused"


def test_the_command_exits_1_where_something_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A setting that does not load is a finding like any other; a healthy place is exit code 0."""
    monkeypatch.chdir(tmp_path)

    assert run(["doctor"]) == 0
    assert "sqlite" in capsys.readouterr().out
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True
    monkeypatch.setitem(os.environ, "ASYNCBG_SERVER__PROT", "1")
    assert run(["doctor", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["checks"][0]["check"] == "settings"
    assert "ASYNCBG_SERVER__PROT" in told["checks"][0]["finding"]


async def hold_the_loop() -> None:
    """A task that sleeps the wrong way."""
    time.sleep(0.4)  # noqa: ASYNC251 - the very thing


async def test_what_holds_an_event_loop_is_named(overrides: Mapping[str, Any]) -> None:
    """The doctor tells of the task and the line that held the loop of a process that runs."""
    async with Engine(Settings(**overrides)) as engine:
        assert (await examined(overrides))["event loop"].status is Status.OK
        await (await engine.task(hold_the_loop).enqueue()).result(20)
        found = (await examined(overrides))["event loop"]

    assert found.status is Status.WARNING
    assert "hold_the_loop" in found.finding
    assert Path(__file__).name in found.finding
    assert (await examined(overrides))["event loop"].finding == "no process runs jobs of this database"
