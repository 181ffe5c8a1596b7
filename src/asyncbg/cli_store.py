"""The commands on the store as a whole: ``doctor``, ``purge`` and ``backup``."""

import asyncio
import re
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from asyncbg.backup import back_up
from asyncbg.clock import SystemClock
from asyncbg.doctor import Status, diagnose
from asyncbg.settings import Settings, load_settings
from asyncbg.store import existing_file, open_store
from asyncbg.terminal import AsJson, ExitCode, Profile, UsageError, overrides, say, say_json, say_table

_SLICE = 500
_AGE = re.compile(r"(\d{1,9}(?:\.\d{1,3})?)([smhdw])", re.ASCII)
_UNIT_S = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}


def doctor(*, as_json: AsJson = False, profile: Profile = None) -> int:
    """Check what asyncbg stands on; each finding comes with its remedy. Exit code 1 where something is broken."""
    findings = asyncio.run(diagnose(overrides(profile)))
    is_well = all(finding.status is not Status.FAILED for finding in findings)
    if as_json:
        say_json({"ok": is_well, "checks": [finding.as_dict() for finding in findings]})
    else:
        say_table(
            ("check", "status", "finding", "remedy"),
            [(finding.check, finding.status.value, finding.finding, finding.remedy) for finding in findings],
        )
    return ExitCode.DONE if is_well else ExitCode.FAILED


def purge(
    *,
    older_than: Annotated[
        str | None, Parameter(help="An age such as 90s, 30m, 12h, 7d or 2w; runner.retention_s unless given.")
    ] = None,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Delete final jobs that ended longer ago than that, with their events."""
    age_s = None if older_than is None else _age_s(older_than)
    settings = load_settings(**overrides(profile))
    purged = asyncio.run(_purge(settings, settings.runner.retention_s if age_s is None else age_s))
    if as_json:
        say_json({"purged": purged})
    else:
        say(f"{purged} {'job' if purged == 1 else 'jobs'} purged")


async def _purge(settings: Settings, age_s: float) -> int:
    before_ms = SystemClock().now_ms() - int(age_s * 1000)
    total = 0
    existing_file(settings)
    async with open_store(settings) as store:
        while purged := await store.purge(before_ms=before_ms, limit=_SLICE):
            total += purged
    return total


def _age_s(text: str) -> float:
    """``7d`` in seconds. Raises UsageError."""
    found = _AGE.fullmatch(text.strip())
    if found is None:
        raise UsageError("--older-than should be a number and a unit: 90s, 30m, 12h, 7d or 2w")
    return float(found[1]) * _UNIT_S[found[2]]


def backup(
    file: Annotated[Path, Parameter(help="Where to; it must not exist yet.")],
    /,
    *,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Copy the database to FILE, whole and consistent, while the service runs or does not."""
    source = existing_file(load_settings(**overrides(profile)))
    size = back_up(source, file)
    if as_json:
        say_json({"file": str(file), "bytes": size})
    else:
        say(f"{file}: {size} bytes")
