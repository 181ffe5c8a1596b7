"""The routes for operators: health checks, metrics and the start page."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import anyio
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from asyncbg.auth.access import Access, requires
from asyncbg.core.job import JobState
from asyncbg.engine import Engine
from asyncbg.engine.metrics import CONTENT_TYPE
from asyncbg.errors import DatabaseError, NotRunningError
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.problems import Problem, problem_docs, problem_response
from asyncbg.web.schemas import no_store
from asyncbg.web.start_page import LINKS, navigation, start_page

logger = logging.getLogger("asyncbg")

_PROBE_S = 0.8
_METRICS_EXAMPLE = 'asyncbg_jobs{state="queued"} 3.0\n'


class Live(BaseModel):
    """The process is alive."""

    status: Literal["ok"] = Field(default="ok", examples=["ok"])


class Ready(Live):
    """The process accepts work, with the result of each check."""

    checks: dict[str, Literal["ok", "failed"]] = Field(examples=[{"engine": "ok", "database": "ok"}])


def operations_router(engine: Engine) -> APIRouter:
    """Return the routes of health checks, metrics and the start page."""
    router = APIRouter(route_class=ProblemRoute, tags=["operations"], dependencies=[Depends(no_store)])

    @get_and_head(router, "/health/live")
    @requires(Access.OPEN)
    async def show_liveness() -> Live:
        """Whether the process responds at all."""
        return Live()

    @get_and_head(router, "/health/ready", response_model=Ready, responses=problem_docs(503))
    @requires(Access.OPEN)
    async def show_readiness(request: Request) -> Any:
        """Whether the engine is running and the database accepts a write and a claim."""
        checks = await _checks(engine)
        failed = [name for name, verdict in checks.items() if verdict == "failed"]
        if failed:
            return problem_response(request, _not_ready(failed, checks))
        return Ready(checks=checks)

    @get_and_head(
        router,
        "/metrics",
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}, "example": _METRICS_EXAMPLE}}}},
    )
    async def show_metrics() -> Response:
        """Metrics in the Prometheus text format; HELP says whether a metric covers this process or all of them."""
        others, processes = await _other_processes(engine)
        return Response(
            engine._parts.telemetry.expose(
                await _open_jobs(engine),
                engine.bus.statistics(),
                engine._parts.runner.blockages,
                loop_restarts=engine._parts.runner.loop_restarts,
                errors=engine._parts.errors.counts,
                unknown_tasks=await _unknown_tasks(engine),
                others=others,
                processes=processes,
            ),
            headers={"Cache-Control": "no-store", "Content-Type": CONTENT_TYPE},
        )

    @get_and_head(router, "/", response_class=HTMLResponse, include_in_schema=False)
    async def show_start_page(request: Request) -> HTMLResponse:
        """The start page, with links to the routes."""
        return start_page(navigation({**_docs_link(request), **LINKS}))

    return router


async def _checks(engine: Engine) -> dict[str, Literal["ok", "failed"]]:
    down = engine._parts.runner.loops_down
    return {
        "engine": "ok" if engine.is_running and not engine._parts.runner.is_draining else "failed",
        "database": "ok" if await _database_works(engine) else "failed",
        **dict.fromkeys(down, "failed"),
    }


async def _database_works(engine: Engine) -> bool:
    try:
        with anyio.fail_after(_PROBE_S):
            await engine.backend.probe()
    except (DatabaseError, NotRunningError, TimeoutError):
        return False
    return True


async def _other_processes(engine: Engine) -> tuple[Sequence[str] | None, int]:
    """Return the counters of the other processes and the number of processes; None where they cannot be read."""
    try:
        return (await engine.backend.load_counters())[1], await engine.backend.processes()
    except (OSError, NotRunningError) as error:
        if isinstance(error, OSError):
            logger.warning("the counters of the other processes cannot be read: %s", error.strerror)
        return None, 0


async def _open_jobs(engine: Engine) -> dict[JobState, int] | None:
    try:
        with anyio.fail_after(_PROBE_S):
            return dict(await engine.backend.counts())
    except (DatabaseError, NotRunningError, TimeoutError):
        return None


async def _unknown_tasks(engine: Engine) -> Mapping[str, int]:
    try:
        with anyio.fail_after(_PROBE_S):
            return await engine.unknown_tasks()
    except (DatabaseError, NotRunningError, TimeoutError):
        return {}


def _not_ready(failed: list[str], checks: dict[str, Literal["ok", "failed"]]) -> Problem:
    detail = f"not ready: {', '.join(failed)}"
    return Problem(status=503, kind="not-ready", title="Service not ready", detail=detail, extra={"checks": checks})


def _docs_link(request: Request) -> dict[str, str]:
    """Return the link to the application's API documentation, relative to this page; nothing where it has none."""
    docs_url = getattr(request.app, "docs_url", None)
    if not docs_url:
        return {}
    depth = request.scope["path"].removeprefix(request.scope.get("root_path", "")).count("/") - 1
    return {"../" * depth + docs_url.lstrip("/"): "API documentation"}
