"""The commands on the store as a whole: ``doctor``, ``purge``, ``forget``, ``rekey`` and ``backup``."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from asyncbg.cli.terminal import (
    AsJson,
    ExitCode,
    Profile,
    UsageError,
    age_s,
    overrides,
    remark,
    say,
    say_json,
    say_table,
)
from asyncbg.core.clock import SystemClock
from asyncbg.ops.backup import back_up
from asyncbg.ops.doctor import Status, diagnose
from asyncbg.ops.erasure import Address, AddressError, Erasure
from asyncbg.ops.erasure import forget as erase_person
from asyncbg.ops.open_store import empty_log, existing_file, open_store
from asyncbg.ops.rekey import Rekeyed
from asyncbg.ops.rekey import rekey as encrypt_anew
from asyncbg.privacy import use_pseudonym_key
from asyncbg.settings import Settings, load_settings

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


def forget(
    email: Annotated[
        str,
        Parameter(allow_leading_hyphen=True, help="The person's e-mail address; - reads it from the standard input."),
    ],
    /,
    *,
    wait: Annotated[float, Parameter(help="Seconds that running jobs of the person, and readers, get to end.")] = 10.0,
    as_json: AsJson = False,
    profile: Profile = None,
) -> int:
    """Erase a person from jobs, events, activity, imports, tickets and files; the jobs that wait are cancelled.

    Works beside a running service. Exit code 1 where something remains: what, and what to do, is told.
    """
    settings = load_settings(**overrides(profile))
    if settings.privacy.pseudonym_key:
        use_pseudonym_key(settings.privacy.pseudonym_key.get_secret_value().encode())
    try:
        address = Address(sys.stdin.readline() if email == "-" else email)
    except AddressError as error:
        raise UsageError(str(error)) from None
    done = asyncio.run(_forget(settings, address, wait))
    if as_json:
        say_json(done.as_dict())
    else:
        _say_erasure(done)
    return ExitCode.DONE if done.is_complete else ExitCode.FAILED


async def _forget(settings: Settings, address: Address, wait_s: float) -> Erasure:
    path = existing_file(settings)
    async with open_store(settings) as store:
        return await erase_person(store, path, settings.data_dir, address, wait_s=wait_s)


def _say_erasure(done: Erasure) -> None:
    say_table(
        ("erased", ""),
        [
            ("jobs", f"{done.jobs}, of them {done.cancelled} cancelled"), ("events", str(done.events)),
            ("activity", str(done.activity)), ("imports", str(done.imports)),
            ("stream tickets", str(done.tickets)), ("audit log", f"{done.audit} rows"),
            ("notification log", f"{done.log_lines} lines"), ("files", str(done.files)),
            ("checked", f"{done.checked.bytes} bytes of {done.checked.files} files"),
        ],
    )  # fmt: skip
    for job_id in done.running:
        remark(f"job {job_id} is of this person and goes on; run this again when it has ended")
    for job_id in done.unreadable:
        remark(f"job {job_id} cannot be decrypted, so nobody knows whose it is; add its key, then run this again")
    for place, many in done.elsewhere.items():
        remark(f"{place} is not ours and names the person in {many} places; erase it there yourself")
    if not done.is_log_empty:
        remark("the write-ahead log was not emptied: a reader is in the way (asyncbg doctor names it), or the service "
               "is older than this command; then run this again")  # fmt: skip
    for file, many in done.checked.found.items():
        remark(f"{file} still holds the address in {many} places")
    if done.is_complete:
        say(f"{done.person} is forgotten; backups made before still know the person")


def rekey(*, as_json: AsJson = False, profile: Profile = None) -> int:
    """Encrypt all stored arguments and results under the first of the encryption keys.

    Run it after a key was put before the others, or after the first key was set. Works beside a running service.
    """
    settings = load_settings(**overrides(profile))
    done, is_log_empty = asyncio.run(_rekey(settings))
    if as_json:
        say_json({"rekeyed": done.jobs, "unreadable": done.unreadable, "is_log_empty": is_log_empty})
    else:
        say(f"{done.jobs} {'job' if done.jobs == 1 else 'jobs'} encrypted anew")
    if done.unreadable:
        remark(f"{done.unreadable} jobs cannot be read with any of the keys; add the missing key, then run this again")
    if not is_log_empty:
        remark("the write-ahead log was not emptied: it may hold earlier values; run this again")
    return ExitCode.FAILED if done.unreadable or not is_log_empty else ExitCode.DONE


async def _rekey(settings: Settings) -> tuple[Rekeyed, bool]:
    path = existing_file(settings)
    async with open_store(settings) as store:
        return await encrypt_anew(store), await asyncio.to_thread(empty_log, path)


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
