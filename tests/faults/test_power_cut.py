"""A power cut loses nothing that was acknowledged; the long form is in docs/reliability.md."""

import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from asyncbg.core.clock import ManualClock
from asyncbg.core.ids import IdGenerator
from asyncbg.core.job import JobState, NewJob
from asyncbg.store.base import JobQuery
from asyncbg.store.sqlite import SQLiteBackend
from asyncbg.store.sqlite.database import Database
from tests.faults.power_cut import BEGAN_MS, cut_again_and_again
from tests.faults.power_disk import Deleted, Disk, Opened, SyncBegan, Synced, Written
from tests.faults.power_verdict import Expected, judge_file
from tests.faults.power_work import DATABASE, read_files, record

SEEDS = range(100)
LEASE_S = 30.0


def draws(disk: Disk) -> list[dict[str, bytes]]:
    """What is left after a hundred cuts at the same moment."""
    return [disk.cut(random.Random(seed)) for seed in SEEDS]


def a_disk(*entries: object) -> Disk:
    """A disk that these things happened to."""
    disk = Disk()
    for entry in entries:
        disk.apply(entry)
    return disk


SAFE = (Opened("a"), Written("a", 0, b"x" * 1024), SyncBegan("a"), Synced("a", directory=True))


def test_what_was_synced_is_left() -> None:
    """No cut changes a byte that was synced."""
    assert all(files == {"a": b"x" * 1024} for files in draws(a_disk(*SAFE)))


def test_what_was_not_synced_is_kept_lost_or_torn_by_sectors() -> None:
    """A write over two sectors: both, neither, the second alone, and parts of each are among what is left."""
    left = {files["a"] for files in draws(a_disk(*SAFE, Written("a", 0, b"y" * 1024), SyncBegan("a")))}

    assert {b"x" * 1024, b"y" * 1024, b"x" * 512 + b"y" * 512, b"y" * 512 + b"x" * 512} <= left
    assert any(0 < content[:512].count(b"y") < 512 and set(content[:512]) == {*b"xy"} for content in left)


def test_a_name_that_was_not_synced_may_be_there_or_not() -> None:
    """A file that was deleted, its directory not synced, may come back."""
    left = draws(a_disk(*SAFE, Deleted("a", directory=False)))

    assert {*map(len, left)} == {0, 1}


async def test_the_shim_sees_every_write(tmp_path: Path) -> None:
    """The files that the store left are those that the recorded writes give."""
    recording = await record(tmp_path, random.Random(1), now_ms=BEGAN_MS, rounds=15)

    assert a_disk(*recording.log).seen() == read_files(tmp_path)


async def test_power_cuts_lose_nothing() -> None:
    """Nothing acknowledged is lost or torn wherever the power went, and the store goes on from what is left."""
    report = await cut_again_and_again(24, seed=random.SystemRandom().getrandbits(32), rounds=30)

    assert report.broken == []
    assert (report.total.images, report.total.rows_lost, report.total.corrupt) == (24, 0, 0)
    assert report.total.jobs > 0


async def test_without_a_sync_the_loss_is_found() -> None:
    """The proof can fail: a store that does not sync loses what it acknowledged, and each loss is told."""
    report = await cut_again_and_again(16, seed=1, rounds=30, synchronous="OFF")

    assert report.total.images_with_loss > 0
    assert any("acknowledged commits are lost" in line for line in report.broken)


async def test_a_row_that_is_missing_or_changed_is_found(tmp_path: Path) -> None:
    """One job gone, or one attempt more, is no state that the store ever was in."""
    recording = await record(tmp_path, random.Random(1), now_ms=BEGAN_MS, rounds=15)
    expected = Expected()
    for entry in recording.log:
        expected.follow(entry)
    assert judge_file(tmp_path / DATABASE, expected).wrong == []

    with closing(sqlite3.connect(tmp_path / DATABASE)) as connection, connection:
        connection.execute("UPDATE job SET attempt = attempt + 1 WHERE n = (SELECT max(n) FROM job)")
    assert judge_file(tmp_path / DATABASE, expected).wrong == ["the rows are those of no commit"]


async def test_a_place_that_the_cut_took_leaves_no_job_behind(tmp_path: Path) -> None:
    """The file of a second process's place was not on the disk yet: its job runs again, however long its lease."""
    clock = ManualClock()
    lived, booted = tmp_path / "lived", tmp_path / "booted"
    lived.mkdir()
    booted.mkdir()
    first = SQLiteBackend(Database(str(lived / DATABASE)), clock=clock)
    second = SQLiteBackend(Database(str(lived / DATABASE)), clock=clock)
    await first.open()
    await second.open()
    await second.enqueue([a_job(clock), a_job(clock)._replace(durable=0, place=second.place)])
    claimed = await second.claim(1, lease_s=LEASE_S)
    await first.close()
    await second.close()
    shutil.copy(lived / DATABASE, booted / DATABASE)

    after = SQLiteBackend(Database(str(booted / DATABASE)), clock=ManualClock(1_000))
    await after.open()
    try:
        states = [record.state for record in await after.list(JobQuery())]
    finally:
        await after.close()

    assert len(claimed.leases) == 1
    assert states == [JobState.FAILED, JobState.QUEUED]


def a_job(clock: ManualClock) -> NewJob:
    """A job that is due now."""
    job_id, now_ms = IdGenerator(clock).new(), clock.now_ms()
    return NewJob(
        id=job_id, task="greet", queue="default", owner="ada", batch=job_id, tags="[]", state=str(JobState.QUEUED),
        priority=0, durable=1, at_most_once=0, stop_on_failure=0, retries=0, args="{}", personal="{}",
        created_at_ms=now_ms, run_at_ms=now_ms,
    )  # fmt: skip
