"""How a workflow's route accepts work: documented in both forms of its input, and once for each ``Idempotency-Key``."""

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
    """Let a request that is sent again be the jobs it was."""
    background_tasks.idempotency_key = idempotency_key


def accepts(form: type[BaseModel] | None = None, *, openapi_extra: dict[str, Any] | None = None) -> dict[str, Any]:
    """The options of a route that answers 202 with the jobs a request became, for ``@router.post(path, **accepts(…))``.

    They document ``form``, which the route reads with ``query_or_body``, in both its forms, and read the header
    ``Idempotency-Key``.
    """
    location = {"schema": {"type": "string"}, "description": "the first of the jobs"}
    accepted = {"description": "The jobs are on disk and will be run", "headers": {"Location": location}}
    return {
        "status_code": 202,
        "responses": {202: accepted, **problem_docs(400, 413, 415, 422, 429, 503)},
        "dependencies": [Depends(_once)],
        "openapi_extra": _form_docs(form) if form else openapi_extra,
    }


async def accept(message: str, jobs: Sequence[Job], background_tasks: BackgroundTasks, response: Response) -> Accepted:
    """Put the jobs on disk and tell of them; of the earlier ones where the request was sent before.

    Raises IdempotencyError, OverloadedError, DatabaseError.
    """
    await background_tasks.commit()
    return accepted(message, jobs, response)


def _form_docs(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of both forms of ``model``."""
    schema = model.model_json_schema()
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": part}
        for name, part in schema.get("properties", {}).items()
        if name in query_fields(model)
    ]
    body = {"required": False, "content": {"application/json": {"schema": schema}}}
    return {"parameters": parameters, "requestBody": body}
