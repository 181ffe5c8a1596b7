"""Where a request comes from: from a page of our own, and straight from this machine."""

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
"""What proxies add to the headers of a request they pass on (RFC 7239; RFC 9110, 7.6.3; and what stood for them)."""
_TEST_CLIENT: Final = "testclient"
"""The address that Starlette's TestClient gives itself."""
_WITH_KEY: Final = "send an API key (asyncbg keys create makes one)"
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+)(?::\d{1,5})?")
_LOCAL_NAME: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]*")
"""One label, such as a name of a hosts file: nobody can register it, so no page of the web has it (ICANN, SAC 053)."""
_PORTS: Final = {"http": "80", "https": "443"}


def refuse_cross_site(method: str, headers: Headers, *, must_tell: bool, remedy: str = _WITH_KEY) -> None:
    """Let a browser change something only from a page of our own. Raises CrossSiteError.

    For credentials that a browser adds by itself, or that nobody needs. Browsers tell by Sec-Fetch-Site (Fetch
    Metadata) and Origin (Fetch, 3.2) whose page sends a request; what is no browser sends neither, which ``must_tell``
    refuses.
    """
    if method in _SAFE:
        return
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is None and origin is None:
        if must_tell:
            raise CrossSiteError("a request with a cookie should have an Origin header; send an API key instead")
        return
    # A page with Referrer-Policy: no-referrer sends its own forms with the origin null (Fetch, 3.2.5).
    is_ours = origin is None or _is_ours(origin, headers) or (origin == "null" and site == "same-origin")
    if site not in {None, "same-origin", "none"} or not is_ours:
        raise CrossSiteError(f"a page of another site sent this; send it from a page of this service, or {remedy}")


def refuse_strangers(connection: HTTPConnection, *, remedy: str = _WITH_KEY) -> None:
    """Let in only who came straight from this machine and means it. Raises ForeignHostError.

    The address alone would let in whatever a proxy on this machine passes on, and any web page whose host name was made
    to lead here (DNS rebinding): the Host header has to name this machine too, or be a name without a dot.
    A test client within the process has no addresses to check.
    """
    how = _comes_from_elsewhere(connection)
    if how is not None:
        raise ForeignHostError(f"only this machine itself may call without credentials, and this came {how}; {remedy}")


def _comes_from_elsewhere(connection: HTTPConnection) -> str | None:
    """How a request came, where it did not come straight from this machine."""
    server, client = connection.scope.get("server"), connection.scope.get("client")
    if any(map(_FORWARDED.fullmatch, connection.headers)):
        return "through a proxy"
    if client is not None and not (client[0] == _TEST_CLIENT or is_loopback(client[0])):
        return "over the network"
    if server is None or not _is_address(server[0]):
        return "through a socket file, as a proxy's do" if _is_socket_file(server) else None
    if server[1] is None:  # httpx's ASGITransport; a server has a port
        return None
    if not is_loopback(server[0]):
        return "over the network"
    name = _host_name(connection.headers)
    return None if is_loopback(name) or _LOCAL_NAME.fullmatch(name) else "under another name than localhost"


def _is_socket_file(server: Sequence[Any] | None) -> bool:
    """Whether a server listens on a Unix socket: those of ASGI say its path and no port."""
    return server is not None and server[1] is None and "/" in str(server[0])


def is_loopback(host: str) -> bool:
    """Whether a host name or an address is this machine's own, seen by itself only."""
    name = host.strip("[]").lower().rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):  # RFC 6761, 6.3
        return True
    return _is_address(name) and _is_loopback_address(name)


def _is_loopback_address(text: str) -> bool:
    address = ip_address(text)
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _is_ours(origin: str, headers: Headers) -> bool:
    """Whether an origin is the one that this request was sent to. Its scheme is the proxy's matter, if there is one."""
    scheme, separator, netloc = origin.partition("://")
    if not separator or scheme not in _PORTS:
        return False
    host, default = headers.get("host", ""), f":{_PORTS[scheme]}"
    return netloc.lower().removesuffix(default) == host.lower().removesuffix(default)


def _host_name(headers: Headers) -> str:
    """The name in the Host header, without the port; nothing of one that is malformed or sent twice."""
    hosts = headers.getlist("host")
    found = _HOST.fullmatch(hosts[0]) if len(hosts) == 1 else None
    return found[1] if found else ""


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True
