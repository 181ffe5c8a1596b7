"""What an access log line and a span tell of a request."""

import logging
import re
from typing import Annotated

import pytest
from fastapi import APIRouter

from asyncbg.api.access import AccessFilter, Paths
from asyncbg.redact import Personal

router = APIRouter()


@router.get("/hello/{name}/{number}")
async def hello(name: Annotated[str, Personal("name")], number: int) -> str:
    """Greet somebody."""
    return f"{name} {number}"


outer = APIRouter()
outer.include_router(router)
PATHS = Paths([outer])


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        ("/hello/Ada/7", r"/hello/\[name:\w{8}]/7"),
        ("/hello/Ada/Lovelace", r"/hello/\[name:\w{8}]/\{number}"),
        ("/hello/Ada Lovelace/01a21536-da32-7000-8286-8cc6e227ce3f", r"/hello/\[name:\w{8}]/01a21536-\S+"),
        ("/elsewhere/ada@example.com", r"/elsewhere/\[email:\w{8}]"),
        ("/elsewhere/a\nb", "/elsewhere/a%0Ab"),
        ("/jobs", "/jobs"),
    ],
)
def test_a_path_is_shown_without_people(path: str, shown: str) -> None:
    """Marked parameters are pseudonyms; others are shown where they are a number or an id, as they should be."""
    assert re.fullmatch(shown, PATHS.shown(path))


def test_the_access_log_tells_the_names_of_a_query_and_no_values() -> None:
    """In uvicorn's own form; another record passes as it is."""
    line = logging.makeLogRecord({"args": ("127.0.0.1:1", "GET", "/hello/Ada%20L/7?greeting=Hi+Ada&x", "1.1", 200)})
    other = logging.makeLogRecord({"args": ("Ada",)})

    assert AccessFilter(PATHS).filter(line)
    assert AccessFilter(PATHS).filter(other)

    assert isinstance(line.args, tuple)
    assert re.fullmatch(r"/hello/\[name:\w{8}]/7\?greeting=…&x=…", str(line.args[2]))
    assert other.args == ("Ada",)
