"""The egress policy: which URLs pass the gate, which addresses get a socket."""

import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asyncbg.errors import FinalError, SettingsError
from asyncbg.services.egress import BadUrlError, EgressPolicy, EgressRefusedError

PUBLIC = EgressPolicy()
OPEN = EgressPolicy(allow_private=True)

NUMERIC_FORMS = [
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.0.0.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.0.01/",
    "http://127.0.0.1./",
    "http://1.2.3.4.5/",
    "http://256.1.1.1/",
    "http://0x/",
]
PRIVATE_FORMS = [
    "http://127.0.0.1/",
    "http://127.255.255.254:8080/x",
    "http://10.0.0.1/",
    "http://172.31.255.255/",
    "http://192.168.1.1/",
    "http://100.64.0.1/",
    "http://[::1]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[fd00::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[64:ff9b::127.0.0.1]/",
    "http://[64:ff9b::a00:1]/",
    "http://\uff11\uff12\uff17.0.0.1/",
    "http://127\u30020\u30020\u30021/",
    "http://localhost/",
    "http://LOCALHOST:80/",
    "http://localhost./",
    "http://app.localhost/",
]
SPECIAL_FORMS = [
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://169.254.169.254/latest/meta-data/",
    "http://192.0.0.1/",
    "http://192.0.2.1/",
    "http://192.88.99.1/",
    "http://198.18.0.1/",
    "http://198.51.100.1/",
    "http://203.0.113.1/",
    "http://224.0.0.1/",
    "http://240.0.0.1/",
    "http://255.255.255.255/",
    "http://[::]/",
    "http://[::127.0.0.1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://[64:ff9b::169.254.169.254]/",
    "http://[64:ff9b:1::7f00:1]/",
    "http://[100::1]/",
    "http://[2001:0:7f00:1::]/",
    "http://[2001:2::1]/",
    "http://[2001:db8::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:808:808::]/",
    "http://[3fff::1]/",
    "http://[5f00::1]/",
    "http://[4000::1]/",
    "http://[fe80::1]/",
    "http://[fec0::1]/",
    "http://[ff02::1]/",
]
MALFORMED = [
    "",
    "example.com",
    "//example.com/",
    "http:example.com",
    "http:///path",
    "ftp://example.com/",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "http://user:secret@example.com/",
    "http://user@example.com/",
    "http://example.com:0/",
    "http://example.com:65536/",
    "http://example.com:-1/",
    "http://example.com:x/",
    "http://exa mple.com/",
    "http://example.com/a b",
    "http://example.com\\@evil.example/",
    "http://example.com/\r\nHost: evil",
    "http://example.com/\x00",
    "http://example.com/\x7f",
    " http://example.com/",
    "http://example.com..",
    "http://.../",
    "http://a..b/",
    "http://-a.example/",
    "http://a%2eb/",
    "http://127.0.0.1%2f/",
    "http://[::1",
    "http://[::1%25lo]/",
    "http://[fe80::1%25eth0]/",
    "http://[fe80::1%eth0]/",
    "http://" + "a" * 64 + ".example/",
    "http://" + "a." * 127 + "example/",
    "http://example.com/" + "a" * 2048,
]


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com",
        "https://example.com:8443/a/b?c=d%20e",
        "https://EXAMPLE.com./",
        "http://8.8.8.8/",
        "http://[2606:4700:4700::1111]/",
        "http://[::ffff:8.8.8.8]/",
        "http://[64:ff9b::8.8.8.8]/",
        "https://b\u00fccher.example/",
        "http://under_score.example/",
    ],
)
def test_a_public_url_passes(url: str) -> None:
    """Names and public addresses over http and https pass with nothing set."""
    assert PUBLIC.check_url(url).raw_host


@pytest.mark.parametrize("url", PRIVATE_FORMS)
def test_a_private_address_passes_only_when_private_is_allowed(url: str) -> None:
    """Loopback and private hosts in every form are refused, naming the setting, and pass when it is on."""
    with pytest.raises(EgressRefusedError, match="ASYNCBG_OUTBOUND__ALLOW_PRIVATE=true"):
        PUBLIC.check_url(url)

    assert OPEN.check_url(url)


@pytest.mark.parametrize("policy", [PUBLIC, OPEN])
@pytest.mark.parametrize("url", SPECIAL_FORMS)
def test_a_special_address_never_passes_by_itself(url: str, policy: EgressPolicy) -> None:
    """Link-local, multicast, reserved and tunnelled addresses are refused even where private ones are allowed."""
    with pytest.raises(EgressRefusedError, match="ASYNCBG_OUTBOUND__ALLOW_HOSTS"):
        policy.check_url(url)


@pytest.mark.parametrize("policy", [PUBLIC, OPEN])
@pytest.mark.parametrize("url", MALFORMED + NUMERIC_FORMS)
def test_a_malformed_or_ambiguous_url_never_passes(url: str, policy: EgressPolicy) -> None:
    """What two parsers may read differently raises BadUrlError, whatever is allowed."""
    with pytest.raises(BadUrlError):
        policy.check_url(url)


@pytest.mark.parametrize(
    "url", ["http://user:secret@example.com/", "http://127.0.0.1/?token=secret", "http://secret/ "]
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
