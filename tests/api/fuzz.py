"""Cases made by schemathesis from the OpenAPI document, sent to the real service; what must hold for each.

``python -m tests.api.fuzz --cases 10000 [--with-key]`` is the full form; ``test_schemathesis.py`` runs a few hundred.
No answer is a 5xx, none has a status, a kind of content or a body the document does not tell of, every error is a
problem document and repeats nothing that was sent.
"""

import argparse
import asyncio
import functools
import random
import re
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

import hypothesis
import requests
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

import asyncbg.errors
from asyncbg.auth.api_key import Scope
from asyncbg.auth.keys import Keys
from asyncbg.core.clock import SystemClock
from asyncbg.ops.open_store import open_store
from asyncbg.service.connection_limits import connection_limits
from asyncbg.service.server import create_app
from asyncbg.settings import Settings, load_settings
from asyncbg.testing import serve

Headers: TypeAlias = Mapping[str, str]
Case: TypeAlias = schemathesis.Case[Any]
MODES: Final = (GenerationMode.POSITIVE, GenerationMode.NEGATIVE, None)
"""What fits the document, what does not, and bodies that are no document at all."""

_CHECKS: Final = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
_STREAMS: Final = ("/events", "/jobs/{job_id}/events")
_TASKS: Final = ("send_notification", "cleanup", "send_email", "process_csv", "long_running_task", "send_webhook")
_MOST_ITEMS: Final = 5
_BY_THE_SERVER: Final = (414, 431)
"""How a head that is too large is refused before any route is found; the document tells of routes."""
_LONGEST_WAIT_S: Final = 0.05
_SHORTEST_ECHO: Final = 6
_PROBLEM: Final = "application/problem+json"
_WORD: Final = re.compile(r"[\w/-]+", re.ASCII)
_NAME: Final = re.compile(r"[A-Za-z_][\w.-]{0,63}", re.ASCII)


def no_credentials(settings: Settings) -> Headers:
    """The headers of somebody who shows no key."""
    return {}


def a_key(settings: Settings) -> Headers:
    """The headers of somebody who shows a key that may do everything; it is made beside the running service."""

    async def make() -> str:
        async with open_store(settings) as store:
            keys = Keys(store.database, settings.auth, clock=SystemClock())
            await keys.open()
            key, _ = await keys.create("fuzz", scopes=tuple(Scope))
            return key

    return {"Authorization": f"Bearer {asyncio.run(make())}"}


@dataclass
class Report:
    """What was seen."""

    cases: int = 0
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)
    """Operations and modes for which there is no case."""

    def __str__(self) -> str:
        """Counts, then each fault once."""
        counted = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        faults = [f"{count} times: {fault}" for fault, count in Counter(self.faults).most_common()]
        skipped = [f"no case: {operation}" for operation in self.skipped]
        return "\n".join([f"{self.cases} cases; {counted}; {len(self.faults)} faults", *faults, *skipped])


@contextmanager
def service(make_headers: Callable[[Settings], Headers] = no_credentials) -> Iterator[tuple[str, Headers]]:
    """A service of its own in a thread of its own; gives its URL and the headers to send. It reaches nobody."""
    ready, done = threading.Event(), threading.Event()
    found: list[tuple[str, Headers]] = []

    async def run(settings: Settings) -> None:
        async with serve(create_app(settings), **connection_limits(settings.stream)) as live:
            found.append((live.url, await asyncio.to_thread(make_headers, settings)))
            ready.set()
            await asyncio.to_thread(done.wait)

    with tempfile.TemporaryDirectory() as place:
        thread = threading.Thread(target=lambda: asyncio.run(run(_settings(Path(place)))), daemon=True)
        thread.start()
        try:
            if not ready.wait(30):
                raise TimeoutError("the service did not start")
            yield found[0]
        finally:
            done.set()
            thread.join(30)


def _settings(place: Path) -> Settings:
    return load_settings(
        database_url=f"sqlite:///{place}/fuzz.db",
        data_dir=place / "data",
        demo={"step_s": 0, "item_s": 0},
        runner={"shutdown_grace_s": 0, "max_queued": 1_000_000},
        smtp={"host": "127.0.0.1", "port": 9, "security": "none"},
        outbound={"allow_hosts": ("nobody.invalid",)},
        upload={"max_bytes": 10_000},
    )


def fuzz(url: str, headers: Headers, *, cases: int, seed: int) -> Report:
    """Send about ``cases`` requests, spread over all operations and modes."""
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json", headers=dict(headers))
    schema.config.generation.with_security_parameters = not headers  # else half the cases show a made-up key
    operations = [found.ok() for found in schema.get_all_operations() if isinstance(found, Ok)]
    if len(operations) != schema.statistic.operations.total:
        raise ValueError("the OpenAPI document has an operation that no case can be made of")
    each = max(1, round(cases / len(operations) / len(MODES)))
    run = _Run(url, headers, random.Random(seed))
    for operation in operations:
        for mode in MODES:
            cases_of = operation.as_strategy(generation_mode=mode or GenerationMode.POSITIVE)
            try:
                _go(run, cases_of, is_raw=mode is None, count=each, seed=seed)
            except Unsatisfiable:  # nothing can be wrong where everything is taken
                run.report.skipped.append(f"{operation.label}: {mode}")
    return run.report


def _go(run: "_Run", cases_of: st.SearchStrategy[Case], *, is_raw: bool, count: int, seed: int) -> None:
    """Let hypothesis make the cases; a fault is noted, not raised, so nothing is shrunk and all of them are sent."""

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        phases=[Phase.generate],
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=cases_of, raw=st.one_of(st.binary(max_size=200), st.text(max_size=100).map(str.encode)))
    def send(case: Case, raw: bytes) -> None:
        run.send(case, raw if is_raw else None)

    send()


class _Run:
    """One run: the connection, the jobs it knows of, what it saw."""

    def __init__(self, url: str, headers: Headers, rng: random.Random) -> None:
        self._url = url
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.headers.update(headers)
        self._rng = rng
        self._jobs: list[str] = []
        self.report = Report()

    def send(self, case: Case, raw: bytes | None) -> None:
        """Send a case, made a little more likely to get somewhere, and look at the answer."""
        self._steer(case)
        kwargs = case.as_transport_kwargs(base_url=self._url)
        if raw is not None and case.method != "GET":
            for form in ("json", "files"):
                kwargs.pop(form, None)
            kwargs["data"] = raw
            kwargs["headers"]["Content-Type"] = self._rng.choice(["application/json", "text/plain", "multipart/x", ""])
        kwargs.pop("cookies", None)
        try:
            answer = self._session.request(**kwargs, timeout=20, allow_redirects=False)
        except (requests.exceptions.InvalidHeader, requests.exceptions.InvalidURL, UnicodeError):
            return  # the client's own refusal
        self.report.cases += 1
        self.report.statuses[answer.status_code] += 1
        for fault in self._faults(case, answer, raw):
            self.report.faults.append(f"{case.method} {case.path}: {fault}")
        self._learn(answer)

    def _steer(self, case: Case) -> None:
        """Half the ids are of real jobs and half the tasks are registered; nothing waits or runs for long."""
        rng, query, body = self._rng, case.query, case.body
        if "job_id" in case.path_parameters and self._jobs and rng.random() < 0.5:
            case.path_parameters["job_id"] = rng.choice(self._jobs)
        if case.path in _STREAMS:
            query["follow"] = "false"
        if "wait" in query:
            query["wait"] = _at_most(query["wait"], _LONGEST_WAIT_S)
        if "items_count" in query:
            query["items_count"] = _at_most(query["items_count"], _MOST_ITEMS)
        if case.path == "/jobs" and isinstance(body, dict):
            if rng.random() < 0.5:
                body["task"] = rng.choice(_TASKS)
            args = body.get("args")
            if isinstance(args, dict) and "items_count" in args:
                args["items_count"] = _at_most(args["items_count"], _MOST_ITEMS)

    def _learn(self, answer: requests.Response) -> None:
        if answer.status_code == 202:
            self._jobs = [*(job["id"] for job in answer.json()["jobs"]), *self._jobs][:50]

    def _faults(self, case: Case, answer: requests.Response, raw: bytes | None) -> Iterator[str]:
        try:
            if answer.status_code not in _BY_THE_SERVER:
                case.validate_response(answer, checks=_CHECKS)
        except* Exception as group:  # noqa: BLE001 - schemathesis raises its findings
            for error in group.exceptions:
                yield f"{answer.status_code} {str(error).strip()[:400]!r}"
        if answer.status_code < 400:
            return
        if answer.headers.get("Content-Type") != _PROBLEM:
            yield f"{answer.status_code} is no problem document: {answer.headers.get('Content-Type')}"
            return
        problem = answer.json()
        if problem.get("status") != answer.status_code or "type" not in problem or "title" not in problem:
            yield f"{answer.status_code} tells another status, or no type or title"
        yield from (f"{answer.status_code} repeats {echo!r}" for echo in _echoes(case, problem, raw, self._jobs))


def _at_most(value: Any, most: float) -> Any:
    """A number within the bound; what is no number stays what it is."""
    try:
        return value if float(value) <= most else most
    except (TypeError, ValueError):
        return value


def _echoes(case: Case, problem: Mapping[str, Any], raw: bytes | None, jobs: Sequence[str]) -> Iterator[str]:
    """What was sent and stands in the answer, but for the path in ``instance``, ids of jobs and names of tasks."""
    known = {*_words(problem.get("known", ())), *_TASKS, *jobs}
    told = "\n".join(_words({name: value for name, value in problem.items() if name != "instance"}))
    sent = [case.query, case.headers or {}, case.body, case.path_parameters, raw.decode("latin1") if raw else None]
    for text in _words(sent):
        if len(text) >= _SHORTEST_ECHO and text not in known and text in told and not _is_ours(text):
            yield text


def _is_ours(text: str) -> bool:
    """A word that our source has too, such as ``stream`` or ``multipart/form-data``, may stand in an error of ours."""
    return _WORD.fullmatch(text.strip()) is not None and text in _source()


@functools.cache
def _source() -> str:
    return "\n".join(path.read_text("utf-8") for path in Path(asyncbg.errors.__file__).parent.rglob("*.py"))


def _words(value: Any) -> Iterator[str]:
    """Every text in a JSON document: values, and names that are no names."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _words(inner)
            if not _NAME.fullmatch(str(name)):
                yield str(name)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _words(inner)


def main() -> int:
    """Run the full form and print what was seen; 1 if there are faults."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(1 << 32))
    parser.add_argument("--with-key", action="store_true", help="show a key, at a service that lets nobody else in")
    arguments = parser.parse_args()
    with service(a_key if arguments.with_key else no_credentials) as (url, headers):
        report = fuzz(url, headers, cases=arguments.cases, seed=arguments.seed)
    sys.stdout.write(f"seed {arguments.seed}: {report}\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
