"""A start of the service: every store is open before the first job is claimed."""

import sqlite3
from contextlib import closing
from pathlib import Path

from asyncbg import AsyncBG
from asyncbg.core.job import JobState
from asyncbg.service.server import service_engine
from tests.workflows.conftest import settings_below

TABLES = {"activity", "api_key", "audit", "browser_session", "import", "stream_ticket"}
"""One table of each store beside the jobs."""


def tables(path: Path) -> set[str]:
    """The names of the tables in a database."""
    with closing(sqlite3.connect(path)) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


async def nothing() -> None:
    """Do nothing."""


async def test_a_job_that_waits_in_a_database_without_them_finds_all_tables(tmp_path: Path) -> None:
    """It was queued where there were jobs only, and is claimed as soon as the service runs."""
    settings, path = settings_below(tmp_path), tmp_path / "test.db"
    before = AsyncBG(settings)
    before._store_openers.clear()
    before.task(name="look")(nothing)
    async with before:
        before._parts.runner.stop_claiming()
        job = await before.submit("look", {})
        assert not TABLES & tables(path)
    seen: set[str] = set()
    bg = service_engine(settings)

    @bg.task(name="look")
    async def look() -> None:
        seen.update(tables(path))

    async with bg:
        assert (await bg.wait(job.id, 20)).state is JobState.SUCCEEDED
    assert seen >= TABLES


async def test_no_job_is_claimed_while_a_store_opens(tmp_path: Path) -> None:
    """However long that takes; the lifespan that waits for it then runs the job."""
    bg = AsyncBG(settings_below(tmp_path))
    story: list[str] = []
    bg.task(name="run")(nothing)
    async with bg:
        bg._parts.runner.stop_claiming()
        job = await bg.submit("run", {})

    async def open_slowly() -> None:
        story.extend([(await bg.get(job.id)).state for _ in range(20)])
        story.append("open")

    bg._store_openers.append(open_slowly)
    async with bg:
        story.append((await bg.wait(job.id, 20)).state)

    assert story == ["queued"] * 20 + ["open", "succeeded"]
