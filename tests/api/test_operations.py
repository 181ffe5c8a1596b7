"""The routes for those who run the service: health, metrics and the first page."""

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from asyncbg.core.event import Event
from asyncbg.engine import Engine
from asyncbg.engine.metrics import Telemetry
from asyncbg.settings import Settings
from asyncbg.web.jobs import jobs_router
from asyncbg.web.operations import operations_router


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    """An engine with one task; not started."""
    engine = Engine(Settings(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path))

    @engine.task(name="greet")
    async def greet() -> str:
        return "hello"

    return engine


@pytest.fixture
async def client(engine: Engine) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app that has the routes under /bg."""
    app = FastAPI()
    app.include_router(operations_router(engine), prefix="/bg")
    app.include_router(jobs_router(engine), prefix="/bg")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://service") as client:
        yield client


async def scrape(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """All samples by name and label values."""
    answer = await client.get("/bg/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def test_a_process_that_answers_is_alive(client: httpx.AsyncClient) -> None:
    """Whether its engine runs or not."""
    answer = await client.get("/bg/health/live")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["cache-control"] == "no-store"


async def test_a_running_engine_is_ready(client: httpx.AsyncClient, engine: Engine) -> None:
    """The engine runs, and a write and a claim work."""
    async with engine:
        answer = await client.get("/bg/health/ready")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "checks": {"engine": "ok", "database": "ok"}})


async def test_an_engine_that_does_not_run_is_not_ready(client: httpx.AsyncClient, engine: Engine) -> None:
    """503 before the start and after the stop, with the checks as they went."""
    before = await client.get("/bg/health/ready")
    async with engine:
        pass
    after = await client.get("/bg/health/ready")

    for answer in (before, after):
        assert answer.status_code == 503
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["checks"] == {"engine": "failed", "database": "failed"}


async def test_readiness_leaves_nothing_behind(client: httpx.AsyncClient, engine: Engine) -> None:
    """The probe's job is gone, and nobody was told of it."""
    async with engine:
        await client.get("/bg/health/ready")
        jobs = (await client.get("/bg/jobs")).json()["items"]
        metrics = await scrape(client)

    assert jobs == []
    assert metrics["asyncbg_bus_published_total",] == 0


async def test_metrics_count_every_transition_by_task(client: httpx.AsyncClient, engine: Engine) -> None:
    """Each committed event is counted once."""
    async with engine:
        for _ in range(3):
            job = await engine.submit("greet", {})
            await job.result(timeout=30)
        metrics = await scrape(client)

    for kind in ("job.queued", "job.started", "job.succeeded"):
        assert 3 in (metrics.get(("asyncbg_events_total", *labels)) for labels in (("greet", kind), (kind, "greet")))
    assert metrics["asyncbg_bus_published_total",] == 9


async def test_metrics_add_up_over_the_processes_of_a_database(tmp_path: Path) -> None:
    """Those of another process count, also when it has ended and its place is taken by the next one: none falls."""
    totals: list[tuple[float, float]] = []

    async def work_and_look() -> None:
        engine = Engine(settings)
        engine.task(name="greet")(_greet)
        app = FastAPI()
        app.include_router(operations_router(engine), prefix="/bg")
        transport = httpx.ASGITransport(app=app)
        async with engine, httpx.AsyncClient(transport=transport, base_url="http://service") as client:
            await (await engine.submit("greet", {})).result(timeout=30)
            metrics = await scrape(client)
            assert metrics["asyncbg_processes",] == len(totals) % 2 + 1
            here, everywhere = (_succeeded(metrics, name) for name in ("events", "all_events"))
            totals.append((here, everywhere))

    settings = Settings(database_url=f"sqlite:///{tmp_path / 'jobs.db'}")
    await work_and_look()
    async with Engine(settings) as neighbour:
        neighbour.task(name="greet")(_greet)
        neighbour._parts.runner.begin_drain()
        await work_and_look()
    await work_and_look()

    assert totals == [(1, 1), (1, 2), (1, 3)]


async def test_every_metric_says_whom_it_counts(client: httpx.AsyncClient, engine: Engine) -> None:
    """This process, or all that share the database."""
    async with engine:
        text = (await client.get("/bg/metrics")).text

    for line in text.splitlines():
        if line.startswith("# HELP"):
            assert re.search(r"this process|all processes|Processes that run", line), line


async def _greet() -> str:
    return "hello"


def _succeeded(metrics: dict[tuple[str, ...], float], name: str) -> float:
    """How many of greet have succeeded, whatever the order of the labels."""
    return next(
        many
        for key, many in metrics.items()
        if key[0] == f"asyncbg_{name}_total" and {*key[1:]} == {"greet", "job.succeeded"}
    )


async def test_metrics_show_what_is_open(client: httpx.AsyncClient, engine: Engine) -> None:
    """Jobs by state, streams, and that the database answers."""
    async with engine:
        await engine.submit("greet", {}, delay_s=60)
        metrics = await scrape(client)

    assert metrics["asyncbg_jobs", "scheduled"] == 1
    assert metrics["asyncbg_jobs", "running"] == 0
    assert metrics["asyncbg_streams",] == 0
    assert metrics["asyncbg_database_up",] == 1


async def test_metrics_are_there_when_the_database_is_not(client: httpx.AsyncClient) -> None:
    """The scrape says that the database is down instead of failing."""
    metrics = await scrape(client)

    assert metrics["asyncbg_database_up",] == 0
    assert ("asyncbg_jobs", "queued") not in metrics


def test_the_number_of_series_is_bounded() -> None:
    """Beyond a thousand pairs of type and task, events count as other; none is lost."""
    telemetry = Telemetry()
    for number in range(3000):
        telemetry.count([Event(number + 1, "job.queued", 0, "id", f"task-{number}", "id", "anonymous", 0)])

    [family] = [family for family in telemetry.collect() if family.name == "asyncbg_events"]
    assert len(family.samples) <= 1001
    assert sum(sample.value for sample in family.samples) == 3000


@pytest.mark.parametrize("path", ["/bg/health/live", "/bg/health/ready", "/bg/metrics", "/bg/"])
async def test_head_is_answered_without_a_body(client: httpx.AsyncClient, engine: Engine, path: str) -> None:
    """For load balancers that ask with HEAD."""
    async with engine:
        answer = await client.head(path)

    assert (answer.status_code, answer.content) == (200, b"")


class _Links(HTMLParser):
    """Collects where a page leads."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name == "href"]


async def test_the_first_page_leads_to_everything_below_a_prefix(client: httpx.AsyncClient) -> None:
    """Its links are relative, so they hold wherever the router is; the app's own documentation is among them."""
    page = await client.get("/bg/")

    links = _Links()
    links.feed(page.text)
    assert {urljoin("/bg/", link) for link in links.found} == {
        "/docs",
        "/bg/jobs",
        "/bg/events",
        "/bg/metrics",
        "/bg/health/ready",
    }


async def test_the_first_page_runs_no_script(client: httpx.AsyncClient) -> None:
    """Its policy allows one style, by its hash, and nothing else."""
    page = await client.get("/bg/")

    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; style-src 'sha256-")
    assert "unsafe" not in policy
    assert not re.search(r"<script|\son\w+=|\sstyle=", page.text)
    assert page.headers["x-content-type-options"] == "nosniff"


async def test_the_first_page_can_be_read_aloud(client: httpx.AsyncClient) -> None:
    """Language, title, landmarks and one heading."""
    text = (await client.get("/bg/")).text

    for mark in ('<html lang="en">', "<title>", "<main>", "<nav aria-label=", "<h1>"):
        assert mark in text
