"""Browsers sign in with a key and get a cookie that only they can use, and only from pages of our own."""

from http.cookies import SimpleCookie

import httpx
import pytest

from asyncbg.auth.api_key import Scope, new_key
from asyncbg.auth.sessions import Sessions
from asyncbg.core.clock import ManualClock
from asyncbg.store.sqlite.database import Database
from tests.auth.conftest import House
from tests.auth.test_auth_middleware import answered

COOKIE = "__Host-asyncbg"


async def signed_in(house: House, name: str = "ada") -> httpx.AsyncClient:
    """A browser that signed in with the key of that name. (httpx keeps no Secure cookie over http.)"""
    client = await house.enter()
    answer = await client.post("/session", json={"key": await house.key(name)})
    assert answer.status_code == 201
    client.headers["Cookie"] = f"{COOKIE}={SimpleCookie(answer.headers['set-cookie'])[COOKIE].value}"
    return client


async def test_the_cookie_is_for_this_host_and_out_of_reach(house: House) -> None:
    """The prefix, the flags, a lifetime, and no sign of the key or of its hash."""
    key = await house.key("ada")
    answer = await (await house.enter()).post("/session", json={"key": key})

    [sent] = answer.headers.get_list("set-cookie")
    flags = {part.strip().lower() for part in sent.split(";")[1:]}
    assert sent.startswith(f"{COOKIE}=")
    assert {"secure", "httponly", "samesite=strict", "path=/"} <= flags
    assert not any(flag.startswith("domain") for flag in flags)
    assert any(flag.startswith("max-age=") for flag in flags)
    assert answer.json().keys() == {"owner", "scopes", "expires_at"}
    assert key not in sent + answer.text
    assert answer.headers["cache-control"] == "no-store"


async def test_a_session_is_its_key(house: House) -> None:
    """It sees and does what the key does, streams included, and signing out ends it on the server too."""
    browser = await signed_in(house)

    job = (await browser.post("/process/x-canary7f3a", headers={"Origin": house.url})).json()["jobs"][0]["id"]
    assert (await browser.get(f"/jobs/{job}")).json()["owner"] == "ada"
    assert (await browser.get("/events?follow=false")).status_code == 200
    left = await browser.delete("/session", headers={"Origin": house.url})
    assert left.status_code == 204
    assert f"{COOKIE}=" in left.headers["set-cookie"]
    assert "Max-Age=0" in left.headers["set-cookie"]
    assert (await browser.get("/jobs")).status_code == 401


async def test_a_session_ends_with_its_key(house: House) -> None:
    """Within a second, though the key was revoked elsewhere; and a new key of the name does not wake it."""
    browser = await signed_in(house)
    assert (await browser.get("/jobs")).status_code == 200

    await house.keys.revoke("ada")
    await answered(browser, "/jobs", 401)
    del house.key_of["ada"]
    await house.key("ada")

    assert (await browser.get("/jobs")).status_code == 401


async def test_the_form_signs_in_and_out(house: House) -> None:
    """Without any script: 303 back to the page, which then says who is there."""
    client = await house.enter()
    key = await house.key("ada")
    origin = {"Origin": house.url}
    await answered(client, "/jobs", 401)
    assert 'action="session"' in (await client.get("/")).text

    answer = await client.post("/session", data={"key": key}, headers=origin)
    assert (answer.status_code, answer.headers["location"]) == (303, "./")
    client.headers["Cookie"] = answer.headers["set-cookie"].split(";")[0]
    page = (await client.get("/")).text
    assert "Signed in as <strong>ada</strong>" in page
    out = await client.post("/sign-out", headers=origin)

    assert (out.status_code, out.headers["location"]) == (303, "./")
    assert 'action="session"' in (await client.get("/")).text


async def test_the_page_runs_nothing_and_cannot_be_framed(house: House) -> None:
    """A strict policy: one style by its hash, forms to ourselves, nothing else."""
    headers = (await (await house.enter()).get("/")).headers

    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "form-action 'self'" in policy
    assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")


async def test_a_wrong_key_signs_nobody_in(house: House) -> None:
    """A browser's form gets the page, anybody else a problem; neither repeats what was sent, and no cookie comes."""
    await house.key("ada")
    client, wrong = await house.enter(), new_key()

    for answer in (
        await client.post("/session", data={"key": wrong}, headers={"Accept": "text/html"}),
        await client.post("/session", json={"key": wrong}),
    ):
        assert answer.status_code == 401
        assert wrong not in answer.text
        assert "set-cookie" not in answer.headers
    assert [entry.reason for entry in await house.entries("session.begin", 2)] == ["unknown key"] * 2


async def test_signing_in_takes_a_small_body_of_two_kinds(house: House) -> None:
    """413, 415 and 422 say what is wrong without repeating it."""
    client = await house.enter()

    assert (await client.post("/session", json={"key": "x" * 5000})).status_code == 413
    assert (
        await client.post("/session", content=b"hunter2-canary7f3a", headers={"Content-Type": "text/plain"})
    ).status_code == 415
    for body in ({}, {"key": 5}, {"key": ""}, ["hunter2-canary7f3a"], "hunter2-canary7f3a"):
        answer = await client.post("/session", json=body)
        assert answer.status_code == 422
        assert "canary7f3a" not in answer.text


CROSS = [
    ({}, False, True),  # no browser: nothing is said of where from
    ({"Origin": "OURS"}, True, True),
    ({"Sec-Fetch-Site": "same-origin"}, True, True),
    ({"Sec-Fetch-Site": "none"}, True, True),  # typed in by the user
    ({"Origin": "OURS", "Sec-Fetch-Site": "same-origin"}, True, True),
    ({"Origin": "null", "Sec-Fetch-Site": "same-origin"}, True, True),  # our own page under no-referrer
    ({"Origin": "null"}, False, False),
    ({"Origin": ""}, False, False),
    ({"Origin": "https://evil.example"}, False, False),
    ({"Origin": "http://localhost.evil.example"}, False, False),
    ({"Origin": "http://127.0.0.1:1"}, False, False),  # another port is another origin
    ({"Origin": "file://"}, False, False),
    ({"Sec-Fetch-Site": "cross-site"}, False, False),
    ({"Sec-Fetch-Site": "same-site"}, False, False),
    ({"Sec-Fetch-Site": "hunter2-canary7f3a"}, False, False),
    ({"Origin": "OURS", "Sec-Fetch-Site": "cross-site"}, False, False),
    ({"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"}, False, False),
    ({"Origin": "null", "Sec-Fetch-Site": "cross-site"}, False, False),  # a sandboxed frame
]


async def test_only_our_own_pages_change_anything(house: House) -> None:
    """The whole matrix: with a cookie, without any credentials, at the sign-in itself; with a key it is no matter."""
    anonymous = await house.enter()
    for headers, _, without in CROSS:
        answer = await anonymous.post("/process/x-canary7f3a", headers=told(house, headers))
        assert answer.status_code == (202 if without else 403), ("anonymous", headers)
    browser, client, key = await signed_in(house), await house.enter("ada"), await house.key("ada")
    for headers, with_cookie, without in CROSS:
        sent = told(house, headers)
        answer = await browser.post("/process/x-canary7f3a", headers=sent)
        assert answer.status_code == (202 if with_cookie else 403), ("cookie", headers)
        if not with_cookie:
            assert answer.json()["type"] == "urn:problem-type:asyncbg:cross-site"
        signing = await (await house.enter()).post("/session", json={"key": key}, headers=sent)
        assert signing.status_code == (201 if without else 403), ("sign-in", headers)
        assert (await client.post("/process/x-canary7f3a", headers=sent)).status_code == 202, ("key", headers)
        assert (await browser.get("/jobs", headers=sent)).status_code == 200, ("reading", headers)


def told(house: House, headers: dict[str, str]) -> dict[str, str]:
    """The headers, with our own origin where they say so."""
    return {name: house.url if value == "OURS" else value for name, value in headers.items()}


@pytest.mark.parametrize("cookie", ["", "hunter2-canary7f3a", "a" * 5000, f"x; {COOKIE}=y"])
async def test_a_cookie_that_is_none_of_ours_lets_nobody_in(house: House, cookie: str) -> None:
    """Not even where nobody would have needed one."""
    client = await house.enter()

    assert (await client.get("/jobs", headers={"Cookie": f"{COOKIE}={cookie}"})).status_code == 401


async def test_sessions_end_by_the_clock(tmp_path: object) -> None:
    """After their lifetime, used or not; those that are over are forgotten when the next begins."""
    clock, database = ManualClock(), Database(f"{tmp_path}/test.db")
    await database.open()
    sessions = Sessions(database, lifetime_s=60, clock=clock)
    await sessions.open()
    token, session = await sessions.create("1")

    assert await sessions.find(token) == session
    clock.advance(seconds=60)
    assert await sessions.find(token) is None
    assert await sessions.active() == {}
    later, _ = await sessions.create("1")
    count = "SELECT count(*) FROM browser_session"
    assert await database.read(lambda connection: connection.execute(count).fetchone()[0]) == 1
    assert await sessions.find(later) is not None
    await database.close()


async def test_a_session_may_do_no_more_than_its_key(house: House) -> None:
    """The scopes are the key's."""
    await house.key("reader", Scope.READ)
    browser = await signed_in(house, "reader")

    assert (await browser.get("/jobs")).status_code == 200
    refused = await browser.post("/process/x-canary7f3a", headers={"Origin": house.url})
    assert (refused.status_code, refused.json()["scope"]) == (403, "submit")
