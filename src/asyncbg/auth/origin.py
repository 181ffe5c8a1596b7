"""Checks of the origin of a request: not sent by another site, and sent directly from this machine."""

import re
from collections.abc import Sequence
from ipaddress import IPv6Address, ip_address
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from asyncbg.errors import CrossSiteError, ForeignHostError

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_FORWARDED: Final = re.compile(
    r"forwarded|via|x-(forwarded|original|real|envoy|azure|amzn|arr|appengine|cluster)([-_].*)?|(cf|fly|fastly)-.*|(x|true)-client-ip"
)
"""Headers that proxies add to a request they forward (RFC 7239; RFC 9110, 7.6.3; and their predecessors)."""
_TEST_CLIENT: Final = "testclient"
"""The client address of Starlette's TestClient."""
_WITH_KEY: Final = "send an API key (make one with: asyncbg keys create)"
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?")
_LOCAL_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
"""A name without a dot, as in a hosts file: it cannot be registered, so no web page has it (ICANN, SAC 053)."""
_PORTS: Final = {"http": "80", "https": "443"}


def refuse_cross_site(method: str, headers: Headers, *, require_origin: bool, remedy: str = _WITH_KEY) -> None:
    """Raise CrossSiteError where a page of another site sends a request that changes something.

    For requests with credentials that a browser adds by itself (cookies), or without credentials. Browsers send
    Sec-Fetch-Site (Fetch Metadata) and Origin (Fetch, 3.2); other clients send neither, which ``require_origin``
    refuses.
    """
    if method in _SAFE:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is None:
        if require_origin:
            raise CrossSiteError("a request with a cookie needs an Origin header; send an API key instead")
        return
    # A page with Referrer-Policy: no-referrer sends its own forms with the origin null (Fetch, 3.2.5).
    is_same_origin = origin is None or _is_same_origin(origin, headers) or (origin == "null" and site == "same-origin")
    if site not in {None, "same-origin", "none"} or not is_same_origin:
        raise CrossSiteError(
            f"a page of another site sent this request; send it from a page of this service, or {remedy}"
        )


def require_local(connection: HTTPConnection, *, remedy: str = _WITH_KEY) -> None:
    """Raise ForeignHostError unless the request came directly from this machine.

    The client's address is not enough: a proxy on this machine forwards remote requests, and a web page can have a host
    name that resolves to this machine (DNS rebinding). So the Host header has to name this machine too, or be a name
    without a dot. A test client within the process has no addresses to check.
    """
    how = _remote_route(connection)
    if how is not None:
        raise ForeignHostError(
            f"requests without credentials are accepted from this machine only, and this one came {how}; {remedy}"
        )


def _remote_route(connection: HTTPConnection) -> str | None:
    """Return how a request came; None where it came directly from this machine."""
    server, client = connection.scope.get("server"), connection.scope.get("client")
    if any(map(_FORWARDED.fullmatch, connection.headers)):
        return "through a proxy"
    if client is not None and not (client[0] == _TEST_CLIENT or is_loopback(client[0])):
        return "over the network"
    if server is None or not _is_address(server[0]):
        return "through a Unix socket, as from a proxy" if _is_socket_file(server) else None
    if server[1] is None:  # httpx's ASGITransport; a server has a port
        return None
    if not is_loopback(server[0]):
        return "over the network"
    name = _host_name(connection.headers)
    return None if is_loopback(name) or _LOCAL_NAME.fullmatch(name) else "under a host name other than localhost"


def _is_socket_file(server: Sequence[Any] | None) -> bool:
    """Whether the server listens on a Unix socket: its ASGI address is a path without a port."""
    return server is not None and server[1] is None and "/" in str(server[0])


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is a loopback one, which only this machine can reach."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    return _is_address(name) and _is_loopback_address(name)


def _is_loopback_address(text: str) -> bool:
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_same_origin(origin: str, headers: Headers) -> bool:
    """Whether an origin is the host that this request was sent to. The scheme is ignored: a proxy may end TLS."""
    scheme, separator, netloc = origin.partition("://")
    if not separator or scheme not in _PORTS:
        return False
    host, default = headers.get("host", ""), f":{_PORTS[scheme]}"
    return netloc.lower().removesuffix(default) == host.lower().removesuffix(default)


def _host_name(headers: Headers) -> str:
    """Return the name in the Host header without the port; nothing where it is malformed or repeated."""
    hosts = headers.getlist("host")
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found[1] if found else ""


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
