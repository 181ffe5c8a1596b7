"""docs/testing.md: its snippets are tests that pass in a project of their own, its tables are those of the code."""

import re
from pathlib import Path

import pytest

from asyncbg.testing.conformance import CHECKS

pytest_plugins = ["pytester"]

TEXT = (Path(__file__).parents[2] / "docs" / "testing.md").read_text("utf-8")


def test_the_snippets_pass(pytester: pytest.Pytester) -> None:
    """Each is a module of tests, run by pytest with the plugin and nothing else."""
    snippets = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    pytester.makeini("[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n")
    pytester.makepyfile(**{f"test_snippet_{number}": code for number, code in enumerate(snippets)})

    result = pytester.runpytest_subprocess("-p", "no:randomly", "-W", "error")

    result.assert_outcomes(passed=sum(code.count("async def test_") for code in snippets))


def test_every_check_is_listed() -> None:
    """The table has each check with what it asks for and where that is written."""
    rows = re.findall(r"^\| `([a-z0-9-]+)` \| (.*) \| (.*) \|$", TEXT, re.MULTILINE)

    assert rows == [(check.name, check.title, check.reference) for check in CHECKS]


def test_every_fixture_is_listed() -> None:
    """The table has each fixture of the plugin."""
    plugin = (Path(__file__).parents[2] / "src" / "asyncbg" / "testing" / "plugin.py").read_text("utf-8")

    assert set(re.findall(r"^\| `(bg\w*)` \|", TEXT, re.MULTILINE)) == set(re.findall(r"def (bg\w*)\(", plugin))
