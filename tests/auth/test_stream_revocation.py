"""A stream ends within a second of the credentials it was opened with, whoever ended those and where."""

import asyncio
import json

import httpx
import pytest

from asyncbg.auth.api_key import Scope
from asyncbg.core.clock import SystemClock
from tests.auth.conftest import House
from tests.auth.test_sessions import signed_in
from tests.auth.test_tickets import ticket
from tests.documents import frames


async def goodbye(stream: httpx.Response) -> dict[str, str]:
    """What a stream says at its end."""
    async with asyncio.timeout(10):
        sent = frames("".join([text async for text in stream.aiter_text()]))
    assert sent
    assert sent[-1]["event"] == "stream.bye"
    data: dict[str, str] = json.loads(sent[-1]["data"])["data"]
    return data


@pytest.mark.parametrize("how", ["key", "session", "ticket"])
async def test_a_revoked_key_closes_its_streams(house: House, how: str) -> None:
    """Opened with the key itself, with a session or with a ticket; another key's stream goes on."""
    other = await house.enter("bob")
    client = await signed_in(house) if how == "session" else await house.enter("ada" if how == "key" else None)
    path = await ticket(house, "ada", "/events", follow=True) if how == "ticket" else "/events"
    async with client.stream("GET", path) as stream, other.stream("GET", "/events") as bobs:
        assert (stream.status_code, bobs.status_code) == (200, 200)
        await house.keys.revoke("ada")

        assert (await goodbye(stream))["reason"] == "revoked"
        job = (await other.post("/process/x-canary7f3a")).json()["jobs"][0]["id"]
        async with asyncio.timeout(10):
            assert await anext(line async for line in bobs.aiter_lines() if job in line)
    assert (await client.get("/events")).status_code == 401


async def test_a_long_poll_tells_a_revoked_key_nothing(house: House) -> None:
    """The key ends while its request waits: what it waited for is not told."""
    client = await house.enter("ada")
    later = {"task": "cleanup_task", "args": {"name": "x-canary7f3a"}, "delay_s": 3600}
    job = (await client.post("/jobs", json=later)).json()["jobs"][0]["id"]
    waiting = asyncio.create_task(client.get(f"/jobs/{job}", params={"wait": 2}))
    await asyncio.sleep(0)
    await house.keys.revoke("ada")

    answer = await waiting
    assert answer.status_code == 401
    assert job not in answer.text.replace(f"/jobs/{job}", "")


async def test_signing_out_closes_the_sessions_streams(house: House) -> None:
    """And leaves those of the key itself alone."""
    browser, client = await signed_in(house), await house.enter("ada")
    async with browser.stream("GET", "/events") as closed, client.stream("GET", "/events?type=job.queued") as stays:
        await browser.delete("/session", headers={"Origin": house.url})

        assert (await goodbye(closed))["reason"] == "revoked"
        job = (await client.post("/process/x-canary7f3a")).json()["jobs"][0]["id"]
        async with asyncio.timeout(10):
            assert await anext(line async for line in stays.aiter_lines() if job in line)


async def test_a_key_that_expires_closes_its_streams(house: House) -> None:
    """Nobody has to revoke it."""
    await house.key("ada", Scope.READ, expires_ms=SystemClock().now_ms() + 1500)
    client = await house.enter("ada")
    async with client.stream("GET", "/events") as stream:
        assert (await goodbye(stream))["reason"] == "revoked"


async def test_the_first_key_closes_the_streams_of_those_who_have_none(house: House) -> None:
    """Who came in while the door was open does not stay."""
    client = await house.enter()
    async with client.stream("GET", "/events") as stream:
        await house.key("ada")

        assert (await goodbye(stream))["reason"] == "revoked"
