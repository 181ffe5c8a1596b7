"""The routes of the event streams: one job's, everybody's by filter, and the tickets that open them from a browser."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import unquote, urlsplit

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, Field
from starlette.types import Receive, Scope, Send

from asyncbg.api.auth import ANONYMOUS, Owner, owner_of
from asyncbg.api.event_schema import EventSchemas
from asyncbg.api.inputs import refuse_input
from asyncbg.api.problems import ProblemRoute, problem_docs
from asyncbg.api.sse import LATER, MEDIA_TYPE, Streams, accepts_gzip
from asyncbg.api.tickets import LIFETIME_S, Tickets
from asyncbg.background import Engine
from asyncbg.clock import rfc3339
from asyncbg.event import EventFilter

_TYPE = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*(\.?\*)?|\*")
_ANY: frozenset[str] = frozenset()  # one for all: an empty one of its own takes 216 bytes
_OF_FASTAPI = {"fastapi_inner_astack", "fastapi_function_astack", "starlette.exception_handlers"}
_STREAM_PATH = re.compile(r"(/[^?#]*)?/(events|jobs/[^/?#]+/events)")

_ENDED_DOCS: Final[dict[int | str, dict[str, Any]]] = {
    204: {"description": "The cursor has seen the job's final event: do not reconnect"}
}


class TicketRequest(BaseModel):
    """Which stream a ticket is wanted for."""

    path: str = Field(
        min_length=1,
        max_length=8_192,
        description="the path of the stream, with its query if it has one",
        examples=["/jobs/018f3a5e-7b1c-7def-8a90-123456789abc/events"],
    )


class TicketAnswer(BaseModel):
    """A ticket for one stream, good once."""

    ticket: str
    path: str
    url: str = Field(description="the stream's path with the ticket in its query")
    expires_at: str
    expires_in_s: int = LIFETIME_S


@dataclass(frozen=True, slots=True)
class _Start:
    """Where and how a stream is asked to start."""

    cursor: str | None
    follow: bool
    gzip: bool


class StreamRoute(ProblemRoute):
    """A route whose stream runs when FastAPI is done with the request: it would hold 4 KiB a stream for nothing."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let FastAPI make the response, then run it."""
        later: list[Callable[[], Awaitable[None]]] = []
        scope[LATER] = later
        await super().handle(scope, receive, send)
        for name in _OF_FASTAPI & scope.keys():
            del scope[name]
        for run in later:
            await run()


def events_router(engine: Engine, streams: Streams, schemas: EventSchemas, tickets: Tickets | None = None) -> APIRouter:
    """The routes ``/jobs/{id}/events``, ``/events`` and ``/stream-tickets`` over ``engine``; ``schemas`` are told."""
    router = APIRouter(tags=["events"], route_class=StreamRoute)
    stream_docs = _stream_docs(schemas)
    issued = tickets or Tickets(engine.clock)
    StreamOwner = Annotated[str, Depends(_stream_owner(issued))]  # noqa: N806 - a type

    @router.head("/jobs/{job_id}/events", include_in_schema=False)
    @router.get(
        "/jobs/{job_id}/events",
        summary="Stream one job's events",
        response_class=Response,
        responses={**stream_docs, **_ENDED_DOCS, **problem_docs(404)},
    )
    async def stream_job(
        job_id: Annotated[str, Path(description="the id of the job")], owner: StreamOwner, start: Start
    ) -> Response:
        """Server-Sent Events of one job: from its first event, or from a cursor, until its final one."""
        wanted = EventFilter(jobs=frozenset({job_id}), owner=_visible(owner))
        return await streams.open(
            wanted, owner=owner, job_id=job_id, cursor=start.cursor, follow=start.follow, gzip=start.gzip
        )

    @router.head("/events", include_in_schema=False)
    @router.get("/events", summary="Stream events", response_class=Response, responses=stream_docs)
    async def stream_all(wanted: Wanted, caller: StreamOwner, start: Start) -> Response:
        """Server-Sent Events of all jobs the caller may see, from now on or from a cursor."""
        return await streams.open(
            _narrow(wanted, caller), owner=caller, cursor=start.cursor, follow=start.follow, gzip=start.gzip
        )

    @router.post(
        "/stream-tickets",
        status_code=201,
        summary="Get a ticket for a stream",
        responses=problem_docs(400, 413, 422, 503),
    )
    async def issue_ticket(wish: TicketRequest, request: Request, response: Response, owner: Owner) -> TicketAnswer:
        """A ticket that opens one stream once, within a minute: append it to the stream's URL as `?ticket=`."""
        path, query = _stream_path(wish.path, request)
        token, ticket = issued.issue(unquote(path), owner)
        response.headers["Cache-Control"] = "no-store"
        url = f"{path}?{query}&ticket={token}" if query else f"{path}?ticket={token}"
        return TicketAnswer(ticket=token, path=path, url=url, expires_at=rfc3339(ticket.expires_at_ms))

    return router


def _stream_docs(schemas: EventSchemas) -> dict[int | str, dict[str, Any]]:
    content = {MEDIA_TYPE: {"itemSchema": schemas.frame()}}
    return {200: {"description": "Events as they happen", "content": content}, **problem_docs(401, 422, 503)}


def _stream_owner(tickets: Tickets) -> Callable[..., Awaitable[str]]:
    """A dependency: who opens a stream, by a ticket or as on any other route."""

    async def read(
        request: Request, ticket: Annotated[str | None, Query(description="from `POST /stream-tickets`")] = None
    ) -> str:
        if ticket is None:
            return await owner_of(request)
        owner = tickets.redeem(ticket, request.scope["path"])
        if owner is None:
            raise HTTPException(401, "the ticket is used, expired or for another stream; get a new one")
        return owner

    return read


async def _start(
    request: Request,
    last_event_id: Annotated[str | None, Query(description="the cursor, where no header can be set")] = None,
    follow: Annotated[bool, Query(description="false: send what is stored and close")] = True,
    cursor: Annotated[str | None, Header(alias="Last-Event-ID", description="go on after this event")] = None,
) -> _Start:
    """The header wins; whatever stands in it is taken, since an error would end an EventSource for good."""
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
    types = _words(type)
    if not all(_TYPE.fullmatch(word) for word in types):
        raise refuse_input(("query", "type"), "should be event types such as job.failed or job.*", "event_type")
    return EventFilter(jobs=_words(job), tasks=_words(task), batches=_words(batch), types=types, owner=owner or None)


Start = Annotated[_Start, Depends(_start)]
Wanted = Annotated[EventFilter, Depends(_wanted)]


def _words(values: list[str]) -> frozenset[str]:
    """A parameter may be given many times, or once with commas between."""
    return frozenset(word.strip() for value in values for word in value.split(",") if word.strip()) or _ANY


def _visible(caller: str) -> str | None:
    """Whose jobs the caller sees: its own, or all where nobody logs in."""
    return None if caller == ANONYMOUS else caller


def _narrow(wanted: EventFilter, caller: str) -> EventFilter:
    visible = _visible(caller)
    if visible is not None and wanted.owner not in {None, visible}:
        raise HTTPException(403, "these events are another owner's; leave `owner` out to see your own")
    return EventFilter(
        jobs=wanted.jobs,
        tasks=wanted.tasks,
        batches=wanted.batches,
        types=wanted.types,
        owner=visible or wanted.owner,
    )


def _stream_path(wish: str, request: Request) -> tuple[str, str]:
    """The full path and the query of a stream, which may be named with or without the prefix of this router."""
    parts = urlsplit(wish)
    if parts.scheme or parts.netloc or not _STREAM_PATH.fullmatch(parts.path):
        raise refuse_input(("body", "path"), "should be the path of a stream: /events or /jobs/ID/events", "stream")
    prefix: str = request.scope["path"].removesuffix("/stream-tickets")
    return (parts.path if parts.path.startswith(f"{prefix}/") else prefix + parts.path), parts.query
