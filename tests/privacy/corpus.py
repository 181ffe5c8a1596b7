"""The labelled lines: in ``*_personal.txt`` what must not be seen is ``⟦kind:value⟧``, ``*_clean.txt`` hides nothing.

All of it is made up: reserved domains, fictional numbers, the test cards of the payment networks, sample IBANs.
"""

import re
from dataclasses import dataclass
from pathlib import Path

from asyncbg.privacy import redact

_MARKED = re.compile(r"⟦(?P<kind>[a-z]+):(?P<value>[^⟧]*)⟧")
_LINES = Path(__file__).parent / "lines"
OWN = "own"
SETS = sorted(path.name.removesuffix("_clean.txt") for path in _LINES.glob("*_clean.txt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A line, and what in it must not be seen after redaction: (kind, value)."""

    text: str
    hidden: tuple[tuple[str, str], ...]

    def leaks(self) -> tuple[tuple[str, str], ...]:
        """What is still to be seen."""
        shown = redact(self.text)
        return tuple((kind, value) for kind, value in self.hidden if value in shown)

    def is_altered(self) -> bool:
        """Whether redaction changes it at all."""
        return redact(self.text) != self.text


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What the net does on a set of lines: (found, all) for each kind, clean lines altered and all clean lines."""

    found: dict[str, tuple[int, int]]
    altered: int
    clean: int

    @property
    def recall(self) -> float:
        """The part of all marked values that is hidden."""
        return sum(hit for hit, _ in self.found.values()) / sum(count for _, count in self.found.values())

    @property
    def false_alarms(self) -> float:
        """The part of the clean lines that is altered."""
        return self.altered / self.clean


def personal_lines(name: str = OWN) -> list[Line]:
    """The lines of a set with something to hide."""
    return [_parsed(line) for line in _lines(f"{name}_personal.txt")]


def clean_lines(name: str = OWN) -> list[Line]:
    """The lines of a set with nothing to hide."""
    return [Line(text=line, hidden=()) for line in _lines(f"{name}_clean.txt")]


def figures(personal: list[Line], clean: list[Line]) -> Figures:
    """Counts hits and false alarms."""
    found: dict[str, tuple[int, int]] = {}
    for line in personal:
        leaks = line.leaks()
        for kind, value in line.hidden:
            hit, count = found.get(kind, (0, 0))
            found[kind] = (hit + ((kind, value) not in leaks), count + 1)
    return Figures(found=found, altered=sum(line.is_altered() for line in clean), clean=len(clean))


def _lines(name: str) -> list[str]:
    return [line for line in (_LINES / name).read_text(encoding="utf-8").split("\n") if line]


def _parsed(line: str) -> Line:
    """A line without its marks."""
    hidden = tuple((match["kind"], match["value"]) for match in _MARKED.finditer(line))
    return Line(text=_MARKED.sub(lambda match: match["value"], line), hidden=hidden)
