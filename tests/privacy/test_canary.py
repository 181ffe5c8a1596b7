"""A canary run: the service is fed fake people in every input, good and bad, and nothing that comes out holds them.

Only those who are meant to get the data see it: the mail server, the fetched peer and the webhook's receiver, the
notification log, the store, and the person's own records (``/user/{user_id}/activity``, ``/statistics``, ``/imports``).
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
from aiohttp import web
from aiosmtpd.smtp import SMTP, Envelope, Session

from tests.canary.people import TAG, Canary
from tests.canary.search import leaks

from .canary import Collected

PERSON = Canary()
PROGRAM = Path(__file__).with_name("canary_service.py")


@dataclass
class Recipients:
    """A mail server and an HTTP peer: they get the data, and are rude about it."""

    mail: list[bytes] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    smtp_port: int = 0
    url: str = ""

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take a message, or refuse it with all of it in the answer."""
        content = envelope.content or b""
        self.mail.append(content if isinstance(content, bytes) else content.encode())
        return f"554 no {PERSON.text[:300]}" if b"refuse" in self.mail[-1] else "250 OK"

    async def answer(self, request: web.Request) -> web.Response:
        """JSON, or an error that repeats what was asked."""
        self.requests.append(f"{request.path_qs} {await request.text()}")
        if request.path == "/bad":
            return web.Response(status=400, text=f"{request.path_qs} {PERSON.text}", reason=f"No {PERSON.email}")
        return web.json_response([{"person": PERSON.text}])


@asynccontextmanager
async def recipients() -> AsyncIterator[Recipients]:
    """Both on free ports."""
    got = Recipients()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(got, hostname="mail.test"), "127.0.0.1", 0)
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", got.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        async with server:
            got.smtp_port, got.url = server.sockets[0].getsockname()[1], f"http://127.0.0.1:{runner.addresses[0][1]}"
            yield got
    finally:
        await runner.cleanup()


def variables(got: Recipients) -> dict[str, str]:
    """The environment of the service and of the commands beside it."""
    inherited = {name: value for name, value in os.environ.items() if not name.upper().startswith("ASYNCBG_")}
    return inherited | {
        "PYTHONUNBUFFERED": "1",
        "ASYNCBG_DEMO__STEP_S": "0.01",
        "ASYNCBG_DEMO__ITEM_S": "0.001",
        "ASYNCBG_SMTP__HOST": "127.0.0.1",
        "ASYNCBG_SMTP__PORT": str(got.smtp_port),
        "ASYNCBG_SMTP__SECURITY": "none",
        "ASYNCBG_SMTP__SENDER": "service@example.com",
        "ASYNCBG_OUTBOUND__ALLOW_PRIVATE": "true",
        "ASYNCBG_UPLOAD__MAX_ROWS": "50",
        "ASYNCBG_OUTBOUND__WEBHOOK_SECRET": "whsec_canary7f3aSecretOfTheTests000000",
    }


@asynccontextmanager
async def service(place: Path, environment: dict[str, str]) -> AsyncIterator[str]:
    """The service in a process of its own; gives its URL."""
    with (place / "stdout.log").open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(PROGRAM), cwd=place, env=environment, stdout=out, stderr=out
        )
    try:
        async with asyncio.timeout(30):
            while "Uvicorn running on " not in (shown := (place / "stdout.log").read_text("utf-8")):
                assert process.returncode is None, shown
                await asyncio.sleep(0.05)
        yield shown.partition("Uvicorn running on ")[2].split()[0]
    finally:
        process.terminate()
        await process.wait()


async def feed(http: httpx.AsyncClient, got: Recipients, seen: Collected) -> list[str]:
    """Every workflow and route, with good input and bad; returns the ids of the jobs it made."""
    who, name, email = PERSON, quote(PERSON.name, safe=""), quote(PERSON.email, safe="")
    refused = {"to_email": who.email, "subject": f"refuse {who.name}", "body": who.text}
    bad_rows = f"id,{who.email},note\n1,{who.name},{who.text}\n2,{who.text}\n3,a,b,c,{who.token}\n"
    csv = {"file": (f"{who.email}.csv", (bad_rows + f"4,{who.name},x\n").encode(), "text/csv")}
    many = {"file": (f"{who.name}.csv", f"a\n{(who.name + chr(10)) * 60}".encode(), "text/csv")}
    urls = {"data_url": who.url(got.url, "/good"), "webhook_url": who.url(got.url, "/hook")}
    plain = {name: url.replace(f"user:{who.password}@", "") for name, url in urls.items()}
    bad = {"data_url": plain["data_url"].replace("/good", "/bad"), "webhook_url": plain["webhook_url"]}
    job: dict[str, Any] = {"task": "send_email", "args": refused}
    json_type = "application/json"
    requests: list[tuple[str, str, dict[str, Any]]] = [
        ("POST", f"/send-notification/{email}", {"json": {"message": who.text}}),
        ("POST", f"/send-notification/{email}", {"params": {"message": who.text}}),
        ("POST", f"/send-notification/{name}", {"json": {"message": who.text}}),
        ("POST", f"/send-notification/{email}", {"json": {"message": 7, who.email: who.text}}),
        ("POST", f"/process/{name}", {}),
        ("POST", "/send-email/", {"json": {**refused, "subject": who.name}}),
        ("POST", "/send-email/", {"json": refused}),
        ("POST", "/send-email/", {"params": {**refused, "to_email": f"{who.email}, {who.email}"}}),
        ("POST", "/send-email/", {"json": {**refused, "subject": f"{who.name}\nBcc: {who.email}"}}),
        ("POST", "/send-email/", {"content": f'{{"to_email": "{who.email}"', "headers": {"content-type": json_type}}),
        ("POST", "/upload-csv/7", {"files": csv}),
        ("POST", "/upload-csv/7", {"files": many}),
        ("POST", f"/upload-csv/{name}", {"files": csv}),
        ("POST", "/user/7/action", {"json": {"action": f"{who.name} wrote to {who.email}"}}),
        ("POST", "/user/7/action", {"params": {"action": who.text * 9}}),
        ("POST", "/trigger-external-fetch/7", {"json": plain}),
        ("POST", "/trigger-external-fetch/7", {"json": bad}),
        ("POST", "/trigger-external-fetch/7", {"json": urls}),
        ("POST", "/trigger-external-fetch/7", {"params": {"data_url": f"ftp://{who.token}/", "webhook_url": who.text}}),
        ("POST", "/safe-task/7", {"json": {"message": who.text}}),
        ("POST", "/start-task/canaries", {"params": {"items_count": 3}}),
        ("POST", f"/start-task/{name}", {"params": {"items_count": who.password}}),
        ("POST", "/action/7", {"json": {"action": f"call {who.name}, {who.phone}"}}),
        ("POST", "/jobs", {"json": {**job, "tags": [who.email]}, "headers": {"Idempotency-Key": who.email}}),
        ("POST", "/jobs", {"json": {**job, "priority": 3}, "headers": {"Idempotency-Key": who.email}}),
        ("POST", "/jobs", {"json": {"task": who.email, "args": {}}}),
        ("POST", "/jobs", {"json": {"task": "send_email", "args": {who.email: who.text, "to_email": who.name}}}),
        ("POST", "/jobs", {"json": {"task": "slow_task_1", "args": {"name": who.name}, "delay_s": 3600}}),
        ("PUT", f"/nowhere/{email}", {"params": {"token": who.token}}),
        ("GET", f"/nowhere/{email}", {"params": {"q": who.text}}),
        ("POST", f"/proces/{name}", {}),
        ("GET", f"/{name}", {}),
        ("GET", f"/jobs/{email}", {}),
        ("GET", "/jobs", {"params": {"state": who.email, "cursor": who.token, "limit": who.password}}),
        ("GET", "/jobs", {"params": {"tag": who.email}}),
        ("GET", "/user/7/activity", {"params": {"cursor": who.email}}),
        ("GET", f"/task-progress/{name}", {}),
        ("GET", "/events", {"params": {"follow": "false", "last_event_id": who.email, "task": who.name}}),
    ]  # fmt: skip
    ids: list[str] = []
    for method, path, options in requests:
        answer = await http.request(method, path, **options)
        assert answer.status_code < 500, (method, path, answer.text)
        seen.add(f"{method} {path} {answer.status_code}", answer.text + json.dumps(dict(answer.headers)))
        ids += [accepted["id"] for accepted in answer.json().get("jobs", [])] if answer.status_code == 202 else []
    return ids


async def settle(http: httpx.AsyncClient, ids: list[str], seen: Collected) -> None:
    """Wait for every job, cancelling with a reason those that wait for a later attempt or hour."""
    for job_id in dict.fromkeys(ids):
        async with asyncio.timeout(60):
            shown = (await http.get(f"/jobs/{job_id}", params={"wait": 0.5})).json()
            while shown["state"] not in ("succeeded", "failed", "cancelled"):
                if shown["state"] == "scheduled":
                    told = await http.post(f"/jobs/{job_id}/cancel", json={"reason": f"asked by {PERSON.text}"[:500]})
                    seen.add("cancel", told.text)
                shown = (await http.get(f"/jobs/{job_id}", params={"wait": 0.5})).json()


async def read(http: httpx.AsyncClient, ids: list[str], seen: Collected) -> None:
    """Every route that tells something, every stream."""
    for path in ("/", "/jobs?limit=200", "/metrics", "/health/live", "/health/ready", "/openapi.json", "/asyncapi.json",
                 "/task-progress/canaries", "/docs", "/events?follow=false&last_event_id=0-0"):  # fmt: skip
        answer = await http.get(path)
        assert answer.status_code == 200, path
        seen.add(f"GET {path}", answer.text)
    for job_id in ids:
        seen.add(f"job {job_id}", (await http.get(f"/jobs/{job_id}")).text)
        seen.add(f"stream {job_id}", (await http.get(f"/jobs/{job_id}/events")).text)


def commands(place: Path, environment: dict[str, str], ids: list[str], seen: Collected) -> None:
    """What the command line shows of the same database."""
    bad = json.dumps({"to_email": PERSON.text, PERSON.email: 1})
    for words in (
        ["jobs", "list", "--limit", "200"], ["jobs", "list", "--limit", "200", "--json"], ["jobs", "show", ids[0]],
        ["events", "tail", "--no-follow"], ["enqueue", "send_email", bad], ["enqueue", PERSON.email, "{}"],
        ["jobs", "show", PERSON.email], ["settings", "show", "--sources"], ["doctor"],
    ):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "asyncbg.cli", *words], cwd=place, env=environment, capture_output=True, timeout=60,
            check=False,
        )  # fmt: skip
        seen.add(f"asyncbg {' '.join(words[:2])}", done.stdout + done.stderr)


async def test_nothing_that_comes_out_holds_a_person(tmp_path: Path) -> None:
    """Output, logs at DEBUG, bodies, streams, metrics, traces, pages, commands; those who should have it have it."""
    seen = Collected({})
    async with recipients() as got:
        environment = variables(got)
        async with service(tmp_path, environment) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
            live = asyncio.create_task(_follow(http))
            ids = await feed(http, got, seen)
            await settle(http, ids, seen)
            await read(http, ids, seen)
            seen.add("live stream", await live)
            own = [(await http.get(f"/user/7/{part}")).text for part in ("activity", "statistics", "imports")]
            await asyncio.to_thread(commands, tmp_path, environment, ids, seen)
        seen.add_files(tmp_path, "stdout.log", "debug.log", "spans.json", "otel-metrics.json")
        seen.add("otel-logs.json", (tmp_path / "otel-logs.json").read_text("utf-8"))

    assert not seen.leaking(), str(seen)
    assert len(ids) >= 20
    assert any(TAG.encode() in message for message in got.mail)
    assert any(TAG in request for request in got.requests)
    assert all(TAG in text for text in own)
    assert TAG in (tmp_path / "asyncbg-data" / "notifications.log").read_text("utf-8")


async def _follow(http: httpx.AsyncClient) -> str:
    """The live stream of everything until 60 jobs' worth of frames came, or nothing new for a while."""
    text = ""
    try:
        async with asyncio.timeout(8), http.stream("GET", "/events") as stream:
            async for chunk in stream.aiter_text():
                text += chunk
    except TimeoutError:
        pass
    assert "event: job.succeeded" in text
    return text


def test_the_search_finds_every_datum() -> None:
    """However it is written; otherwise the run would prove nothing."""
    for datum in (PERSON.name, PERSON.email, PERSON.phone, PERSON.card, PERSON.iban, PERSON.token, PERSON.password):
        for text in (datum, datum.replace(" ", ""), datum.replace(" ", "-"), quote(datum), json.dumps([datum]).upper()):
            assert list(leaks(f"x {text} y".encode())), text
    assert not list(leaks(b"Dear [name:0a1b2c3d], we reached you at [email:0a1b2c3d] 4539 of 1488 in 0343 ms"))
