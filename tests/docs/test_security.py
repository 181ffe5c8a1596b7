"""SECURITY.md says where each defence is: what it names is there."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_file_it_names_is_there() -> None:
    """Source, tests and rules, by their path."""
    named = re.findall(r"`((?:src|tests|\.ci)/[^`]+)`", (ROOT / "SECURITY.md").read_text("utf-8"))

    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []
