"""Requests: repeated only where nothing is done twice, bounded, and answered with the error the engine would raise."""

import asyncio
import json
import re
import ssl
from typing import Any

import aiohttp
import pytest
import trustme
from pydantic import SecretStr

from asyncbg.client import ApiError, Client, ClientError, UnreachableError
from asyncbg.client.error import read_retry_after
from asyncbg.core.job import JobState
from asyncbg.core.retry import RetryPolicy
from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    DatabaseError,
    ErrorItem,
    IdempotencyError,
    JobFailedError,
    JobNotFoundError,
    JobStateError,
    JobTimeoutError,
    NotRunningError,
    OverloadedError,
    QuotaError,
    UnknownTaskError,
)
from asyncbg.web.problems import problem_for
from tests.client.conftest import Connect, Pauses
from tests.client.peer import NOTHING, Answer, answer, listening, running_peer

ACCEPTED = {
    "message": "work was accepted",
    "jobs": [{"id": "j1", "task": "work", "state": "queued", "url": "/jobs/j1", "events_url": "/jobs/j1/events"}],
    "events_url": "/events?batch=j1",
}


def job(state: str, **more: Any) -> dict[str, Any]:
    """The JSON form of a job."""
    times = {"created_at": "2026-11-22T10:15:00.250Z", "run_at": "2026-11-22T10:15:00.250Z"}
    none = {"started_at": None, "finished_at": None, "progress": None, "result": None, "error": None}
    words = {"id": "j1", "task": "work", "queue": "default", "state": state, "owner": "anonymous", "batch": "j1"}
    numbers = {"priority": 0, "attempt": 1, "max_attempts": 1, "durable": True}
    return {**words, **numbers, **times, **none, "tags": ["a"], "args": {}, "links": {"self": "/jobs/j1"}, **more}


def problem(error: AsyncBGError) -> Answer:
    """What the service answers for an error of the engine."""
    told = problem_for(error)
    return answer(told.status, told.body("/jobs"), headers=told.headers)


# Submissions


async def test_a_submission_is_sent_as_the_service_takes_it(connect: Connect) -> None:
    """What is not given is not sent; the key, of one's own or a fresh one, always is."""
    async with running_peer(answer(202, ACCEPTED)) as peer:
        client = await connect(peer.url + "/bg", api_key="s3cret-canary7f3a")
        accepted = await client.submit("work")
        await client.submit("work", {"n": 1}, delay_s=1.5, priority=0, tags=("a", "b"), idempotency_key="mine")

    bare, full = peer.requests
    assert (accepted.id, accepted.task, accepted.state) == ("j1", "work", JobState.QUEUED)
    assert (bare.method, bare.target) == ("POST", "/bg/jobs")
    assert bare.headers["authorization"] == "Bearer s3cret-canary7f3a"
    assert bare.json() == {"task": "work", "args": {}, "tags": []}
    assert len(bare.headers["idempotency-key"]) == 36
    assert full.json() == {"task": "work", "args": {"n": 1}, "tags": ["a", "b"], "delay_s": 1.5, "priority": 0}
    assert full.headers["idempotency-key"] == "mine"


@pytest.mark.parametrize(
    "lost",
    [
        NOTHING,
        Answer(answer(202, ACCEPTED).raw[:-20]),
        answer(503, {"type": "urn:problem-type:asyncbg:overloaded", "detail": "full"}, headers={"Retry-After": "3"}),
        answer(502, b"<html>"),
        answer(500, {"title": "Internal Server Error"}),
    ],
)
async def test_a_lost_submission_is_sent_again_under_the_same_key(
    connect: Connect, pauses: Pauses, lost: Answer
) -> None:
    """Whether it was carried out or not, there is one job in the end."""
    async with running_peer(lost, answer(202, ACCEPTED)) as peer:
        assert (await (await connect(peer.url)).submit("work", {"n": 1})).id == "j1"

    first, second = peer.requests
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"]
    assert first.body == second.body
    assert len(pauses.seen) == 1


async def test_two_submissions_have_two_keys(connect: Connect) -> None:
    """Who submits the same twice means it, unless the key is the same."""
    async with running_peer(answer(202, ACCEPTED)) as peer:
        client = await connect(peer.url)
        await client.submit("work")
        await client.submit("work")

    assert len({request.headers["idempotency-key"] for request in peer.requests}) == 2


async def test_the_tries_are_bounded_and_their_pauses_grow(connect: Connect, pauses: Pauses) -> None:
    """After the last one the error says where nobody answered, and why."""
    async with running_peer(NOTHING) as peer:
        client = await connect(peer.url, retry=RetryPolicy(retries=3, base_s=0.5, cap_s=1.5))
        with pytest.raises(UnreachableError, match=re.escape(f"no whole answer from {peer.url}/jobs: ")):
            await client.submit("work")

    assert len(peer.requests) == 4
    assert pauses.seen == [0.5, 1, 1.5]


async def test_nobody_comes_back_sooner_than_asked(connect: Connect, pauses: Pauses) -> None:
    """Retry-After is a lower bound, in seconds or as a date."""
    date = "Fri, 15 Jan 2027 08:00:20 GMT"  # the test's clock starts at 08:00:00
    busy = [answer(429, headers={"Retry-After": "12"}), answer(503, headers={"Retry-After": date})]
    async with running_peer(*busy, answer(202, ACCEPTED)) as peer:
        await (await connect(peer.url)).submit("work")

    assert pauses.seen[0] == 12
    assert 0 < pauses.seen[1] <= 20


async def test_too_long_a_wait_is_left_to_the_caller(connect: Connect, pauses: Pauses) -> None:
    """A service that wants to be left alone for more than a minute is; the error says for how long."""
    busy = answer(503, {"type": "urn:problem-type:asyncbg:overloaded"}, headers={"Retry-After": "61"})
    async with running_peer(busy) as peer:
        with pytest.raises(OverloadedError) as caught:
            await (await connect(peer.url)).submit("work")

    assert caught.value.retry_after_s == 61
    assert pauses.seen == []


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("", None),
        ("soon", None),
        ("-1", None),
        ("1.5", None),
        ("Thu, 999999999999999999999 Jan 1970 00:00:10 GMT", None),
        ("0", 0),
        ("9" * 400, 86_400),
        ("Thu, 01 Jan 1970 00:00:10 GMT", 10),
        ("Fri, 01 Jan 9999 00:00:00 GMT", 86_400),
    ],
)
def test_a_bogus_retry_after_is_none(value: str, seconds: float | None) -> None:
    """Only seconds and dates count; a date that has passed means now, and nothing means more than a day."""
    assert read_retry_after(value, 0) == seconds
    assert read_retry_after("Thu, 01 Jan 1970 00:00:10 GMT", 60_000) == 0


@pytest.mark.parametrize("args", [{"x": {1, 2}}, {"x": float("nan")}, {"x": b"secret"}])
async def test_arguments_without_a_json_form_are_refused(connect: Connect, args: dict[str, Any]) -> None:
    """Before anything is sent, and without a word of the values."""
    client = await connect("http://127.0.0.1:9")
    with pytest.raises(ArgumentsError, match="no JSON form") as caught:
        await client.submit("work", args)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["a\nb", "\u00e4", "x" * 256])
async def test_a_key_no_header_can_carry_is_refused(connect: Connect, key: str) -> None:
    """The error says what a key may be."""
    client = await connect("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="idempotency_key"):
        await client.submit("work", idempotency_key=key)


async def test_one_string_is_no_list_of_tags(connect: Connect) -> None:
    """It would become a tag for each of its letters."""
    client = await connect("http://127.0.0.1:9")
    with pytest.raises(TypeError, match="tags"):
        await client.submit("work", tags="urgent")


# Changes


async def test_a_change_is_not_repeated_where_it_may_have_happened(connect: Connect, pauses: Pauses) -> None:
    """The second cancel would be refused for what the first one did."""
    async with running_peer(NOTHING) as peer:
        with pytest.raises(UnreachableError):
            await (await connect(peer.url)).cancel("j1")

    assert len(peer.requests) == 1
    assert pauses.seen == []


async def test_a_change_is_repeated_where_it_surely_did_not_happen(connect: Connect) -> None:
    """A service at its limit did nothing; so did one that could not be connected to."""
    busy = answer(503, {"type": "urn:problem-type:asyncbg:not-running", "detail": "starting"})
    async with running_peer(busy, answer(202, job("cancelled"))) as peer:
        cancelled = await (await connect(peer.url)).cancel("j1", reason="no longer needed")

    assert cancelled.state is JobState.CANCELLED
    assert [request.target for request in peer.requests] == ["/jobs/j1/cancel"] * 2
    assert peer.requests[1].json() == {"reason": "no longer needed"}


async def test_a_refused_connection_is_tried_again_for_any_request(connect: Connect, pauses: Pauses) -> None:
    """Nothing was sent, so nothing was done."""
    async with running_peer(NOTHING) as peer:
        pass
    with pytest.raises(UnreachableError, match=str(peer.port)):
        await (await connect(peer.url)).retry("j1")

    assert len(pauses.seen) == 6


# Errors


ERRORS: list[AsyncBGError] = [
    JobNotFoundError("j1"),
    JobStateError("j1", "succeeded", "cancel"),
    UnknownTaskError("work", ["add", "fail"]),
    ArgumentsError("work", [ErrorItem(loc=["n"], msg="Field required", type="missing")]),
    IdempotencyError("mine"),
    OverloadedError("too much", retry_after_s=90),
    QuotaError("too many of yours", retry_after_s=90),
    NotRunningError("the service is starting or stopping"),
    DatabaseError("the database cannot be used now; nothing was stored"),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
async def test_an_error_of_the_engine_is_raised_as_itself(connect: Connect, error: AsyncBGError) -> None:
    """Same class, same message, same fields, as if there were no network between."""
    async with running_peer(problem(error)) as peer:
        client = await connect(peer.url, retry=RetryPolicy(retries=0))
        is_about_a_job = isinstance(error, JobNotFoundError | JobStateError)
        call = client.cancel("j1") if is_about_a_job else client.submit("work", idempotency_key="mine")
        with pytest.raises(type(error), match=re.escape(str(error))) as caught:
            await call

    assert type(caught.value) is type(error)
    assert vars(caught.value) == vars(error)


async def test_any_other_error_tells_what_the_service_told(connect: Connect) -> None:
    """Status, title, detail, type and what is wrong with the input."""
    item = {"loc": ["query", "limit"], "msg": "too many", "type": "less_than_equal"}
    body = {
        "type": "urn:problem-type:asyncbg:invalid-request",
        "title": "Not valid",
        "detail": "limit",
        "errors": [item],
    }
    async with running_peer(answer(422, body)) as peer:
        with pytest.raises(ApiError) as caught:
            await (await connect(peer.url)).page(limit=999)

    error = caught.value
    assert (error.status, error.title, error.detail, error.errors) == (422, "Not valid", "limit", [item])
    assert error.type == body["type"]


@pytest.mark.parametrize(
    "body", [b"<html>not here</html>", b"", b"[]", b'{"errors": [1, {}], "title": 7}', b"[" * 10**5]
)
async def test_an_error_that_is_no_problem_document_is_told_by_its_status(connect: Connect, body: bytes) -> None:
    """A proxy's page, nothing, or nonsense."""
    async with running_peer(answer(404, body)) as peer:
        with pytest.raises(ApiError, match="404"):
            await (await connect(peer.url)).get("j1")


@pytest.mark.parametrize("body", [b"<html>", b"", b"[]", b"null", b'{"id": "j1"}', json.dumps(job("melted")).encode()])
async def test_an_answer_that_is_not_understood_says_so(connect: Connect, body: bytes) -> None:
    """A base_url that leads elsewhere, or another version of the service."""
    async with running_peer(answer(200, body)) as peer:
        with pytest.raises(ApiError, match="base_url"):
            await (await connect(peer.url)).get("j1")


async def test_a_redirect_is_not_followed(connect: Connect) -> None:
    """The key would go along; the error names where it leads."""
    async with running_peer(answer(308, headers={"Location": "https://elsewhere/jobs"})) as peer:
        with pytest.raises(ApiError, match="https://elsewhere/jobs"):
            await (await connect(peer.url)).submit("work")

    assert len(peer.requests) == 1


# Waiting


async def test_waiting_asks_until_the_job_is_final(connect: Connect) -> None:
    """Each question is a long poll; the answer is the final job."""
    async with running_peer(answer(200, job("running")), answer(200, job("succeeded", result=7))) as peer:
        done = await (await connect(peer.url)).wait("j1")

    assert (done.is_final, done.result, done.tags) == (True, 7, ("a",))
    assert [request.target for request in peer.requests] == ["/jobs/j1?wait=20.000"] * 2


async def test_waiting_ends_in_time(connect: Connect, pauses: Pauses) -> None:
    """A job that is not final then is an error that is a TimeoutError too."""
    async with running_peer(answer(200, job("running"))) as peer:
        with pytest.raises(JobTimeoutError, match=r"not final after 2\.5 s") as caught:
            await (await connect(peer.url)).wait("j1", timeout=2.5)

    assert isinstance(caught.value, TimeoutError)
    assert peer.requests[0].target == "/jobs/j1?wait=2.500"
    assert sum(pauses.seen) == 2.5


async def test_waiting_ends_in_time_where_nobody_answers(connect: Connect) -> None:
    """A service that took the question and went silent holds nobody much longer than asked for."""
    async with running_peer(Answer(b"", hold=True)) as peer:
        with pytest.raises(JobTimeoutError):
            await (await connect(peer.url, timeout_s=3_600)).wait("j1", timeout=0.01)


async def test_waiting_outlasts_a_restart(connect: Connect, pauses: Pauses) -> None:
    """A service that is away, however it says so, is waited for as the job is."""
    away = [NOTHING] * 20 + [answer(502), answer(503, headers={"Retry-After": "30"})]
    async with running_peer(*away, answer(200, job("succeeded"))) as peer:
        assert (await (await connect(peer.url)).wait("j1")).is_final

    assert pauses.seen[-1] >= 30


async def test_waiting_gives_up_where_asked_to(connect: Connect) -> None:
    """On the service after give_up_after_s, on the job after its timeout, whichever is first."""
    async with running_peer(NOTHING) as peer:
        with pytest.raises(UnreachableError):
            await (await connect(peer.url, give_up_after_s=5)).wait("j1", timeout=60)
        with pytest.raises(JobTimeoutError) as caught:
            await (await connect(peer.url)).wait("j1", timeout=60)

    assert isinstance(caught.value.__cause__, UnreachableError)


async def test_the_result_of_a_failed_job_is_its_error(connect: Connect) -> None:
    """As with a job in one's own process."""
    failed = job("failed", error={"type": "ValueError", "message": "no such album"})
    async with running_peer(answer(200, failed)) as peer:
        with pytest.raises(JobFailedError, match="ValueError: no such album") as caught:
            await (await connect(peer.url)).result("j1")

    assert (caught.value.type, caught.value.detail) == ("ValueError", "no such album")


# Lists


async def test_all_pages_are_listed(connect: Connect) -> None:
    """One after another, with the filters on each; the last one ends it."""
    pages = [
        answer(200, {"items": [job("queued"), job("running")], "next": "c1"}),
        answer(200, {"items": [job("failed")], "next": None}),
    ]
    async with running_peer(*pages) as peer:
        client = await connect(peer.url)
        states = [found.state async for found in client.list(task="work", state=["queued", JobState.FAILED])]

    assert states == ["queued", "running", "failed"]
    assert [request.target for request in peer.requests] == [
        "/jobs?state=queued&state=failed&task=work&limit=100",
        "/jobs?state=queued&state=failed&task=work&limit=100&cursor=c1",
    ]


@pytest.mark.parametrize(("limit", "sizes"), [(0, []), (1, ["1"]), (150, ["100", "50"])])
async def test_no_more_is_asked_for_than_wanted(connect: Connect, limit: int, sizes: list[str]) -> None:
    """A limit is over all pages."""
    pages = [answer(200, {"items": [job("queued")] * int(size), "next": "more"}) for size in sizes]
    async with running_peer(*pages, NOTHING) as peer:
        found = [one async for one in (await connect(peer.url)).list(limit=limit)]

    assert len(found) == limit
    assert [re.findall(r"limit=(\d+)", request.target) for request in peer.requests] == [[size] for size in sizes]


# The client itself


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8000",
        "ftp://ada:pw@host",
        "http://",
        "http://[::1",
        "http://host:many",
        "http://host:99999",
        "http://host?x=1",
        "http://host/#x",
        "http://ada:pw@host",
        "http://pw@host",
    ],
)
def test_an_address_that_is_none_is_refused(base_url: str) -> None:
    """The error says what one looks like, and tells no password."""
    with pytest.raises(ValueError, match="base_url") as caught:
        Client(base_url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize(
    "key", ["", "s3cret-canary7f3a\n", "s3 cret", "s3cret-canary7f3a\u00e4", "s3cret-canary7f3a\r\nX: y"]
)
def test_a_key_that_is_none_is_refused(key: str) -> None:
    """Most often a line break came with it out of a file; the key itself is not told."""
    for given in (key, SecretStr(key)):
        with pytest.raises(ValueError, match="api_key") as caught:
            Client("http://host", api_key=given)
        assert "s3" not in str(caught.value)


@pytest.mark.parametrize("name", ["timeout_s", "idle_s", "give_up_after_s", "max_frame_bytes"])
@pytest.mark.parametrize("bound", [0, -1, float("nan")])
def test_a_bound_that_is_none_is_refused(name: str, bound: Any) -> None:
    """A stream that may be silent for no time at all would be opened again and again."""
    with pytest.raises(ValueError, match=name):
        Client("http://host", **{name: bound})


@pytest.mark.parametrize("job_id", ["", ".", ".."])
async def test_what_cannot_be_an_id_is_refused(connect: Connect, job_id: str) -> None:
    """Such a path would lead to another route."""
    client = await connect("http://127.0.0.1:9")
    with pytest.raises(ValueError, match="job_id"):
        await client.get(job_id)


async def test_an_id_stays_within_its_segment(connect: Connect) -> None:
    """Whatever is in it."""
    async with running_peer(answer(200, job("queued"))) as peer:
        await (await connect(peer.url)).get("a/../b?c#d%")

    assert peer.requests[0].target == "/jobs/a%2F..%2Fb%3Fc%23d%25"


async def test_a_client_that_is_not_open_says_so() -> None:
    """And what to do."""
    client = Client("http://127.0.0.1:9")
    with pytest.raises(ClientError, match="async with Client"):
        await client.get("j1")


async def test_a_session_of_ones_own_is_used_and_left_open() -> None:
    """With its headers; whether it raises for a status makes no difference."""
    async with (
        running_peer(answer(404, {"type": "urn:problem-type:asyncbg:job-not-found"})) as peer,
        aiohttp.ClientSession(headers={"X-Mine": "yes"}, raise_for_status=True) as session,
    ):
        async with Client(peer.url, session=session) as client:
            with pytest.raises(JobNotFoundError):
                await client.get("j1")
        assert not session.closed

    assert peer.requests[0].headers["x-mine"] == "yes"


async def test_a_certificate_nobody_vouches_for_is_final(connect: Connect, pauses: Pauses) -> None:
    """It would be no better a second later, so neither a request nor a stream is tried again."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    async with listening(_hang_up, context=context) as port:
        client = await connect(f"https://127.0.0.1:{port}")
        with pytest.raises(ClientError, match="no safe connection"):
            await client.get("j1")
        with pytest.raises(ClientError, match="no safe connection"):
            await anext(client.events())

    assert pauses.seen == []


async def _hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()
