"""The commands ``keys`` and ``audit``: API keys and the audit log."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Any

from cyclopts import App, Parameter

from asyncbg.auth.api_key import Scope, hash_key, new_key
from asyncbg.auth.audit import COMMAND_LINE, Audit, AuditEntry, AuditOutcome
from asyncbg.auth.keys import KeyRecord, Keys, check_name
from asyncbg.cli.terminal import (
    AsJson,
    Profile,
    UsageError,
    age_s,
    overrides,
    print_json,
    print_line,
    print_note,
    print_table,
)
from asyncbg.core.clock import SystemClock, rfc3339
from asyncbg.core.keyset_page import KeysetPage
from asyncbg.errors import KeyNotFoundError, KeyTakenError
from asyncbg.ops.open_store import existing_file, open_store
from asyncbg.settings import Settings, load_settings
from asyncbg.store.sqlite.database import open_all

_MAX_LIMIT = 1_000

keys_app = App(name="keys", help="Create, list and revoke API keys.")

Name = Annotated[str, Parameter(help="The key's name, which owns the jobs submitted with it.")]


@dataclass(frozen=True, slots=True)
class _Stores:
    """The API keys and the audit log."""

    keys: Keys
    audit: Audit


@keys_app.command
def create(
    name: Name,
    /,
    *,
    scopes: Annotated[
        tuple[str, ...],
        Parameter(help="Any of submit, read and admin, separated by commas; default submit,read.", negative=""),
    ] = (),
    expires: Annotated[str | None, Parameter(help="Lifetime: 12h, 30d, 52w; default unlimited.")] = None,
    store: Annotated[
        bool,
        Parameter(help="--no-store stores nothing and also prints the entry for ASYNCBG_AUTH__API_KEYS."),
    ] = True,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Create an API key. It is printed once; only its hash is stored."""
    check_name(name)
    wanted = _scopes(scopes)
    lasting_s = None if expires is None else age_s(expires, option="--expires")
    settings = load_settings(**overrides(profile))
    if not store:
        if lasting_s is not None:
            raise UsageError("--expires needs a stored key; a key in the settings is valid until it is removed there")
        _print_unstored(name, wanted, settings, as_json=as_json)
        return
    key, record = asyncio.run(_create(settings, name, wanted, lasting_s))
    if as_json:
        print_json({"key": key, **_key_json(record)})
        return
    print_line(key)
    print_note(f"this is the only time the key of {name} is shown; send it as Authorization: Bearer KEY")


async def _create(
    settings: Settings, name: str, scopes: frozenset[Scope], lasting_s: float | None
) -> tuple[str, KeyRecord]:
    expires_ms = None if lasting_s is None else SystemClock().now_ms() + int(lasting_s * 1000)
    async with _open_stores(settings, create=True) as stores:
        try:
            key, record = await stores.keys.create(name, scopes=scopes, expires_ms=expires_ms)
        except KeyTakenError:
            await stores.audit.record("key.create", name, who=COMMAND_LINE, outcome=AuditOutcome.FAILED, reason="taken")
            raise
        await stores.audit.record("key.create", name, who=COMMAND_LINE, reason=",".join(sorted(scopes)))
        return key, record


@keys_app.command(name="list")
def list_keys(*, as_json: AsJson = False, profile: Profile = None) -> None:
    """List all keys with names, scopes and states; never the keys themselves."""
    settings = load_settings(**overrides(profile))
    existing_file(settings)
    records, now_ms = asyncio.run(_list(settings)), SystemClock().now_ms()
    if as_json:
        print_json({"items": [_key_json(record, now_ms) for record in records]})
        return
    print_table(
        ("name", "begins with", "scopes", "state", "created", "expires"),
        [
            (
                record.name, record.hint, ",".join(sorted(record.scopes)), _state(record, now_ms),
                _time(record.created_ms) or "in the settings", _time(record.expires_ms) or "never",
            )
            for record in records
        ],
    )  # fmt: skip


async def _list(settings: Settings) -> Sequence[KeyRecord]:
    async with _open_stores(settings) as stores:
        return await stores.keys.list()


@keys_app.command
def revoke(name: Name, /, *, as_json: AsJson = False, profile: Profile = None) -> None:
    """Revoke a key: its sessions, tickets and streams end within a second. Its jobs continue."""
    settings = load_settings(**overrides(profile))
    existing_file(settings)
    record = asyncio.run(_revoke(settings, name))
    if as_json:
        print_json(_key_json(record))
    else:
        print_line(f"{record.name} revoked")


async def _revoke(settings: Settings, name: str) -> KeyRecord:
    async with _open_stores(settings) as stores:
        try:
            record = await stores.keys.revoke(name)
        except KeyNotFoundError:
            await stores.audit.record(
                "key.revoke", name, who=COMMAND_LINE, outcome=AuditOutcome.FAILED, reason="not found"
            )
            raise
        await stores.audit.record("key.revoke", name, who=COMMAND_LINE)
        return record


def audit(
    *,
    what: Annotated[
        str | None, Parameter(help="Only this action: key.create, session.begin, job.cancel, request, …")
    ] = None,
    who: Annotated[str | None, Parameter(help="Only actions of this owner.")] = None,
    limit: Annotated[int, Parameter(help="Maximum number of results (1-1000).")] = 50,
    cursor: Annotated[str | None, Parameter(help='The "next" of the previous page.')] = None,
    as_json: AsJson = False,
    profile: Profile = None,
) -> None:
    """Show the audit log, newest first: sign-ins, keys, cancels, retries, erasures and refusals."""
    if not 1 <= limit <= _MAX_LIMIT:
        raise UsageError(f"--limit must be 1 to {_MAX_LIMIT}")
    settings = load_settings(**overrides(profile))
    existing_file(settings)
    page = asyncio.run(_read(settings, what=what, who=who, limit=limit, cursor=cursor))
    if as_json:
        print_json({"items": [entry.as_dict() for entry in page.items], "next": page.next})
        return
    print_table(
        ("time", "who", "what", "which", "outcome", "reason"),
        [
            (rfc3339(entry.at_ms), entry.who, entry.what, entry.which, entry.outcome.value, entry.reason)
            for entry in page.items
        ],
    )
    if page.next is not None:
        print_note(f"next page: --cursor {page.next}")


async def _read(
    settings: Settings, *, what: str | None, who: str | None, limit: int, cursor: str | None
) -> KeysetPage[AuditEntry]:
    async with _open_stores(settings) as stores:
        return await stores.audit.read(what=what, who=who, limit=limit, cursor=cursor)


@asynccontextmanager
async def _open_stores(settings: Settings, *, create: bool = False) -> AsyncIterator[_Stores]:
    async with open_store(settings, create=create) as backend:
        clock = SystemClock()
        stores = _Stores(Keys(backend.database, settings.auth, clock=clock), Audit(backend.database, clock=clock))
        await open_all(stores.keys.open(), stores.audit.open())
        yield stores


def _print_unstored(name: str, scopes: frozenset[Scope], settings: Settings, *, as_json: bool) -> None:
    pepper = settings.auth.pepper.get_secret_value().encode() if settings.auth.pepper else b""
    key = new_key()
    setting = {"name": name, "hash": hash_key(key, pepper=pepper), "scopes": sorted(scopes)}
    if as_json:
        print_json({"key": key, "setting": setting})
        return
    print_line(key)
    print_line(json.dumps(setting))
    print_note("the first line is the key, shown only once; add the second line to the list ASYNCBG_AUTH__API_KEYS")


def _scopes(given: tuple[str, ...]) -> frozenset[Scope]:
    words = [word.strip() for item in given for word in item.split(",") if word.strip()]
    known = [scope.value for scope in Scope]
    if any(word not in known for word in words):
        raise UsageError(f"--scopes must be any of {', '.join(known)}, separated by commas")
    return frozenset(map(Scope, words or ("submit", "read")))


def _key_json(record: KeyRecord, now_ms: int | None = None) -> dict[str, Any]:
    return {
        "name": record.name,
        "hint": record.hint,
        "scopes": sorted(record.scopes),
        "state": _state(record, SystemClock().now_ms() if now_ms is None else now_ms),
        "created_at": _time(record.created_ms),
        "expires_at": _time(record.expires_ms),
        "revoked_at": _time(record.revoked_ms),
    }


def _state(record: KeyRecord, now_ms: int) -> str:
    if record.revoked_ms is not None:
        return "revoked"
    return "good" if record.is_usable(now_ms) else "expired"


def _time(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)
