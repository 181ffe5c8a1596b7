"""The service as a whole: its documents, its life, its demonstration."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from asyncbg.engine import Engine
from asyncbg.service.server import create_app
from asyncbg.settings import Settings
from tests.workflows.conftest import Service, at_the_door

TASKS = {
    "cleanup",
    "cleanup_task",
    "fetch_external_data",
    "log_user_activity",
    "long_running_task",
    "notification_task",
    "process_csv",
    "send_email",
    "send_notification",
    "send_notification_task",
    "send_webhook",
    "slow_task_1",
    "slow_task_2",
    "update_user_statistics",
}


@at_the_door
async def test_every_operation_has_a_name_of_its_own(door: Service) -> None:
    """The OpenAPI document can be turned into a client."""
    document = (await door.http.get("/openapi.json")).json()

    ids = [operation["operationId"] for path in document["paths"].values() for operation in path.values()]
    assert len(ids) == len(set(ids))
    assert document["paths"]["/send-email/"]["post"]["requestBody"]["content"].keys() == {"application/json"}
    assert {p["name"] for p in document["paths"]["/send-email/"]["post"]["parameters"]} == {
        "to_email",
        "subject",
        "body",
        "Idempotency-Key",
    }


@at_the_door
async def test_all_tasks_of_the_contract_are_registered(door: Service) -> None:
    """An unknown task is answered with the names of all that there are."""
    answer = await door.http.post("/jobs", json={"task": "no such task", "args": {}})

    assert answer.status_code == 404
    assert set(answer.json()["known"]) >= TASKS


async def test_two_services_may_live_in_one_process(settings: Settings) -> None:
    """Nothing is kept beside the application."""
    assert create_app(settings) is not create_app(settings)


async def test_a_worker_runs_what_others_submit(settings: Settings, tmp_path: Path) -> None:
    """Without HTTP: a job that another process stored is done, and SIGTERM ends the worker with no error."""
    async with Engine(settings) as submitter:
        submitter._parts.runner.begin_drain()
        submitter.task(name="send_notification")(_never_run_here)
        job = await submitter.submit(
            "send_notification", {"email": "ada.canary7f3a@canary7f3a.example", "message": "hello canary7f3a"}
        )
    variables = {"ASYNCBG_DATABASE_URL": settings.database_url, "ASYNCBG_DATA_DIR": str(settings.data_dir)}
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncbg.cli", "worker", env=_environment(tmp_path, **variables), cwd=tmp_path
    )
    async with Engine(settings) as watcher:  # knows no tasks, so it leaves the job to the worker
        record = await watcher.wait(job.id, 20)
    worker.send_signal(signal.SIGTERM)

    assert await asyncio.wait_for(worker.wait(), 10) == 0
    assert record.state == "succeeded"
    log = (settings.data_dir / "notifications.log").read_text("utf-8")
    assert log == "notification for ada.canary7f3a@canary7f3a.example: hello canary7f3a\n"


async def _never_run_here(email: str, message: str) -> None:
    raise AssertionError("a paused engine ran a job")


def _environment(directory: Path, **variables: str) -> dict[str, str]:
    """Nothing but what Python itself needs, and ``variables``."""
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**kept, "TMPDIR": str(directory), **variables}


@pytest.mark.timeout(60)
async def test_the_demonstration_succeeds(tmp_path: Path) -> None:
    """``asyncbg demo --once`` needs nothing set up, shows what came of every workflow and leaves nothing behind."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "asyncbg.cli", "demo", "--once",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=tmp_path, env=_environment(tmp_path),
    )  # fmt: skip
    output, _ = await process.communicate()
    text = output.decode()

    assert process.returncode == 0, text
    assert len(re.findall("│ succeeded", text)) == 9
    assert "webhook verified" in re.sub(r"[\s│]+", " ", text)
    assert os.listdir(tmp_path) == []  # noqa: PTH208 - pathlib's own is refused in a coroutine
