"""Measures the pattern net: ``python -m tests.privacy.measure`` prints recall, false alarms and what it costs."""

import itertools
import random
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence

from asyncbg.privacy import redact
from tests.privacy.corpus import SETS, Figures, clean_lines, figures, personal_lines

SIZE = 16 * 1024
MIXTURES = 1000
ACCESS = 'INFO:     192.0.2.17:54321 - "GET /jobs/018f3c1e-7b2a-7cc1-8a1e-0123456789ab?wait=5 HTTP/1.1" 200 OK'
ENGINE = "2026-11-22 10:15:00,250 INFO asyncbg.engine.worker job 018f3c1e-7b2a-7cc1-8a1e-0123456789ab claimed"
ONE_LINE_IN = 10  # so many lines of a log for one that has something to hide
# Made to trip the patterns, each repeated until it fills the size.
HOSTILE = (
    *("a", "1", "1 ", "@", "a@", "a@b.cc ", "a=", " ", '"', "\\", "[", "(1", "+1", "://a@", "://a:b@c ", "eyJaaaaaa."),
    *("0", "01 ", "password=", "password='", "password=x ", 'password: "', "token ", "auth:auth ", "pin=123 "),
    *("\ud800", "sid=aaaaaa1 ", "cookie: a=", "--token a ", "?ticket=a ", "ticket=", "bearer aaaaaaa1 ", "sk-", "ghp_"),
    *("xoxb-", "-----BEGIN PRIVATE KEY-----", "AKIA", "DE12 ", "DE89370400440532013000 ", "DE893704004405320130 "),
    *("4111-", "4111111111111111 ", "4111 1111 1111 1112 ", "+4930123456 ", "0049 ", "555-123-4567 ", "030 1234567 ",),
    *("(030) 1", "tel 1234567 ", "tel 1234567 ://a@", "call 1 ", "a%40b.cc ", "a%2B", "%40", "&#64;", "a [at] "),
    *('"a@', "中@", "[secret]", "a.b.c@d.e.f.", "\uff11", "auth=_a(", "+4930{n} ", "0171 {n} ", "tel 1{n} "),
    *("a{n}@b.cc ", "token=a{n} ", "a:b{n}@c.d:80 ", "https://u:p{n}@h/ ", " -u a:b ", "тел 1 ", "тел", "密码\uff1a"),
    *("\\x41", "%20", "&quot;", "identified by 'x' ", "auth=('a', 'b') ", "mysql -pa ", "name='password' value=x "),
)  # fmt: skip


def main() -> int:
    """Print the figures; 1 where a target is missed."""
    found = figures(*([line for name in SETS for line in lines(name)] for lines in (personal_lines, clean_lines)))
    report(found)
    line_us, (worst_ms, worst) = microseconds_a_line(), slowest([*HOSTILE, *mixtures(MIXTURES)])
    say(f"a line of a log     {line_us:.1f} µs on average (one in {ONE_LINE_IN} has something to hide)")
    say(f"a clean access line {_seconds(redact, [ACCESS] * 2000) / 2000 * 1e6:.1f} µs")
    say(f"worst 16 kB         {worst_ms:.1f} ms ({worst!r} repeated)")
    return 0 if found.recall >= 0.97 and found.false_alarms <= 0.005 and line_us <= 25 and worst_ms <= 10 else 1


def report(found: Figures) -> None:
    """Recall for each kind, and false alarms."""
    for kind, (hit, count) in sorted(found.found.items()):
        say(f"recall {kind:12} {hit / count:7.1%} ({hit} of {count})")
    say(f"recall {'all':12} {found.recall:7.1%}")
    say(f"clean lines altered {found.false_alarms:6.2%} ({found.altered} of {found.clean})")


def microseconds_a_line() -> float:
    """The mean cost of a line in a log as it is: mostly the server's own lines, and the labelled ones among them."""
    clean = [line.text for line in clean_lines()] + [ACCESS, ENGINE] * 500
    personal = [line.text for line in personal_lines()]
    lines = [*clean, *(personal[n % len(personal)] for n in range(len(clean) // (ONE_LINE_IN - 1)))]
    return _seconds(redact, lines) / len(lines) * 1e6


def slowest(units: Iterable[str]) -> tuple[float, str]:
    """The milliseconds and the unit of the text that takes longest."""
    return max((_seconds(redact, [filled(unit)]) * 1e3, unit) for unit in units)


def filled(unit: str) -> str:
    """The unit over and over up to the size, ``{n}`` another number each time."""
    text = (unit * (SIZE // len(unit) + 1))[:SIZE]
    numbers = itertools.count(100_000)
    return re.sub(r"\{n\}", lambda _: str(next(numbers)), text)[:SIZE]


def mixtures(count: int) -> list[str]:
    """Random units of two to six of the hostile ones, the same ones each time."""
    rng = random.Random(5)
    return ["".join(rng.choices(HOSTILE, k=rng.randint(2, 6))) for _ in range(count)]


def say(line: str) -> None:
    """A line on standard output."""
    sys.stdout.write(line + "\n")


def _seconds(function: Callable[[str], str], texts: Sequence[str]) -> float:
    """The processor time to put every text through the function: the best of seven rounds."""
    return min(_round(function, texts) for _ in range(7))


def _round(function: Callable[[str], str], texts: Sequence[str]) -> float:
    started = time.process_time()
    for text in texts:
        function(text)
    return time.process_time() - started


if __name__ == "__main__":
    raise SystemExit(main())
