"""What docs/*.md say of settings and errors is what the code does; snippets run, links lead somewhere.

``python tests/docs/test_docs.py --write`` brings the table of settings up to date; meanings written by hand stay.
"""

import argparse
import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import pytest
from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from starlette.exceptions import HTTPException

import asyncbg.errors
from asyncbg.cli import ExitCode
from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    BadCursorError,
    CrossSiteError,
    DatabaseError,
    FinalError,
    ForeignHostError,
    IdempotencyError,
    JobNotFoundError,
    JobStateError,
    NotRunningError,
    OverloadedError,
    QuotaError,
    ScopeError,
    UnauthenticatedError,
    UnknownTaskError,
)
from asyncbg.settings import Settings, setting_sources
from asyncbg.web.problems import problem_for

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
SOURCE = Path(asyncbg.errors.__file__).parent
DOCUMENTS = sorted(path.name for path in DOCS.glob("*.md"))

_FENCE = re.compile(r"^((?:<!-- fragment -->\n)?)```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`]+)`")


# Reading documents


def read(name: str) -> str:
    """A document's text."""
    return (DOCS / name).read_text("utf-8")


def snippets(name: str, language: str) -> list[tuple[bool, str]]:
    """The blocks of a language, and whether each is marked as a fragment."""
    return [(bool(mark), code) for mark, kind, code in _FENCE.findall(read(name)) if kind == language]


def tables(name: str) -> Iterator[tuple[list[str], list[list[str]]]]:
    """The tables of a document: heads and rows of cells."""
    for lines in re.findall(r"(?:^\|.*\|\n)+", read(name), re.MULTILINE):
        cells = [[cell.strip() for cell in line.strip("|\n").split("|")] for line in lines.splitlines()]
        yield cells[0], cells[2:]


def table(name: str, *heads: str) -> dict[str, list[str]]:
    """All rows under these heads by their first cell, which is code or a number."""
    rows = [row for found, rows in tables(name) if found == list(heads) for row in rows]
    assert rows, f"no table {heads} in {name}"
    by_name = {row[0].strip("`"): row[1:] for row in rows}
    assert len(by_name) == len(rows)
    return by_name


# Snippets and links


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_python_snippet_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snippet is a module that can be imported; one marked as a fragment is at least valid Python."""
    monkeypatch.chdir(tmp_path)
    for number, (is_fragment, code) in enumerate(snippets(name, "python")):
        if is_fragment:
            compile(code, f"{name}, fragment {number}", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            continue
        path = tmp_path / f"snippet_{number}.py"
        path.write_text(code)
        spec = importlib.util.spec_from_file_location(f"{name.removesuffix('.md')}_snippet_{number}", path)
        assert spec is not None
        assert spec.loader is not None
        monkeypatch.setitem(sys.modules, spec.name, module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_shell_snippet_is_well_formed(name: str) -> None:
    """What stands in a ``sh`` block is accepted by a shell; ``console`` blocks are run by test_tour.py."""
    for _, code in snippets(name, "sh"):
        subprocess.run(["sh", "-n"], input=code, text=True, check=True, timeout=10)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_link_leads_to_a_file(name: str) -> None:
    """A relative link in a document names something that is there."""
    prose = _CODE.sub("", _FENCE.sub("", read(name)))
    targets = {target.partition("#")[0] for target in _LINK.findall(prose) if "://" not in target}

    assert [target for target in targets if target and not (DOCS / target).exists()] == []


# Settings


def fields() -> dict[str, FieldInfo]:
    """Every setting by its variable."""
    found: dict[str, FieldInfo] = {}
    for name, info in Settings.model_fields.items():
        kind = info.annotation
        inner = kind.model_fields if isinstance(kind, type) and issubclass(kind, BaseModel) else None
        if inner is None:
            found[f"ASYNCBG_{name.upper()}"] = info
        else:
            found |= {f"ASYNCBG_{name.upper()}__{leaf.upper()}": field for leaf, field in inner.items()}
    return found


def settings_rows() -> dict[str, list[str]]:
    """What the table of settings should say: default, what is allowed, and what the code says of it."""
    defaults = {setting.variable: setting.value for setting in setting_sources()}
    return {
        variable: [
            "" if defaults[variable] in (None, []) else f"`{_shown(defaults[variable])}`",
            _allowed(info),
            info.description or "",
        ]
        for variable, info in fields().items()
    }


def _shown(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value if isinstance(value, str) else json.dumps(value)


def _allowed(info: FieldInfo) -> str:
    """The bounds, the choices, or the kind."""
    over, low, high = (
        next((f"{getattr(m, name):,.15g}" for m in info.metadata if isinstance(m, kind)), None)
        for name, kind in (("gt", Gt), ("ge", Ge), ("le", Le))
    )
    if high is None:
        return _kind(info.annotation)
    return f"more than {over}, to {high}" if low is None else f"{low} to {high}"


def _kind(annotation: Any) -> str:
    if get_origin(annotation) is Annotated:
        return _kind(get_args(annotation)[0])
    if get_origin(annotation) is Literal:
        return " ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in {types.UnionType, Union}:
        return _kind(next(part for part in get_args(annotation) if part is not type(None)))
    if get_origin(annotation) is tuple:
        return "a list"
    if isinstance(annotation, type) and issubclass(annotation, SecretStr):
        return "a secret"
    return {bool: "`true` `false`", str: "text", Path: "a path"}.get(annotation, "text")


def test_every_setting_is_described_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table has each variable in the order of the code, with its default, its bounds and a meaning."""
    monkeypatch.chdir(tmp_path)
    described = table("settings.md", "variable", "default", "allowed", "meaning")
    expected = settings_rows()

    assert list(described) == list(expected)
    for variable, (default, allowed, description) in expected.items():
        row = described[variable]
        assert row[:2] == [default, allowed], variable
        assert row[2].startswith(description), variable
        assert row[2], f"{variable} has no meaning"


def write_settings() -> None:
    """Bring the table up to date; a meaning that was written by hand stays."""
    heads = "| variable | default | allowed | meaning |\n|---|---|---|---|\n"
    before, after = read("settings.md").split(heads)
    old = {
        row.split("|")[1].strip(" `"): row.split("|")[4].strip() for row in after.splitlines() if row.startswith("|")
    }
    rest = "".join(line for line in after.splitlines(keepends=True) if not line.startswith("|"))
    rows = [
        f"| `{variable}` | {default} | {allowed} | {old.get(variable) or description} |\n"
        for variable, (default, allowed, description) in settings_rows().items()
    ]
    (DOCS / "settings.md").write_text(before + heads + "".join(rows) + rest, "utf-8")


# Errors


def test_the_exit_codes_are_those_of_the_command() -> None:
    """The table has each code under its name."""
    described = {int(code): name for code, (name, _) in table("errors.md", "code", "name", "when").items()}

    assert described == {code.value: code.name.lower().replace("_", " ") for code in ExitCode}


PROBLEMS: Mapping[str, Exception] = {
    "unauthenticated": UnauthenticatedError(),
    "missing-scope": ScopeError("submit"),
    "cross-site": CrossSiteError("elsewhere"),
    "foreign-host": ForeignHostError("elsewhere"),
    "invalid-request": BadCursorError(),
    "invalid-arguments": ArgumentsError("ship", []),
    "idempotency-key-reused": IdempotencyError("key"),
    "job-not-found": JobNotFoundError("?"),
    "unknown-task": UnknownTaskError("ship", []),
    "job-state": JobStateError("?", "failed", "cancel"),
    "overloaded": OverloadedError("full", retry_after_s=1),
    "quota": QuotaError("full", retry_after_s=1),
    "database-unavailable": DatabaseError("locked"),
    "not-running": NotRunningError("stopped"),
}


def test_the_problem_types_are_all_described() -> None:
    """The table has every kind that the code names, and no other."""
    kinds: set[str] = set()
    for path in [*(SOURCE / "web").glob("*.py"), *(SOURCE / "service").rglob("*.py")]:
        kinds.update(re.findall(r'(?:\bkind=|_invalid\(|_retry_later\()"([a-z-]+)"', path.read_text("utf-8")))

    assert set(table("errors.md", "type", "status", "title", "when")) == kinds
    assert kinds == {*PROBLEMS, "not-ready"}


@pytest.mark.parametrize("kind", PROBLEMS)
def test_a_problem_is_described_as_it_is_told(kind: str) -> None:
    """Status, type and title in the table are those a caller gets."""
    status, title, _ = table("errors.md", "type", "status", "title", "when")[kind]

    problem = problem_for(PROBLEMS[kind])

    assert (problem.kind, str(problem.status), problem.title) == (kind, status, title)


def test_the_statuses_without_a_type_are_all_described() -> None:
    """The table has every status that a route or the framework answers with, and no other."""
    raised: set[str] = set()
    for path in [*(SOURCE / "web").glob("*.py"), *(SOURCE / "service").rglob("*.py")]:
        raised.update(re.findall(r"HTTPException\((\d{3})\b", path.read_text("utf-8")))

    assert set(table("errors.md", "status", "when")) == raised | {"404", "405", "500"}
    assert problem_for(HTTPException(405)).body("/")["type"] == "about:blank"
    assert problem_for(ZeroDivisionError("a mistake")).body("/") == {
        "type": "about:blank",
        "title": "Internal Server Error",
        "status": 500,
        "detail": "internal server error; see the server log",
        "instance": "/",
    }


def test_the_errors_of_python_are_all_described() -> None:
    """The table has each class of asyncbg.errors, and says which are built-in errors too."""
    classes = {
        name: kind
        for name, kind in inspect.getmembers(asyncbg.errors, inspect.isclass)
        if issubclass(kind, AsyncBGError) and kind is not AsyncBGError
    }
    described = table("errors.md", "error", "when")

    assert set(described) == set(classes)
    for name, kind in classes.items():
        also = {base.__name__ for base in kind.__bases__ if not issubclass(base, AsyncBGError)}
        assert set(_CODE.findall(described[name][0].partition("also a")[2])) == also, name
    assert issubclass(FinalError, AsyncBGError)


def test_the_errors_of_the_engine_itself_are_all_described() -> None:
    """What the engine writes on a job as the type of its error stands in the table."""
    written = {"AttemptTimeoutError"}
    for path in (SOURCE / "store" / "sqlite").glob("*.py"):
        written.update(re.findall(r'^_[A-Z]+ = Fate\(\s*"(\w+Error)"', path.read_text("utf-8"), re.MULTILINE))

    assert len(written) > 1
    assert set(table("errors.md", "type", "when")) == written


def main() -> None:
    """With --write bring the table of settings up to date."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    write_settings()


if __name__ == "__main__":
    main()
