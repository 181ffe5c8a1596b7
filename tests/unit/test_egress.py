"""The egress policy: which URLs pass the gate, which addresses get a socket."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.egress_forms import ALLOWED, MALFORMED, PRIVATE, REFUSED, SPECIAL, Form

from asyncbg.errors import FinalError, SettingsError
from asyncbg.service.integrations.egress import BLOCKED_PORTS, BadUrlError, EgressPolicy, EgressRefusedError
from asyncbg.service.integrations.special_address import (
    BESIDE_THE_REGISTRIES,
    CLOUD_METADATA,
    IPV4_REGISTRY,
    IPV6_REGISTRY,
    Address,
)

PUBLIC = EgressPolicy()
OPEN = EgressPolicy(allow_private=True)


@pytest.mark.parametrize("url", ALLOWED)
def test_a_public_url_passes(url: str) -> None:
    """Names and public addresses over http and https pass with nothing set."""
    assert PUBLIC.check_url(url).raw_host


@pytest.mark.parametrize("form", REFUSED)
def test_every_form_is_refused_with_nothing_set(form: Form) -> None:
    """Each gets its error."""
    with pytest.raises(form.error):
        PUBLIC.check_url(form.url)


@pytest.mark.parametrize("form", PRIVATE)
def test_a_private_address_passes_only_when_private_is_allowed(form: Form) -> None:
    """Loopback and private hosts in every form are refused, naming the setting, and pass when it is on."""
    with pytest.raises(EgressRefusedError, match="ASYNCBG_OUTBOUND__ALLOW_PRIVATE=true"):
        PUBLIC.check_url(form.url)

    assert OPEN.check_url(form.url)


@pytest.mark.parametrize("form", SPECIAL)
def test_a_special_address_never_passes_by_itself(form: Form) -> None:
    """Link-local, multicast, reserved and tunnelled addresses are refused even where private ones are allowed."""
    with pytest.raises(EgressRefusedError, match="ASYNCBG_OUTBOUND__ALLOW_HOSTS"):
        OPEN.check_url(form.url)


@pytest.mark.parametrize("form", MALFORMED)
def test_a_malformed_or_ambiguous_url_never_passes(form: Form) -> None:
    """What two parsers may read differently raises BadUrlError, whatever is allowed."""
    with pytest.raises(BadUrlError):
        OPEN.check_url(form.url)


@pytest.mark.parametrize("port", sorted(BLOCKED_PORTS))
def test_a_port_of_another_protocol_is_reached_only_where_it_is_named(port: int) -> None:
    """A host in the list does not open it; host and port do."""
    url = f"http://example.com:{port}/"
    for policy in (OPEN, EgressPolicy(["example.com"])):
        with pytest.raises(EgressRefusedError, match="another protocol"):
            policy.check_url(url)

    assert EgressPolicy([f"example.com:{port}"]).check_url(url)


def words(text: str) -> list[str]:
    """One by one."""
    return text.split()


# The registries, written down a second time: IANA's blocks in order, and beside them what we add.
REGISTERED_V4 = words("""
0.0.0.0/8 0.0.0.0/32 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 192.0.0.0/29
192.0.0.8/32 192.0.0.9/32 192.0.0.10/32 192.0.0.170/32 192.0.0.171/32 192.0.2.0/24 192.31.196.0/24 192.52.193.0/24
192.88.99.0/24 192.88.99.2/32 192.168.0.0/16 192.175.48.0/24 198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 240.0.0.0/4
255.255.255.255/32
""")
REGISTERED_V6 = words("""
::1/128 ::/128 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 100::/64 100:0:0:1::/64 2001::/23 2001::/32 2001:1::1/128
2001:1::2/128 2001:1::3/128 2001:2::/48 2001:3::/32 2001:4:112::/48 2001:10::/28 2001:20::/28 2001:30::/28
2001:db8::/32 2002::/16 2620:4f:8000::/48 3fff::/20 5f00::/16 fc00::/7 fe80::/10
""")
ADDED = ["224.0.0.0/4", "::/96", "::ffff:0:0:0/96", "fec0::/10", "ff00::/8"]
METADATA = [str(row.block) for row in CLOUD_METADATA]
OPENED = {"10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7"}
EMBEDDING = {"::ffff:0:0/96", "64:ff9b::/96"}


def test_the_registries_are_whole() -> None:
    """Each row of both IANA registries is in its table, once."""
    assert [str(row.block) for row in IPV4_REGISTRY] == REGISTERED_V4
    assert [str(row.block) for row in IPV6_REGISTRY] == REGISTERED_V6
    assert [str(row.block) for row in BESIDE_THE_REGISTRIES] == ADDED


@pytest.mark.parametrize("block", [*REGISTERED_V4, *REGISTERED_V6, *ADDED, *METADATA])
def test_each_row_is_held(block: str) -> None:
    """The first, the last and a middle address of a block are refused; ALLOW_PRIVATE opens only the private ones."""
    network = ipaddress.ip_network(block)
    for address in (network[0], network[network.num_addresses // 2], network[-1]):
        if block in EMBEDDING:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
            assert refuses(PUBLIC, address) == refuses(PUBLIC, inner)
            continue
        assert refuses(PUBLIC, address)
        assert refuses(OPEN, address) is (block not in OPENED)


@pytest.mark.parametrize(
    "address", ["168.63.129.16", "fd00:ec2::254", "fd20:ce::254", "fd00:42::42", "100.100.100.200"]
)
def test_a_metadata_service_is_reached_only_where_it_is_named(address: str) -> None:
    """ALLOW_PRIVATE does not open it; an entry of ALLOW_HOSTS does."""
    named = EgressPolicy([address])

    assert refuses(OPEN, ipaddress.ip_address(address))
    assert not refuses(named, ipaddress.ip_address(address))


def refuses(policy: EgressPolicy, address: Address) -> bool:
    """Whether no connection to the address may be made."""
    try:
        policy.check_address(address, 443)
    except EgressRefusedError:
        return True
    return False


@pytest.mark.parametrize("embedding", sorted(EMBEDDING))
@pytest.mark.parametrize("block", REGISTERED_V4)
def test_an_embedded_address_is_judged_by_itself(embedding: str, block: str) -> None:
    """A special IPv4 address stays one behind IPv4-mapped and NAT64 prefixes."""
    inner = ipaddress.ip_network(block)[0]
    address = ipaddress.ip_network(embedding)[0] + int(inner)

    assert refuses(PUBLIC, address)
    assert not refuses(PUBLIC, ipaddress.ip_network(embedding)[0] + 0x08080808)


@pytest.mark.parametrize(
    "url",
    ["http://user:secret-canary7f3a@example.com/", "http://127.0.0.1/?token=secret-canary7f3a", "http://secret/ "],
)
def test_a_refusal_never_quotes_the_url(url: str) -> None:
    """The message gives the reason and the remedy, no part of the URL."""
    with pytest.raises(FinalError) as caught:
        PUBLIC.check_url(url)

    assert "secret" not in str(caught.value)
    assert "127.0.0.1" not in str(caught.value)


def test_the_fragment_is_dropped() -> None:
    """A fragment is not part of a request."""
    assert str(PUBLIC.check_url("http://example.com/a#b")) == "http://example.com/a"


@pytest.mark.parametrize(
    "url",
    ["http://example.com/", "http://EXAMPLE.COM.:9/", "http://api.test:8080/", "https://8.8.8.8/", "http://[::1]:81/"],
)
def test_a_listed_host_passes(url: str) -> None:
    """Entries match without regard to case, with any port or the one they name."""
    assert EgressPolicy(["Example.com", "api.test:8080", "8.8.8.8", "[::1]:81"]).check_url(url)


@pytest.mark.parametrize(
    "url", ["http://example.org/", "http://sub.example.com/", "http://api.test/", "http://8.8.4.4/", "http://[::1]:82/"]
)
def test_with_a_list_nothing_else_passes(url: str) -> None:
    """A host or port that is not listed is refused even if it is public, naming the setting."""
    policy = EgressPolicy(["example.com", "api.test:8080", "8.8.8.8", "[::1]:81"], allow_private=True)

    with pytest.raises(EgressRefusedError, match="ASYNCBG_OUTBOUND__ALLOW_HOSTS"):
        policy.check_url(url)


@pytest.mark.parametrize("address", ["127.0.0.1", "169.254.169.254", "::1", "fe80::1", "2002:7f00:1::"])
def test_a_listed_address_is_granted_even_if_it_is_not_public(address: str) -> None:
    """An operator who names an address means it; every other one stays refused."""
    policy = EgressPolicy([address])

    policy.check_address(ipaddress.ip_address(address), 80)

    with pytest.raises(EgressRefusedError):
        policy.check_address(ipaddress.ip_address("127.0.0.2"), 80)


def test_a_listed_name_does_not_grant_a_private_address() -> None:
    """A listed name passes the gate, but gets no socket to loopback."""
    policy = EgressPolicy(["localhost"])
    assert policy.check_url("http://localhost/")

    with pytest.raises(EgressRefusedError):
        policy.socket_factory((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", 80)))


@pytest.mark.parametrize(
    "entry", ["", "http://a.example", "a b", "a:0", "a:99999", "a:x", "127.1", "::1:x", "user@a", "*"]
)
def test_a_malformed_entry_stops_the_start(entry: str) -> None:
    """An allow_hosts entry that is no host raises SettingsError that names the setting."""
    with pytest.raises(SettingsError, match="ASYNCBG_OUTBOUND__ALLOW_HOSTS"):
        EgressPolicy([entry])


@pytest.mark.parametrize("address", ["10.0.0.1", "169.254.169.254", "fe80::1%1", "::ffff:10.0.0.1", "2002::1"])
def test_no_socket_is_made_for_a_refused_address(address: str) -> None:
    """The factory refuses an address however the name behind it looked."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET

    with pytest.raises(EgressRefusedError):
        PUBLIC.socket_factory((family, socket.SOCK_STREAM, 0, "", (address, 80)))


def test_a_socket_is_made_for_a_public_address() -> None:
    """A public address gets an ordinary socket."""
    with PUBLIC.socket_factory((socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", ("8.8.8.8", 80))) as made:
        assert made.family is socket.AF_INET


@given(st.ip_addresses())
def test_what_the_standard_library_calls_special_is_refused(
    address: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    """Every address that ipaddress knows as not global is refused here too."""
    embeds = address.version == 6 and (address.ipv4_mapped or address in ipaddress.ip_network("64:ff9b::/96"))
    if embeds or (address.is_global and not address.is_multicast):
        return

    with pytest.raises(EgressRefusedError):
        PUBLIC.check_address(address, 80)


@given(st.text(max_size=40) | st.text("htp:/[]@.%0x127#?\\ ", max_size=40).map("http://".__add__))
def test_any_text_passes_or_is_refused_as_final(url: str) -> None:
    """No text makes the gate raise anything but its two errors."""
    try:
        parsed = PUBLIC.check_url(url)
    except (BadUrlError, EgressRefusedError):
        return
    assert parsed.scheme in ("http", "https")
