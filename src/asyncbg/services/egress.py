"""Which addresses our own HTTP requests may reach: a URL check at the gate, and the final say when a socket is made.

``ipaddress.is_global`` of Python 3.11 is out of date; the ranges below are the IANA IPv4 and IPv6 Special-Purpose
Address Registries (RFC 6890), the multicast ranges, and for IPv6 the rule that only 2000::/3 is public at all.
"""

import ipaddress
import re
import socket
from collections.abc import Sequence
from typing import Any, overload

from yarl import URL

from asyncbg.errors import FinalError, SettingsError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AddrInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]

MAX_URL_LENGTH = 2048
_MAX_NAME_LENGTH = 253
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label of this form makes the host an IPv4 address (WHATWG URL)
_BLANK_OR_CONTROL = re.compile(r"[\x00-\x20\x7f-\xa0\u2028\u2029\\]")

# Opened as a whole by ASYNCBG_OUTBOUND__ALLOW_PRIVATE.
_PRIVATE = tuple(
    (ipaddress.ip_network(block), kind)
    for block, kind in (
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "shared (carrier-grade NAT)"),
        ("127.0.0.0/8", "loopback"),
        ("172.16.0.0/12", "private"),
        ("192.168.0.0/16", "private"),
        ("::1/128", "loopback"),
        ("fc00::/7", "private (unique local)"),
    )
)
# Stricter than the registries: the anycast services marked global there (AS112, AMT, …) have no business with a job.
# Opened by nothing but the address itself in ASYNCBG_OUTBOUND__ALLOW_HOSTS.
_SPECIAL = tuple(
    (ipaddress.ip_network(block), kind)
    for block, kind in (
        ("0.0.0.0/8", "unspecified"),
        ("169.254.0.0/16", "link-local"),  # where clouds serve their metadata and credentials
        ("192.0.0.0/24", "protocol assignment"),
        ("192.0.2.0/24", "documentation"),
        ("192.31.196.0/24", "AS112"),
        ("192.52.193.0/24", "AMT"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.175.48.0/24", "AS112"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved or broadcast"),
        ("::/128", "unspecified"),
        ("::/96", "IPv4-compatible"),
        ("64:ff9b:1::/48", "local NAT64"),
        ("100::/64", "discard-only"),
        ("100:0:0:1::/64", "dummy prefix"),
        ("2001::/32", "Teredo"),
        ("2001::/23", "protocol assignment"),
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("2620:4f:8000::/48", "AS112"),
        ("3fff::/20", "documentation"),
        ("5f00::/16", "segment routing"),
        ("fe80::/10", "link-local"),
        ("fec0::/10", "site-local"),
        ("ff00::/8", "multicast"),
    )
)
_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_OPEN_PRIVATE = "set ASYNCBG_OUTBOUND__ALLOW_PRIVATE=true to let jobs reach private networks"
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
    name still needs a public address unless ``allow_private``. Raises SettingsError for a malformed entry.
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
        if self._allowed and not {(host, port), (host, None)} & self._allowed:
            raise EgressRefusedError(f"the URL's host is not in the list of allowed hosts; {_NAME_HOST}")
        if isinstance(host, str):
            self._check_name(host)
        else:
            self.check_address(host, port)
        return parsed

    def check_address(self, address: Address, port: int) -> None:
        """Return if a connection to ``address`` and ``port`` may be made; raises EgressRefusedError."""
        address = _unwrapped(address)
        if {(address, port), (address, None)} & self._allowed:
            return
        if kind := _kind(address, _PRIVATE):
            if not self._allow_private:
                raise EgressRefusedError(f"the host is a {kind} address; {_OPEN_PRIVATE}")
        elif kind := _kind(address, _SPECIAL):
            raise EgressRefusedError(f"the host is a special ({kind}) address; {_NAME_ADDRESS}")
        elif address.version == 6 and address not in _GLOBAL_IPV6:
            raise EgressRefusedError(f"the host is an IPv6 address outside the public range; {_NAME_ADDRESS}")

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

    def _check_name(self, name: str) -> None:
        """RFC 6761 section 6.3: localhost and all below it is loopback. A listed name waits for its address."""
        if (name == "localhost" or name.endswith(".localhost")) and not (self._allow_private or self._allowed):
            raise EgressRefusedError(f"the host is a loopback name; {_OPEN_PRIVATE}")


def _parse(url: str) -> URL:
    """A URL whose scheme, host, port and characters are sound."""
    if len(url) > MAX_URL_LENGTH:
        raise BadUrlError(f"the URL is longer than {MAX_URL_LENGTH} characters")
    if _BLANK_OR_CONTROL.search(url):
        raise BadUrlError("the URL holds a blank, a backslash or a control character; percent-encode it")
    try:
        parsed = URL(url)
    except ValueError:
        raise BadUrlError("the URL is malformed; its form is https://host:port/path?query") from None
    if parsed.scheme not in ("http", "https"):
        raise BadUrlError("the URL's scheme is not http or https")
    if "@" in parsed.raw_authority:
        raise BadUrlError("the URL carries a user name or password; leave them out")
    if not parsed.raw_host:
        raise BadUrlError("the URL has no host; its form is https://host:port/path?query")
    if not parsed.port:
        raise BadUrlError("the URL's port is not between 1 and 65535")
    return parsed.with_fragment(None)


def _host(url: URL) -> Address | str:
    """The host as an address, or as a name in lower case without its trailing dot."""
    try:
        return _unwrapped(_address_or_name(url.raw_host or ""))
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
        return ipaddress.IPv6Address(text)
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
        return _unwrapped(parsed), _port(port) if port else None
    except ValueError:
        form = "is not a host, host:port, address or [address]:port"
        raise SettingsError(f"ASYNCBG_OUTBOUND__ALLOW_HOSTS: {text!r} {form}") from None


def _port(text: str) -> int:
    """A port number; ValueError for one that is none."""
    port = int(text)
    if not 0 < port < 65_536:
        raise ValueError("has a port out of range")
    return port


@overload
def _unwrapped(address: Address) -> Address: ...
@overload
def _unwrapped(address: Address | str) -> Address | str: ...
def _unwrapped(address: Address | str) -> Address | str:
    """The IPv4 address that an IPv4-mapped or well-known NAT64 address (RFC 6052) stands for; the rest as it is."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address in _NAT64:
            return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if address.scope_id:
            return ipaddress.IPv6Address(int(address))
    return address


def _kind(address: Address, table: tuple[tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str], ...]) -> str | None:
    """What kind of address the table says it is."""
    return next((kind for block, kind in table if block.version == address.version and address in block), None)
