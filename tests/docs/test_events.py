"""The tables of docs/events.md are made from the classes of events, and are as the classes say.

``python tests/docs/test_events.py --write`` replaces what stands between ``<!-- generated: NAME -->`` and
``<!-- end -->``; the rest of the page is written by hand.
"""

import argparse
import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

import asyncbg.errors
from asyncbg.core.event_model import EventModel, Publisher, Storage, Vocabulary, meaning_of
from asyncbg.service.server import service_engine
from asyncbg.settings import Settings
from asyncbg.web.assets import STATIC
from asyncbg.web.event_schema import OTHER, EventSchemas, data_schema

SOURCE = Path(asyncbg.errors.__file__).parent
PAGE = Path(__file__).parents[2] / "docs" / "events.md"

_REGION = re.compile(r"(<!-- generated: (\w+) -->\n).*?(<!-- end -->\n)", re.DOTALL)
_STORED = {Storage.ALL: "yes", Storage.OF_JOBS: "of a job", Storage.NONE: "no"}
_KINDS = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false", "array": "list"}


def rendered(page: str) -> str:
    """The page with its tables as the classes say."""
    tables = _tables()
    shown, count = _REGION.subn(lambda found: f"{found[1]}\n{tables.pop(found[2])}\n{found[3]}", page)
    if tables or not count:
        raise ValueError(f"the page has no place for {', '.join(tables)}; write <!-- generated: NAME -->, <!-- end -->")
    return shown


def _tables() -> dict[str, str]:
    envelope = EventSchemas(_service()).payloads[OTHER]["properties"]
    return {"envelope": _table("member", "is", "what", rows=_envelope(envelope))} | {
        publisher.value: _group([model for model in _service() if model.event_publisher is publisher])
        for publisher in Publisher
    }


def _service() -> Vocabulary:
    """What the service publishes."""
    return service_engine(Settings(database_url="sqlite:///:memory:"))._event_schemas.vocabulary


def _envelope(properties: dict[str, dict[str, Any]]) -> Iterator[list[str]]:
    told = {"type": "one of those below, or what a task names its own", "data": "the event's own data"}
    for name, schema in properties.items():
        yield [f"`{name}`", _kind(schema), told.get(name) or schema["description"]]


def _group(models: list[type[EventModel]]) -> str:
    """One row for each type, then one for each member of its data."""
    types = [
        [f"`{model.event_type}`", _line(meaning_of(model)), _STORED[model.event_storage], _names(model)]
        for model in models
    ]
    members = [row for model in models for row in _of(model)]
    heads = ("data of", "member", "is", "what")
    return _table("type", "meaning", "stored", "data", rows=types) + "\n" + _table(*heads, rows=members)


def _names(model: type[EventModel]) -> str:
    return ", ".join(f"`{name}`" for name in model.model_fields)


def _of(model: type[EventModel]) -> Iterator[list[str]]:
    for name, kind, what in _members("", data_schema(model)):
        yield [f"`{model.event_type}`", f"`{name}`", kind, what]


def _members(prefix: str, schema: dict[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Each member and those below it: ``error``, ``error.type``, ``jobs``, ``jobs[].id``."""
    for name, member in schema.get("properties", {}).items():
        missing = "" if name in schema.get("required", []) else ", may be missing"
        yield prefix + name, _kind(member) + missing, _line(member.get("description", ""))
        for below in (member, *member.get("anyOf", [])):
            yield from _members(f"{prefix}{name}.", below)
        yield from _members(f"{prefix}{name}[].", member.get("items", {}))


def _kind(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_kind(one) for one in schema["anyOf"])
    if "enum" in schema:
        return " ".join(f"`{one}`" for one in schema["enum"])
    if schema.get("format") == "date-time":
        return "time"
    kinds: list[str] = schema["type"] if isinstance(schema["type"], list) else [schema["type"]]
    return " or ".join(_KINDS.get(kind, kind) for kind in kinds)


def _line(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _table(*heads: str, rows: Iterable[list[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [[*heads], ["---"] * len(heads), *rows])


def test_the_page_of_events_is_as_the_classes_say() -> None:
    """Its tables are made from them: ``python tests/docs/test_events.py --write``."""
    page = PAGE.read_text("utf-8")

    assert rendered(page) == page


def test_the_page_of_events_has_a_place_for_every_table() -> None:
    """One that was taken out by hand is missed, not forgotten."""
    page = PAGE.read_text("utf-8").replace("<!-- generated: stream -->", "")

    with pytest.raises(ValueError, match="the page has no place for stream; write"):
        rendered(page)


def test_all_that_the_workflows_publish_is_told() -> None:
    """Each publishes instances of a class, never a name; and the service's documents have all these classes."""
    published = {
        ast.unparse(call.args[0]).partition("(")[0]
        for path in SOURCE.glob("service/workflows/*.py")
        for call in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "publish"
    }

    assert published == {model.__name__ for model in _service() if model.event_publisher is Publisher.TASK}


def test_the_javascript_client_asks_for_every_type() -> None:
    """An EventSource hands over only the types it is asked for: asyncbg.js has all that the service publishes."""
    types = (STATIC / "asyncbg.js").read_text("utf-8").partition("const TYPES = [")[2].partition("];")[0]
    listed = set()
    for names, mapped in re.findall(r"\.\.\.\[([^\]]*)\](\.map)?", types):
        listed |= {f"job.{name}" if mapped else name for name in re.findall(r'"([^"]+)"', names)}

    assert listed == {model.event_type for model in _service()}


def main() -> None:
    """Say whether the page is as the classes say; with --write make it so."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true")
    write = parser.parse_args().write
    page = PAGE.read_text("utf-8")
    if (shown := rendered(page)) != page:
        if not write:
            raise SystemExit("docs/events.md is behind the classes: python tests/docs/test_events.py --write")
        PAGE.write_text(shown, "utf-8")


if __name__ == "__main__":
    main()
