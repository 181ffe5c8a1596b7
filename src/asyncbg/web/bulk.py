"""The route ``POST /jobs/bulk``, which changes all jobs that match a search."""

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

_MAX_JOBS = 10_000


def _valid_search(text: str) -> str:
    """Return a search that is valid for a bulk action. Raise PydanticCustomError for any other."""
    try:
        unfinished(text)
    except SearchError as error:
        raise PydanticCustomError("search", "{reason}", {"reason": str(error)}) from None
    return text


class BulkRequest(BaseModel):
    """An action on all jobs that match a search."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"action": "cancel", "q": "task:send_email state:queued", "dry_run": True}]},
    )

    action: Literal["cancel"]
    q: Annotated[str, StringConstraints(max_length=1000), AfterValidator(_valid_search)] = Field(
        description="terms such as `task:NAME state:queued`: task, state, queue, tag, owner, batch"
    )
    dry_run: bool = Field(default=False, strict=True, description="count only")


class BulkResult(BaseModel):
    """The result of a bulk action."""

    matched: int = Field(description="number of jobs that were, or would be, cancelled", examples=[3])
    more: bool = Field(description="whether more jobs match than one request changes; send it again", examples=[False])


def add_bulk_route(router: APIRouter, engine: Engine, audit: Audit | None) -> None:
    """Add ``POST /jobs/bulk`` to ``router``; its use is recorded in ``audit``."""

    @router.post("/jobs/bulk", responses=problem_docs(400, 413, 415, 422, 503))
    async def change_jobs(request: BulkRequest, caller: CurrentCaller) -> BulkResult:
        """Cancel the jobs that match a search and are not final, up to 10,000 of them."""
        query = unfinished(request.q)
        if caller.visible_owner is not None and query.owner not in {None, caller.visible_owner}:
            return BulkResult(matched=0, more=False)
        query = replace(query, owner=caller.visible_owner or query.owner)

        async def cancel(job_id: str) -> None:
            if not request.dry_run:
                await engine.cancel(job_id, "cancelled in bulk")

        matched, more = await cancel_matching(engine.backend.list, cancel, query, most=_MAX_JOBS)
        if audit is not None and not request.dry_run:
            await audit.record("jobs.cancel", request.q, who=caller.owner, reason=f"{matched} jobs")
        return BulkResult(matched=matched, more=more)
