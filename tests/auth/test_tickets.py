"""A ticket opens one stream, once, in its holder's name, at any process of the service."""

import asyncio

import pytest

from asyncbg.auth.tickets import LIFETIME_S, MAX_UNUSED, MAX_USED, RESUME_S, Tickets
from asyncbg.core.clock import ManualClock
from asyncbg.errors import OverloadedError
from asyncbg.store.sqlite.database import Database
from tests.auth.conftest import House, Street
from tests.auth.test_auth_middleware import answered


async def ticket(house: House, name: str, path: str, *, follow: bool = False) -> str:
    """The URL of a stream with a ticket in it."""
    answer = await (await house.enter(name)).post("/stream-tickets", json={"path": path})
    assert answer.status_code == 201
    return str(answer.json()["url"]) + ("" if follow else "&follow=false")


async def test_a_ticket_is_good_at_another_process(street: Street) -> None:
    """Issued by one service, shown to another on the same database, and then good nowhere."""
    here, there = await street.build(), await street.build()
    await here.key("ada")
    url = await ticket(here, "ada", "/events")

    assert (await (await there.enter()).get(url)).status_code == 200
    assert (await (await there.enter()).get(url)).status_code == 401
    assert (await (await here.enter()).get(url)).status_code == 401


async def test_of_many_that_show_a_ticket_one_gets_in(street: Street) -> None:
    """At two processes at once."""
    here, there = await street.build(), await street.build()
    url = await ticket(here, "ada", "/events")
    clients = [await house.enter() for house in (here, there) for _ in range(5)]

    answers = await asyncio.gather(*(client.get(url) for client in clients))

    assert sorted(answer.status_code for answer in answers) == [200, *[401] * 9]


async def test_a_ticket_shows_what_its_holder_may_see(house: House) -> None:
    """Another's job is not there, also with a ticket; and a ticket opens nothing but its path."""
    ada, bob = await house.enter("ada"), await house.enter("bob")
    job = (await ada.post("/process/x-canary7f3a")).json()["jobs"][0]["id"]
    anybody = await house.enter()
    await answered(anybody, "/jobs", 401)

    assert (await anybody.get(await ticket(house, "bob", f"/jobs/{job}/events"))).status_code == 404
    assert '"owner":"ada"' not in (await anybody.get(await ticket(house, "bob", "/events"))).text
    hers = await ticket(house, "ada", "/events")
    token = hers.partition("ticket=")[2].partition("&")[0]
    for path in (f"/jobs/{job}", "/jobs", f"/jobs/{job}/events", "/metrics", "/openapi.json"):
        assert (await anybody.get(f"{path}?ticket={token}")).status_code == 401, path
    assert (await anybody.post(f"/jobs?ticket={token}")).status_code == 401
    assert (await anybody.get(hers)).status_code == 200
    assert (await bob.get("/jobs")).status_code == 200


async def test_a_ticket_ends_with_its_key(house: House) -> None:
    """A key that was revoked meanwhile opens no more streams."""
    url = await ticket(house, "ada", "/events")
    await house.keys.revoke("ada")

    assert (await (await house.enter()).get(url)).status_code == 401


@pytest.mark.parametrize("token", ["", "x", "é", "x" * 3000])
async def test_what_is_no_ticket_opens_nothing(house: House, token: str) -> None:
    """Not even where no ticket would have been needed."""
    client = await house.enter()

    assert (await client.get("/events", params={"ticket": token, "follow": "false"})).status_code == 401


async def test_tickets_expire_and_are_bounded(tmp_path: object) -> None:
    """A minute; ten thousand in all, a tenth of them one owner's; what is over makes room."""
    clock, database = ManualClock(), Database(f"{tmp_path}/test.db")
    await database.open()
    tickets = Tickets(database, clock=clock)
    await tickets.open()
    token, expires_ms = await tickets.issue("/events", owner="ada", holder="{}")
    assert expires_ms == clock.now_ms() + 60_000
    clock.advance(seconds=LIFETIME_S)
    assert await tickets.redeem(token, "/events") is None

    issued = await asyncio.gather(
        *(tickets.issue("/events", owner="ada", holder="{}") for _ in range(MAX_UNUSED // 10 + 1)),
        return_exceptions=True,
    )
    assert [type(one) for one in issued if isinstance(one, Exception)] == [OverloadedError]
    assert await tickets.issue("/events", owner="bob", holder="{}")
    clock.advance(seconds=LIFETIME_S)
    assert await tickets.issue("/events", owner="ada", holder="{}")
    await database.close()


async def test_a_browser_that_lost_its_stream_comes_back_with_the_same_ticket(street: Street) -> None:
    """It shows the URL it has and the last id it got, at any process, again and again; the audit log says so."""
    here, there = await street.build(), await street.build()
    ada = await here.enter("ada")
    path = (await ada.post("/process/x-canary7f3a")).json()["jobs"][0]["url"] + "/events"
    url = await ticket(here, "ada", path)
    opened = await (await here.enter()).get(url)
    last = opened.text.rpartition("id: ")[2].partition("\n")[0]

    for house in (there, here, there):
        again = await (await house.enter()).get(url, headers={"Last-Event-ID": last})
        assert again.status_code in {200, 204}
    assert [one.who for one in await here.entries("stream.resume", 3)] == ["ada"] * 3

    stranger = await there.enter()
    foreign = "00000000-" + last.rpartition("-")[2]
    for headers in ({}, {"Last-Event-ID": ""}, {"Last-Event-ID": "x"}, {"Last-Event-ID": foreign}):
        assert (await stranger.get(url, headers=headers)).status_code == 401, headers
    assert (await stranger.get(f"{url}&last_event_id={last}")).status_code == 401
    elsewhere = url.replace(path, "/events")
    assert (await stranger.get(elsewhere, headers={"Last-Event-ID": last})).status_code == 401


async def test_who_may_not_see_a_stream_any_more_does_not_come_back(house: House) -> None:
    """The credentials that the ticket was issued for are looked at each time."""
    url = await ticket(house, "ada", "/events")
    browser = await house.enter()
    await (await house.enter("ada")).post("/process/x-canary7f3a")
    last = (await browser.get(url)).text.rpartition("id: ")[2].partition("\n")[0]
    assert (await browser.get(url, headers={"Last-Event-ID": last})).status_code == 200

    await house.keys.revoke("ada")

    assert (await browser.get(url, headers={"Last-Event-ID": last})).status_code == 401


async def test_a_ticket_that_nobody_uses_is_forgotten(tmp_path: object) -> None:
    """A day after its last use; sooner where nobody can look at the credentials; a thousand of one owner are kept."""
    clock, database = ManualClock(), Database(f"{tmp_path}/test.db")
    await database.open()
    tickets = Tickets(database, clock=clock, epoch=lambda: "e")
    await tickets.open()
    token, _ = await tickets.issue("/events", owner="ada", holder="{}")
    assert await tickets.redeem(token, "/events", cursor="e-1")
    for _ in range(3):
        clock.advance(seconds=RESUME_S - 1)
        assert await tickets.redeem(token, "/events", cursor="e-1")
    assert await tickets.redeem(token, "/events", cursor="e-1", max_age_s=3_600) is None
    clock.advance(seconds=RESUME_S)
    assert await tickets.redeem(token, "/events", cursor="e-1") is None

    token, _ = await tickets.issue("/events", owner="ada", holder="{}")
    assert await tickets.redeem(token, "/events")
    for _ in range(MAX_USED):
        clock.advance(seconds=1)
        other, _ = await tickets.issue("/events", owner="ada", holder="{}")
        assert await tickets.redeem(other, "/events")
    assert await tickets.redeem(token, "/events", cursor="e-1") is None
    assert await tickets.redeem(other, "/events", cursor="e-1")
    await database.close()


async def test_the_database_holds_no_token(house: House) -> None:
    """A ticket that waits is there as a hash only."""
    url = await ticket(house, "ada", "/events")
    token = url.partition("ticket=")[2].partition("&")[0]
    files = house.settings.database_url.removeprefix("sqlite:///")

    for suffix in ("", "-wal"):
        with open(files + suffix, "rb") as file:  # noqa: ASYNC230, PTH123 - a small file of the test's own
            assert token.encode() not in file.read()
