"""The connection of a response: a stalled client is distinguished from a slow one."""

from typing import Any

import pytest

from asyncbg.streams.connection import Connection


class Transport:
    """A server's transport that holds so many bytes."""

    def __init__(self) -> None:
        """Hold nothing."""
        self.size = 0
        self.is_gone = self.is_told_to_close = False

    def get_write_buffer_size(self) -> int:
        """What waits."""
        return self.size

    def is_closing(self) -> bool:
        """Whether it was told to."""
        return self.is_told_to_close

    def abort(self) -> None:
        """End at once."""
        self.is_gone = True


class Cycle:
    """The object whose method uvicorn gives an application as ``receive``."""

    def __init__(self) -> None:
        """Have a transport."""
        self.transport = Transport()

    async def receive(self) -> Any:
        """Say nothing."""
        raise AssertionError("nobody asks")


@pytest.fixture
def cycle() -> Cycle:
    """A request of uvicorn's."""
    return Cycle()


def test_a_client_that_takes_nothing_is_seen(cycle: Cycle) -> None:
    """What waits and does not shrink has been still since the last look that found nothing."""
    connection = Connection(cycle.receive, now=100.0)
    connection.bytes_sent(50)
    cycle.transport.size = 55  # with the framing of HTTP

    assert [connection.stalled_for_s(now) for now in (101.0, 102.0, 103.0)] == [1.0, 2.0, 3.0]


def test_a_slow_client_is_not_a_stalled_one(cycle: Cycle) -> None:
    """Whoever took some of it has moved, even where more was given meanwhile than was taken."""
    connection = Connection(cycle.receive, now=100.0)
    for second, size in enumerate((100, 180, 260, 345)):
        connection.bytes_sent(100)
        cycle.transport.size = size
        stalled_s = connection.stalled_for_s(101.0 + second)

    assert stalled_s == 0.0


def test_nothing_that_waits_is_nothing_still(cycle: Cycle) -> None:
    """A quiet stream is not a stalled one."""
    connection = Connection(cycle.receive, now=100.0)

    assert connection.stalled_for_s(900.0) == 0.0


def test_only_a_connection_that_cannot_close_is_let_go(cycle: Cycle) -> None:
    """One that goes on, or has nothing left to send, is left alone."""
    connection = Connection(cycle.receive, now=100.0)
    cycle.transport.size = 10
    connection.abort_if_closing()
    assert not cycle.transport.is_gone

    cycle.transport.is_told_to_close = True
    connection.abort_if_closing()
    assert cycle.transport.is_gone


def test_a_server_that_shows_nothing_is_left_alone() -> None:
    """Where ``receive`` is not uvicorn's own nothing is known, and hanging up does nothing."""

    async def receive() -> Any:
        raise AssertionError("nobody asks")

    connection = Connection(receive, now=100.0)
    connection.abort()

    assert connection.stalled_for_s(900.0) is None
    assert connection.buffered == 0
