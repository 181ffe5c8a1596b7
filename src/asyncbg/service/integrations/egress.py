"""Which addresses our own HTTP requests may reach: a URL check at the gate, and the final say when a socket is made.

What is no public host stands in :mod:`asyncbg.service.integrations.special_address`.
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

# The ports a browser refuses too (Fetch standard, "port blocking"): what listens there acts on the lines it gets, and
# takes a request for a mail or a command. tcpmux, echo and discard (1, 7, 9) are left out: nothing there acts on them.
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
    """The URL is malformed or of a form that two parsers read differently. The message never quotes it."""


class EgressRefusedError(FinalError, PermissionError):
    """The policy forbids reaching this host or address. An OSError too, so that a connector tries the next address."""


class EgressPolicy:
    """Decides which URLs and addresses may be reached.

    Without ``allow_hosts`` every public address may be. With it, only the hosts listed: ``host``, ``host:port``, an
    address, ``[address]:port``, without regard to case. A listed address is granted even if it is private; a listed
    name still needs a public address unless ``allow_private``. A port of ``BLOCKED_PORTS`` is reached only where an
    entry names host and port. Raises SettingsError for a malformed entry.
    """

    def __init__(self, allow_hosts: Sequence[str] = (), allow_private: bool = False) -> None:
        """Take the two settings of the outbound section."""
        self._allowed = frozenset(_entry(text) for text in allow_hosts)
        self._allow_private = allow_private

    def check_url(self, url: str) -> URL:
        """The parsed URL, without its fragment, if it is well-formed and its host may be reached as far as one can see.

        A name is resolved only when the connection is made: ``socket_factory`` has the final say. Raises BadUrlError
        and EgressRefusedError.
        """
        parsed = _parse(url)
        host, port = _host(parsed), parsed.port or 0
        self._check_port(host, port)
        if not {(host, port), (host, None)} & self._allowed:
            self._check_unlisted(host, port)
        return parsed

    def check_address(self, address: Address, port: int) -> None:
        """Return if a connection to ``address`` and ``port`` may be made; raises EgressRefusedError."""
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
        """Make the socket for an address about to be connected to, or raise EgressRefusedError.

        For ``aiohttp.TCPConnector(socket_factory=…)``, which asks for resolved names, literals and redirects alike.
        The message is the same for every address: a connector merges the errors of several and keeps equal ones whole.
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
        """RFC 6761 section 6.3: localhost and all below it is loopback. A name has more to pass: its addresses."""
        if not isinstance(host, str):
            self.check_address(host, port)
        elif (host == "localhost" or host.endswith(".localhost")) and not self._allow_private:
            raise EgressRefusedError(f"the host is a loopback name; {_OPEN_PRIVATE}")
        if self._allowed:
            raise EgressRefusedError(f"the URL's host is not in the list of allowed hosts; {_NAME_HOST}")


def _parse(url: str) -> URL:
    """A URL whose scheme, host, port and characters are sound.

    Only the host is made uniform. Path and query stay as they are written, but for what is not legal in a URL: a
    signature may cover each of their bytes, and ``%2F`` and ``/`` are not the same (RFC 3986, 2.2). They go into yarl's
    path as one, since it drops the mark of an empty query.
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
    """The host as an address, or as a name in lower case without its trailing dot."""
    try:
        return _address_or_name(url.raw_host or "")
    except ipaddress.AddressValueError:
        raise BadUrlError("the URL's host is not a valid IPv6 address") from None
    except ValueError as error:
        raise BadUrlError(f"the URL's host {error}") from None


def _address_or_name(text: str) -> Address | str:
    """Read a host strictly: ValueError for what a resolver may take for another host than a reader does."""
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
    """One ``allow_hosts`` entry as host and port, where no port means any."""
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
    """A port number; ValueError for one that is none."""
    port = int(text)
    if not 0 < port < 65_536:
        raise ValueError("has a port out of range")
    return port
