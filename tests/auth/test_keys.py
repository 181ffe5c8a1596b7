"""Keys are made once, found by what is sent, expire and are revoked, and never go away."""

import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from asyncbg.auth.api_key import Scope, hash_key, new_key
from asyncbg.auth.keys import Keys
from asyncbg.core.clock import ManualClock
from asyncbg.errors import KeyNameError, KeyNotFoundError, KeyTakenError, SettingsError
from asyncbg.settings import ApiKey, AuthSettings
from asyncbg.store.sqlite.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database file of its own."""
    database = Database(str(tmp_path / "test.db"))
    await database.open()
    yield database
    await database.close()


def contents(directory: Path) -> bytes:
    """All that is in the files of a directory."""
    return b"".join(file.read_bytes() for file in directory.iterdir())


@pytest.fixture
def clock() -> ManualClock:
    """A clock that is moved by hand."""
    return ManualClock()


@pytest.fixture
async def keys(database: Database, clock: ManualClock) -> Keys:
    """No key yet."""
    keys = Keys(database, AuthSettings(), clock=clock)
    await keys.open()
    return keys


async def test_a_key_is_found_by_what_is_sent(keys: Keys) -> None:
    """Its name and scopes come with it; another key's do not."""
    ada, made = await keys.create("ada")
    root, _ = await keys.create("root", scopes={Scope.ADMIN})

    assert await keys.verify(ada) == made
    assert made.scopes == {Scope.SUBMIT, Scope.READ}
    found = await keys.verify(root)
    assert found is not None
    assert (found.name, found.scopes) == ("root", frozenset({Scope.ADMIN}))
    assert await keys.verify(new_key()) is None
    assert await keys.verify("hunter2-canary7f3a") is None


async def test_a_key_expires(keys: Keys, clock: ManualClock) -> None:
    """From that millisecond on it opens nothing, and it is still in the list."""
    key, record = await keys.create("ada", expires_ms=clock.now_ms() + 1000)

    assert await keys.verify(key) == record
    clock.advance(seconds=1)
    assert await keys.verify(key) is None
    assert await keys.find(record.id) is None
    assert await keys.usable() == {}
    assert [one.name for one in await keys.list()] == ["ada"]


async def test_a_revoked_key_is_good_no_more(keys: Keys) -> None:
    """Its name may be used again; the old key stays dead."""
    old, _ = await keys.create("ada")

    await keys.revoke("ada")
    new, record = await keys.create("ada")

    assert await keys.verify(old) is None
    assert await keys.verify(new) == record
    with pytest.raises(KeyNotFoundError, match="bob"):
        await keys.revoke("bob")


async def test_a_name_in_use_is_taken(keys: Keys) -> None:
    """A name is an owner: it belongs to one key at a time."""
    await keys.create("ada")

    with pytest.raises(KeyTakenError, match="revoke it first"):
        await keys.create("ada")


@pytest.mark.parametrize(
    "name", ["", "a b", "anonymous", "schedule", "x" * 65, "../a", "ada.canary7f3a@canary7f3a.example", "é"]
)
async def test_not_every_word_is_a_name(keys: Keys, name: str) -> None:
    """Owners that are no keys have their names, and an address is none."""
    with pytest.raises(KeyNameError):
        await keys.create(name)


async def test_a_service_that_had_keys_still_has(keys: Keys) -> None:
    """Revoking the last key does not let everybody in."""
    assert not await keys.exist()
    await keys.create("ada")
    await keys.revoke("ada")

    assert await keys.exist()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM api_key",
        "UPDATE api_key SET revoked_ms = NULL",
        "REPLACE INTO api_key SELECT id, name, hint, hash, scopes, created_ms, NULL, NULL FROM api_key",
    ],
)
async def test_the_schema_keeps_a_revoked_key_revoked(keys: Keys, database: Database, statement: str) -> None:
    """Whoever opens the file: no row goes, and none comes back to life."""
    await keys.create("ada")
    await keys.revoke("ada")

    with pytest.raises(sqlite3.IntegrityError):
        await database.write(lambda connection: connection.execute(statement))


async def test_the_database_holds_no_key(keys: Keys, tmp_path: Path, database: Database) -> None:
    """Neither the file nor the write-ahead log."""
    key, _ = await keys.create("ada")
    await database.close()
    kept = contents(tmp_path)

    assert key[12:].encode() not in kept
    assert key[:12].encode() in kept


async def test_the_settings_name_keys_too(database: Database, clock: ManualClock) -> None:
    """They are found, listed and count; they are not revoked by a command."""
    key = new_key()
    ci = ApiKey.model_validate({"name": "ci", "hash": hash_key(key, pepper=b"salt"), "scopes": ["read"]})
    keys = Keys(database, AuthSettings(api_keys=(ci,), pepper=SecretStr("salt")), clock=clock)
    await keys.open()

    found = await keys.verify(key)
    assert found is not None
    assert (found.name, found.scopes) == ("ci", frozenset({Scope.READ}))
    assert await keys.find(found.id) == found
    assert await keys.exist()
    with pytest.raises(KeyTakenError):
        await keys.create("ci")
    with pytest.raises(SettingsError, match="the key ci is set in ASYNCBG_AUTH__API_KEYS"):
        await keys.revoke("ci")


@pytest.mark.parametrize(
    ("name", "stored"), [("ci", new_key()), ("anonymous", hash_key("x"))], ids=["a-key-in-clear", "a-taken-word"]
)
async def test_a_malformed_key_in_the_settings_stops_the_start(database: Database, name: str, stored: str) -> None:
    """The line names the setting and the remedy, never what stands there."""
    settings = AuthSettings.model_validate({"api_keys": [{"name": name, "hash": stored}]})

    with pytest.raises(SettingsError, match=r"ASYNCBG_AUTH__API_KEYS\[0\]") as refusal:
        Keys(database, settings, clock=ManualClock())
    assert stored not in str(refusal.value)
