"""The API keys of a service: those in the settings, and those made by ``asyncbg keys create``, in the database."""

import json
import re
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from asyncbg.auth.api_key import DEFAULT_SCOPES, Scope, hash_key, hint_of, is_hash, is_key, matches, new_key
from asyncbg.core.clock import Clock
from asyncbg.errors import KeyNameError, KeyNotFoundError, KeyTakenError, SettingsError
from asyncbg.settings import AuthSettings
from asyncbg.store.sqlite.database import Database

RESERVED_NAMES = frozenset({"anonymous", "schedule"})
"""Owners that are not keys: anonymous callers, and the jobs of schedules."""

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")

# A key is never deleted: its name owned jobs, and a service that once had keys must not become open.
_SCHEMA = """
CREATE TABLE api_key (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    name       TEXT NOT NULL CHECK (length(name) BETWEEN 1 AND 64),
    hint       TEXT NOT NULL,
    hash       TEXT NOT NULL UNIQUE,
    scopes     TEXT NOT NULL CHECK (json_valid(scopes)),
    created_ms INTEGER NOT NULL CHECK (created_ms >= 0),
    expires_ms INTEGER CHECK (expires_ms > 0),
    revoked_ms INTEGER CHECK (revoked_ms >= 0)
);
CREATE INDEX api_key_by_hint ON api_key (hint);
CREATE UNIQUE INDEX api_key_in_use ON api_key (name) WHERE revoked_ms IS NULL;
CREATE TRIGGER api_key_stays BEFORE DELETE ON api_key BEGIN
    SELECT RAISE(ABORT, 'an API key is revoked, not deleted');
END;
CREATE TRIGGER api_key_is_not_replaced BEFORE INSERT ON api_key WHEN NEW.id IN (SELECT id FROM api_key) BEGIN
    SELECT RAISE(ABORT, 'an API key is revoked, not replaced');
END;
CREATE TRIGGER api_key_stays_revoked BEFORE UPDATE ON api_key WHEN OLD.revoked_ms IS NOT NULL BEGIN
    SELECT RAISE(ABORT, 'a revoked API key stays as it is');
END;
"""
MIGRATIONS = (_SCHEMA,)

_INSERT = """
INSERT INTO api_key (name, hint, hash, scopes, created_ms, expires_ms) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (name) WHERE revoked_ms IS NULL DO NOTHING RETURNING id
"""
_REVOKE = """
UPDATE api_key SET revoked_ms = ? WHERE name = ? AND revoked_ms IS NULL
RETURNING id, name, hint, scopes, created_ms, expires_ms, revoked_ms
"""
_LIST = "SELECT id, name, hint, scopes, created_ms, expires_ms, revoked_ms FROM api_key ORDER BY id"
_BY_HINT = """
SELECT hash, id, name, hint, scopes, created_ms, expires_ms, revoked_ms FROM api_key
WHERE hint = ? AND revoked_ms IS NULL
"""
_BY_ID = "SELECT id, name, hint, scopes, created_ms, expires_ms, revoked_ms FROM api_key WHERE id = ?"
_USABLE = "SELECT id, name, hint, scopes, created_ms, expires_ms, revoked_ms FROM api_key WHERE revoked_ms IS NULL"
_ANY = "SELECT EXISTS (SELECT 1 FROM api_key)"
_IS_THERE = "SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'api_key'"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """The stored description of a key. ``id`` is unique, also where a later key has the name of a revoked one."""

    id: str
    name: str
    hint: str
    scopes: frozenset[Scope]
    created_ms: int | None = None
    expires_ms: int | None = None
    revoked_ms: int | None = None

    def is_usable(self, now_ms: int) -> bool:
        """Whether it is valid now: not revoked and not expired."""
        return self.revoked_ms is None and (self.expires_ms is None or now_ms < self.expires_ms)


class Keys:
    """The API keys of a service."""

    def __init__(self, database: Database, settings: AuthSettings, *, clock: Clock) -> None:
        """Read the keys of the settings; those in ``database`` are read on use. Raise SettingsError."""
        self._database = database
        self._clock = clock
        self._pepper = settings.pepper.get_secret_value().encode() if settings.pepper else b""
        self._fixed: Mapping[str, KeyRecord] = dict(_of_settings(settings))

    @property
    def are_set(self) -> bool:
        """Whether the settings contain a key."""
        return bool(self._fixed)

    async def open(self) -> None:
        """Create or upgrade the table."""
        await self._database.migrate("keys", MIGRATIONS)

    async def exist(self) -> bool:
        """Whether a key exists or ever existed: from then on anonymous callers need ``allow_anonymous``."""
        return self.are_set or await self._database.read(_exists)

    async def create(
        self, name: str, *, scopes: Collection[Scope] = DEFAULT_SCOPES, expires_ms: int | None = None
    ) -> tuple[str, KeyRecord]:
        """Create a key. Return its text, which is not stored, and its record. Raise KeyNameError, KeyTakenError."""
        check_name(name)
        if any(record.name == name for record in self._fixed.values()):
            raise KeyTakenError(name)
        key, now_ms = new_key(), self._clock.now_ms()
        listed = json.dumps(sorted(scopes))
        row = (name, hint_of(key), hash_key(key, pepper=self._pepper), listed, now_ms, expires_ms)
        made = await self._database.write(lambda connection: connection.execute(_INSERT, row).fetchone())
        if made is None:
            raise KeyTakenError(name)
        return key, _record((made[0], name, hint_of(key), listed, now_ms, expires_ms, None))

    async def list(self) -> Sequence[KeyRecord]:
        """Return all keys, revoked ones too: those of the settings, then the others in the order of creation."""
        rows = await self._database.read(lambda connection: connection.execute(_LIST).fetchall())
        return [*self._fixed.values(), *map(_record, rows)]

    async def revoke(self, name: str) -> KeyRecord:
        """Revoke a key for good. Raise KeyNotFoundError, or SettingsError for a key of the settings."""
        if any(record.name == name for record in self._fixed.values()):
            raise SettingsError(
                f"the key {name} is set in ASYNCBG_AUTH__API_KEYS; remove it there and restart the service"
            )
        now_ms = self._clock.now_ms()
        row = await self._database.write(lambda connection: connection.execute(_REVOKE, (now_ms, name)).fetchone())
        if row is None:
            raise KeyNotFoundError(name)
        return _record(row)

    async def verify(self, key: str) -> KeyRecord | None:
        """Return the record of ``key``; None where it is mistyped, unknown, expired or revoked."""
        if not is_key(key):
            return None
        found = [record for stored, record in self._fixed.items() if matches(key, stored, pepper=self._pepper)]
        if not found:
            hint = hint_of(key)
            rows = await self._database.read(lambda connection: connection.execute(_BY_HINT, (hint,)).fetchall())
            found = [_record(row) for stored, *row in rows if matches(key, stored, pepper=self._pepper)]
        return found[0] if found and found[0].is_usable(self._clock.now_ms()) else None

    async def find(self, key_id: str) -> KeyRecord | None:
        """Return the key with that id; None where it is unknown, expired or revoked."""
        fixed = next((record for record in self._fixed.values() if record.id == key_id), None)
        if fixed is not None or not key_id.isdecimal():
            return fixed
        row = await self._database.read(lambda connection: connection.execute(_BY_ID, (int(key_id),)).fetchone())
        record = _record(row) if row else None
        return record if record is not None and record.is_usable(self._clock.now_ms()) else None

    async def usable(self) -> Mapping[str, KeyRecord]:
        """Return all keys that are valid now, by id."""
        rows = await self._database.read(lambda connection: connection.execute(_USABLE).fetchall())
        now_ms = self._clock.now_ms()
        found = [*self._fixed.values(), *map(_record, rows)]
        return {record.id: record for record in found if record.is_usable(now_ms)}


def check_name(name: str) -> None:
    """Raise KeyNameError where ``name`` cannot name a key."""
    if not _NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise KeyNameError(RESERVED_NAMES)


def _of_settings(settings: AuthSettings) -> list[tuple[str, KeyRecord]]:
    found: list[tuple[str, KeyRecord]] = []
    for number, key in enumerate(settings.api_keys):
        stored = key.hash.get_secret_value()
        where = f"ASYNCBG_AUTH__API_KEYS[{number}]"
        if not is_hash(stored):
            raise SettingsError(
                f"{where}.hash: not the hash of a key; make both with: asyncbg keys create NAME --no-store"
            )
        if key.name in RESERVED_NAMES:
            raise SettingsError(f"{where}.name: {key.name} is reserved; choose another name")
        scopes = frozenset(map(Scope, key.scopes))
        found.append((stored, KeyRecord(id=f"set-{stored[-64:-32]}", name=key.name, hint="", scopes=scopes)))
    return found


def _exists(connection: sqlite3.Connection) -> bool:
    """The table may not exist yet."""
    there = connection.execute(_IS_THERE).fetchone()[0]
    return bool(there and connection.execute(_ANY).fetchone()[0])


def _record(row: Sequence[object]) -> KeyRecord:
    key_id, name, hint, scopes, created_ms, expires_ms, revoked_ms = row
    return KeyRecord(
        id=str(key_id), name=str(name), hint=str(hint), scopes=frozenset(map(Scope, json.loads(str(scopes)))),
        created_ms=_ms(created_ms), expires_ms=_ms(expires_ms), revoked_ms=_ms(revoked_ms),
    )  # fmt: skip


def _ms(value: object) -> int | None:
    return value if isinstance(value, int) else None
