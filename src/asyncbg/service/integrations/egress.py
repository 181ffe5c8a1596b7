"""Egress policy for outbound HTTP requests: URLs are checked in advance, addresses when a socket is created.

Non-public addresses are listed in :mod:`asyncbg.service.integrations.special_address`.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any

from yarl import URL

from asyncbg.errors import FinalError, SettingsError
from asyncbg.service.integrations.special_address import Address, Verdict, embedded, special_block
from asyncbg.service.integrations.url_text import UrlText

AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

MAX_URL_LENGTH = 8_000
_MAX_NAME_LENGTH = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label of this form makes the host an IPv4 address (WHATWG URL)
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\]")

# Ports that browsers block (Fetch standard, "port blocking"): their services could interpret a request as a mail or a
# command. tcpmux, echo and discard (1, 7, 9) are not blocked: they execute nothing.
BLOCKED_PORTS = frozenset(
    (11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109, 110, 111, 113,
     115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531, 532, 540, 548,
     554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566,
     6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080)
)  # fmt: skip
_OPEN_PRIVATE = "set ASYNCBG_OUTBOUND__ALLOW_PRIVATE=true to let jobs reach private networks"
_NAME_PORT = "name host:port in ASYNCBG_OUTBOUND__ALLOW_HOSTS if it is meant"
_NAME_ADDRESS = "name that very address in ASYNCBG_OUTBOUND__ALLOW_HOSTS if it is meant"
_OPEN_EITHER = f"{_OPEN_PRIVATE}, or name that very address in ASYNCBG_OUTBOUND__ALLOW_HOSTS"
_NAME_HOST = "add it to ASYNCBG_OUTBOUND__ALLOW_HOSTS if it is meant"


class BadUrlError(FinalError):
    """The URL is malformed or ambiguous between parsers. The message never quotes it."""


class EgressRefusedError(FinalError, PermissionError):
    """The policy forbids this host or address. Also an OSError, so that a connector tries the next address."""


class EgressPolicy:
    """Policy of the URLs and addresses that jobs may reach.

    Without ``allow_hosts`` every public address is allowed. With it, only the listed hosts: ``host``, ``host:port``, an
    address or ``[address]:port``, case-insensitive. A listed address is allowed even if it is private; a listed name
    must resolve to a public address unless ``allow_private``. A port in ``BLOCKED_PORTS`` needs an entry with host and
    port. Raises SettingsError for a malformed entry.
    """

    def __init__(self, allow_hosts: Sequence[str] = (), allow_private: bool = False) -> None:
        self._allowed = frozenset(_entry(text) for text in allow_hosts)
        self._allow_private = allow_private

    def check_url(self, url: str) -> URL:
        """Return the parsed URL without its fragment if it is well-formed and its host is not refused.

        A name is resolved only when the connection is made, and ``socket_factory`` checks its addresses. Raises
        BadUrlError and EgressRefusedError.
        """
        parsed = _parse(url)
        host, port = _host(parsed), parsed.port or 0
        self._check_port(host, port)
        if not {(host, port), (host, None)} & self._allowed:
            self._check_unlisted(host, port)
        return parsed

    def check_address(self, address: Address, port: int) -> None:
        """Raise EgressRefusedError unless a connection to ``address`` and ``port`` is allowed."""
        address = embedded(address)
        if {(address, port), (address, None)} & self._allowed:
            return
        row = special_block(address)
        if row is None or (row.verdict is Verdict.PRIVATE and self._allow_private):
            return
        if row.verdict is Verdict.PRIVATE:
            raise EgressRefusedError(f"the host is a private address ({row.name}, {row.source}); {_OPEN_PRIVATE}")
        raise EgressRefusedError(f"the host is a special address ({row.name}, {row.source}); {_NAME_ADDRESS}")

    def socket_factory(self, addr_info: AddrInfo) -> socket.socket:
        """Create the socket for an address, or raise EgressRefusedError.

        For ``aiohttp.TCPConnector(socket_factory=…)``, which calls it for resolved names, literals and redirects. The
        message is the same for every address, since a connector merges the errors of several addresses.
        """
        family, type_, proto, _, sockaddr = addr_info
        try:
            self.check_address(ipaddress.ip_address(sockaddr[0]), sockaddr[1])
        except EgressRefusedError:
            raise EgressRefusedError(f"the host resolves to a private or special address; {_OPEN_EITHER}") from None
        return socket.socket(family=family, type=type_, proto=proto)

    def _check_port(self, host: Address | str, port: int) -> None:
        if port in BLOCKED_PORTS and (host, port) not in self._allowed:
            raise EgressRefusedError(f"the URL's port belongs to another protocol than HTTP; {_NAME_PORT}")

    def _check_unlisted(self, host: Address | str, port: int) -> None:
        """Check a host that no entry lists; ``localhost`` and its subdomains are loopback (RFC 6761, 6.3)."""
        if not isinstance(host, str):
            self.check_address(host, port)
        elif (host == "localhost" or host.endswith(".localhost")) and not self._allow_private:
            raise EgressRefusedError(f"the host is a loopback name; {_OPEN_PRIVATE}")
        if self._allowed:
            raise EgressRefusedError(f"the URL's host is not in the list of allowed hosts; {_NAME_HOST}")


def _parse(url: str) -> URL:
    """Return a URL whose scheme, host, port and characters are valid.

    Only the host is normalized. In path and query, only illegal characters are encoded: a signature may cover every
    byte, and ``%2F`` differs from ``/`` (RFC 3986, 2.2). Both go into yarl's path, since yarl drops the question mark
    of an empty query.
    """
    if len(url) > MAX_URL_LENGTH:
        raise BadUrlError(f"the URL is longer than {MAX_URL_LENGTH} characters")
    if _BLANK_OR_CONTROL.search(url):
        raise BadUrlError("the URL holds a blank, a backslash or a control character; percent-encode it")
    try:
        text = UrlText.split(url).quoted()
        origin = URL(f"{text.scheme}://{text.authority or ''}")
    except (ValueError, IndexError):  # of yarl, for brackets before an @ and nothing after it
        raise BadUrlError("the URL is malformed; its form is https://host:port/path?query") from None
    if text.scheme not in ("http", "https"):
        raise BadUrlError("the URL's scheme is not http or https")
    if "@" in (text.authority or ""):
        raise BadUrlError("the URL carries a user name or password; leave them out")
    if not origin.raw_host:
        raise BadUrlError("the URL has no host; its form is https://host:port/path?query")
    if not origin.port:
        raise BadUrlError("the URL's port is not between 1 and 65535")
    return URL.build(scheme=origin.scheme, authority=origin.raw_authority, path=text.target, encoded=True)


def _host(url: URL) -> Address | str:
    """Return the host as an address, or as a lower-case name without its trailing dot."""
    try:
        return _address_or_name(url.raw_host or "")
    except ipaddress.AddressValueError:
        raise BadUrlError("the URL's host is not a valid IPv6 address") from None
    except ValueError as error:
        raise BadUrlError(f"the URL's host {error}") from None


def _address_or_name(text: str) -> Address | str:
    """Parse a host strictly. Raises ValueError for forms that resolvers interpret differently."""
    text = text.lower()
    if ":" in text:
        if "%" in text:
            raise ValueError("has a zone id; use an address without one")
        return embedded(ipaddress.IPv6Address(text))
    labels = text.removesuffix(".").split(".")
    if _NUMBER.fullmatch(labels[-1]):
        try:
            return ipaddress.IPv4Address(text)
        except ValueError:
            raise ValueError("is an IPv4 address in an unusual form; write four decimal numbers") from None
    name = ".".join(labels)
    if len(name) > _MAX_NAME_LENGTH or not all(_LABEL.fullmatch(label) for label in labels):
        raise ValueError("is not a valid host name")
    return name


def _entry(text: str) -> tuple[Address | str, int | None]:
    """Return one ``allow_hosts`` entry as host and port; None as the port means any."""
    host, port = text.strip(), None
    if match := re.fullmatch(r"\[([^\[\]]*)\](?::(\d+))?|([^:]*):(\d+)", host):
        host, port = match[1] or match[3] or "", match[2] or match[4]
    try:
        parsed = _address_or_name(host if host.isascii() else host.encode("idna").decode())
        return parsed, _port(port) if port else None
    except ValueError:
        form = "is not a host, host:port, address or [address]:port"
        raise SettingsError(f"ASYNCBG_OUTBOUND__ALLOW_HOSTS: {text!r} {form}") from None


def _port(text: str) -> int:
    """Return a port number. Raises ValueError."""
    port = int(text)
    if not 0 < port < 65_536:
        raise ValueError("has a port out of range")
    return port
