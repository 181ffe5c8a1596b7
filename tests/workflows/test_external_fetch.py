"""Fetching from and telling another server, which may be slow, wrong or not there."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from standardwebhooks.webhooks import Webhook

from asyncbg.settings import Settings
from asyncbg.testing import WebPeer
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


async def retries(service: Service, job_id: str, count: int) -> list[dict[str, Any]]:
    """The first ``count`` events of the job that announce another attempt."""
    seen: list[dict[str, Any]] = []
    async with asyncio.timeout(20), service.http.stream("GET", f"/jobs/{job_id}/events") as stream:
        async for line in stream.aiter_lines():
            if line.startswith("data: ") and '"job.retrying"' in line:
                seen.append(json.loads(line.removeprefix("data: ")))
                if len(seen) == count:
                    break
    return seen


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


async def test_items_are_validated_summed_and_sampled(service: Service, bg_web: WebPeer) -> None:
    """What fits the model counts and is summed, what does not is rejected by its place; a few are kept."""
    fetch, _ = await trigger(service, bg_web, [{"id": 1, "value": 2.5, "x": 0}, {"id": [], "value": 1}, 4, "a", None])

    result = fetch["result"]
    assert (result["items"], result["valid"], result["rejected"], result["sum"]) == (5, 3, 2, 6.5)
    assert result["sample"] == [{"id": 1, "value": 2.5}, {"value": 4}, {"name": "a"}]
    assert [rejection["index"] for rejection in result["rejections"]] == [1, 4]


async def test_nothing_personal_is_kept_of_a_sample(service: Service, bg_web: WebPeer) -> None:
    """The data is somebody else's."""
    fetch, _ = await trigger(service, bg_web, [{"id": 1, "name": "write to ada.canary7f3a@canary7f3a.example"}])

    assert "canary7f3a" not in str(fetch["result"])


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


@pytest.mark.parametrize("status", [301, 400, 401, 404, 422])
async def test_a_webhook_that_is_refused_is_told_again(service: Service, bg_web: WebPeer, status: int) -> None:
    """Whatever is no 2xx is a failure that may pass (Standard Webhooks); 410 alone is not."""
    answers = iter([web.Response(status=status, headers={"Retry-After": "0"}), web.Response()])

    _, webhook = await trigger(service, bg_web, [], hook=lambda _: next(answers))

    assert (webhook["state"], webhook["attempt"]) == ("succeeded", 2)


async def test_a_webhook_in_trouble_is_told_again_under_the_same_id(service: Service, bg_web: WebPeer) -> None:
    """A 5xx costs an attempt; the receiver can tell the repeat by its id."""
    answers = iter([web.Response(status=500, headers={"Retry-After": "0"}), web.Response()])

    _, webhook = await trigger(service, bg_web, [], hook=lambda _: next(answers))

    ids = [request.headers["webhook-id"] for request in bg_web.to("/hook")]
    assert webhook["state"] == "succeeded"
    assert ids == [webhook["id"]] * 2


async def test_each_attempt_is_in_the_delivery_log(service: Service, bg_web: WebPeer) -> None:
    """Status, error and duration of every attempt are events of the job, without the URL."""
    answers = iter([web.Response(status=503, headers={"Retry-After": "0"}), web.Response(status=204)])

    _, webhook = await trigger(service, bg_web, [], hook=lambda _: next(answers))

    log = [event for event in await service.events(webhook["id"]) if event["type"].startswith("webhook.")]
    assert [(event["type"], event["attempt"]) for event in log] == [
        ("webhook.attempted", 1), ("webhook.attempted", 2), ("webhook.delivered", 2),
    ]  # fmt: skip
    first, second = (event["data"] for event in log[:2])
    assert (first["status"], first["error"]) == (503, "WebhookError")
    assert (second["status"], second["error"]) == (204, None)
    assert min(first["duration_s"], second["duration_s"]) >= 0
    assert bg_web.url not in str(log)


async def test_the_timestamp_is_that_of_the_attempt(service: Service, bg_web: WebPeer) -> None:
    """The id stays, the signature is made anew: a receiver that looks at the time takes a late attempt too."""
    answers = iter([web.Response(status=503, headers={"Retry-After": "1"}), web.Response()])

    await trigger(service, bg_web, [], hook=lambda _: next(answers))

    hooks = [(dict(request.headers), request.body) for request in bg_web.requests if request.path == "/hook"]
    stamps = [int(headers["webhook-timestamp"]) for headers, _ in hooks]
    assert stamps[1] > stamps[0]
    for headers, body in hooks:
        assert Webhook(SECRET).verify(body, headers)


@pytest.mark.parametrize("status", [404, 429, 503])
async def test_the_receivers_own_wish_comes_before_the_schedule(service: Service, bg_web: WebPeer, status: int) -> None:
    """Retry-After is kept to, whatever the failure."""
    urls = start(bg_web, [], lambda _: web.Response(status=status, headers={"Retry-After": "4000"}))

    answer = await service.http.post("/trigger-external-fetch/7", json=urls)

    events = await service.events(answer.json()["jobs"][1]["id"], until="job.retrying")
    assert events[-1]["data"]["delay_s"] == pytest.approx(4000, abs=1)


async def test_a_webhook_is_told_again_by_the_schedule(serve: Serve, settings: Settings, bg_web: WebPeer) -> None:
    """One attempt more than the schedule has delays, each delay drawn out by at most a tenth."""
    outbound = settings.outbound.model_copy(update={"webhook_schedule_s": (0.2, 1000.0)})
    service = await serve(settings.model_copy(update={"outbound": outbound}))
    urls = start(bg_web, [], lambda _: web.Response(status=500))

    answer = await service.http.post("/trigger-external-fetch/7", json=urls)

    job = answer.json()["jobs"][1]["id"]
    delays = [event["data"]["delay_s"] for event in await retries(service, job, 2)]
    assert 0 < delays[0] <= 0.22  # what is left of it when the outcome is on disk
    assert 999 <= delays[1] <= 1100
    assert (await service.http.get(f"/jobs/{job}")).json()["max_attempts"] == 3


async def test_a_refusal_of_ours_is_in_the_delivery_log(serve: Serve, settings: Settings, bg_web: WebPeer) -> None:
    """A receiver whose name leads to a private address is not connected to, and the log says so."""
    outbound = settings.outbound.model_copy(update={"allow_private": False, "allow_hosts": ("localhost",)})
    service = await serve(settings.model_copy(update={"outbound": outbound}))
    url = bg_web.url.replace("127.0.0.1", "localhost")

    _, webhook = await service.post("/trigger-external-fetch/7", json={"data_url": url, "webhook_url": url})

    [attempt] = [event for event in await service.events(webhook["id"]) if event["type"].startswith("webhook.")]
    assert (attempt["data"]["status"], attempt["data"]["error"]) == (None, "EgressRefusedError")
    assert (webhook["state"], webhook["attempt"]) == ("failed", 1)
    assert not bg_web.requests


async def test_a_receiver_that_is_gone_is_told_no_more(service: Service, bg_web: WebPeer) -> None:
    """410 ends it for good, whatever the schedule has left and Retry-After asks."""
    gone = web.Response(status=410, headers={"Retry-After": "0"})

    _, webhook = await trigger(service, bg_web, [], hook=lambda _: gone)

    assert (webhook["state"], webhook["attempt"], webhook["error"]["type"]) == ("failed", 1, "WebhookGoneError")
    assert [request.path for request in bg_web.requests].count("/hook") == 1


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
        "http://u:p-canary7f3a@example.com/",
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
