"""Shared parts of the commands: exit codes, usage errors, and printing of results and notes."""

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

_UNBROKEN = 10_000  # columns for output that is not a terminal: lines are not folded
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class ExitCode(IntEnum):
    """Exit codes of the command."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    JOB_FAILED = 3
    NOT_FOUND = 4
    TIMED_OUT = 124


class UsageError(AsyncBGError):
    """The command line is invalid; the message names the option or argument, never its value."""


Profile = Annotated[str | None, Parameter(help="Use settings/PROFILE.toml; same as ASYNCBG_PROFILE.")]
AsJson = Annotated[bool, Parameter(name="--json", help="Print JSON.", negative="")]


def overrides(profile: str | None) -> dict[str, str]:
    """Return the settings that ``--profile`` overrides."""
    return {} if profile is None else {"profile": profile}


def age_s(text: str, *, option: str) -> float:
    """Parse an age such as ``7d``; return seconds. Raises UsageError, which names the option."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{option} must be a number and a unit: 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * _UNIT_S[found[2]]


def print_line(line: str) -> None:
    """Print one line of the result and flush."""
    print(line, flush=True)  # noqa: T201 - the command's result


def print_json(value: object, *, indent: int | None = 2) -> None:
    """Print the result as JSON; on one line without ``indent``."""
    print_line(json.dumps(value, indent=indent))


def print_note(line: str) -> None:
    """Print a note on stderr."""
    print(f"asyncbg: {line}", file=sys.stderr, flush=True)  # noqa: T201 - the command's note


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table, folded to the width of a terminal; lines to a file or pipe are not folded."""
    table = Table(box=None, pad_edge=False)
    for number, head in enumerate(heads):
        table.add_column(head, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*map(printable, row))
    width = None if sys.stdout.isatty() else _UNBROKEN
    Console(markup=False, highlight=False, width=width).print(table)


def printable(text: str) -> str:
    """Return ``text`` with control characters replaced by blanks."""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text)
