"""What a span tells of a request."""

import re
from typing import Annotated

import pytest
from fastapi import APIRouter

from asyncbg.privacy import Personal
from asyncbg.web.path_redaction import PathRedactor

router = APIRouter()


@router.get("/hello/{name}/{number}")
async def hello(name: Annotated[str, Personal("name")], number: int) -> str:
    """Greet somebody."""
    return f"{name} {number}"


outer = APIRouter()
outer.include_router(router)
PATHS = PathRedactor([outer])


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/hello/Ada/7", r"/hello/\[name:\w{8}]/7"),
        ("/hello/Ada/Canary7f3a", r"/hello/\[name:\w{8}]/\{number}"),
        ("/hello/Ada canary7f3a/01a21536-da32-7000-8286-8cc6e227ce3f", r"/hello/\[name:\w{8}]/01a21536-\S+"),
        ("/hello/Ada canary7f3a", r"/hello/\{\.\.\.}"),
        ("/elsewhere/ada/8", r"/\{\.\.\.}/\{\.\.\.}/8"),
        ("/hello", "/hello"),
        ("/", "/"),
    ],
)
def test_a_path_is_shown_without_people(path: str, shown: str) -> None:
    """Marked parameters are pseudonyms; others are shown where they are a number or an id, as they should be.

    Of a path that is no route's, what is no word of ours is not shown.
    """
    assert re.fullmatch(shown, PATHS.redact(path))
