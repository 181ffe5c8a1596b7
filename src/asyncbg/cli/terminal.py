"""What the commands share: exit codes, usage errors, and how results and remarks are printed."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console
from rich.table import Table

from asyncbg.errors import AsyncBGError

_UNBROKEN = 10_000  # columns where nobody's terminal has to fold the lines
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class ExitCode(IntEnum):
    """What the shell is told."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    JOB_FAILED = 3
    NOT_FOUND = 4
    TIMED_OUT = 124


class UsageError(AsyncBGError):
    """The command line says something that cannot be; the message names the option or argument, never its value."""


Profile = Annotated[str | None, Parameter(help="Use settings/PROFILE.toml; same as ASYNCBG_PROFILE.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")]


def overrides(profile: str | None) -> dict[str, str]:
    """The settings that ``--profile`` gives."""
    return {} if profile is None else {"profile": profile}


def age_s(text: str, *, option: str) -> float:
    """``7d`` in seconds. Raises UsageError, which names the option."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} should be a number and a unit: 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * _UNIT_S[found[2]]


def print_line(line: str) -> None:
    """One line of the result, at once."""
    print(line, flush=True)  # noqa: T201 - the command's result


def print_json(value: object, *, indent: int | None = 2) -> None:
    """The result as JSON; without ``indent`` on one line."""
    print_line(json.dumps(value, indent=indent))


def print_note(line: str) -> None:
    """One line beside the result, on stderr."""
    print(f"asyncbg: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the command's note


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A line a row; folded to a terminal's width, whole where it goes to a file or a pipe."""
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    width = None if sys.stdout.isatty() else _UNBROKEN
    Console(markup=False, highlight=False, width=width).print(table)


def printable(text: str) -> str:
    """``text`` without anything that steers a terminal."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
