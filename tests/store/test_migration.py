"""Databases that an earlier version wrote go on with what is in them."""

from pathlib import Path

from asyncbg.core.clock import ManualClock
from asyncbg.store.sqlite import MIGRATIONS, SQLiteBackend
from asyncbg.store.sqlite.database import Database
from tests.store.conftest import Store


async def test_a_unique_key_of_before_goes_on_for_its_owner(tmp_path: Path, clock: ManualClock) -> None:
    """Version 3 had one open job a key over all owners; it stays the answer for its own, and others have theirs."""
    database = Database(str(tmp_path / "jobs.db"))
    await database.open()
    await database.migrate("engine", MIGRATIONS[:3])
    await database.write(
        lambda connection: (
            connection.execute(
                "INSERT INTO job (n, id, task, queue, owner, batch, state, priority, durable, at_most_once, "
                "stop_on_failure, retries, args, personal, created_at, run_at, unique_key) "
                "VALUES (1, 'j1', 'greet', 'default', 'ada', 'j1', 'queued', 0, 1, 0, 0, 0, '{}', '{}', 1, 1, 'u')"
            ).rowcount
        )
    )
    await database.write(lambda connection: connection.execute("INSERT INTO log VALUES (1, 'e', 0, 1, 0, 0)").rowcount)
    await database.close()

    backend = SQLiteBackend(Database(str(tmp_path / "jobs.db")), clock=clock)
    await backend.open()
    try:
        store = Store(backend, clock)
        assert await store.add(owner="ada", unique_key="u") == "j1"
        assert await store.add(owner="eve", unique_key="u") != "j1"
    finally:
        await backend.close()
