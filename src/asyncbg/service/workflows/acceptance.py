"""Shared parts of the workflows' routes: documented inputs, ``Idempotency-Key`` and the 202 response."""

from collections.abc import Sequence
from typing import Any

from fastapi import Depends, Response
from pydantic import BaseModel

from asyncbg import BackgroundTasks, Job
from asyncbg.service.inputs import query_fields
from asyncbg.web.inputs import IdempotencyKey
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import Accepted, accepted


async def _once(background_tasks: BackgroundTasks, idempotency_key: IdempotencyKey = None) -> None:
    """Pass the idempotency key on: a repeated request returns the jobs of the first."""
    background_tasks.idempotency_key = idempotency_key


def accepts(form: type[BaseModel] | None = None, *, openapi_extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the options of a route that answers 202 with jobs: ``@router.post(path, **accepts(…))``.

    They document ``form``, which the route reads with ``query_or_body``, and read the header ``Idempotency-Key``.
    """
    location = {"schema": {"type": "string"}, "description": "the first job"}
    accepted = {"description": "The jobs are stored and will run", "headers": {"Location": location}}
    return {
        "status_code": 202,
        "responses": {202: accepted, **problem_docs(400, 413, 415, 422, 429, 503)},
        "dependencies": [Depends(_once)],
        "openapi_extra": _form_docs(form) if form else openapi_extra,
    }


async def accept(message: str, jobs: Sequence[Job], background_tasks: BackgroundTasks, response: Response) -> Accepted:
    """Commit the jobs and return the response body; a repeated request returns the jobs of the first.

    Raises IdempotencyError, OverloadedError, DatabaseError.
    """
    await background_tasks.commit()
    return accepted(message, jobs, response)


def _form_docs(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI description of ``model`` as query parameters and as a JSON body."""
    schema = model.model_json_schema()
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": part}
        for name, part in schema.get("properties", {}).items()
        if name in query_fields(model)
    ]
    body = {"required": False, "content": {"application/json": {"schema": schema}}}
    return {"parameters": parameters, "requestBody": body}
