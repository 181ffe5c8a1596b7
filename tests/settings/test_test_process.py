"""A process that runs tests never opens the database that the developer works with."""

import subprocess
import sys
from pathlib import Path

import pytest

APP = """
import logging
from asyncbg import AsyncBG
bg = AsyncBG()
print(bg.settings.database_url)
"""


def run(directory: Path, command: list[str], **variables: str) -> str:
    """What a program in ``directory`` prints, with no variables of ours but those."""
    answer = subprocess.run(
        [sys.executable, *command], cwd=directory, env={"PATH": "/usr/bin", **variables}, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout + answer.stderr


def project(directory: Path, dotenv: str = "") -> None:
    """An application with a database that its developer works with, and a test of it."""
    (directory / "asyncbg.db").write_bytes(b"the developer's own")
    (directory / "shop.py").write_text(APP)
    (directory / ".env").write_text(dotenv)
    (directory / "test_shop.py").write_text(
        "import asyncio, unittest\n"
        "from shop import bg\n"
        "async def use():\n    async with bg:\n        pass\n"
        "class Shop(unittest.TestCase):\n    def test_it(self):\n        asyncio.run(use())\n"
    )


@pytest.mark.parametrize(
    "runner",
    [
        ["-m", "pytest", "-s", "-p", "no:cacheprovider", "-o", "log_cli=true", "test_shop.py"],
        ["-m", "unittest", "test_shop"],
    ],
)
@pytest.mark.parametrize("dotenv", ["", "ASYNCBG_DATABASE_URL=sqlite:///asyncbg.db\n"])
def test_a_test_has_a_database_of_its_own(tmp_path: Path, runner: list[str], dotenv: str) -> None:
    """Also where a file of the project names one; the log says so, and nothing is left behind."""
    project(tmp_path, dotenv)

    told = run(tmp_path, runner)

    assert (tmp_path / "asyncbg.db").read_bytes() == b"the developer's own"
    assert told.count("uses a temporary database") == 1
    folder = told.partition("sqlite:///")[2].partition("/asyncbg.db")[0]
    assert folder
    assert not Path(f"/{folder}").exists()


def test_what_a_test_chooses_is_taken(tmp_path: Path) -> None:
    """By the environment, or as an argument."""
    project(tmp_path)
    chosen = f"sqlite:///{tmp_path}/chosen.db"

    told = run(
        tmp_path,
        ["-m", "pytest", "-s", "-p", "no:cacheprovider", "-o", "log_cli=true", "test_shop.py"],
        ASYNCBG_DATABASE_URL=chosen,
    )

    assert chosen in told
    assert "temporary" not in told


@pytest.mark.parametrize("loaded", ["pytest", "unittest.mock", "_pytest.main"])
def test_a_server_that_loads_such_a_library_is_no_test(tmp_path: Path, loaded: str) -> None:
    """It would lose its jobs; nor is what a test starts."""
    project(tmp_path)

    forget = "import os; os.environ.pop('PYTEST_CURRENT_TEST', None)"
    told = run(tmp_path, ["-c", f"{forget}; import {loaded}, shop"])
    started = run(tmp_path, ["-c", "import shop"], PYTEST_CURRENT_TEST="x", PYTEST_VERSION="9")

    assert "sqlite:///asyncbg.db" in told
    assert "sqlite:///asyncbg.db" in started
