"""``asyncbg forget``: after it no file holds the person any more, beside a running service and without one."""

import asyncio
import io
import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import ValidationError

from asyncbg import AsyncBG
from asyncbg.auth.keys import check_name
from asyncbg.cli import run
from asyncbg.errors import KeyNameError
from asyncbg.privacy import Personal
from asyncbg.service.integrations.activity import Activity
from asyncbg.settings import ApiKey, Settings

ADA, BOB, LONGER = "Ada.Canary7f3a@example.com", "bob.canary7f3a@canary7f3a.example", "ada.canary7f3a@example.com.au"
KEY = "6b" * 32


@dataclass(frozen=True)
class Place:
    """A directory with a database and a data directory, and the commands run there."""

    path: Path

    def forget(self, *arguments: str, stdin: str = "") -> tuple[int, str, str]:
        """One command in this process: its exit code and what it printed."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.path)
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            code = run(["forget", *arguments])
        return code, out.getvalue(), err.getvalue()

    def holding(self, *others: Path) -> dict[str, int]:
        """How often each file holds the address, in any case, as it is or percent-encoded."""
        names = {ADA.lower().encode(), ADA.lower().replace("@", "%40").encode()}
        files = [path for path in [*self.path.rglob("*"), *others] if path.is_file()]
        counts = {path.name: sum(path.read_bytes().lower().count(name) for name in names) for path in files}
        return {name: many for name, many in counts.items() if many}

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        """What the database answers."""
        with closing(sqlite3.connect(self.path / "asyncbg.db")) as connection:
            return connection.execute(statement).fetchall()


def _environment() -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    return {**inherited, "ASYNCBG_DEMO__STEP_S": "0.01", "ASYNCBG_SERVER__PORT": "0", "PYTHONUNBUFFERED": "1"}


@pytest.fixture(params=["plain", "encrypted"])
def served(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Place, str]]:
    """A directory where the service runs, and the service's address."""
    if request.param == "encrypted":
        monkeypatch.setenv("ASYNCBG_PRIVACY__ENCRYPTION_KEYS", KEY)
    variables = _environment() | {k: v for k, v in os.environ.items() if k.startswith("ASYNCBG_PRIVACY")}
    command = [sys.executable, "-m", "asyncbg.cli", "serve"]
    with (tmp_path.parent / "served.log").open("w+") as log:
        service = subprocess.Popen(command, cwd=tmp_path, env=variables, stdout=log, stderr=log)
        try:
            yield Place(tmp_path), _address(service, Path(log.name))
        finally:
            service.terminate()
            service.wait(30)


def _address(service: subprocess.Popen[bytes], log: Path) -> str:
    deadline_s = time.monotonic() + 30
    while time.monotonic() < deadline_s and service.poll() is None:
        _, found, rest = log.read_text("utf-8").partition("Uvicorn running on ")
        if found:
            return rest.split()[0]
        time.sleep(0.02)
    raise AssertionError(log.read_text("utf-8"))


def _fill(url: str) -> None:
    """Everything the service can be told of Ada, and as much of Bob."""
    with httpx.Client(base_url=url, timeout=30) as http:
        accepted: list[httpx.Response] = []
        for who in (ADA, BOB, LONGER):
            for number in range(20):
                accepted += [
                    http.post(f"/send-notification/{quote(who)}", json={"message": f"dear {who}, number {number}"}),
                    http.post("/user/7/action", json={"action": f"wrote to {who}"}),
                    http.post(f"/safe-task/{number + 1}", json={"message": f"from {who.upper()}"}),
                ]
            accepted.append(http.post(f"/process/{quote(who)}"))
            rows = "".join(f"{number},{who},{'x' * 50}\n" for number in range(50))
            files = {"file": (f"{who}.csv", f"id,email,text\n{rows}".encode(), "text/csv")}
            accepted.append(http.post("/upload-csv/7", files=files))
            later = {"task": "send_email", "args": {"to_email": who, "subject": who, "body": who}, "delay_s": 3600}
            accepted.append(
                http.post("/jobs", json={**later, "tags": [who]}, headers={"Idempotency-Key": f"mail/{who}"})
            )
        assert {answer.status_code for answer in accepted} == {202}
        for job in [answer.json()["jobs"][-1] for answer in accepted]:
            state = http.get(f"/jobs/{job['id']}", params={"wait": 0.2}).json()["state"]
            while state not in ("succeeded", "scheduled"):
                assert state not in ("failed", "cancelled")
                state = http.get(f"/jobs/{job['id']}", params={"wait": 10}).json()["state"]


def test_nothing_of_a_person_stays_while_the_service_runs(served: tuple[Place, str]) -> None:
    """In no file, in no backup made after; others' data, also of longer addresses, and all counts stay."""
    place, url = served
    _fill(url)
    before = place.rows("SELECT count(*) FROM job")
    assert place.holding()

    code, out, err = place.forget(ADA, "--json")

    done = json.loads(out)
    assert (code, err) == (0, ""), out
    assert done["ok"]
    assert (done["checked"]["found"], done["running"], done["cancelled"]) == ({}, [], 1)
    assert min(done[name] for name in ("jobs", "activity", "imports", "log_lines")) >= 20
    assert "canary7f3a" not in out.lower()
    backup = place.path.parent / "copy.db"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.chdir(place.path)
        assert run(["backup", str(backup)]) == 0
    longer = [path for path in [*place.path.rglob("*"), backup] if path.is_file()]
    for path in longer:
        content = path.read_bytes().lower()
        assert content.count(ADA.lower().encode()) == content.count(LONGER.encode()), path
    assert place.rows("SELECT count(*) FROM job") == before
    log = (place.path / "asyncbg-data" / "notifications.log").read_text("utf-8")
    assert log.count(f"notification for {BOB}: ") == log.count(f"notification for {LONGER}: ") == 20
    assert len(log.splitlines()) == 123
    with httpx.Client(base_url=url) as http:
        assert http.get("/health/ready").status_code == 200
        actions = http.get("/user/7/statistics").json()["by_action"]
        assert actions == {f"wrote to {BOB}": 20, f"wrote to {LONGER}": 20, done["person"]: 20}
        rest = http.get("/jobs", params={"state": "scheduled"}).json()["items"]
    assert len(rest) == 2
    backup.unlink()


def test_a_second_time_there_is_nothing_to_erase(tmp_path: Path) -> None:
    """Without a service too; of the first time everything is told, of the second nothing is left to tell."""
    place = Place(tmp_path)
    asyncio.run(_run_jobs(tmp_path))
    assert place.holding()

    first, told, _ = place.forget("-", "--json", stdin=f"{ADA}\n")
    second, again, _ = place.forget(ADA, "--json")

    assert (first, second) == (0, 0)
    assert place.holding() == {}
    assert json.loads(told)["jobs"] == 3
    assert json.loads(again)["jobs"] == 0
    errors = place.rows("SELECT error_message FROM job WHERE state = 'failed'")
    assert all(re.fullmatch(r"nobody is called \[email:\w{8}]", text) for (text,) in errors)
    assert place.rows("SELECT count(*) FROM job WHERE durable = 1 OR fingerprint IS NOT NULL") == [(0,)]
    audited = place.rows("SELECT who, what, outcome, reason FROM audit ORDER BY seq")
    assert audited == [("command line", "person.forget", "done", f"{many} jobs") for many in (3, 0)]
    ((which,),) = place.rows("SELECT DISTINCT which FROM audit")
    assert re.fullmatch(r"\[email:\w{8}]", which)


async def _run_jobs(path: Path) -> None:
    """A job that succeeds with a result, one that fails, one that waits."""
    async with AsyncBG(Settings(database_url=f"sqlite:///{path / 'asyncbg.db'}")) as bg:

        @bg.task
        async def welcome(email: Annotated[str, Personal("email")], note: str) -> dict[str, str]:
            return {"note": note, "link": f"https://example.com/?to={quote(email, safe='')}"}

        @bg.task
        async def refuse(email: str) -> None:
            raise LookupError(f"nobody is called {email}")

        await (await bg.submit("welcome", {"email": ADA, "note": ADA}, idempotency_key=ADA, fingerprint="f")).result(10)
        await bg.wait((await refuse.enqueue(ADA)).id, 10)
        await welcome.options(delay=3600, tags=[ADA]).enqueue(ADA, "later")


def test_an_owner_that_is_the_person_is_forgotten_too(tmp_path: Path) -> None:
    """Of what they submitted nothing but the rows is left, of their tickets nothing; the log of it has a pseudonym."""
    place = Place(tmp_path)
    asyncio.run(_own(tmp_path))
    held = {table for table in ("job", "stream_ticket", "audit") if ADA in str(place.rows(f"SELECT * FROM {table}"))}  # noqa: S608 - our own words
    assert held == {"job", "stream_ticket", "audit"}

    code, out, err = place.forget(ADA, "--json")

    done = json.loads(out)
    assert (code, err) == (0, ""), out
    assert (done["jobs"], done["tickets"], done["audit"], done["elsewhere"]) == (2, 1, 1, {})
    assert place.holding() == {}
    assert place.rows("SELECT owner, args, result, tags FROM job ORDER BY n") == [
        (done["person"], "{}", "null", "[]"),
        ("shop", f'{{"email": "{done["person"]}"}}', "null", '["x"]'),
    ]
    assert place.rows("SELECT owner FROM stream_ticket") == [("shop",)]
    audited = place.rows("SELECT who, what, which, reason FROM audit WHERE who <> 'command line' ORDER BY seq")
    assert audited == [
        (done["person"], "job.cancel", "j1", f"told {done['person']}"),
        ("shop", "job.cancel", "j2", ""),
    ]
    ((reason,),) = place.rows("SELECT reason FROM audit WHERE what = 'person.forget'")
    assert reason == "2 jobs, 1 rows of this log"
    with pytest.raises(sqlite3.IntegrityError, match="append-only"):
        place.rows("UPDATE audit SET who = 'x'")


async def _own(path: Path) -> None:
    """Ada is an owner herself, and somebody whom the shop writes to; a row of the audit log let her slip."""
    async with AsyncBG(Settings(database_url=f"sqlite:///{path / 'asyncbg.db'}")) as bg:

        @bg.task
        async def write(email: Annotated[str, Personal("email")] = "", diary: str = "") -> None: ...

        await (await write.options(owner=ADA, tags=["x"]).enqueue(diary="what nobody marked")).result(10)
        await (await write.options(owner="shop", tags=["x"]).enqueue(ADA)).result(10)
        for owner in (ADA, "shop"):
            await bg._tickets.issue("/events", owner=owner, holder=json.dumps({"owner": owner}))
        row = (bg.clock.now_ms(), ADA, f"told {ADA}")
        insert = "INSERT INTO audit VALUES (NULL, ?, ?, 'job.cancel', 'j1', 'done', ?)"
        await bg._parts.database.write(lambda connection: connection.execute(insert, row).rowcount)
        await bg._audit.record("job.cancel", "j2", who="shop")


def test_the_same_user_of_another_owner_keeps_the_statistics(tmp_path: Path) -> None:
    """A user's number is another user for every owner: what is erased of one is not written over the other's."""
    place = Place(tmp_path)
    asyncio.run(_act(tmp_path))

    code, out, _ = place.forget(ADA, "--json")

    assert code == 0, out
    assert place.holding() == {}
    assert place.rows("SELECT owner, by_action FROM user_statistics") == [("bob", '{"login": 1}')]
    person = json.loads(out)["person"]
    assert place.rows("SELECT owner, action FROM activity ORDER BY seq") == [
        ("bob", "login"), ("ada", person), (person, "look"),
    ]  # fmt: skip


async def _act(path: Path) -> None:
    async with AsyncBG(Settings(database_url=f"sqlite:///{path / 'asyncbg.db'}")) as bg:
        activity = Activity(bg._parts.database, clock=bg.clock)
        await activity.open()
        for owner, action in (("bob", "login"), ("ada", f"wrote to {ADA}"), (ADA, "look")):
            await activity.record(user_id=7, action=action, job_id=action[:5], owner=owner)
            await activity.refresh_statistics(7, owner=owner)


@pytest.mark.parametrize("name", [ADA, "ada@localhost", "[email:ab12cd34]"])
async def test_the_name_of_a_key_cannot_be_an_address(name: str) -> None:
    """So the tables of keys and sessions hold nobody: a key is revoked and never deleted."""
    with pytest.raises(KeyNameError):
        check_name(name)
    with pytest.raises(ValidationError):
        ApiKey(name=name, hash="x")


def test_a_job_that_runs_is_named_and_erased_the_next_time(tmp_path: Path) -> None:
    """What it holds is needed until it ends; the exit code is 1 until nothing remains."""
    asyncio.run(_with_a_running_job(Place(tmp_path)))


async def _with_a_running_job(place: Place) -> None:
    go_on, started = asyncio.Event(), asyncio.Event()
    async with AsyncBG(Settings(database_url=f"sqlite:///{place.path / 'asyncbg.db'}")) as bg:

        @bg.task
        async def stubborn(email: Annotated[str, Personal("email")]) -> None:
            started.set()
            while not go_on.is_set():
                try:
                    await go_on.wait()
                except asyncio.CancelledError:
                    continue

        job = await stubborn.enqueue(ADA)
        await started.wait()
        code, out, err = await asyncio.to_thread(place.forget, ADA, "--wait", "0.1", "--json")
        go_on.set()
        await bg.wait(job.id, 10)
        again, _, _ = await asyncio.to_thread(place.forget, ADA, "--json")

    assert (code, again) == (1, 0)
    assert json.loads(out)["running"] == [job.id]
    assert err == ""
    assert place.holding() == {}


def test_tables_that_are_not_ours_are_left_alone_and_named(tmp_path: Path) -> None:
    """They belong to the application that shares the database."""
    place = Place(tmp_path)
    asyncio.run(_run_jobs(tmp_path))
    with closing(sqlite3.connect(tmp_path / "asyncbg.db")) as connection, connection:
        connection.execute("CREATE TABLE customer (email TEXT)")
        connection.execute("INSERT INTO customer VALUES (?)", (ADA,))

    code, out, err = place.forget(ADA)

    assert code == 1
    assert "customer does not belong to asyncbg and names the person in 1 places; erase it there yourself" in err
    assert ADA not in out + err


def test_a_reader_in_the_way_is_told_of(tmp_path: Path) -> None:
    """The log cannot be emptied while somebody reads an old state of the database."""
    place = Place(tmp_path)
    asyncio.run(_run_jobs(tmp_path))
    with closing(sqlite3.connect(tmp_path / "asyncbg.db")) as reader:
        reader.execute("PRAGMA journal_mode = WAL")
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM job").fetchone()
        code, _, err = place.forget(ADA, "--wait", "0")

    again, _, _ = place.forget(ADA)

    assert (code, again) == (1, 0)
    assert "a reader holds it" in err
    assert place.holding() == {}


@pytest.mark.parametrize("value", ["ada", "", "a b.canary7f3a@example.com"])
def test_what_is_no_address_is_a_matter_of_usage(tmp_path: Path, value: str) -> None:
    """Exit code 2, and one line that does not repeat it."""
    code, out, err = Place(tmp_path).forget(value)

    assert (code, out) == (2, "")
    assert err.startswith("asyncbg: this is not an e-mail address; give one such as ")


def test_where_there_is_no_database_it_is_said(tmp_path: Path) -> None:
    """Nothing is created."""
    code, _, err = Place(tmp_path).forget(ADA)

    assert code == 1
    assert "there is no database" in err
    assert list(tmp_path.iterdir()) == []
