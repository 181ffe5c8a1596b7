"""A ticket opens one stream, once, in its holder's name, at any process of the service."""

import asyncio

import pytest

from asyncbg.clock import ManualClock
from asyncbg.database import Database
from asyncbg.errors import OverloadedError
from asyncbg.services.tickets import LIFETIME_S, MOST, Tickets
from tests.auth.conftest import House, Street
from tests.auth.test_guard import answered


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
        *(tickets.issue("/events", owner="ada", holder="{}") for _ in range(MOST // 10 + 1)), return_exceptions=True
    )
    assert [type(one) for one in issued if isinstance(one, Exception)] == [OverloadedError]
    assert await tickets.issue("/events", owner="bob", holder="{}")
    clock.advance(seconds=LIFETIME_S)
    assert await tickets.issue("/events", owner="ada", holder="{}")
    await database.close()


async def test_the_database_holds_no_token(house: House) -> None:
    """A ticket that waits is there as a hash only."""
    url = await ticket(house, "ada", "/events")
    token = url.partition("ticket=")[2].partition("&")[0]
    files = house.settings.database_url.removeprefix("sqlite:///")

    for suffix in ("", "-wal"):
        with open(files + suffix, "rb") as file:  # noqa: ASYNC230, PTH123 - a small file of the test's own
            assert token.encode() not in file.read()
