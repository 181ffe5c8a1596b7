"""Encryption at rest, seen from outside: the engine works as ever, and the files hold none of it."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import pytest

from asyncbg import AsyncBG
from asyncbg.cli import run
from asyncbg.core.job import JobState
from asyncbg.engine import Job
from asyncbg.errors import IdempotencyError, JobFailedError, UnreadableError
from asyncbg.ops.doctor import Status, diagnose
from asyncbg.privacy import Personal
from asyncbg.settings import Settings
from asyncbg.web.schemas import JobOut

OLD, NEW = "6f" * 32, "6e" * 32
SECRET = "Plaintext-canary7f3a"


def settings(place: Path, *keys: str) -> Settings:
    """A database in ``place`` under these keys."""
    return Settings.model_validate(
        {"database_url": f"sqlite:///{place / 'jobs.db'}", "privacy": {"encryption_keys": list(keys)}}
    )


def engine(place: Path, *keys: str) -> AsyncBG:
    """An engine with one task, which gives back what it gets."""
    bg = AsyncBG(settings(place, *keys))

    @bg.task(name="echo", key="{text}")
    async def echo(text: str) -> dict[str, str]:
        return {"text": text}

    return bg


def content(place: Path) -> bytes:
    """Every byte of the database and what is beside it."""
    return b"".join(path.read_bytes() for path in place.glob("jobs.db*"))


def row(place: Path, statement: str, *values: Any) -> Any:
    """What a statement answers or changes, in the file itself."""
    with closing(sqlite3.connect(place / "jobs.db")) as connection, connection:
        return connection.execute(statement, values).fetchone()


async def test_the_files_hold_no_arguments_and_no_results(tmp_path: Path) -> None:
    """Nor what is made of them: the unique key, the idempotency key, the fingerprint of the body."""
    async with engine(tmp_path, NEW) as bg:
        later = await bg.submit("echo", {"text": f"{SECRET} later"}, delay_s=3600)
        job = await bg.submit("echo", {"text": SECRET}, idempotency_key=SECRET, fingerprint=SECRET)
        result = await job.result(timeout=10)
        while_running = content(tmp_path)

    assert result == {"text": SECRET}
    assert later.id.encode() in while_running
    for where in (while_running, content(tmp_path)):
        assert SECRET.encode() not in where


async def test_keys_of_jobs_work_as_ever(tmp_path: Path) -> None:
    """The same idempotency key is the same job, or refused by its own name; one open job for each unique key."""
    async with engine(tmp_path, NEW) as bg:
        first = await bg.submit("echo", {"text": "a"}, delay_s=3600, idempotency_key="once", fingerprint="1")
        again = await bg.submit("echo", {"text": "a"}, idempotency_key="once", fingerprint="1")
        unique = await bg.submit("echo", {"text": "a"})
        with pytest.raises(IdempotencyError) as refused:
            await bg.submit("echo", {"text": "a"}, idempotency_key="once", fingerprint="2")
        found = await bg.backend.find_by_key("anonymous", "once")

    assert first.id == again.id == unique.id
    assert (refused.value.key, "once" in str(refused.value)) == ("once", False)
    assert found is not None
    assert found.id == first.id


async def test_a_rotation_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """New key first, old one behind it; after ``rekey`` the old one may go, with jobs and keys of jobs still found."""
    async with engine(tmp_path, OLD) as bg:
        old = await bg.submit("echo", {"text": SECRET}, idempotency_key="old")
        await old.result(timeout=10)
    async with engine(tmp_path, NEW, OLD) as bg:
        assert (await bg.get(old.id)).args == f'{{"text":"{SECRET}"}}'
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    monkeypatch.setenv("ASYNCBG_PRIVACY__ENCRYPTION_KEYS", f"{NEW},{OLD}")

    assert await asyncio.to_thread(run, ["rekey"]) == 0

    async with engine(tmp_path, NEW) as bg:
        assert (await bg.get(old.id)).result == f'{{"text":"{SECRET}"}}'
        again = await bg.submit("echo", {"text": SECRET}, idempotency_key="old")
    assert again.id == old.id


async def test_encryption_can_be_turned_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain values stay readable, and ``rekey`` encrypts them: nothing plain is left in any file."""
    async with engine(tmp_path) as bg:
        await (await bg.submit("echo", {"text": SECRET}, idempotency_key=SECRET)).result(timeout=10)
    assert SECRET.encode() in content(tmp_path)
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", f"sqlite:///{tmp_path / 'jobs.db'}")
    monkeypatch.setenv("ASYNCBG_PRIVACY__ENCRYPTION_KEYS", NEW)

    assert await asyncio.to_thread(run, ["rekey", "--json"]) == 0

    assert SECRET.encode() not in content(tmp_path)
    async with engine(tmp_path, NEW) as bg:
        assert not (await bg.submit("echo", {"text": SECRET}, idempotency_key=SECRET)).created


@pytest.mark.parametrize("keys", [(), (NEW,)])
async def test_a_job_whose_key_is_gone_fails_and_says_so(tmp_path: Path, keys: tuple[str, ...]) -> None:
    """The worker goes on; with the key back, a retry runs it."""
    async with engine(tmp_path, OLD) as bg:
        job_id = (await bg.submit("echo", {"text": SECRET}, delay_s=0.4)).id

    async with engine(tmp_path, *keys) as bg:
        record = await bg.wait(job_id, 10)
        other = await bg.submit("echo", {"text": "other"})
        assert await other.result(timeout=10) == {"text": "other"}
    async with engine(tmp_path, OLD, *keys) as bg:
        await bg.retry(job_id)
        again = await bg.wait(job_id, 10)

    assert record.error is not None
    assert record.error.type == "UnreadableError"
    assert "ASYNCBG_PRIVACY__ENCRYPTION_KEYS" in record.error.message
    assert "ASYNCBG_PRIVACY__ENCRYPTION_KEYS" in JobOut.from_record(record).args["[encrypted]"]
    assert again.result == f'{{"text":"{SECRET}"}}'


async def test_a_result_whose_key_is_gone_is_an_error_at_the_handle(tmp_path: Path) -> None:
    """Never something that looks like a result."""
    async with engine(tmp_path, OLD) as bg:
        job = await bg.submit("echo", {"text": SECRET}, idempotency_key="k")
        await job.result(timeout=10)

    async with engine(tmp_path) as bg:
        handle = Job(bg._parts.control, job.id, task="echo", state=JobState.QUEUED, batch=job.id, owner="anonymous")
        with pytest.raises(UnreadableError, match="ENCRYPTION_KEYS"):
            await handle.result(timeout=10)


async def test_ciphertexts_that_were_swapped_are_refused(tmp_path: Path) -> None:
    """Whoever can write the file cannot make one job run with another one's arguments."""
    async with engine(tmp_path, NEW) as bg:
        one, other = [(await bg.submit("echo", {"text": text}, delay_s=0.4)).id for text in ("one", "other")]
        stolen = row(tmp_path, "SELECT args FROM job WHERE id = ?", one)[0]
    row(tmp_path, "UPDATE job SET args = ? WHERE id = ?", stolen, other)

    async with engine(tmp_path, NEW) as bg:
        refused, ran = await bg.wait(other, 10), await bg.wait(one, 10)

    assert refused.error is not None
    assert "belongs to another job" in refused.error.message
    assert ran.result == '{"text":"one"}'


async def test_the_doctor_names_keys_that_are_missing(tmp_path: Path) -> None:
    """By their ids, and tells when values wait to be encrypted anew."""
    async with engine(tmp_path, OLD) as bg:
        await (await bg.submit("echo", {"text": SECRET})).result(timeout=10)

    found = {}
    for keys in ((OLD,), (NEW, OLD), (NEW,), ()):
        checks = await diagnose(settings(tmp_path, *keys).model_dump(include={"database_url"}) | _ring(keys))
        [found[keys]] = [one for one in checks if one.check == "encryption"]

    assert [one.status for one in found.values()] == [Status.OK, Status.WARNING, Status.FAILED, Status.FAILED]
    assert "rekey" in found[NEW, OLD].remedy
    assert "ENCRYPTION_KEYS" in found[()].remedy


def _ring(keys: tuple[str, ...]) -> dict[str, Any]:
    return {"privacy": {"encryption_keys": list(keys)}}


async def test_marks_and_failures_work_on_sealed_jobs(tmp_path: Path) -> None:
    """A marked argument is a pseudonym, a failed job says why."""
    bg = AsyncBG(settings(tmp_path, NEW))

    @bg.task
    async def refuse(email: Annotated[str, Personal("email")]) -> None:
        raise LookupError(f"no {email}")

    async with bg:
        job = await refuse.enqueue("ada.canary7f3a@canary7f3a.example")
        with pytest.raises(JobFailedError, match=r"no \[email:"):
            await job.result(timeout=10)
        assert JobOut.from_record(await bg.get(job.id)).args["email"].startswith("[email:")


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Commands run where no ``.env`` is."""
    monkeypatch.chdir(tmp_path)
