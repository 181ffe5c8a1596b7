"""The tour's one fixture: an engine that runs."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from asyncbg import AsyncBG


@pytest.fixture
async def bg(tmp_path: Path) -> AsyncIterator[AsyncBG]:
    """An engine on a database of its own, as ``async with AsyncBG() as bg:`` would start it in a script."""
    async with AsyncBG(database_url=f"sqlite:///{tmp_path}/asyncbg.db", data_dir=tmp_path) as bg:
        yield bg
