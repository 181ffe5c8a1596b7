"""``/asyncapi.json``: an AsyncAPI 3.0 document of the event streams, with a message for every event type.

A channel is a stream; its address is the path as a client sees it. The fields of SSE beside the data (``event``,
``id``, ``retry``) are the headers of a message.
"""

from typing import Any, Final

from fastapi import APIRouter, Request

from asyncbg.core.event_model import EventModel, Publisher, Storage
from asyncbg.web.event_schema import OTHER, EventSchemas
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.schemas import prefix_of

PATH: Final = "/asyncapi.json"

_VERSION: Final = "3.0.0"
_HTTP_BINDING: Final = "0.3.0"
_DESCRIPTION: Final = """\
What happens to jobs, as server-sent events (WHATWG HTML, section 9.2). Each frame has the type as `event` and as `data`
one line of JSON with the names of CloudEvents 1.0. A stored event has an `id`: send the last one you received in the
header `Last-Event-ID`, and the stream resumes exactly after it."""
_JOB_ID: Final = {"description": "the id of the job", "examples": ["01a205a8-7c81-7000-a84f-7e8968cdc313"]}
_START: Final[dict[str, Any]] = {
    "last_event_id": {"type": "string", "description": "the cursor, where no header can be set"},
    "follow": {"type": "boolean", "default": True, "description": "false: send what is stored and close"},
    "ticket": {"type": "string", "description": "from `POST /stream-tickets`"},
}
_FILTER: Final[dict[str, Any]] = {
    "job": {"type": "string", "description": "ids of jobs, with commas between"},
    "task": {"type": "string", "description": "names of tasks"},
    "batch": {"type": "string", "description": "ids of batches"},
    "type": {
        "type": "string",
        "description": "types, exact or by prefix",
        "examples": ["job.failed,job.progress", "job.*"],
    },
    "owner": {"type": "string", "description": "the owner of the jobs"},
}


def asyncapi_router(schemas: EventSchemas) -> APIRouter:
    """Return the route ``/asyncapi.json`` for the streams of the router that includes it."""
    router = APIRouter(tags=["events"], route_class=ProblemRoute)

    @get_and_head(router, PATH, name="asyncapi", response_model=None, responses={200: {"description": "The document"}})
    async def show_asyncapi(request: Request) -> dict[str, Any]:
        """The event streams and every type of event, as an AsyncAPI 3.0 document."""
        title, version = getattr(request.app, "title", "asyncbg"), getattr(request.app, "version", "0")
        return asyncapi_document(schemas, prefix=prefix_of(request), title=title, version=version)

    return router


def asyncapi_document(schemas: EventSchemas, *, prefix: str, title: str, version: str) -> dict[str, Any]:
    """Return the document of an application whose streams are below the path ``prefix``."""
    messages = {model.__name__: _known(schemas, model) for model in schemas.vocabulary} | {OTHER: _other(schemas)}
    return {
        "asyncapi": _VERSION,
        "info": {"title": f"{title}: events", "version": version, "description": _DESCRIPTION},
        "defaultContentType": "application/json",
        "channels": {
            "jobEvents": {
                "address": f"{prefix}/jobs/{{job_id}}/events",
                "title": "One job's events",
                "description": "From the job's first event, or from a cursor, until its final one.",
                "parameters": {"job_id": _JOB_ID},
                "messages": _refer("components/messages", messages),
            },
            "events": {
                "address": f"{prefix}/events",
                "title": "All events",
                "description": "Of all jobs the caller may see, from now on or from a cursor, filtered by the query.",
                "messages": _refer("components/messages", messages),
            },
        },
        "operations": {
            "streamJobEvents": _operation("jobEvents", "Stream one job's events", _START),
            "streamEvents": _operation("events", "Stream events", {**_FILTER, **_START}),
        },
        "components": {"messages": messages, "schemas": dict(schemas.payloads)},
    }


def _operation(channel: str, summary: str, query: dict[str, Any]) -> dict[str, Any]:
    """Return an operation from the service's point of view: it sends, in answer to GET."""
    binding = {"method": "GET", "query": {"type": "object", "properties": query}, "bindingVersion": _HTTP_BINDING}
    return {
        "action": "send",
        "channel": {"$ref": f"#/channels/{channel}"},
        "summary": summary,
        "bindings": {"http": binding},
    }


def _known(schemas: EventSchemas, model: type[EventModel]) -> dict[str, Any]:
    """Return the message of an event class."""
    required = ["event", "id"] if model.event_storage is Storage.ALL else ["event"]
    event = {"const": model.event_type}
    return _message(schemas, model.__name__, model.event_type, model.event_publisher, _headers(event, required))


def _other(schemas: EventSchemas) -> dict[str, Any]:
    """Return the message for events that a task publishes without a class."""
    event = {"not": {"enum": schemas.vocabulary.names}}
    return _message(schemas, OTHER, OTHER, Publisher.TASK, _headers(event, ["event", "id"]))


def _message(
    schemas: EventSchemas, title: str, name: str, publisher: Publisher, headers: dict[str, Any]
) -> dict[str, Any]:
    payload = schemas.payloads[title]
    return {
        "name": name,
        "title": title,
        "summary": payload["description"].partition("\n\n")[0],
        "tags": [{"name": publisher.value}],
        "headers": headers,
        "payload": {"$ref": f"#/components/schemas/{title}"},
        "examples": [{"name": title, "payload": payload["examples"][0]}],
    }


def _headers(event: dict[str, Any], required: list[str]) -> dict[str, Any]:
    """Return the schema of the fields of a frame beside ``data``."""
    return {
        "type": "object",
        "required": required,
        "properties": {
            "event": {"type": "string", **event},
            "id": {"type": "string", "description": "a cursor"},
            "retry": {"type": "integer", "description": "milliseconds before the next reconnect"},
        },
    }


def _refer(section: str, names: dict[str, Any]) -> dict[str, Any]:
    return {name: {"$ref": f"#/{section}/{name}"} for name in names}
