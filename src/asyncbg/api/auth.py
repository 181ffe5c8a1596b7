"""Who is calling: one dependency that every route asks."""

from typing import Annotated

from fastapi import Depends, Request

ANONYMOUS = "anonymous"


async def owner_of(request: Request) -> str:  # noqa: ARG001, RUF100, RUF029 - the shape callers rely on
    """The owner of what this request submits, and whose jobs it may see."""
    return ANONYMOUS


Owner = Annotated[str, Depends(owner_of)]
"""A route parameter that holds the caller's name."""
