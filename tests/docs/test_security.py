"""SECURITY.md says where each defence is: what it names is there."""

import re
from pathlib import Path

import pytest

from asyncbg.settings import Settings

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SECURITY.md").read_text("utf-8")
LINKS = re.findall(r"\]\(([^)\s]+)\)", TEXT)


def test_every_file_it_names_is_there() -> None:
    """Source, tests, documents and rules, by their path."""
    named = re.findall(r"`((?:src|tests|docs|examples|settings|benchmarks|\.ci)/[^`]+)`", TEXT)

    assert len(named) > 20
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_every_module_it_names_to_run_is_there() -> None:
    """``python -m tests.api.fuzz`` and the like."""
    modules = re.findall(r"python -m ([\w.]+)", TEXT)

    assert modules
    assert [name for name in modules if not (ROOT / f"{name.replace('.', '/')}.py").is_file()] == []


@pytest.mark.parametrize("link", sorted(set(LINKS)))
def test_every_link_leads_somewhere(link: str) -> None:
    """To a file of the project, and to a heading in it where one is named."""
    path, _, heading = link.partition("#")

    assert not re.match(r"\w+:", link), "a link to elsewhere cannot be checked here"
    text = (ROOT / path).read_text("utf-8") if path else TEXT
    assert not heading or heading in map(anchor, re.findall(r"^#+ (.+)$", text, re.MULTILINE))


def anchor(heading: str) -> str:
    """What a heading is linked by."""
    return re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def test_every_setting_it_names_is_one() -> None:
    """``ASYNCBG_SERVER__SECURITY_CONTACT`` and the like."""
    for name in re.findall(r"ASYNCBG_(\w+)", TEXT):
        section, _, field = name.lower().partition("__")
        found = Settings.model_fields[section].annotation
        assert not field or field in getattr(found, "model_fields", {}), name
