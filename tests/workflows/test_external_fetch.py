"""Fetching from and telling another server, which may be slow, wrong or not there."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from asyncbg.settings import Settings
from asyncbg.testing import WebPeer
from asyncbg.workflows.external_fetch import count_items
from tests.workflows.conftest import SECRET, Service, at_the_door

Serve = Callable[[Settings], Awaitable[Service]]


async def trigger(service: Service, bg_web: WebPeer, answer: Any, hook: Any = "ok") -> list[dict[str, Any]]:
    """Run the workflow against a peer that answers so; gives its two jobs."""
    urls = start(bg_web, answer, hook)
    return await service.post("/trigger-external-fetch/7", json=urls)


def start(bg_web: WebPeer, answer: Any, hook: Any = "ok") -> dict[str, str]:
    """Prepare the peer's answers; gives the form to send."""
    bg_web.answers["/data"] = answer if callable(answer) else lambda _: answer
    bg_web.answers["/hook"] = hook if callable(hook) else lambda _: hook
    return {"data_url": f"{bg_web.url}/data", "webhook_url": f"{bg_web.url}/hook"}


async def test_items_are_counted_and_the_webhook_is_told(service: Service, bg_web: WebPeer) -> None:
    """The item count is the result; the webhook gets the contract's body, signed, with the job as its id."""
    fetch, webhook = await trigger(service, bg_web, [{"id": 1}, {"id": 2}, {"id": 3}])

    assert [fetch["task"], webhook["task"]] == ["fetch_external_data", "send_webhook"]
    assert fetch["result"]["items"] == 3
    [hook] = bg_web.to("/hook")
    assert Webhook(SECRET).verify(hook.body, dict(hook.headers)) == {"user_id": 7, "action": "external_fetch_triggered"}
    assert hook.headers["webhook-id"] == webhook["id"]
    assert "webhook.delivered" in [event["type"] for event in await service.events(webhook["id"])]


async def test_the_urls_may_come_in_the_query(service: Service, bg_web: WebPeer) -> None:
    """Both forms are served."""
    fetch, _ = await service.post("/trigger-external-fetch/7", params=start(bg_web, {"items": [1, 2]}))

    assert fetch["result"]["items"] == 2


@pytest.mark.parametrize(
    ("document", "items"),
    [([], 0), ([1, 2], 2), ({}, 0), ({"a": 1, "b": 2}, 2), ({"items": [1, 2, 3], "next": None}, 3), (None, 0), (5, 1)],
)
def test_what_counts_as_items(document: object, items: int) -> None:
    """A list's entries, the entries of an object's only list, an object's members."""
    assert count_items(document) == items


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (lambda _: web.Response(text="<html>"), "NotJsonError"),
        (lambda _: web.Response(text=""), "NotJsonError"),
        (lambda _: web.json_response(["x" * 100] * 2_000), "TooLargeError"),
        (lambda _: web.Response(status=404), "FetchRejectedError"),
    ],
)
async def test_an_answer_that_cannot_be_used_fails_the_fetch(
    service: Service, bg_web: WebPeer, answer: Any, error: str
) -> None:
    """At once, without another attempt; the webhook is sent all the same."""
    fetch, webhook = await trigger(service, bg_web, answer)

    assert (fetch["state"], fetch["attempt"], fetch["error"]["type"]) == ("failed", 1, error)
    assert webhook["state"] == "succeeded"


async def test_a_server_in_trouble_is_asked_again(service: Service, bg_web: WebPeer) -> None:
    """A 503 costs an attempt; its Retry-After is kept to."""
    answers = iter([web.Response(status=503, headers={"Retry-After": "0"}), web.json_response([1])])

    fetch, _ = await trigger(service, bg_web, lambda _: next(answers))

    assert (fetch["state"], fetch["attempt"]) == ("succeeded", 2)


async def test_an_answer_that_takes_too_long_is_given_up(service: Service, bg_web: WebPeer) -> None:
    """The deadline covers the whole answer; the attempt counts and another follows."""

    async def drip(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await asyncio.sleep(60)
        return response

    answer = await service.http.post("/trigger-external-fetch/7", json=start(bg_web, drip))

    events = await service.events(answer.json()["jobs"][0]["id"], until="job.retrying")
    assert events[-1]["data"]["error"]["type"] == "FetchError"


@pytest.mark.parametrize("status", [400, 404, 410])
async def test_a_webhook_that_is_refused_fails(service: Service, bg_web: WebPeer, status: int) -> None:
    """A 4xx ends the job."""
    _, webhook = await trigger(service, bg_web, [], hook=lambda _: web.Response(status=status))

    assert (webhook["state"], webhook["attempt"]) == ("failed", 1)
    assert str(status) in webhook["error"]["message"]


async def test_a_webhook_in_trouble_is_told_again_under_the_same_id(service: Service, bg_web: WebPeer) -> None:
    """A 5xx costs an attempt; the receiver can tell the repeat by its id."""
    answers = iter([web.Response(status=500, headers={"Retry-After": "0"}), web.Response()])

    _, webhook = await trigger(service, bg_web, [], hook=lambda _: next(answers))

    ids = [request.headers["webhook-id"] for request in bg_web.to("/hook")]
    assert webhook["state"] == "succeeded"
    assert ids == [webhook["id"]] * 2


@at_the_door
@pytest.mark.parametrize(
    "url",
    [
        "",
        "nonsense",
        "ftp://example.com/x",
        "http://",
        "http:///x",
        "http://a b/",
        "http://u:p@example.com/",
        "file:///etc",
    ],
)
@pytest.mark.parametrize("field", ["data_url", "webhook_url"])
async def test_a_url_that_is_none_is_refused(door: Service, field: str, url: str) -> None:
    """422 names the field."""
    form = {"data_url": "http://example.com/", "webhook_url": "http://example.com/"} | {field: url}

    answer = await door.http.post("/trigger-external-fetch/7", json=form)

    assert answer.status_code == 422
    assert answer.json()["errors"][0]["loc"][-1] == field


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "http://[::1]/", "http://10.0.0.1/", "http://169.254.169.254/"])
async def test_a_private_address_is_refused(serve: Serve, settings: Settings, url: str) -> None:
    """By default jobs reach public addresses only."""
    outbound = settings.outbound.model_copy(update={"allow_private": False})
    service = await serve(settings.model_copy(update={"outbound": outbound}))

    answer = await service.http.post(
        "/trigger-external-fetch/7", json={"data_url": url, "webhook_url": "http://example.com/"}
    )

    assert answer.status_code == 422


async def test_a_redirect_to_a_private_address_fails_the_job(serve: Serve, settings: Settings, bg_web: WebPeer) -> None:
    """What passes at the gate is checked again where the connection is made."""
    allowed = bg_web.url.removeprefix("http://")
    outbound = settings.outbound.model_copy(update={"allow_private": False, "allow_hosts": (allowed,)})
    service = await serve(settings.model_copy(update={"outbound": outbound}))

    fetch, _ = await trigger(
        service, bg_web, lambda _: web.Response(status=302, headers={"Location": "http://10.0.0.1/"})
    )

    assert (fetch["state"], fetch["error"]["type"]) == ("failed", "EgressRefusedError")
