"""What tests of single modules share: a database of their own, and a clock that stands still."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.store.sqlite.database import Database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    """A database file of its own."""
    database = Database(str(tmp_path / "test.db"))
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def clock() -> ManualClock:
    """A clock that stands still."""
    return ManualClock()
