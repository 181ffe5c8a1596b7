"""The routes of the event streams of one job and of all jobs, and of the tickets that open them from a browser."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from urllib.parse import quote, unquote

from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import QueryParams
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from asyncbg.auth.access import Access, mount_prefix, requires
from asyncbg.auth.caller import WRONG_TICKET, Caller, CurrentCaller, get_caller, require_caller
from asyncbg.auth.tickets import LIFETIME_S, Tickets
from asyncbg.core.clock import rfc3339
from asyncbg.core.event import EventFilter
from asyncbg.core.ids import is_job_id
from asyncbg.errors import UnauthenticatedError
from asyncbg.streams.sse import DEFERRED
from asyncbg.streams.sse_format import MEDIA_TYPE, accepts_gzip
from asyncbg.streams.streams import Streams
from asyncbg.web.event_schema import EventSchemas
from asyncbg.web.inputs import refuse_input
from asyncbg.web.problem_route import ProblemRoute
from asyncbg.web.problems import problem_docs

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.?\*)?|\*")
_MAX_TICKET_AGE_S: Final = 3_600
"""How long a ticket can reopen its stream where the credentials of its holder cannot be checked again."""
_NONE = frozenset({""})  # no job has this id
_ANY: frozenset[str] = frozenset()  # shared by all streams: an empty set takes 216 bytes
_FASTAPI_KEYS = {"fastapi_inner_astack", "fastapi_function_astack", "starlette.exception_handlers"}
_STREAM_OF_JOB = re.compile(r"/jobs/([^/]+)/events")

_ENDED_DOCS: Final[dict[int | str, dict[str, Any]]] = {
    204: {"description": "The cursor is at the job's final event: do not reconnect"}
}


class TicketRequest(BaseModel):
    """A request for a ticket."""

    model_config = ConfigDict(extra="forbid")

    path: str = Field(
        min_length=1,
        max_length=8_192,
        description="the path of the stream, with or without the prefix of these routes; a query is ignored",
        examples=["/jobs/018f3a5e-7b1c-7def-8a90-123456789abc/events"],
    )


class StreamTicket(BaseModel):
    """A ticket, valid once for one stream, and for the reconnects of that stream."""

    ticket: str
    path: str
    url: str = Field(description="the stream's path with the ticket in its query; append your filters to it")
    expires_at: str
    expires_in_s: int = LIFETIME_S


@dataclass(frozen=True, slots=True)
class _Start:
    """The start position and form of a requested stream."""

    cursor: str | None
    follow: bool
    gzip: bool


class StreamRoute(ProblemRoute):
    """A route whose stream runs after FastAPI's handler has returned, which would hold 4 KiB a stream."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let FastAPI create the response, then run its stream."""
        deferred: list[Callable[[Receive], Awaitable[None]]] = []
        scope[DEFERRED] = deferred
        await super().handle(scope, receive, send)
        for name in _FASTAPI_KEYS & scope.keys():
            del scope[name]
        for run in deferred:
            await run(receive)


class TicketRoute(StreamRoute):
    """A stream route for requests with a ticket, which bypass the application's own authentication."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match only requests with a ticket in the query, valid or not."""
        found, child = super().matches(scope)
        has_ticket = found is not Match.NONE and "ticket" in QueryParams(scope["query_string"])
        return (found, child) if has_ticket else (Match.NONE, {})


def events_router(streams: Streams, schemas: EventSchemas, tickets: Tickets) -> APIRouter:
    """Return the routes ``/jobs/{id}/events``, ``/events`` and ``/stream-tickets``, documented with ``schemas``."""
    router = APIRouter(tags=["events"], route_class=StreamRoute)
    _add_streams(router, streams, schemas, tickets, without_ticket=True)

    @router.post(
        "/stream-tickets",
        status_code=201,
        summary="Get a ticket for a stream",
        responses=problem_docs(400, 413, 415, 422, 503),
    )
    @requires(Access.READ)
    async def issue_ticket(
        body: TicketRequest, request: Request, response: Response, caller: CurrentCaller
    ) -> StreamTicket:
        """Get a ticket that opens one stream once, within a minute: append it to the stream's URL as `?ticket=`."""
        path = _stream_path(body.path, request)
        token, expires_ms = await tickets.issue(path, owner=caller.owner, holder=caller.dump())
        response.headers["Cache-Control"] = "no-store"
        shown = quote(path)
        return StreamTicket(ticket=token, path=shown, url=f"{shown}?ticket={token}", expires_at=rfc3339(expires_ms))

    return router


def ticket_router(streams: Streams, schemas: EventSchemas, tickets: Tickets) -> APIRouter:
    """Return the stream routes for requests that a ticket authenticates."""
    router = APIRouter(route_class=TicketRoute, include_in_schema=False)
    _add_streams(router, streams, schemas, tickets, without_ticket=False)
    return router


def _add_streams(
    router: APIRouter, streams: Streams, schemas: EventSchemas, tickets: Tickets, *, without_ticket: bool
) -> None:
    stream_docs = _stream_docs(schemas)
    StreamCaller = Annotated[Caller, Depends(_stream_caller(tickets, without_ticket=without_ticket))]  # noqa: N806 - a type

    @router.head("/jobs/{job_id}/events", include_in_schema=False)
    @router.get(
        "/jobs/{job_id}/events",
        summary="Stream one job's events",
        response_class=Response,
        responses={**stream_docs, **_ENDED_DOCS, **problem_docs(404)},
    )
    @requires(Access.STREAM)
    async def stream_job(
        job_id: Annotated[str, Path(description="the id of the job")], caller: StreamCaller, start: Start
    ) -> Response:
        """Server-Sent Events of one job: from its first event, or from a cursor, until its final one."""
        wanted = EventFilter(jobs=frozenset({job_id}), owner=caller.visible_owner)
        return await streams.open(
            wanted, owner=caller.owner, job_id=job_id, cursor=start.cursor, follow=start.follow, gzip=start.gzip,
            caller=caller,
        )  # fmt: skip

    @router.head("/events", include_in_schema=False)
    @router.get("/events", summary="Stream events", response_class=Response, responses=stream_docs)
    @requires(Access.STREAM)
    async def stream_all(wanted: Wanted, caller: StreamCaller, start: Start) -> Response:
        """Server-Sent Events of all jobs the caller may see, from now on or from a cursor."""
        return await streams.open(
            _restrict(wanted, caller), owner=caller.owner, cursor=start.cursor, follow=start.follow, gzip=start.gzip,
            caller=caller,
        )  # fmt: skip


def _stream_docs(schemas: EventSchemas) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"itemSchema": schemas.frame()}}
    return {200: {"description": "Events as they are published", "content": content}, **problem_docs(401, 422, 503)}


def _stream_caller(tickets: Tickets, *, without_ticket: bool) -> Callable[..., Awaitable[Caller]]:
    """Return a dependency for the caller of a stream, by a ticket or, ``without_ticket``, as on any other route."""

    async def read(
        request: Request, ticket: Annotated[str | None, Query(description="from `POST /stream-tickets`")] = None
    ) -> Caller:
        if get_caller(request) is not None or (ticket is None and without_ticket):
            return await require_caller(request)
        cursor = request.headers.get("last-event-id")
        holder = await tickets.redeem(ticket or "", request.scope["path"], cursor=cursor, max_age_s=_MAX_TICKET_AGE_S)
        if holder is None:
            raise UnauthenticatedError(WRONG_TICKET, is_wrong=True)
        return Caller.load(holder)

    return read


async def _start(
    request: Request,
    last_event_id: Annotated[str | None, Query(description="the cursor, where no header can be set")] = None,
    follow: Annotated[bool, Query(description="false: send what is stored and close")] = True,
    cursor: Annotated[str | None, Header(alias="Last-Event-ID", description="resume after this event")] = None,
) -> _Start:
    """Return where the stream starts. Any cursor is accepted, since an error would end an EventSource for good."""
    return _Start(cursor or last_event_id or None, follow, accepts_gzip(request.headers.get("accept-encoding", "")))


async def _wanted(
    job: Annotated[list[str], Query(description="ids of jobs, with commas between")] = [],  # noqa: B006
    task: Annotated[list[str], Query(description="names of tasks")] = [],  # noqa: B006
    batch: Annotated[list[str], Query(description="ids of batches")] = [],  # noqa: B006
    type: Annotated[  # noqa: A002 - the contract's name
        list[str], Query(description="types, exact or by prefix", examples=["job.failed,job.progress", "job.*"])
    ] = [],  # noqa: B006
    owner: Annotated[str | None, Query(description="the owner of the jobs")] = None,
) -> EventFilter:
    types = _split(type)
    if not all(_TYPE.fullmatch(word) for word in types):
        raise refuse_input(("query", "type"), "should be event types such as job.failed or job.*", "event_type")
    return EventFilter(jobs=_split(job), tasks=_split(task), batches=_split(batch), types=types, owner=owner or None)


Start = Annotated[_Start, Depends(_start)]
Wanted = Annotated[EventFilter, Depends(_wanted)]


def _split(values: list[str]) -> frozenset[str]:
    """Return the values of a parameter that is repeated or comma-separated."""
    return frozenset(word.strip() for value in values for word in value.split(",") if word.strip()) or _ANY


def _restrict(wanted: EventFilter, caller: Caller) -> EventFilter:
    """Restrict a filter to what the caller may see; it matches nothing where it names another owner."""
    visible = caller.visible_owner
    if visible is None:
        return wanted
    jobs = _NONE if wanted.owner not in {None, visible} else wanted.jobs
    return replace(wanted, jobs=jobs, owner=visible)


def _stream_path(sent: str, request: Request) -> str:
    """Return the full path of a stream; only a job's id is copied from what the client sent."""
    prefix = mount_prefix(request.scope["path"], request.scope["route"].path_format)
    path = unquote(sent.partition("?")[0]).removeprefix(prefix)
    of_job = _STREAM_OF_JOB.fullmatch(path)
    if path != "/events" and not (of_job and is_job_id(of_job[1])):
        raise refuse_input(("body", "path"), "should be the path of a stream: /events or /jobs/ID/events", "stream")
    return prefix + path
