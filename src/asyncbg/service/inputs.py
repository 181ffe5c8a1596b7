"""Input types that the workflows share, and a dependency that reads a form from the query or a JSON body."""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, TypeVar

from fastapi import Path, Query, Request
from fastapi.exceptions import RequestValidationError
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, StringConstraints, ValidationError
from pydantic_core import PydanticCustomError

from asyncbg import Personal
from asyncbg.core.stored_text import is_one_line, is_storable
from asyncbg.errors import ErrorItem
from asyncbg.service.integrations.egress import MAX_URL_LENGTH
from asyncbg.service.integrations.mail_address import AddressError, MailAddress
from asyncbg.web.inputs import reads_query, refuse_input
from asyncbg.web.problem_route import read_body, refuse_media_type

MAX_TEXT_BYTES = 1024 * 1024
MAX_TEXT_BODY_BYTES = 8 * MAX_TEXT_BYTES
"""The largest body with a long text: JSON may encode one character in six bytes."""

_PLAIN_NUMBER = re.compile("[1-9][0-9]*")

Form = TypeVar("Form", bound=BaseModel)


def _email(text: str) -> str:
    """Return the normalized address; errors never quote it."""
    try:
        return MailAddress.parse(text).normalized
    except AddressError as error:
        raise PydanticCustomError("email", "{reason}", {"reason": str(error)}) from None


def _text(text: str) -> str:
    """Return a text that can be stored and encoded; raise a validation error for any other."""
    if not is_storable(text):
        raise PydanticCustomError("text", "should hold no NUL character and no lone surrogate")
    return text


def _long_text(text: str) -> str:
    """Return a text of at most 1 MiB."""
    if len(_text(text).encode()) > MAX_TEXT_BYTES:
        raise PydanticCustomError("text", "should not be larger than 1 MiB")
    return text


def _line(text: str) -> str:
    """Return a non-blank single line: in headers and logs, a line break would forge another line."""
    if not is_one_line(text):
        raise PydanticCustomError("line", "should be one line without control characters")
    if not text.strip():
        raise PydanticCustomError("line", "should not be blank")
    return text


def _plain_number(text: object) -> object:
    """Return a number in its canonical form; ``int`` would also accept ``+7``, ``1_0`` and ``007``."""
    if isinstance(text, str) and not _PLAIN_NUMBER.fullmatch(text):
        raise PydanticCustomError(
            "plain_number",
            "should be a whole number from 1 up: digits 0 to 9, no sign, no blank, no leading zero",
        )
    return text


EmailAddress = Annotated[str, StringConstraints(max_length=320), AfterValidator(_email)]
Line = Annotated[str, StringConstraints(min_length=1, max_length=255), AfterValidator(_line)]
Message = Annotated[str, StringConstraints(min_length=1, max_length=4_096), AfterValidator(_text)]
LongText = Annotated[str, StringConstraints(max_length=MAX_TEXT_BYTES), AfterValidator(_long_text)]
Url = Annotated[str, StringConstraints(min_length=1, max_length=MAX_URL_LENGTH), AfterValidator(_text)]
UserNumber = Annotated[int, Field(ge=1, le=2**63 - 1)]
UserId = Annotated[
    UserNumber,
    BeforeValidator(_plain_number),
    Path(description="number of the user, without sign, blanks or leading zeros", examples=[7]),
]
PageCursor = Annotated[str | None, Query(pattern="^[0-9]{1,18}$", description="`next` of the previous page")]
TaskName = Annotated[str, StringConstraints(pattern="^[A-Za-z0-9._-]{1,64}$"), Personal("task")]
TaskId = Annotated[TaskName, Path(description="a name you choose for the task", examples=["report-1"])]


class BodyOnly:
    """Marker of a form field that is read from the body only: ``Annotated[list[str], BodyOnly]``."""


def query_fields(model: type[BaseModel]) -> list[str]:
    """Return the names of the fields of ``model`` that may be sent in the query."""
    return [name for name, field in model.model_fields.items() if BodyOnly not in field.metadata]


def query_or_body(model: type[Form]) -> Callable[[Request], Awaitable[Form]]:
    """Return a dependency that reads ``model`` from the query, from a JSON object in the body, or from both.

    A field sent in both must have the same value; unknown fields are refused. Personal data belongs in the body, since
    queries are written to access logs. The dependency answers 400, 415 or 422 for invalid input.
    """

    @reads_query(query_fields(model))
    async def read(request: Request) -> Form:
        body = _without_path(request, await _json_object(request))
        query = dict(request.query_params)  # the route has refused unknown and repeated parameters
        _refuse_unknown(model, body)
        _refuse_contradiction(model, query, body)
        try:
            return model.model_validate({**query, **body})
        except ValidationError as error:
            raise RequestValidationError(_located(error, query, body)) from None

    return read


async def _json_object(request: Request) -> dict[str, Any]:
    """Return the JSON object in the body, or an empty one if there is no body."""
    raw = await request.body()  # the route bounds it
    if not raw.strip():
        return {}
    refuse_media_type(request.headers)
    try:
        value = read_body(raw)
    except (ValueError, RecursionError):
        raise refuse_input(("body",), "should be valid JSON", "json_invalid") from None
    if not isinstance(value, dict):
        raise refuse_input(("body",), "should be a JSON object", "dict_type")
    return value


def _without_path(request: Request, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body without members that repeat path parameters, as webhook payloads do: ``{"user_id": 7, …}``."""
    for name, value in request.path_params.items():
        if name in body and str(body[name]) != str(value):
            raise refuse_input(("body", name), "differs from the value in the path; leave it out", "conflict")
    return {name: value for name, value in body.items() if name not in request.path_params}


def _refuse_unknown(model: type[BaseModel], body: Mapping[str, Any]) -> None:
    msg = f"is no field of this body; it takes {', '.join(model.model_fields)}"
    unknown = [name for name in body if name not in model.model_fields]
    if unknown:
        raise RequestValidationError(
            [ErrorItem(loc=["body", name], msg=msg, type="extra_forbidden") for name in unknown]
        )


def _refuse_contradiction(model: type[BaseModel], query: Mapping[str, str], body: Mapping[str, Any]) -> None:
    for name in model.model_fields:
        if name in query and name in body and query[name] != body[name]:
            raise refuse_input(("body", name), "differs from the value in the query; send it once", "conflict")


def _located(error: ValidationError, query: Mapping[str, str], body: Mapping[str, Any]) -> list[ErrorItem]:
    """Return the validation errors, each located in the query or the body."""
    items: list[ErrorItem] = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        place = "body" if name in body or (body and name not in query) else "query"
        items.append(ErrorItem(loc=[place, *item["loc"]], msg=item["msg"], type=item["type"]))
    return items
