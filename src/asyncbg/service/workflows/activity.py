"""Record user actions and serve the activity log and its statistics."""

from typing import Annotated

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, BackgroundTasks, Personal, current_job
from asyncbg.auth.caller import CurrentCaller
from asyncbg.core.clock import rfc3339
from asyncbg.service.inputs import Line, PageCursor, UserId, UserNumber, query_or_body
from asyncbg.service.integrations.activity import Activity, Statistics
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import Accepted


class ActionForm(BaseModel):
    """An action of a user."""

    action: Annotated[Line, Field(examples=["login"])]


class ActivityEntry(BaseModel):
    """One row of the activity log."""

    id: int
    user_id: int
    action: str
    at: str


class ActivityPage(BaseModel):
    """A page of rows, newest first; ``next`` is the cursor of the next page, null on the last."""

    items: list[ActivityEntry]
    next: str | None


class StatisticsView(BaseModel):
    """The statistics of a user's activity log.

    ``by_action`` shows the 100 most frequent actions and ``by_day`` the latest 366 UTC dates with actions; the
    matching ``_rest`` counts the other actions.
    """

    user_id: int
    total: int
    by_action: dict[str, int]
    by_action_rest: int
    by_day: dict[str, int]
    by_day_rest: int
    first_seen: str | None
    last_seen: str | None


def activity_workflow(bg: AsyncBG, *, activity: Activity) -> APIRouter:
    """Return the routes ``action``, ``activity`` and ``statistics`` below ``/user/{user_id}``; register both tasks."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])

    @bg.task(name="log_user_activity", retries=3, timeout=30)
    async def log_user_activity(user_id: UserNumber, action: Annotated[Line, Personal("action")]) -> None:
        """Add a row to the activity log; a retry adds no second row."""
        job = current_job()
        await activity.record(user_id=user_id, action=action, job_id=job.id, owner=job.owner, guard=job.guard)

    @bg.task(name="update_user_statistics", retries=3, timeout=60)
    async def update_user_statistics(user_id: UserNumber) -> dict[str, int]:
        """Compute the user's statistics from the activity log."""
        return {"total": (await activity.refresh_statistics(user_id, owner=current_job().owner)).total}

    @router.post("/user/{user_id}/action", name="record_action", **accepts(ActionForm))
    async def user_action_route(
        user_id: UserId,
        form: Annotated[ActionForm, Depends(query_or_body(ActionForm))],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept an action: it is logged, then the user's statistics are updated."""
        jobs = [
            background_tasks.add_task(log_user_activity, user_id, form.action),
            background_tasks.add_task(update_user_statistics, user_id),
        ]
        return await accept("Action will be recorded in the background", jobs, background_tasks, response)

    @get_and_head(router, "/user/{user_id}/activity", name="list_activity", responses=problem_docs(422, 503))
    async def activity_route(
        user_id: UserId,
        caller: CurrentCaller,
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        cursor: PageCursor = None,
    ) -> ActivityPage:
        """Return the user's activity log, newest first."""
        page = await activity.log(user_id, owner=caller.visible_owner, limit=limit, cursor=cursor)
        return ActivityPage(
            items=[
                ActivityEntry(id=item.id, user_id=item.user_id, action=item.action, at=rfc3339(item.at_ms))
                for item in page.items
            ],
            next=page.next,
        )

    @get_and_head(router, "/user/{user_id}/statistics", name="show_statistics", responses=problem_docs(422, 503))
    async def statistics_route(user_id: UserId, caller: CurrentCaller) -> StatisticsView:
        """Return the user's statistics over all recorded actions."""
        return _view(user_id, await activity.statistics(user_id, owner=caller.visible_owner))

    return router


def _view(user_id: int, statistics: Statistics) -> StatisticsView:
    return StatisticsView(
        user_id=user_id,
        total=statistics.total,
        by_action=statistics.by_action,
        by_action_rest=statistics.by_action_rest,
        by_day=statistics.by_day,
        by_day_rest=statistics.by_day_rest,
        first_seen=None if statistics.first_seen_ms is None else rfc3339(statistics.first_seen_ms),
        last_seen=None if statistics.last_seen_ms is None else rfc3339(statistics.last_seen_ms),
    )
