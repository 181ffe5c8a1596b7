"""The routes of jobs, as a client of somebody's app sees them: the library's router under a prefix of its own."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from fastapi import FastAPI, Response

from asyncbg.engine import Engine
from asyncbg.engine.target import prepare_target
from asyncbg.privacy import Personal
from asyncbg.settings import RunnerSettings, Settings
from asyncbg.web.jobs import jobs_router
from asyncbg.web.schemas import accepted

PROBLEM = "application/problem+json"
UNKNOWN_ID = "019ab3f0-5a1e-7000-8000-3f1c0de5a7b2"
DATED = r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z"


@dataclass
class Gate:
    """Holds the task ``wait_at_gate`` until a test opens it."""

    reached: asyncio.Event = field(default_factory=asyncio.Event)
    opened: asyncio.Event = field(default_factory=asyncio.Event)


@pytest.fixture
def gate() -> Gate:
    """A closed gate."""
    return Gate()


@pytest.fixture
async def engine(tmp_path: Path, gate: Gate) -> AsyncIterator[Engine]:
    """A running engine on a real database, with three tasks."""
    async with engine_in(tmp_path, gate) as engine:
        yield engine
        gate.opened.set()


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that has the router under /bg."""
    app = FastAPI()
    app.include_router(jobs_router(engine), prefix="/bg")
    async with client_of(app) as client:
        yield client


def engine_in(directory: Path, gate: Gate, runner: RunnerSettings | None = None) -> Engine:
    """An engine with three tasks, on a database in ``directory``."""
    engine = Engine(
        Settings(database_url=f"sqlite:///{directory}/jobs.db", data_dir=directory, runner=runner or RunnerSettings())
    )

    @engine.task(name="greet")
    async def greet(
        name: str, email: Annotated[str, Personal("email")] = "nobody.canary7f3a@canary7f3a.example", note: str = ""
    ) -> dict[str, str]:
        return {"greeting": f"hello {name}"}

    @engine.task(name="fail")
    async def fail() -> None:
        raise LookupError("nothing there")

    @engine.task(name="wait_at_gate")
    async def wait_at_gate() -> str:
        gate.reached.set()
        await gate.opened.wait()
        return "through"

    return engine


def client_of(app: FastAPI, *, root_path: str = "") -> httpx.AsyncClient:
    """An HTTP client of ``app``."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False, root_path=root_path)
    return httpx.AsyncClient(transport=transport, base_url="http://service")


async def submit(client: httpx.AsyncClient, task: str, **args: Any) -> str:
    """Submit a job; its URL."""
    answer = await client.post("/bg/jobs", json={"task": task, "args": args})
    assert answer.status_code == 202, answer.text
    return answer.headers["location"]


async def finish(client: httpx.AsyncClient, task: str, **args: Any) -> str:
    """Submit a job and wait for its end; its URL."""
    url = await submit(client, task, **args)
    assert (await client.get(url, params={"wait": 30})).json()["finished_at"]
    return url


async def send_raw(client: httpx.AsyncClient, body: bytes) -> httpx.Response:
    """Submit a body as it is."""
    return await client.post("/bg/jobs", content=body, headers={"Content-Type": "application/json"})


def locations(answer: httpx.Response) -> list[list[str | int]]:
    """What a 422 names as wrong."""
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == PROBLEM
    return [item["loc"] for item in answer.json()["errors"]]


# Submitting


async def test_an_accepted_job_says_where_it_can_be_followed(client: httpx.AsyncClient) -> None:
    """202 carries the job, the URLs of its state and its events, and Location."""
    answer = await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "Ada"}})

    body = answer.json()
    [job] = body["jobs"]
    assert answer.status_code == 202
    assert answer.headers["location"] == job["url"] == f"/bg/jobs/{job['id']}"
    assert job["events_url"] == f"/bg/jobs/{job['id']}/events"
    assert body["events_url"] == f"/bg/events?batch={job['id']}"
    assert (job["task"], job["state"]) == ("greet", "queued")
    assert body["message"]


async def test_jobs_of_one_request_wait_for_the_one_before(tmp_path: Path, gate: Gate) -> None:
    """The answer to several jobs names the first one as its place, and says that the others wait."""
    engine, response = engine_in(tmp_path, gate), Response()
    async with engine:
        prepared = [prepare_target(engine._parts.enqueuer, len, ["x"], {}) for _ in range(3)]
        await engine._parts.enqueuer.accept(prepared)
    jobs = [one.job for one in prepared]

    body = accepted("done soon", jobs, response, prefix="/bg", more="1")

    assert [job.state for job in body.jobs] == ["queued", "waiting", "waiting"]
    assert response.headers["location"] == f"/bg/jobs/{jobs[0].id}"
    assert body.events_url == f"/bg/events?batch={jobs[0].id}"
    assert body.model_dump()["more"] == "1"


async def test_a_job_shows_everything_the_contract_names(client: httpx.AsyncClient) -> None:
    """The job has exactly the members of the contract, and times in RFC 3339."""
    url = await finish(client, "greet", name="Ada")

    job = (await client.get(url)).json()

    assert set(job) == {
        *("id", "task", "queue", "state", "owner", "priority", "batch", "tags", "durable", "attempt", "max_attempts"),
        *("created_at", "run_at", "started_at", "finished_at", "progress", "result", "error", "args", "links"),
    }
    assert job["result"] == {"greeting": "hello Ada"}
    assert (job["state"], job["owner"], job["durable"], job["attempt"]) == ("succeeded", "anonymous", True, 1)
    assert job["links"] == {
        "self": url,
        "events": f"{url}/events",
        "cancel": f"{url}/cancel",
        "retry": f"{url}/retry",
    }
    for name in ("created_at", "run_at", "started_at", "finished_at"):
        assert re.fullmatch(DATED, job[name])


async def test_a_failed_job_shows_its_error(client: httpx.AsyncClient) -> None:
    """The class and the message of what the task raised."""
    job = (await client.get(await finish(client, "fail"))).json()

    assert (job["state"], job["result"]) == ("failed", None)
    assert job["error"] == {"type": "LookupError", "message": "nothing there"}


async def test_personal_arguments_are_masked(client: httpx.AsyncClient) -> None:
    """A marked argument is a pseudonym, and free text loses what looks personal; the rest is shown."""
    url = await finish(
        client,
        "greet",
        name="Ada",
        email="ada.canary7f3a@canary7f3a.example",
        note="write to bob.canary7f3a@canary7f3a.example",
    )

    answer = await client.get(url)

    args = answer.json()["args"]
    assert args["name"] == "Ada"
    assert args["email"].startswith("[email:")
    assert args["note"].startswith("write to [email:")
    assert "@example.com" not in answer.text


async def test_options_of_a_submission_are_kept(client: httpx.AsyncClient) -> None:
    """delay_s, priority and tags end up on the job."""
    body = {"task": "greet", "args": {"name": "Ada"}, "delay_s": 3600, "priority": -5, "tags": ["a", "b"]}

    url = (await client.post("/bg/jobs", json=body)).headers["location"]

    job = (await client.get(url)).json()
    assert (job["state"], job["priority"], job["tags"]) == ("scheduled", -5, ["a", "b"])
    assert job["run_at"] > job["created_at"]


async def test_an_unknown_task_names_the_known_ones(client: httpx.AsyncClient) -> None:
    """404, the known tasks, and not what was asked for."""
    answer = await client.post("/bg/jobs", json={"task": "ada.canary7f3a@canary7f3a.example"})

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert answer.json()["known"] == ["fail", "greet", "wait_at_gate"]
    assert "greet" in answer.json()["detail"]
    assert "ada" not in answer.text


async def test_arguments_that_do_not_fit_are_refused_at_submit(client: httpx.AsyncClient) -> None:
    """422 says which argument, and never shows its value."""
    answer = await client.post("/bg/jobs", json={"task": "greet", "args": {"name": ["secret-value"], "other": 1}})

    assert locations(answer) == [["name"], ["other"]]
    assert "secret-value" not in answer.text


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("priority", 1001),
        ("priority", -1001),
        ("priority", "5"),
        ("priority", True),
        ("delay_s", -1),
        ("delay_s", 31_536_001),
        ("tags", ["x" * 101]),
        ("tags", [""]),
        ("tags", ["x"] * 33),
        ("args", ["a"]),
        ("task", ""),
        ("task", "nul\0"),
        ("delay", 1),
    ],
)
async def test_a_member_out_of_its_bounds_is_refused(client: httpx.AsyncClient, member: str, value: Any) -> None:
    """422 names the member."""
    answer = await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "Ada"}, member: value})

    assert {loc[1] for loc in locations(answer)} == {member}


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ('{"task":"greet","args":{"name":"\\u0000"}}', ["body", "args"]),
        ('{"task":"greet","args":{"name":"\\ud800"}}', ["body", "args"]),
        ('{"task":"greet","args":{"deep":[{"\\udfff":1}]}}', ["body", "args"]),
        ('{"task":"greet","args":{"name":NaN}}', ["body", "args"]),
        ('{"task":"greet","args":{"name":1e999}}', ["body", "args"]),
        ('{"task":"greet","args":{"name":' + "[" * 100 + "]" * 100 + "}}", ["body", "args"]),
        ('{"task":"greet","delay_s":Infinity}', ["body", "delay_s"]),
        ('{"task":"\\ud800"}', ["body", "task"]),
        ("[]", ["body"]),
    ],
)
async def test_json_that_cannot_be_stored_is_refused(
    client: httpx.AsyncClient, text: str, where: list[str | int]
) -> None:
    """422 for NUL, lone surrogates, numbers that are none and endless nesting."""
    assert where in locations(await send_raw(client, text.encode()))


@pytest.mark.parametrize("body", [b'{"task":', b"[" * 10_000, b'{"task":"\xff"}', b'{"priority":' + b"9" * 5000 + b"}"])
async def test_a_body_that_cannot_be_read_is_a_client_error(client: httpx.AsyncClient, body: bytes) -> None:
    """Never a 500: 400 as a problem document."""
    answer = await send_raw(client, body)

    assert answer.status_code == 400
    assert answer.headers["content-type"] == PROBLEM


async def test_a_body_beyond_the_limit_is_refused(client: httpx.AsyncClient) -> None:
    """413 for an announced length beyond 1 MiB."""
    answer = await send_raw(client, b'{"task":"' + b"x" * 1024 * 1024 + b'"}')

    assert answer.status_code == 413
    assert answer.headers["content-type"] == PROBLEM


async def test_a_chunked_body_beyond_the_limit_is_refused_before_its_end(client: httpx.AsyncClient) -> None:
    """413 as soon as more than 1 MiB came, though no length was announced."""
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 65_536

    answer = await client.post("/bg/jobs", content=endless(), headers={"Content-Type": "application/json"})

    assert answer.status_code == 413
    assert sent < 20


async def test_a_full_queue_says_when_to_come_back(tmp_path: Path, gate: Gate) -> None:
    """503 with Retry-After when max_queued jobs wait."""
    runner = RunnerSettings(max_queued=1, concurrency=1)
    engine, app = engine_in(tmp_path, gate, runner), FastAPI()
    app.include_router(jobs_router(engine), prefix="/bg")
    async with engine, client_of(app) as client:
        await submit(client, "wait_at_gate")
        await gate.reached.wait()

        answers = [await client.post("/bg/jobs", json={"task": "fail"}) for _ in range(2)]
        gate.opened.set()

    refused = next(answer for answer in answers if answer.status_code == 503)
    assert int(refused.headers["retry-after"]) >= 1


# Idempotency


async def test_the_same_key_and_body_give_the_same_job(client: httpx.AsyncClient) -> None:
    """A repeat answers 202 with the first job; the order of members does not matter."""
    first = await client.post(
        "/bg/jobs", json={"task": "greet", "args": {"name": "Ada", "note": "x"}}, headers={"Idempotency-Key": "k1"}
    )
    again = await client.post(
        "/bg/jobs", json={"args": {"note": "x", "name": "Ada"}, "task": "greet"}, headers={"Idempotency-Key": "k1"}
    )

    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json()["jobs"][0]["id"] == first.json()["jobs"][0]["id"]
    assert len((await client.get("/bg/jobs")).json()["items"]) == 1


async def test_the_same_key_with_another_body_is_refused(client: httpx.AsyncClient) -> None:
    """422, and the key is not repeated."""
    headers = {"Idempotency-Key": "ada-private-key"}
    await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "Ada"}}, headers=headers)

    answer = await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "Bob"}}, headers=headers)

    assert answer.status_code == 422
    assert answer.json()["type"].endswith("idempotency-key-reused")
    assert "ada-private-key" not in answer.text


@pytest.mark.parametrize("key", [b"", b"x" * 256, b"\xe9", b"a\tb"])
async def test_a_key_of_another_form_is_refused(client: httpx.AsyncClient, key: bytes) -> None:
    """422 for an empty, an overlong or an unprintable key."""
    answer = await client.post(
        "/bg/jobs", json={"task": "greet", "args": {"name": "Ada"}}, headers={b"Idempotency-Key": key}
    )

    assert locations(answer) == [["header", "Idempotency-Key"]]


# Listing


async def test_pages_show_every_job_once_newest_first(client: httpx.AsyncClient) -> None:
    """Following ``next`` to its end visits all jobs, though a new one comes in between."""
    urls = [await submit(client, "greet", name=str(number)) for number in range(5)]
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = (await client.get("/bg/jobs", params={"limit": 2, "cursor": cursor})).json()
        seen += [job["links"]["self"] for job in page["items"]]
        cursor = page["next"]
        await submit(client, "greet", name="later")

    assert seen == urls[::-1]


async def test_a_list_is_filtered(client: httpx.AsyncClient) -> None:
    """By state (several with commas, or one by one), task, tag, batch and owner; an empty filter takes all."""
    done = await finish(client, "greet", name="Ada")
    failed = await finish(client, "fail")
    tagged = await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "x"}, "delay_s": 60, "tags": ["t"]})
    later = tagged.headers["location"]

    async def listed(query: str) -> set[str]:
        return {job["links"]["self"] for job in (await client.get(f"/bg/jobs?{query}")).json()["items"]}

    assert await listed("state=failed,scheduled") == {failed, later}
    assert await listed("state=failed&state=succeeded") == {failed, done}
    assert await listed("task=greet") == {done, later}
    assert await listed("tag=t") == {later}
    assert await listed(f"batch={done.rpartition('/')[2]}") == {done}
    assert await listed("owner=anonymous&state=&task=&tag=&batch=") == {done, failed, later}
    assert await listed("owner=somebody") == set()


@pytest.mark.parametrize("cursor", ["x", "!!", "é", "bjE=x", "bi0x", "bjk5OTk5OTk5OTk5OTk5OTk5OTk5OTk", "n" * 5000])
async def test_a_malformed_cursor_is_refused(client: httpx.AsyncClient, cursor: str) -> None:
    """422 names ``cursor``."""
    assert locations(await client.get("/bg/jobs", params={"cursor": cursor})) == [["query", "cursor"]]


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "state=gone", "task=%00"])
async def test_a_filter_out_of_its_bounds_is_refused(client: httpx.AsyncClient, query: str) -> None:
    """422 names the parameter."""
    assert locations(await client.get(f"/bg/jobs?{query}"))[0][1] == query.partition("=")[0]


# One job


@pytest.mark.parametrize("job_id", [UNKNOWN_ID, UNKNOWN_ID.upper(), "x", "%00", "ada.canary7f3a@canary7f3a.example"])
@pytest.mark.parametrize(("method", "action"), [("GET", ""), ("POST", "/cancel"), ("POST", "/retry")])
async def test_a_job_that_is_not_there_is_404(client: httpx.AsyncClient, job_id: str, method: str, action: str) -> None:
    """Unknown or malformed: the same problem, and what was sent is not repeated where it may be personal."""
    answer = await client.request(method, f"/bg/jobs/{job_id}{action}")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == PROBLEM
    assert "ada" not in answer.text


async def test_a_long_poll_answers_when_the_job_is_final(client: httpx.AsyncClient, gate: Gate) -> None:
    """?wait= holds the answer back until the job ended."""
    url = await submit(client, "wait_at_gate")
    await gate.reached.wait()
    polling = asyncio.create_task(client.get(url, params={"wait": 30}))

    gate.opened.set()

    assert (await polling).json()["state"] == "succeeded"


async def test_a_long_poll_ends_with_its_time(client: httpx.AsyncClient, gate: Gate) -> None:
    """When the time is over, the answer is the job as it is."""
    url = await submit(client, "wait_at_gate")
    await gate.reached.wait()

    answer = await client.get(url, params={"wait": 0.05})

    assert (answer.status_code, answer.json()["state"]) == (200, "running")


@pytest.mark.parametrize("wait", ["-1", "61", "nan", "inf", "soon", "1e999"])
async def test_a_wait_out_of_its_bounds_is_refused(client: httpx.AsyncClient, wait: str) -> None:
    """422 names ``wait``."""
    url = await submit(client, "greet", name="Ada")

    assert locations(await client.get(url, params={"wait": wait})) == [["query", "wait"]]


@pytest.mark.parametrize("path", ["", "?wait=1"])
async def test_head_has_the_headers_of_get_and_no_body(client: httpx.AsyncClient, path: str) -> None:
    """RFC 9110, 9.3.2."""
    url = await finish(client, "greet", name="Ada")

    head, get = await client.head(url + path), await client.get(url + path)

    assert head.status_code == 200
    assert head.content == b""
    assert head.headers == get.headers


# Steering


async def test_a_scheduled_job_is_cancelled_at_once(client: httpx.AsyncClient) -> None:
    """202, Location, and the job as it is now, in both forms."""
    body = {"task": "greet", "args": {"name": "Ada"}, "delay_s": 60}
    url = (await client.post("/bg/jobs", json=body)).headers["location"]

    answer = await client.post(f"{url}/cancel", json={"reason": "no longer needed"})

    assert answer.status_code == 202
    assert answer.headers["location"] == answer.json()["links"]["self"] == answer.json()["jobs"][0]["url"] == url
    assert answer.json()["state"] == answer.json()["jobs"][0]["state"] == "cancelled"


async def test_a_running_job_is_cancelled_through_its_coroutine(client: httpx.AsyncClient, gate: Gate) -> None:
    """202 at once; the job ends as cancelled."""
    url = await submit(client, "wait_at_gate")
    await gate.reached.wait()

    answer = await client.post(f"{url}/cancel")

    assert answer.status_code == 202
    assert (await client.get(url, params={"wait": 30})).json()["state"] == "cancelled"


async def test_a_final_job_runs_again_when_retried(client: httpx.AsyncClient) -> None:
    """202, and the job has a second attempt."""
    url = await finish(client, "fail")

    answer = await client.post(f"{url}/retry")

    assert (answer.status_code, answer.json()["id"]) == (202, url.rpartition("/")[2])
    assert (await client.get(url, params={"wait": 30})).json()["attempt"] == 2


async def test_the_state_may_forbid_it(client: httpx.AsyncClient) -> None:
    """409 for cancelling what has ended and for retrying what has not."""
    ended = await finish(client, "greet", name="Ada")
    body = {"task": "greet", "args": {"name": "Ada"}, "delay_s": 60}
    open_ = (await client.post("/bg/jobs", json=body)).headers["location"]

    answers = [await client.post(f"{ended}/cancel"), await client.post(f"{open_}/retry")]

    assert [(answer.status_code, answer.headers["content-type"]) for answer in answers] == [(409, PROBLEM)] * 2


@pytest.mark.parametrize("reason", ["x" * 501, "\0", 7])
async def test_a_reason_out_of_its_bounds_is_refused(client: httpx.AsyncClient, reason: Any) -> None:
    """422 names ``reason``."""
    url = await submit(client, "greet", name="Ada")

    assert locations(await client.post(f"{url}/cancel", json={"reason": reason})) == [["body", "reason"]]


# The app around it


async def test_urls_carry_the_root_path_of_a_proxy(engine: Engine) -> None:
    """Behind a proxy that strips /api, and with a prefix below it, URLs are what the client can use."""
    app = FastAPI()
    app.include_router(jobs_router(engine), prefix="/bg")
    async with client_of(app, root_path="/api") as client:
        url = (await client.post("/bg/jobs", json={"task": "greet", "args": {"name": "Ada"}})).headers["location"]

    assert url.startswith("/api/bg/jobs/")


async def test_urls_carry_the_path_of_a_mount(engine: Engine) -> None:
    """In an app mounted below another one, too."""
    inner, outer = FastAPI(), FastAPI()
    inner.include_router(jobs_router(engine), prefix="/bg")
    outer.mount("/tools", inner)
    async with client_of(outer) as client:
        url = (await client.post("/tools/bg/jobs", json={"task": "greet", "args": {"name": "A"}})).headers["location"]
        job = await client.get(url)

    assert url.startswith("/tools/bg/jobs/")
    assert job.status_code == 200


async def test_the_routes_are_described_with_their_errors_and_examples(client: httpx.AsyncClient) -> None:
    """Every operation documents its errors as problem documents, and every body has an example."""
    document = (await client.get("/openapi.json")).json()

    operations = [(path, *item) for path, methods in document["paths"].items() for item in methods.items()]
    assert {(method, path) for path, method, _ in operations} == {
        ("post", "/bg/jobs"),
        ("get", "/bg/jobs"),
        ("post", "/bg/jobs/bulk"),
        ("get", "/bg/jobs/{job_id}"),
        ("get", "/bg/jobs/{job_id}/attempts"),
        ("post", "/bg/jobs/{job_id}/cancel"),
        ("post", "/bg/jobs/{job_id}/retry"),
    }
    for _, _, operation in operations:
        errors = {status: answer for status, answer in operation["responses"].items() if status >= "400"}
        assert "503" in errors
        assert all(list(answer["content"]) == [PROBLEM] for answer in errors.values())
    for name in ("JobOut", "Accepted", "ChangedJob", "JobPage", "Submission", "CancelRequest", "BulkRequest"):
        assert document["components"]["schemas"][name]["examples"], name


async def test_an_engine_that_does_not_run_takes_nothing(tmp_path: Path) -> None:
    """503 on every route."""
    app = FastAPI()
    engine = Engine(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))
    app.include_router(jobs_router(engine))
    async with client_of(app) as client:
        answers = [await client.get("/jobs"), await client.get(f"/jobs/{UNKNOWN_ID}")]

    assert [answer.status_code for answer in answers] == [503, 503]
