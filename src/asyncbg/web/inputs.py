"""Inputs that the library's routes and the workflows share: the idempotency key, and a refused input's error."""

from typing import Annotated

from fastapi import Header
from fastapi.exceptions import RequestValidationError

from asyncbg.errors import ErrorItem

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        pattern=r"^[\x20-\x7e]{1,255}$",
        description="send the same request again with it and get the same jobs; 1 to 255 printable ASCII characters",
    ),
]


def refuse_input(loc: tuple[str, ...], msg: str, kind: str) -> RequestValidationError:
    """The error for an input that is well-formed and still cannot be taken; answered as 422."""
    return RequestValidationError([ErrorItem(loc=list(loc), msg=msg, type=kind)])
