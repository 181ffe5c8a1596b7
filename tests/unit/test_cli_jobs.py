"""``asyncbg jobs``, ``enqueue``, ``events``, ``purge`` and ``backup``, run beside a service and without one."""

import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import asyncbg.errors
from asyncbg.cli import run

SOURCE = str(Path(asyncbg.errors.__file__).parents[1])
RUNNING = re.compile(r"Uvicorn running on http://127\.0\.0\.1:\d+")
EMAIL = "ada.canary7f3a@canary7f3a.example"
NOTIFICATION = json.dumps({"email": EMAIL, "message": "hello"})


SETTINGS = {"ASYNCBG_DEMO__STEP_S": "0.01", "ASYNCBG_DEMO__ITEM_S": "0.02", "ASYNCBG_SERVER__PORT": "0"}


@dataclass(frozen=True)
class Done:
    """What a command that has ended printed, and its exit code."""

    returncode: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Place:
    """A directory with a database in it, and the commands run there."""

    path: Path

    def run(self, *arguments: str, stdin: str = "") -> Done:
        """One command, to its end, in this process: starting one of its own takes longer than all it does."""
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.chdir(self.path)
            patch.setattr(sys, "stdin", io.StringIO(stdin))
            for name, value in SETTINGS.items():
                patch.setenv(name, value)
            code = run(arguments)
        return Done(int(code), out.getvalue(), err.getvalue())

    def json(self, *arguments: str) -> Any:
        """What a command that succeeds prints with --json."""
        done = self.run(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command that goes on; stderr goes into its output."""
        return subprocess.Popen(
            [sys.executable, "-m", "asyncbg.cli", *arguments],
            cwd=self.path,
            env=_inherited() | SETTINGS | {"PYTHONPATH": SOURCE},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )


def _inherited() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}


@pytest.fixture
def idle(tmp_path: Path) -> Place:
    """A directory where no service runs."""
    return Place(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A directory where the service runs."""
    place = Place(tmp_path_factory.mktemp("served"))
    with place.start("serve") as service:
        assert service.stdout is not None
        for line in service.stdout:
            if RUNNING.search(line):
                break
        drain = threading.Thread(target=service.stdout.read)
        drain.start()
        yield place
        service.send_signal(signal.SIGINT)
        drain.join(20)
        assert service.wait(20) == 0


# Without a service


def test_a_job_is_accepted_while_no_service_runs(idle: Place) -> None:
    """It is on disk, queued, and its personal arguments are pseudonyms wherever they are shown."""
    done = idle.run("enqueue", "send_notification", NOTIFICATION)
    job_id, state = done.stdout.split()

    assert (done.returncode, state) == (0, "queued")
    assert (idle.path / "asyncbg.db").stat().st_mode & 0o777 == 0o600
    assert not list(idle.path.glob("*-place*")), "the command took the place of a process that runs jobs"
    for arguments in (["jobs", "list"], ["jobs", "show", job_id], ["events", "tail", "--no-follow"]):
        for form in ([], ["--json"]):
            shown = idle.run(*arguments, *form)
            assert shown.returncode == 0
            assert job_id in shown.stdout
            assert EMAIL not in shown.stdout + shown.stderr
    assert idle.json("jobs", "show", job_id)["args"]["email"].startswith("[email:")


def test_arguments_may_come_on_the_standard_input(idle: Place) -> None:
    """So that personal data need not stand in the list of processes."""
    done = idle.run("enqueue", "send_notification", "-", "--json", stdin=NOTIFICATION)

    assert done.returncode == 0
    assert json.loads(done.stdout)["state"] == "queued"


def test_an_unknown_task_is_not_found(idle: Place) -> None:
    """The line names the tasks there are; nothing is stored, not even a database."""
    done = idle.run("enqueue", "send_notificatoin", NOTIFICATION)

    assert done.returncode == 4
    assert "unknown task 'send_notificatoin'; known: " in done.stderr
    assert "send_notification," in done.stderr
    assert list(idle.path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (json.dumps({"email": "no-address-of-ada", "message": "x"}), "email: should be a valid e-mail address"),
        (json.dumps({"email": EMAIL}), "message: Field required"),
        ('{"email": "ada.canary7f3a@canary7f3a.example', "JSON is not well-formed"),
        ('["ada.canary7f3a@canary7f3a.example"]', "JSON must be an object"),
    ],
)
def test_bad_arguments_are_wrong_usage(idle: Place, arguments: str, said: str) -> None:
    """The line says where and what is wrong, never the value."""
    done = idle.run("enqueue", "send_notification", arguments)

    assert done.returncode == 2
    assert said in done.stderr
    assert "ada" not in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_waiting_for_a_job_that_nobody_runs_times_out(idle: Place) -> None:
    """Exit code 124, and a remark that no service runs."""
    done = idle.run("enqueue", "send_notification", NOTIFICATION, "--wait", "--timeout", "0.2")
    watched = idle.run("jobs", "watch", done.stdout.split()[0], "--timeout", "0.2")

    assert done.returncode == watched.returncode == 124
    assert "asyncbg serve" in done.stderr
    assert "job.queued" in watched.stdout


@pytest.mark.parametrize("action", ["show", "watch", "retry", "cancel"])
def test_an_unknown_job_is_not_found(idle: Place, action: str) -> None:
    """Exit code 4 and one line, whatever was asked of it."""
    idle.run("enqueue", "cleanup_task", json.dumps({"name": "x"}))

    done = idle.run("jobs", action, "01a205dd-4ce3-7000-81ef-7f8a6a568c81")

    assert done.returncode == 4
    assert "no job '01a205dd-4ce3-7000-81ef-7f8a6a568c81'" in done.stderr


def test_looking_where_no_database_is_makes_none(idle: Place) -> None:
    """An empty list, and a remark that says which file is missing."""
    done = idle.run("jobs", "list", "--json")

    assert json.loads(done.stdout) == {"items": [], "next": None}
    assert "no database asyncbg.db" in done.stderr
    assert list(idle.path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["jobs", "list", "--state", "done"],
        ["jobs", "list", "--limit", "0"],
        ["jobs", "list", "--cursor", "x"],
        ["events", "tail", "--last", "-1"],
        ["purge", "--older-than", "7"],
        ["jobs", "show"],
    ],
)
def test_what_cannot_be_is_wrong_usage(idle: Place, arguments: list[str]) -> None:
    """Exit code 2 and one line."""
    done = idle.run(*arguments)

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_jobs_are_listed_newest_first_page_by_page(idle: Place) -> None:
    """``next`` leads to the next page; state and task choose."""
    ids = [idle.json("enqueue", "cleanup_task", json.dumps({"name": name}))["id"] for name in "ab"]
    idle.run("enqueue", "send_notification", NOTIFICATION, "--delay", "3600")

    first = idle.json("jobs", "list", "--task", "cleanup_task", "--limit", "1")
    second = idle.json("jobs", "list", "--task", "cleanup_task", "--limit", "1", "--cursor", first["next"])

    assert [item["id"] for item in first["items"] + second["items"]] == ids[::-1]
    assert second["next"] is None
    assert [item["task"] for item in idle.json("jobs", "list", "--state", "scheduled")["items"]] == [
        "send_notification"
    ]


def test_a_waiting_job_is_cancelled_retried_and_purged(idle: Place) -> None:
    """Each does at once what it says; what the state forbids is exit code 1."""
    job_id = idle.run("enqueue", "send_notification", NOTIFICATION).stdout.split()[0]

    assert idle.run("jobs", "cancel", job_id, "--reason", f"asked by {EMAIL}").stdout == f"{job_id} cancelled\n"
    assert idle.run("jobs", "cancel", job_id).returncode == 1
    assert EMAIL not in idle.run("events", "tail", "--no-follow").stdout
    assert idle.run("jobs", "watch", job_id).returncode == 3
    assert idle.json("jobs", "retry", job_id)["state"] == "queued"
    idle.run("jobs", "cancel", job_id)
    assert idle.run("purge", "--older-than", "7d").stdout == "0 jobs purged\n"
    assert idle.json("purge", "--older-than", "0s") == {"purged": 1}
    assert idle.run("jobs", "show", job_id).returncode == 4
    assert idle.run("jobs", "retry", job_id).returncode == 4
    log = [(one["who"], one["what"], one["which"], one["outcome"]) for one in idle.json("audit")["items"]]
    assert log == [
        ("command line", what, job_id, outcome)
        for what, outcome in (
            ("job.cancel", "done"), ("job.retry", "done"), ("job.cancel", "failed"), ("job.cancel", "done"),
        )
    ]  # fmt: skip


# Beside a service


def test_a_job_is_run_by_the_service_and_waited_for(served: Place) -> None:
    """``enqueue --wait`` returns with the final job."""
    job = served.json("enqueue", "send_notification", NOTIFICATION, "--wait", "--timeout", "30")

    assert job["state"] == "succeeded"
    told = "".join(path.read_text() for path in (served.path / "asyncbg-data").glob("*") if path.is_file())
    assert f"notification for {EMAIL}: hello" in told


def test_a_job_that_fails_is_exit_code_3(served: Place) -> None:
    """Whoever waits for it, or watches it, is told why."""
    arguments = json.dumps({"user_id": 1, "data_url": "http://127.0.0.1:9/"})

    done = served.run("enqueue", "fetch_external_data", arguments, "--wait", "--timeout", "30")
    job_id = done.stdout.split()[0]
    watched = served.run("jobs", "watch", job_id, "--json")

    assert done.returncode == watched.returncode == 3, done.stderr
    assert f"asyncbg: job {job_id} failed: " in done.stderr
    types = [json.loads(line)["type"] for line in watched.stdout.splitlines()]
    assert types[0] == "job.queued"
    assert types[-1] == "job.failed"


def test_a_running_job_is_watched_until_it_is_final(served: Place) -> None:
    """Events come as they happen, progress too, and none twice."""
    job_id = served.run(
        "enqueue", "long_running_task", json.dumps({"task_id": "w", "items_count": 100})
    ).stdout.split()[0]

    done = served.run("jobs", "watch", job_id, "--json", "--timeout", "30")

    events = [json.loads(line) for line in done.stdout.splitlines()]
    stored = [event["id"] for event in events if event["id"]]
    assert done.returncode == 0, done.stderr
    assert events[-1]["type"] == "job.succeeded"
    assert sum(event["type"] == "job.progress" for event in events) > 2
    assert len(stored) == len(set(stored))


def test_a_running_job_is_cancelled_through_the_service(served: Place) -> None:
    """The process that runs it ends it; the commands in between leave it where it runs."""
    job_id = served.run(
        "enqueue", "long_running_task", json.dumps({"task_id": "c", "items_count": 100000})
    ).stdout.split()[0]
    with served.start("jobs", "watch", job_id) as watching:
        assert watching.stdout is not None
        while "job.started" not in (line := watching.stdout.readline()):
            assert line
        assert served.json("jobs", "show", job_id)["attempt"] == 1
        assert served.run("jobs", "cancel", job_id).returncode == 0
        rest = watching.stdout.read()
    shown = served.json("jobs", "show", job_id)

    assert watching.returncode == 3
    assert "job.cancelled" in rest
    assert (shown["state"], shown["attempt"]) == ("cancelled", 1)


def test_the_tail_follows_the_log(served: Place) -> None:
    """What happens next comes as it happens; a filter leaves out the rest; Ctrl-C ends it with 130."""
    with served.start("events", "tail", "--type", "job.queued", "--task", "cleanup_task", "--last", "0") as following:
        assert following.stdout is not None
        seen = []
        reader = threading.Thread(target=lambda: seen.append(following.stdout.readline()))  # type: ignore[union-attr]
        reader.start()
        while reader.is_alive():  # the tail begins with what happens after it has opened the log
            job_id = served.run("enqueue", "cleanup_task", json.dumps({"name": "t"})).stdout.split()[0]
            reader.join(0.2)
        following.send_signal(signal.SIGINT)
        following.stdout.read()

    assert following.returncode == 130
    assert " cleanup_task job.queued" in seen[0]
    assert job_id


def test_a_backup_is_whole_private_and_never_overwrites(served: Place) -> None:
    """It is a database of its own, made while the service runs."""
    served.run("enqueue", "cleanup_task", json.dumps({"name": "b"}), "--wait", "--timeout", "30")
    copy = served.path / "copy.db"

    done = served.json("backup", "copy.db")
    again = served.run("backup", "copy.db")

    assert done == {"file": "copy.db", "bytes": copy.stat().st_size}
    assert copy.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(copy) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        jobs, orphans = connection.execute(
            "SELECT (SELECT count(*) FROM job), (SELECT count(*) FROM event WHERE job NOT IN (SELECT n FROM job))"
        ).fetchone()
    connection.close()
    assert jobs > 0
    assert orphans == 0
    assert again.returncode == 1
    assert "copy.db already exists" in again.stderr
    assert not list(served.path.glob(".*partial*"))


def test_a_backup_of_nothing_is_refused(idle: Place) -> None:
    """Exit code 1; the line says which database is missing."""
    done = idle.run("backup", "copy.db")

    assert done.returncode == 1
    assert "there is no database asyncbg.db" in done.stderr
    assert list(idle.path.iterdir()) == []
