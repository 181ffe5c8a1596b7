"""Every form of a URL that was tried against the egress policy: the table in docs/outbound.md is made of it."""

from dataclasses import dataclass

from asyncbg.service.integrations.egress import BadUrlError, EgressRefusedError


@dataclass(frozen=True, slots=True)
class Form:
    """A URL that must not be asked, what it is after, and the error it gets with nothing set."""

    url: str
    aim: str
    error: type[BadUrlError | EgressRefusedError]


def _refused(aim: str, *urls: str) -> list[Form]:
    return [Form(url, aim, EgressRefusedError) for url in urls]


def _bad(aim: str, *urls: str) -> list[Form]:
    return [Form(url, aim, BadUrlError) for url in urls]


PRIVATE = [
    *_refused("loopback name", "http://localhost/", "http://LOCALHOST:80/", "http://localhost./",
              "http://app.localhost/"),
    *_refused("loopback", "http://127.0.0.1/", "http://127.255.255.254:8080/x", "http://[::1]/",
              "http://[0:0:0:0:0:0:0:1]/"),
    *_refused("private network",
              "http://10.0.0.1/", "http://172.31.255.255/", "http://192.168.1.1/", "http://100.64.0.1/",
              "http://[fd00::1]/"),
    *_refused("IPv4-mapped", "http://[::ffff:127.0.0.1]/", "http://[::ffff:7f00:1]/",
              "http://[0:0:0:0:0:ffff:10.0.0.1]/"),
    *_refused("NAT64", "http://[64:ff9b::127.0.0.1]/", "http://[64:ff9b::a00:1]/"),
    *_refused("other digits and dots (IDNA)", "http://\uff11\uff12\uff17.0.0.1/", "http://127\u30020\u30020\u30021/",
              "http://\u24db\u24de\u24d2\u24d0\u24db\u24d7\u24de\u24e2\u24e3/"),
]  # fmt: skip
"""Refused unless ALLOW_PRIVATE is set."""

SPECIAL = [
    *_refused("this host", "http://0.0.0.0/", "http://0.1.2.3/", "http://[::]/"),
    *_refused("cloud metadata", "http://169.254.169.254/latest/meta-data/", "http://[fe80::a9fe:a9fe]/",
              "http://[::ffff:169.254.169.254]/",
              "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::169.254.169.254]/"),
    *_refused("cloud metadata in public and private ranges", "http://168.63.129.16/machine?comp=goalstate",
              "http://100.100.100.200/latest/meta-data/", "http://[fd00:ec2::254]/", "http://[fd00:ec2::23]/v1/credentials",
              "http://[fd20:ce::254]/", "http://[fd00:42::42]/", "http://[fd00:a9fe:a9fe::1]/",
              "http://[fd00:c1::a9fe:a9fe]/", "http://[FD00:0EC2:0:0:0:0:0:0254]/",
              "http://[::ffff:168.63.129.16]/", "http://[::ffff:a83f:8110]/", "http://[64:ff9b::a83f:8110]/",
              "http://[::ffff:100.100.100.200]/", "http://[64:ff9b::100.100.100.200]/",
              "http://\uff11\uff16\uff18.63.129.16/", "http://168\u300263\u3002129\u300216/"),
    *_refused("local NAT64", "http://[64:ff9b:1::7f00:1]/", "http://[64:ff9b:1:ffff::10.0.0.1]/"),
    *_refused("6to4", "http://[2002:7f00:1::]/", "http://[2002:a9fe:a9fe::]/", "http://[2002:808:808::]/"),
    *_refused("Teredo", "http://[2001:0:7f00:1::]/", "http://[2001::80ff:fffe]/"),
    *_refused("IPv4-compatible and IPv4-translated", "http://[::127.0.0.1]/", "http://[::ffff:0:127.0.0.1]/"),
    *_refused("documentation", "http://192.0.2.1/", "http://198.51.100.1/", "http://203.0.113.1/",
              "http://[2001:db8::1]/", "http://[3fff::1]/"),
    *_refused("protocol assignments and anycast", "http://192.0.0.1/", "http://192.88.99.1/", "http://192.31.196.1/",
              "http://192.52.193.1/",
              "http://192.175.48.1/", "http://[2001:2::1]/", "http://[2001:4:112::1]/", "http://[2620:4f:8000::1]/"),
    *_refused("benchmarking, discard, dummy, segment routing", "http://198.18.0.1/", "http://[100::1]/",
              "http://[100:0:0:1::1]/", "http://[5f00::1]/"),
    *_refused("multicast, broadcast, reserved", "http://224.0.0.1/", "http://240.0.0.1/", "http://255.255.255.255/",
              "http://[ff02::1]/"),
    *_refused("link-local, site-local, unassigned", "http://[fe80::1]/", "http://[fec0::1]/", "http://[4000::1]/"),
    *_refused("a port of another protocol", "http://example.com:22/", "http://example.com:25/",
              "https://example.com:465/",
              "http://8.8.8.8:53/", "http://example.com:6667/"),
]  # fmt: skip
"""Refused even where ALLOW_PRIVATE is set."""

MALFORMED = [
    *_bad("decimal, octal, hexadecimal, short IPv4", "http://2130706433/", "http://0x7f000001/",
              "http://0x7f.0.0.1/", "http://0x7f.1/",
          "http://0177.0.0.1/", "http://017700000001/", "http://127.1/", "http://127.0.1/", "http://127.0.0.01/",
              "http://127.0.0.1./",
          "http://2822734096/", "http://0xa83f8110/", "http://168.63.33040/", "http://0250.077.0201.020/",
          "http://1684300232/", "http://1.2.3.4.5/", "http://256.1.1.1/", "http://0x/", "http://2852039166/"),
    *_bad("zone id", "http://[::1%25lo]/", "http://[fe80::1%25eth0]/", "http://[fe80::1%eth0]/"),
    *_bad("userinfo", "http://user:secret@example.com/", "http://user@example.com/", "http://example.com@127.0.0.1/",
              "http://@127.0.0.1/"),
    *_bad("two readings", "http://example.com\\@evil.example/", "http:\\\\127.0.0.1/",
              "http://example.com/\r\nHost: evil", " http://example.com/",
          "http://exa mple.com/", "http://example.com/a b", "http://example.com/\x00", "http://example.com/\x7f",
              "http://example.com\t/"),
    *_bad("brackets without an address", "http://[]@/", "http://[::1]@"),
    *_bad("escaped host", "http://a%2eb/", "http://127.0.0.1%2f/", "http://%31%32%37.0.0.1/"),
    *_bad("another scheme", "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)",
              "gopher://127.0.0.1:6379/_x", "data:,x"),
    *_bad("no host", "", "example.com", "//example.com/", "http:example.com", "http:///path"),
    *_bad("no port", "http://example.com:0/", "http://example.com:65536/", "http://example.com:-1/",
              "http://example.com:x/"),
    *_bad("no name", "http://example.com..", "http://.../", "http://a..b/", "http://-a.example/", "http://[::1",
              "http://[::g]/",
          "http://" + "a" * 64 + ".example/", "http://" + "a." * 127 + "example/", "http://example.com/" + "a" * 8_000),
]  # fmt: skip
"""Refused whatever is allowed."""

REFUSED = [*PRIVATE, *SPECIAL, *MALFORMED]

ALLOWED = [
    "http://example.com",
    "https://example.com:8443/a/b?c=d%20e",
    "https://EXAMPLE.com./",
    "http://8.8.8.8/",
    "http://[2606:4700:4700::1111]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[64:ff9b::8.8.8.8]/",
    "https://b\u00fccher.example/",
    "http://under_score.example/",
]
"""Public names and addresses: passed with nothing set, if the name then leads to a public address."""
