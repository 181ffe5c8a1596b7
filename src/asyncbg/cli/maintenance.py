"""The maintenance commands of the store: ``doctor``, ``purge``, ``forget``, ``rekey`` and ``backup``."""

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
    print_json,
    print_line,
    print_note,
    print_table,
)
from asyncbg.core.clock import SystemClock
from asyncbg.ops.backup import back_up
from asyncbg.ops.doctor import Status, diagnose
from asyncbg.ops.erasure import EmailMatcher, Erasure, InvalidAddressError, erase_person
from asyncbg.ops.open_store import empty_log, existing_file, open_store
from asyncbg.ops.rekey import Rekeyed
from asyncbg.ops.rekey import rekey as reencrypt
from asyncbg.privacy import use_pseudonym_key
from asyncbg.settings import Settings, load_settings

_SLICE = 500


def doctor(*, as_json: AsJson = False, profile: Profile = None) -> int:
    """Check the installation and suggest remedies. Exit code 1 if a check fails."""
    findings = asyncio.run(diagnose(overrides(profile)))
    is_well = all(finding.status is not Status.FAILED for finding in findings)
    if as_json:
        print_json({"ok": is_well, "checks": [finding.as_dict() for finding in findings]})
    else:
        print_table(
            ("check", "status", "finding", "remedy"),
            [(finding.check, finding.status.value, finding.finding, finding.remedy) for finding in findings],
        )
    return ExitCode.DONE if is_well else ExitCode.FAILED


def purge(
    *,
    older_than: Annotated[
        str | None, Parameter(help="An age such as 90s, 30m, 12h, 7d or 2w; default runner.retention_s.")
    ] = None,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Delete final jobs that ended before that age, with their events."""
    age = None if older_than is None else age_s(older_than, option="--older-than")
    settings = load_settings(**overrides(profile))
    purged = asyncio.run(_purge(settings, settings.runner.retention_s if age is None else age))
    if as_json:
        print_json({"purged": purged})
    else:
        print_line(f"{purged} {'job' if purged == 1 else 'jobs'} purged")


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
        Parameter(allow_leading_hyphen=True, help="The person's e-mail address; - reads it from standard input."),
    ],
    /,
    *,
    wait: Annotated[float, Parameter(help="Seconds to wait for the person's running jobs, and for readers.")] = 10.0,
    as_json: AsJson = False,
    profile: Profile = None,
) -> int:
    """Erase a person from jobs, events, activity, imports, tickets and files; unfinished jobs are cancelled.

    Works beside a running service. Exit code 1 if data remains, with a note about where and how to remove it.
    """
    settings = load_settings(**overrides(profile))
    if settings.privacy.pseudonym_key:
        use_pseudonym_key(settings.privacy.pseudonym_key.get_secret_value().encode())
    try:
        address = EmailMatcher(sys.stdin.readline() if email == "-" else email)
    except InvalidAddressError as error:
        raise UsageError(str(error)) from None
    done = asyncio.run(_forget(settings, address, wait))
    if as_json:
        print_json(done.as_dict())
    else:
        _print_erasure(done)
    return ExitCode.DONE if done.is_complete else ExitCode.FAILED


async def _forget(settings: Settings, address: EmailMatcher, wait_s: float) -> Erasure:
    path = existing_file(settings)
    async with open_store(settings) as store:
        return await erase_person(store, path, settings.data_dir, address, wait_s=wait_s)


def _print_erasure(done: Erasure) -> None:
    print_table(
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
        print_note(f"job {job_id} belongs to this person and is still running; run this again when it has ended")
    for job_id in done.unreadable:
        print_note(f"job {job_id} cannot be decrypted, so its person is unknown; add its key, then run this again")
    for place, many in done.elsewhere.items():
        print_note(f"{place} does not belong to asyncbg and names the person in {many} places; erase it there yourself")
    if not done.is_log_empty:
        print_note(
            "the write-ahead log was not emptied: a reader holds it (asyncbg doctor names the process), or the service "
            "is older than this command; then run this again"
        )
    for file, many in done.checked.found.items():
        print_note(f"{file} still holds the address in {many} places")
    if done.is_complete:
        print_line(f"{done.person} is erased; earlier backups still contain the person")


def rekey(*, as_json: AsJson = False, profile: Profile = None) -> int:
    """Re-encrypt all stored arguments and results with the first encryption key.

    Run it after adding a new first key. Works beside a running service.
    """
    settings = load_settings(**overrides(profile))
    done, is_log_empty = asyncio.run(_rekey(settings))
    if as_json:
        print_json({"rekeyed": done.jobs, "unreadable": done.unreadable, "is_log_empty": is_log_empty})
    else:
        print_line(f"{done.jobs} {'job' if done.jobs == 1 else 'jobs'} re-encrypted")
    if done.unreadable:
        print_note(
            f"{done.unreadable} jobs cannot be read with any of the keys; add the missing key, then run this again"
        )
    if not is_log_empty:
        print_note("the write-ahead log was not emptied: it may hold earlier values; run this again")
    return ExitCode.FAILED if done.unreadable or not is_log_empty else ExitCode.DONE


async def _rekey(settings: Settings) -> tuple[Rekeyed, bool]:
    path = existing_file(settings)
    async with open_store(settings) as store:
        return await reencrypt(store), await asyncio.to_thread(empty_log, path)


def backup(
    file: Annotated[Path, Parameter(help="Path of the copy; it must not exist.")],
    /,
    *,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Copy the database to FILE consistently, with or without a running service."""
    source = existing_file(load_settings(**overrides(profile)))
    size = back_up(source, file)
    if as_json:
        print_json({"file": str(file), "bytes": size})
    else:
        print_line(f"{file}: {size} bytes")
