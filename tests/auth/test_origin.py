"""Straight from this machine, or not: by the addresses of the connection and the Host header together."""

from typing import Any

import pytest
from starlette.requests import HTTPConnection

from asyncbg.auth.origin import is_loopback, require_local
from asyncbg.errors import ForeignHostError


def connection(server: Any, client: Any, host: str = "localhost:8000") -> HTTPConnection:
    """A connection as a server tells of it."""
    headers = [(b"host", host.encode())]
    return HTTPConnection({"type": "http", "server": server, "client": client, "headers": headers})


@pytest.mark.parametrize(
    ("server", "client"),
    [
        (("127.0.0.1", 8000), ("127.0.0.1", 50000)),
        (("::1", 8000), ("::1", 50000)),
        (("::ffff:127.0.0.1", 8000), ("::ffff:127.0.0.1", 50000)),  # a socket that takes both families
        (("127.0.0.1", None), ("127.0.0.1", 123)),  # httpx's ASGITransport
        (("testserver", 80), ("testclient", 50000)),  # within the process: no socket at all
        (None, None),
    ],
)
def test_this_machine_is_let_in(server: Any, client: Any) -> None:
    """Over loopback, or no socket."""
    require_local(connection(server, client))


def test_a_name_without_a_dot_is_of_this_house() -> None:
    """No page of the web can have it."""
    require_local(connection(("127.0.0.1", 8000), ("127.0.0.1", 50000), "devbox:8000"))


@pytest.mark.parametrize(
    ("server", "client", "host"),
    [
        (("10.0.0.5", 8000), ("10.0.0.6", 50000), "localhost"),
        (("10.0.0.5", 8000), ("127.0.0.1", 50000), "localhost"),
        (("127.0.0.1", 8000), ("203.0.113.9", 50000), "localhost"),  # what a proxy told of is believed against it
        (("::ffff:10.0.0.5", 8000), ("::ffff:10.0.0.6", 50000), "localhost"),
        (("shop.example", 443), ("203.0.113.9", 0), "localhost"),  # a function's gateway has a name for a server
        (("testserver", 80), ("unknown", 50000), "testserver"),
        (("/run/asyncbg.sock", None), None, "localhost"),  # where a proxy is that adds no header of its own
        (("127.0.0.1", 8000), ("127.0.0.1", 50000), "evil.example"),
        (("127.0.0.1", 8000), ("127.0.0.1", 50000), "localhost@evil.example"),
        (("127.0.0.1", 8000), ("127.0.0.1", 50000), "localhost, evil.example"),
        (("127.0.0.1", 8000), ("127.0.0.1", 50000), ""),
    ],
)
def test_whoever_comes_from_elsewhere_is_not(server: Any, client: Any, host: str) -> None:
    """One sign of another machine is enough."""
    with pytest.raises(ForeignHostError, match="asyncbg keys create"):
        require_local(connection(server, client, host))


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [
        ("localhost", True), ("LOCALHOST.", True), ("app.localhost", True), ("127.255.0.1", True), ("[::1]", True),
        ("::ffff:127.0.0.1", True), ("0.0.0.0", False), ("::", False), ("localhost.evil.example", False),  # noqa: S104
        ("192.168.0.1", False), ("example.com", False), ("", False), ("2130706433", False),
    ],
)  # fmt: skip
def test_names_of_this_machine(host: str, is_ours: bool) -> None:
    """Loopback addresses of both families and the names reserved for them (RFC 6761)."""
    assert is_loopback(host) is is_ours
