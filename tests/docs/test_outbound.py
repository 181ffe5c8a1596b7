"""The tables of docs/outbound.md are made from the forms that the tests try and the tables that the policy asks.

``python -m tests.docs.test_outbound --write`` replaces what stands between ``<!-- generated: NAME -->`` and
``<!-- end -->``.
"""

import argparse
import itertools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from tests.egress_forms import ALLOWED, MALFORMED, PRIVATE, SPECIAL, Form

from asyncbg.service.integrations.egress import BLOCKED_PORTS, EgressPolicy
from asyncbg.service.integrations.special_address import (
    BESIDE_THE_REGISTRIES,
    CLOUD_METADATA,
    IPV4_REGISTRY,
    IPV6_REGISTRY,
    SpecialBlock,
    Verdict,
)
from asyncbg.settings import OutboundSettings

PAGE = Path(__file__).parents[2] / "docs" / "outbound.md"

_REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
_THEN = {
    Verdict.PRIVATE: "refused, unless `ALLOW_PRIVATE`",
    Verdict.SPECIAL: "refused, unless that very address is in `ALLOW_HOSTS`",
    Verdict.EMBEDS: "by its IPv4 address",
}
_SHOWN = 60


def rendered(page: str) -> str:
    """The page with its tables as the code says."""
    regions = _regions()
    shown = _REGION.sub(lambda found: f"{found[1]}\n{regions.pop(found[2])}\n{found[3]}", page)
    assert not regions, f"the page has no place for {', '.join(regions)}"
    return shown


def _regions() -> dict[str, str]:
    return {
        "forms": _table(
            ("after", "form", "opens"),
            [*_forms(PRIVATE, "`ALLOW_PRIVATE`"), *_forms(SPECIAL, "`ALLOW_HOSTS`"), *_forms(MALFORMED, "nothing")],
        ),
        "allowed": " · ".join(f"`{url}`" for url in ALLOWED) + "\n",
        "ipv4": _blocks(IPV4_REGISTRY),
        "ipv6": _blocks(IPV6_REGISTRY),
        "beside": _blocks(BESIDE_THE_REGISTRIES),
        "metadata": _blocks(CLOUD_METADATA),
        "ports": " ".join(map(str, sorted(BLOCKED_PORTS))) + "\n",
    }


def _forms(forms: Sequence[Form], opens: str) -> Iterable[list[str]]:
    for aim, group in itertools.groupby(forms, key=lambda form: form.aim):
        yield [aim, " · ".join(_code(form.url) for form in group), opens]


def _code(url: str) -> str:
    """A form as it can stand in a table: what is not printable as an escape, an endless one cut."""
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in url)
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return f"`{text}`" if text.strip() else "nothing at all"


def _blocks(rows: Iterable[SpecialBlock]) -> str:
    shown = ([f"`{row.block}`", row.name, row.source, _THEN[row.verdict]] for row in rows)
    return _table(("block", "name", "source", "an address in it is"), shown)


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def test_the_tables_are_as_the_code_says() -> None:
    """Every form that is tried and every row that is asked stands on the page."""
    text = PAGE.read_text("utf-8")

    assert text == rendered(text), "if that is as it should be: python -m tests.docs.test_outbound --write"


@pytest.mark.parametrize("delay", ["1 s", "5 s", "30 s", "5 min", "30 min", "2 h", "5 h", "10 h", "14 h"])
def test_the_schedule_is_the_default(delay: str) -> None:
    """The delays that the page names are those of the setting."""
    number, unit = delay.split()
    default = OutboundSettings().webhook_schedule_s

    assert float(number) * {"s": 1, "min": 60, "h": 3600}[unit] in default
    assert len(default) == 9
    assert delay in PAGE.read_text("utf-8")


def test_the_entries_that_the_page_names_are_understood() -> None:
    """What may stand in ALLOW_HOSTS."""
    lines = PAGE.read_text("utf-8").splitlines()
    (row,) = (line for line in lines if line.startswith("| `ASYNCBG_OUTBOUND__ALLOW_HOSTS`"))
    entries = re.findall(r"`([^`]+)`", row)[1:]

    assert len(entries) == 4
    for entry in entries:
        assert EgressPolicy(entries).check_url(f"http://{entry}/").raw_host


def main() -> None:
    """With --write bring the page up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    PAGE.write_text(rendered(PAGE.read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    main()
