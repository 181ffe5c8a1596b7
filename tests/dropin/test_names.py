"""The names that functions of a program are stored under: those by which another program finds the same function."""

import asyncio
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from asyncbg import AsyncBG
from tests.dropin import conftest
from tests.dropin.conftest import note, ran

PROGRAM = """
import asyncio, os
from asyncbg import AsyncBG

async def work(word: str) -> str:
    return word + " done"

async def main() -> None:
    async with AsyncBG(database_url=os.environ["DATABASE"]) as bg:
        job = await bg.enqueue(work, "first")
        print(await job.result(20), (await bg.get(job.id)).durable)

if __name__ == "__main__":
    asyncio.run(main())
"""


def run(directory: Path, *command: str) -> str:
    """Run a program of the package in ``directory``; what it prints."""
    package = directory / "some_package"
    package.mkdir(exist_ok=True)
    (package / "__init__.py").touch()
    (package / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "DATABASE": f"sqlite:///{directory}/jobs.db", "PYTHONPATH": str(directory)}
    done = subprocess.run(
        [sys.executable, *command],
        cwd=directory,
        env=environment,
        input=PROGRAM,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.strip()


def stored_names(directory: Path) -> list[str]:
    """The tasks of the jobs on disk."""
    with closing(sqlite3.connect(directory / "jobs.db")) as connection:
        return [name for (name,) in connection.execute("SELECT task FROM job")]


def test_a_module_that_is_run_stores_its_real_name(tmp_path: Path) -> None:
    """``python -m pkg.mod``: the name by which others import it, and by which it finds itself again."""
    assert run(tmp_path, "-m", "some_package.program") == "first done True"
    assert stored_names(tmp_path) == ["some_package.program:work"]


def test_a_file_that_is_run_stores_the_name_of_its_module(tmp_path: Path) -> None:
    """``python app.py``: what ``uvicorn app:app`` would call it."""
    assert run(tmp_path, "some_package/program.py") == "first done True"
    assert stored_names(tmp_path) == ["program:work"]


@pytest.mark.parametrize("command", [("-",), ("some_package/not-a-name.py",)])
def test_a_program_without_a_name_is_not_durable(tmp_path: Path, command: tuple[str, ...]) -> None:
    """Typed in, or in a file that cannot be imported: ``__main__`` is another module in every program."""
    (tmp_path / "some_package").mkdir()
    (tmp_path / "some_package" / "not-a-name.py").write_text(PROGRAM)

    assert run(tmp_path, *command) == "first done False"
    assert stored_names(tmp_path) == ["__main__:work"]


async def test_a_job_whose_name_leads_elsewhere_fails_and_runs_nothing(
    bg: AsyncBG, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A deploy has put another function under the name; the error names it, and what to do."""
    async with bg:
        job = await bg.enqueue(note, "never")
        await job.result(5)
        ran.clear()

    async def another(text: str) -> None:
        ran.append(text)

    monkeypatch.setattr(conftest, "note", another)
    async with AsyncBG(database_url=f"sqlite:///{database}", data_dir=database.parent) as later:
        await later.retry(job.id)
        record = await asyncio.wait_for(later.wait(job.id), 10)

    assert record.state == "failed"
    assert record.error is not None
    assert record.error.type == "TaskChangedError"
    assert "leads to another function now" in record.error.message
    assert ran == []
