"""The command ``asyncbg demo``: every workflow once, against local servers, with live progress."""

import asyncio
import base64
import json
import os
import secrets
import signal
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import uvicorn
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from asyncbg.cli.demo_peers import ITEMS, HttpPeer, MailSink
from asyncbg.core.clock import SystemClock
from asyncbg.core.job import FINAL_STATES, JobState
from asyncbg.errors import AsyncBGError
from asyncbg.service.server import create_app
from asyncbg.settings import Settings, load_settings

_DEADLINE_S = 60
_CSV = "name,city\nAda,London\nGrace,New York\nKatherine,Hampton\nno city\n"
_OPERATOR = "operator@example.com"
_ITEMS_COUNT = 40

Json = dict[str, Any]
Effect = Callable[["_Environment", Sequence[Json]], Awaitable[str]]


class DemoError(AsyncBGError):
    """The demonstration failed: the port is in use, or an expected effect is missing."""


async def run_demo(*, once: bool, port: int = 0) -> int:
    """Run the demonstration. Return 0 if every job succeeded with its effect, 1 otherwise.

    Without ``once`` it serves until Ctrl-C. Raises DemoError if ``port`` is in use.
    """
    console = Console()
    with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with _open_environment(port) as env, anyio.create_task_group() as group:
            group.start_soon(_stop_at_signal, signals, group.cancel_scope)
            console.print(f"asyncbg serves {env.url}/", highlight=False)
            is_good = await _run_workflows(env, console)
            if not once:
                console.print(f"Still serving {env.url}/ - stop it with Ctrl-C", highlight=False)
                await anyio.sleep_forever()
            group.cancel_scope.cancel()
            return 0 if is_good else 1
    return 1 if once else 0


async def _stop_at_signal(signals: AsyncIterator[signal.Signals], scope: anyio.CancelScope) -> None:
    async for _ in signals:
        scope.cancel()


@dataclass
class _Environment:
    """The running service and its local servers."""

    url: str
    http: aiohttp.ClientSession
    settings: Settings
    mail: MailSink
    peer: HttpPeer

    async def get(self, path: str) -> Json:
        """GET ``path`` from the service. Return the JSON response."""
        async with self.http.get(path) as answer:
            found: Json = await answer.json()
            return found

    def notified(self, text: str) -> str:
        """Return how many lines of the notification log contain ``text``."""
        path = self.settings.data_dir / "notifications.log"
        lines = [line for line in path.read_text("utf-8").splitlines() if text in line] if path.exists() else []
        return _counted(len(lines), "notification")

    def mailed(self, address: str) -> str:
        """Return how many messages ``address`` has received."""
        return _counted(self.mail.received.get(address, 0), "mail") + " received"


@dataclass(frozen=True, slots=True)
class _Workflow:
    """One workflow: its request, and the check of its effect."""

    path: str
    effect: Effect
    request: Json = field(default_factory=dict)


def _workflows(env: _Environment) -> list[_Workflow]:
    """Return every workflow."""
    urls = {"data_url": f"{env.peer.url}/items.json", "webhook_url": f"{env.peer.url}/hook"}
    mail = {"to_email": "ada@example.com", "subject": "Welcome", "body": "Good to see you, Ada.\n"}
    return [
        _Workflow("/send-notification/ada@example.com", _notification, {"json": {"message": "welcome"}}),
        _Workflow("/process/report", _process),
        _Workflow("/send-email/", _email, {"json": mail}),
        _Workflow("/upload-csv/7", _csv, {"data": _upload()}),
        _Workflow("/user/7/action", _activity, {"json": {"action": "login"}}),
        _Workflow("/trigger-external-fetch/7", _fetch, {"json": urls}),
        _Workflow("/safe-task/7", _safe, {"json": {"message": "your report is ready"}}),
        _Workflow("/start-task/demo", _tracked, {"params": {"items_count": _ITEMS_COUNT}}),
        _Workflow("/action/8", _injected, {"json": {"action": "signup"}}),
    ]


def _upload() -> aiohttp.FormData:
    form = aiohttp.FormData()
    form.add_field("file", _CSV, filename="people.csv", content_type="text/csv")
    return form


async def _notification(env: _Environment, _: Sequence[Json]) -> str:
    return env.notified("for ada@example.com: welcome")


async def _process(_: _Environment, jobs: Sequence[Json]) -> str:
    steps = jobs[0]["result"]["steps"] + jobs[1]["result"]["steps"]
    return f"{_counted(steps, 'step')}, {_counted(jobs[2]['result']['files_removed'], 'file')} cleaned up"


async def _email(env: _Environment, _: Sequence[Json]) -> str:
    return env.mailed("ada@example.com")


async def _csv(env: _Environment, _: Sequence[Json]) -> str:
    [shown] = (await env.get("/user/7/imports"))["items"]
    return f"{_counted(shown['rows_stored'], 'row')} imported, {shown['rows_rejected']} rejected"


async def _activity(env: _Environment, _: Sequence[Json]) -> str:
    return _counted((await env.get("/user/7/statistics"))["total"], "action") + " counted"


async def _fetch(env: _Environment, jobs: Sequence[Json]) -> str:
    if not env.peer.verified or jobs[0]["result"]["items"] != len(ITEMS):
        raise DemoError("the peer saw no good webhook")
    return f"{len(ITEMS)} items fetched, webhook verified"


async def _safe(env: _Environment, _: Sequence[Json]) -> str:
    return env.notified("for user 7: your report is ready")


async def _tracked(env: _Environment, _: Sequence[Json]) -> str:
    shown = await env.get("/task-progress/demo")
    return f"{shown['progress']} of {_counted(shown['total'], 'item')} done"


async def _injected(env: _Environment, _: Sequence[Json]) -> str:
    logged = (await env.get("/user/8/statistics"))["total"]
    return f"{_counted(logged, 'action')} logged, {env.mailed(_OPERATOR)}"


def _counted(count: int, what: str) -> str:
    """Return a count such as ``3 rows``. Raises DemoError for zero."""
    if count < 1:
        raise DemoError(f"no {what} was seen")
    return f"{count} {what}{'' if count == 1 else 's'}"


async def _run_workflows(env: _Environment, console: Console) -> bool:
    """Submit all workflows, show the progress, then the results. Return whether all succeeded."""
    workflows = _workflows(env)
    try:
        with anyio.fail_after(_DEADLINE_S), _ProgressView(console) as view:
            async with env.http.get("/events") as stream:
                await stream.content.readline()  # the stream is open: no later event is missed
                batches = [await _submit(env, workflow) for workflow in workflows]
                view.expect([job for batch in batches for job in batch])
                await view.follow(stream.content)
            finished = [[await env.get(job["url"]) for job in batch] for batch in batches]
        return await _report(env, workflows, finished, console)
    except TimeoutError:
        console.print(f"the jobs were not done in {_DEADLINE_S} s", style="red")
    except (DemoError, aiohttp.ClientError) as error:
        console.print(str(error), style="red", markup=False)
    return False


async def _submit(env: _Environment, workflow: _Workflow) -> list[Json]:
    """Submit a workflow. Return its accepted jobs."""
    async with env.http.post(workflow.path, **workflow.request) as answer:
        if answer.status != 202:
            raise DemoError(f"POST {workflow.path} was answered with {answer.status}")
        accepted: list[Json] = (await answer.json())["jobs"]
        return accepted


class _ProgressView:
    """Live view of the jobs from the event stream: progress bars in a terminal, lines elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bars = Progress(
            TextColumn("{task.description:<24}"),
            BarColumn(),
            TextColumn("{task.fields[state]:<10}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._bar: dict[str, TaskID] = {}
        self._open: set[str] = set()

    def __enter__(self) -> "_ProgressView":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def expect(self, jobs: Sequence[Json]) -> None:
        """Set the jobs to wait for, in display order."""
        for job in jobs:
            self._bar[job["id"]] = self._bars.add_task(job["task"], total=None, start=False, state="", message="")
        self._open = set(self._bar)

    async def follow(self, stream: aiohttp.StreamReader) -> None:
        """Show the events of the stream (WHATWG HTML, section 9.2) until every job is final."""
        while self._open and (line := await stream.readline()):
            if line.startswith(b"data: "):
                self._show(json.loads(line.removeprefix(b"data: ")))

    def _show(self, event: Json) -> None:
        bar = self._bar.get(event["subject"])
        if bar is None:
            return
        kind = event["type"].removeprefix("job.")
        match kind:
            case "progress":
                data = event["data"]
                self._bars.update(bar, completed=data["current"], total=data["total"], message=data["message"])
                return
            case "started":
                self._bars.start_task(bar)
            case "succeeded" | "failed" | "cancelled":
                self._open.discard(event["subject"])
                self._bars.update(bar, total=1, completed=1 if kind == "succeeded" else 0)
                self._bars.stop_task(bar)
        if event["type"].startswith("job."):
            self._bars.update(bar, state=kind)
        if not self._console.is_terminal:
            self._console.print(f"{event['task']}: {kind}", highlight=False)


async def _report(
    env: _Environment, workflows: Sequence[_Workflow], finished: list[list[Json]], console: Console
) -> bool:
    """Print the table of results. Return whether every job succeeded with its effect."""
    table = Table(Column("workflow", overflow="fold"), "jobs", "state", "seconds", "effect seen", title="Results")
    all_good = True
    for workflow, jobs in zip(workflows, finished, strict=True):
        state = _batch_state(jobs)
        is_good = state == JobState.SUCCEEDED
        try:
            effect = await workflow.effect(env, jobs) if is_good else _errors(jobs)
        except DemoError as error:
            is_good, effect = False, str(error)
        all_good = all_good and is_good
        table.add_row(workflow.path, str(len(jobs)), state, _seconds(jobs), effect, style="" if is_good else "red")
    console.print(table)
    return all_good


def _batch_state(jobs: Sequence[Json]) -> str:
    """Return the state of the first job that did not succeed, or ``succeeded``."""
    return next((str(job["state"]) for job in jobs if job["state"] != JobState.SUCCEEDED), JobState.SUCCEEDED)


def _errors(jobs: Sequence[Json]) -> str:
    return "; ".join(f"{job['task']}: {job['error']['message']}" for job in jobs if job["error"])


def _seconds(jobs: Sequence[Json]) -> str:
    """Return the seconds from the creation of the first job to the end of the last."""
    if any(job["state"] not in FINAL_STATES for job in jobs):
        return "-"
    began, ended = (datetime.fromisoformat(text) for text in (jobs[0]["created_at"], jobs[-1]["finished_at"]))
    return f"{(ended - began).total_seconds():.1f}"


@asynccontextmanager
async def _open_environment(port: int) -> AsyncIterator[_Environment]:
    """Start everything locally, with data in a temporary directory that is removed when the block ends."""
    clock = SystemClock()
    secret = f"whsec_{base64.b64encode(secrets.token_bytes(24)).decode()}"
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_bind(port))
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="asyncbg-demo-")))
        mail = await stack.enter_async_context(MailSink().running())
        peer = await stack.enter_async_context(HttpPeer(secret, clock).running())
        settings = _settings(directory, mail.port, secret)
        url = await stack.enter_async_context(_serving(settings, listener))
        http = await stack.enter_async_context(aiohttp.ClientSession(url, trust_env=False))
        yield _Environment(url, http, settings, mail, peer)


def _bind(port: int) -> socket.socket:
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        reason = os.strerror(error.errno or 0).lower()
        raise DemoError(f"cannot listen on 127.0.0.1 port {port}: {reason}; choose another --port") from None


def _settings(directory: Path, mail_port: int, secret: str) -> Settings:
    """Return settings that do not depend on the environment."""
    return load_settings(
        database_url=f"sqlite:///{directory}/demo.db",
        data_dir=directory / "data",
        smtp={
            "host": "127.0.0.1",
            "port": mail_port,
            "security": "none",
            "username": None,
            "password": None,  # nosec B105  # there is none
            "sender": _OPERATOR,
        },
        outbound={"allow_private": True, "allow_hosts": (), "webhook_secret": secret},
        auth={"api_keys": (), "allow_anonymous": True},
        demo={"step_s": 0.3, "item_s": 0.05},
    )


class _Server(uvicorn.Server):
    """uvicorn server without signal handlers."""

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """Install no signal handlers."""
        yield


@asynccontextmanager
async def _serving(settings: Settings, listener: socket.socket) -> AsyncIterator[str]:
    """Serve on a listening socket, so that early requests wait. Yields the URL."""
    config = uvicorn.Config(create_app(settings), log_level="warning", access_log=False, timeout_graceful_shutdown=2)
    server = _Server(config)
    task = asyncio.create_task(server.serve(sockets=[listener]))
    host, port = listener.getsockname()
    try:
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        with anyio.CancelScope(shield=True):
            await task
