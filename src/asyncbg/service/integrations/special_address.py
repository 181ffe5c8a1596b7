"""Special-purpose addresses: the rows of the IANA registries and further non-public blocks.

``ipaddress.is_global`` of Python 3.11 is out of date and follows the registries' "globally reachable", which includes
anycast services and prefixes that embed another address. Jobs must reach neither.
"""

import ipaddress
from dataclasses import dataclass
from enum import StrEnum

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Verdict(StrEnum):
    """How the policy treats the addresses of a block."""

    PRIVATE = "private"
    """Refused unless ASYNCBG_OUTBOUND__ALLOW_PRIVATE is set."""
    SPECIAL = "special"
    """Refused unless ASYNCBG_OUTBOUND__ALLOW_HOSTS lists the address."""
    EMBEDS = "embeds"
    """Treated as the IPv4 address in its last 32 bits."""


@dataclass(frozen=True, slots=True)
class SpecialBlock:
    """One row: the block, its registered name, its source and its treatment."""

    block: Network
    name: str
    source: str
    verdict: Verdict


def _rows(*rows: tuple[str, str, str, Verdict]) -> tuple[SpecialBlock, ...]:
    return tuple(
        SpecialBlock(ipaddress.ip_network(block), name, source, verdict) for block, name, source, verdict in rows
    )


IPV4_REGISTRY = _rows(
    ("0.0.0.0/8", "this network", "RFC 791", Verdict.SPECIAL),
    ("0.0.0.0/32", "this host on this network", "RFC 1122", Verdict.SPECIAL),
    ("10.0.0.0/8", "private use", "RFC 1918", Verdict.PRIVATE),
    ("100.64.0.0/10", "shared address space", "RFC 6598", Verdict.PRIVATE),
    ("127.0.0.0/8", "loopback", "RFC 1122", Verdict.PRIVATE),
    ("169.254.0.0/16", "link-local", "RFC 3927", Verdict.SPECIAL),  # where clouds serve their metadata and credentials
    ("172.16.0.0/12", "private use", "RFC 1918", Verdict.PRIVATE),
    ("192.0.0.0/24", "IETF protocol assignments", "RFC 6890", Verdict.SPECIAL),
    ("192.0.0.0/29", "IPv4 service continuity prefix", "RFC 7335", Verdict.SPECIAL),
    ("192.0.0.8/32", "IPv4 dummy address", "RFC 7600", Verdict.SPECIAL),
    ("192.0.0.9/32", "port control protocol anycast", "RFC 7723", Verdict.SPECIAL),
    ("192.0.0.10/32", "TURN anycast", "RFC 8155", Verdict.SPECIAL),
    ("192.0.0.170/32", "NAT64/DNS64 discovery", "RFC 8880", Verdict.SPECIAL),
    ("192.0.0.171/32", "NAT64/DNS64 discovery", "RFC 8880", Verdict.SPECIAL),
    ("192.0.2.0/24", "documentation (TEST-NET-1)", "RFC 5737", Verdict.SPECIAL),
    ("192.31.196.0/24", "AS112-v4", "RFC 7535", Verdict.SPECIAL),
    ("192.52.193.0/24", "AMT", "RFC 7450", Verdict.SPECIAL),
    ("192.88.99.0/24", "6to4 relay anycast", "RFC 7526", Verdict.SPECIAL),
    ("192.88.99.2/32", "6a44 relay anycast", "RFC 6751", Verdict.SPECIAL),
    ("192.168.0.0/16", "private use", "RFC 1918", Verdict.PRIVATE),
    ("192.175.48.0/24", "direct delegation AS112 service", "RFC 7534", Verdict.SPECIAL),
    ("198.18.0.0/15", "benchmarking", "RFC 2544", Verdict.SPECIAL),
    ("198.51.100.0/24", "documentation (TEST-NET-2)", "RFC 5737", Verdict.SPECIAL),
    ("203.0.113.0/24", "documentation (TEST-NET-3)", "RFC 5737", Verdict.SPECIAL),
    ("240.0.0.0/4", "reserved", "RFC 1112", Verdict.SPECIAL),
    ("255.255.255.255/32", "limited broadcast", "RFC 8190", Verdict.SPECIAL),
)
"""https://www.iana.org/assignments/iana-ipv4-special-registry/"""

IPV6_REGISTRY = _rows(
    ("::1/128", "loopback", "RFC 4291", Verdict.PRIVATE),
    ("::/128", "unspecified", "RFC 4291", Verdict.SPECIAL),
    ("::ffff:0:0/96", "IPv4-mapped", "RFC 4291", Verdict.EMBEDS),
    ("64:ff9b::/96", "IPv4-IPv6 translation (NAT64)", "RFC 6052", Verdict.EMBEDS),
    ("64:ff9b:1::/48", "local-use IPv4-IPv6 translation (NAT64)", "RFC 8215", Verdict.SPECIAL),
    ("100::/64", "discard-only", "RFC 6666", Verdict.SPECIAL),
    ("100:0:0:1::/64", "dummy prefix", "RFC 9780", Verdict.SPECIAL),
    ("2001::/23", "IETF protocol assignments", "RFC 2928", Verdict.SPECIAL),
    ("2001::/32", "Teredo", "RFC 4380", Verdict.SPECIAL),
    ("2001:1::1/128", "port control protocol anycast", "RFC 7723", Verdict.SPECIAL),
    ("2001:1::2/128", "TURN anycast", "RFC 8155", Verdict.SPECIAL),
    ("2001:1::3/128", "DNS-SD SRP anycast", "RFC 9665", Verdict.SPECIAL),
    ("2001:2::/48", "benchmarking", "RFC 5180", Verdict.SPECIAL),
    ("2001:3::/32", "AMT", "RFC 7450", Verdict.SPECIAL),
    ("2001:4:112::/48", "AS112-v6", "RFC 7535", Verdict.SPECIAL),
    ("2001:10::/28", "ORCHID", "RFC 4843", Verdict.SPECIAL),
    ("2001:20::/28", "ORCHIDv2", "RFC 7343", Verdict.SPECIAL),
    ("2001:30::/28", "drone remote ID entity tags", "RFC 9374", Verdict.SPECIAL),
    ("2001:db8::/32", "documentation", "RFC 3849", Verdict.SPECIAL),
    ("2002::/16", "6to4", "RFC 3056", Verdict.SPECIAL),
    ("2620:4f:8000::/48", "direct delegation AS112 service", "RFC 7534", Verdict.SPECIAL),
    ("3fff::/20", "documentation", "RFC 9637", Verdict.SPECIAL),
    ("5f00::/16", "segment routing SIDs", "RFC 9602", Verdict.SPECIAL),
    ("fc00::/7", "unique local", "RFC 4193", Verdict.PRIVATE),
    ("fe80::/10", "link-local", "RFC 4291", Verdict.SPECIAL),
)
"""https://www.iana.org/assignments/iana-ipv6-special-registry/"""

BESIDE_THE_REGISTRIES = _rows(
    ("224.0.0.0/4", "multicast", "RFC 5771", Verdict.SPECIAL),
    ("::/96", "IPv4-compatible", "RFC 4291", Verdict.SPECIAL),
    ("::ffff:0:0:0/96", "IPv4-translated", "RFC 2765", Verdict.SPECIAL),
    ("fec0::/10", "site-local", "RFC 3879", Verdict.SPECIAL),
    ("ff00::/8", "multicast", "RFC 4291", Verdict.SPECIAL),
)
"""What is no host either: multicast has registries of its own, the others are given up."""

CLOUD_METADATA = _rows(
    ("100.100.100.200/32", "cloud metadata", "Alibaba Cloud", Verdict.SPECIAL),
    ("168.63.129.16/32", "cloud metadata", "Azure", Verdict.SPECIAL),
    ("fd00:42::42/128", "cloud metadata", "Scaleway", Verdict.SPECIAL),
    ("fd00:a9fe:a9fe::/64", "cloud metadata", "Akamai", Verdict.SPECIAL),
    ("fd00:c1::a9fe:a9fe/128", "cloud metadata", "Oracle Cloud", Verdict.SPECIAL),
    ("fd00:ec2::/112", "cloud metadata", "AWS", Verdict.SPECIAL),  # ::254 instances, ::23 the credentials of pods
    ("fd20:ce::254/128", "cloud metadata", "Google Cloud", Verdict.SPECIAL),
)
"""Where clouds hand out credentials beside 169.254.0.0/16, in public and in private ranges: private is not enough."""

_GLOBAL_IPV6 = ipaddress.IPv6Network("2000::/3")
(_UNASSIGNED,) = _rows(("::/0", "outside the public range 2000::/3", "RFC 4291", Verdict.SPECIAL))
_NARROWEST_FIRST = sorted(
    (*IPV4_REGISTRY, *IPV6_REGISTRY, *BESIDE_THE_REGISTRIES, *CLOUD_METADATA),
    key=lambda row: row.block.prefixlen,
    reverse=True,
)


def special_block(address: Address) -> SpecialBlock | None:
    """Return the narrowest block that contains ``address``; None for a public address."""
    for row in _NARROWEST_FIRST:
        if row.block.version == address.version and address in row.block:
            return row
    return _UNASSIGNED if address.version == 6 and address not in _GLOBAL_IPV6 else None


def embedded(address: Address) -> Address:
    """Return the IPv4 address embedded in ``address``, or the address itself without its zone."""
    row = special_block(address)
    if row is not None and row.verdict is Verdict.EMBEDS:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    if isinstance(address, ipaddress.IPv6Address) and address.scope_id:
        return ipaddress.IPv6Address(int(address))
    return address
