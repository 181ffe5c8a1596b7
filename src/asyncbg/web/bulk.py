"""The route that changes all jobs a search finds."""

from dataclasses import replace
from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError

from asyncbg.auth.audit import Audit
from asyncbg.auth.caller import CurrentCaller
from asyncbg.engine import Engine
from asyncbg.store.search import SearchError, cancel_matching, unfinished
from asyncbg.web.problems import problem_docs

_MOST_IN_BULK = 10_000


def _searched(text: str) -> str:
    """A search that can be understood and may be acted on."""
    try:
        unfinished(text)
    except SearchError as error:
        raise PydanticCustomError("search", "{reason}", {"reason": str(error)}) from None
    return text


class BulkRequest(BaseModel):
    """What to do to all jobs that a search finds."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"action": "cancel", "q": "task:send_email state:queued", "dry_run": True}]},
    )

    action: Literal["cancel"]
    q: Annotated[str, StringConstraints(max_length=1000), AfterValidator(_searched)] = Field(
        description="terms such as `task:NAME state:queued`: task, state, queue, tag, owner, batch"
    )
    dry_run: bool = Field(default=False, strict=True, description="count only")


class BulkResult(BaseModel):
    """What became of it."""

    matched: int = Field(description="how many jobs were cancelled, or would be", examples=[3])
    more: bool = Field(description="there are more than one request takes on: send it again", examples=[False])


def add_bulk_route(router: APIRouter, engine: Engine, audit: Audit | None) -> None:
    """Add ``POST /jobs/bulk`` to the routes of jobs; who used it stands in ``audit``, if there is one."""

    @router.post("/jobs/bulk", responses=problem_docs(400, 413, 415, 422, 503))
    async def change_jobs(bulk: BulkRequest, caller: CurrentCaller) -> BulkResult:
        """Cancel all jobs that a search finds and that are not final: up to 10,000 of them."""
        query = unfinished(bulk.q)
        if caller.visible_owner is not None and query.owner not in {None, caller.visible_owner}:
            return BulkResult(matched=0, more=False)
        query = replace(query, owner=caller.visible_owner or query.owner)

        async def cancel(job_id: str) -> None:
            if not bulk.dry_run:
                await engine.cancel(job_id, "cancelled in bulk")

        matched, more = await cancel_matching(engine.backend.list, cancel, query, most=_MOST_IN_BULK)
        if audit is not None and not bulk.dry_run:
            await audit.record("jobs.cancel", bulk.q, who=caller.owner, reason=f"{matched} jobs")
        return BulkResult(matched=matched, more=more)
