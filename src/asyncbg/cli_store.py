"""The commands on the store as a whole: ``doctor``, ``purge`` and ``backup``."""

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from asyncbg.backup import back_up
from asyncbg.clock import SystemClock
from asyncbg.doctor import Status, diagnose
from asyncbg.settings import Settings, load_settings
from asyncbg.store import existing_file, open_store
from asyncbg.terminal import AsJson, ExitCode, Profile, age_s, overrides, say, say_json, say_table

_SLICE = 500


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
    age = None if older_than is None else age_s(older_than, option="--older-than")
    settings = load_settings(**overrides(profile))
    purged = asyncio.run(_purge(settings, settings.runner.retention_s if age is None else age))
    if as_json:
        say_json({"purged": purged})
    else:
        say(f"{purged} {'job' if purged == 1 else 'jobs'} purged")


async def _purge(settings: Settings, age: float) -> int:
    before_ms = SystemClock().now_ms() - int(age * 1000)
    total = 0
    existing_file(settings)
    async with open_store(settings) as store:
        while purged := await store.purge(before_ms=before_ms, limit=_SLICE):
            total += purged
    return total


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
