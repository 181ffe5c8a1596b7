"""Every statement is planned over indexes: what reads a whole table is named here, with the reason why it may."""

import asyncio
import importlib
import pkgutil
import re
import sqlite3
from collections.abc import Iterator
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest

import asyncbg
from asyncbg.core.event import EventFilter
from asyncbg.core.job import JobState
from asyncbg.service.server import create_app
from asyncbg.store import encrypted
from asyncbg.store.base import JobQuery
from asyncbg.store.sqlite.read import conditions, find_events, find_records
from asyncbg.store.sqlite.statement import load_statements
from tests.workflows.conftest import settings_below

SMALL = {
    "json_each", "v", "k", "running", "bound", "known", "ended", "ready", "log", "lookup_key", "schema_version",
    "sqlite_master", "schedule", "CONSTANT", "job_count", "purged_job", "api_key", "stream_ticket", "browser_session",
}  # fmt: skip
"""Lists that a caller hands over, and tables whose size is bounded: by the tasks, keys or schedules there are, by a
limit of their own, or by one slice of a purge."""

MAY_SCAN = {
    "read_ready": "the queued jobs in their order, up to a limit",
    "find_ready": "the queued jobs in their order, up to a limit",
    "live_leases": "the first waiting job will do",
    "doctor.newest": "the last event will do",
    "doctor.crashed": "the doctor is asked by a person, now and then",
    "doctor.poison": "the doctor is asked by a person, now and then",
    "doctor.overdue": "the doctor is asked by a person, now and then",
    "doctor.sealed": "the doctor is asked by a person, now and then",
    "count_running": "the running jobs: as many as there are slots",
    "find_lost": "the running jobs: as many as there are slots",
    "doctor.running": "the running jobs: as many as there are slots",
    "find_open_values": "asked where a row cannot be read, and once a minute at most",
    "shift_delays": "a jump of the wall clock moves every delay",
    "asyncbg.ops.erasure.rows._JOBS": "an erasure looks at everything there is, page by page",
    "asyncbg.ops.rekey._READ": "a change of keys looks at everything there is, page by page",
    "asyncbg.auth.audit._SELECT_TEXTS": "an erasure looks at everything there is",
}


class AnyValues(dict[str, Any]):
    """A value for whatever name a statement has."""

    def __missing__(self, name: str) -> str:
        """A text, which is valid JSON and no match."""
        return "[]"


def statements() -> Iterator[tuple[str, str]]:
    """All named statements, and every statement that is a constant of a module."""
    sql = load_statements("sqlite.sql")
    yield from (
        (name, text.replace("{ready}", sql["find_ready"])) for name, text in sql.items() if "{rows}" not in text
    )
    yield from ((f"doctor.{name}", text) for name, text in load_statements("doctor.sql").items())
    for module in pkgutil.walk_packages(asyncbg.__path__, "asyncbg."):
        if module.name.endswith(".__main__"):
            continue  # importing it runs the command line
        for name, value in vars(importlib.import_module(module.name)).items():
            is_statement = isinstance(value, str) and re.match(r"\s*(SELECT|WITH|UPDATE|DELETE|INSERT)\s", value)
            if is_statement and not re.search(r"\b(old|new)\.", value):  # those are parts of triggers
                yield f"{module.name}.{name}", value


STATEMENTS = dict(statements())


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sqlite3.Connection]:
    """The tables of a service that has been started once: empty, and never analysed."""
    directory = tmp_path_factory.mktemp("plans")

    async def start_once(settings: Any) -> None:
        app = create_app(settings)
        async with app.router.lifespan_context(app):
            pass

    asyncio.run(start_once(settings_below(directory)))
    connection = sqlite3.connect(Path(directory) / "test.db", isolation_level=None)
    connection.execute(encrypted._SCHEMA)  # which a service without encryption does not have
    yield connection
    connection.close()


def scanned(database: sqlite3.Connection, statement: str, values: Any) -> list[str]:
    """The tables that a statement reads from one end to the other."""
    plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}", values)]
    found = [match[1] for line in plan if (match := re.match(r"SCAN (\w+)", line))]
    return [table for table in found if table not in SMALL]


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_statement_reads_a_whole_table(database: sqlite3.Connection, name: str) -> None:
    """However large a table is, a statement reads the rows it needs, but for those that are named above."""
    statement = STATEMENTS[name]
    marks = statement.count("?")
    numbered = [int(number) for number in re.findall(r"\?(\d+)", statement)]
    values = ["[]"] * (max(numbered) if numbered else marks) if marks else AnyValues()

    found = scanned(database, statement, values)

    assert not found or name in MAY_SCAN, f"{name} reads all of {found}"


def test_every_exception_is_still_one(database: sqlite3.Connection) -> None:
    """The list of exceptions names only what there is."""
    assert set(MAY_SCAN) <= set(STATEMENTS)


class Traced:
    """The statements that a function runs."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self.database = database
        self.statements: list[str] = []

    def __enter__(self) -> list[str]:
        self.database.set_trace_callback(self.statements.append)
        return self.statements

    def __exit__(self, *_: object) -> None:
        self.database.set_trace_callback(None)


@pytest.mark.parametrize("state", JobState)
def test_a_page_of_jobs_goes_down_from_its_cursor(database: sqlite3.Connection, state: JobState) -> None:
    """The list is read newest first and by limit, whatever it is filtered by; nothing is sorted."""
    choices = {
        "states": frozenset({state}), "task": "a", "tag": "b", "batch": "c", "owner": "d", "before_n": 9,
    }  # fmt: skip
    for names in chain.from_iterable(combinations(choices, size) for size in range(len(choices) + 1)):
        where, values = conditions(JobQuery(**{name: choices[name] for name in names}))  # type: ignore[arg-type]
        with Traced(database) as ran:
            find_records(database, where, values, 50)
        plan = [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {ran[0]}")]
        assert not any("TEMP B-TREE" in line for line in plan), (names, plan)


ONE = frozenset({"a"})


@pytest.mark.parametrize(
    "wanted",
    [
        EventFilter(), EventFilter(tasks=ONE), EventFilter(owner="a"), EventFilter(types=frozenset({"a.*"})),
        EventFilter(jobs=ONE), EventFilter(jobs=frozenset({"a", "b"})), EventFilter(batches=ONE),
    ],
)  # fmt: skip
def test_the_log_is_read_from_the_cursor_on(database: sqlite3.Connection, wanted: EventFilter) -> None:
    """Whatever is wanted, no table is read from its beginning."""
    with Traced(database) as ran:
        find_events(database, 5, wanted, 100, None)
    for statement in ran:
        assert not scanned(database, statement, ())
