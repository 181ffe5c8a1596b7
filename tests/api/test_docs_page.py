"""The page ``/docs`` and the file security.txt."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from asyncbg.errors import SettingsError
from asyncbg.service.docs_page import docs_page
from asyncbg.service.server import create_app
from asyncbg.settings import load_settings


@asynccontextmanager
async def client(place: Path, **server: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the service."""
    app = create_app(load_settings(database_url=f"sqlite:///{place}/jobs.db", data_dir=place, server=server))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://x") as http:
        yield http


async def test_every_operation_is_on_the_page(tmp_path: Path) -> None:
    """With its method and its path, as the OpenAPI document has them."""
    async with client(tmp_path) as http:
        page, document = (await http.get("/docs")).text, (await http.get("/openapi.json")).json()

    listed = set(re.findall(r"<b>([A-Z]+)</b> <code>([^<]+)</code>", page))
    assert listed == {(method.upper(), path) for path, item in document["paths"].items() for method in item}


async def test_the_page_loads_nothing_and_runs_nothing(tmp_path: Path) -> None:
    """No script, no style but its own, no address of another host; the pages that load some are gone."""
    async with client(tmp_path) as http:
        page = (await http.get("/docs")).text
        redoc = await http.get("/redoc")

    assert not re.search(r"<script|<link|<img|<iframe|\son\w+=|\sstyle=|\b(?:src|href)=\"(?:\w+:)?//", page)
    assert redoc.status_code == 404


async def test_the_first_page_leads_to_it(tmp_path: Path) -> None:
    """As it did to FastAPI's own."""
    async with client(tmp_path) as http:
        assert 'href="docs"' in (await http.get("/")).text


def test_what_the_document_says_is_no_markup() -> None:
    """Text of a document is text on the page."""
    evil = "<script>alert(1)</script>\"'"
    operation = {
        "summary": evil,
        "description": evil,
        "tags": [evil],
        "parameters": [{"name": evil, "in": evil, "description": evil}],
        "requestBody": {"content": {evil: {"schema": {"examples": [{evil: evil}]}}}},
        "responses": {evil: {"description": evil, "content": {evil: {}}}},
    }
    info = {"title": evil, "version": evil, "description": evil}

    page = docs_page({"info": info, "tags": [], "paths": {evil: {"get": operation}}})

    assert "<script" not in page.lower()
    assert page.count("&lt;script&gt;") >= 10


async def test_security_txt_names_the_contact(tmp_path: Path) -> None:
    """Contact and Expires, the two fields RFC 9116 asks for; the date is less than a year ahead."""
    async with client(tmp_path, security_contact="mailto:security@example.com") as http:
        answer = await http.get("/.well-known/security.txt")

    assert answer.headers["content-type"] == "text/plain; charset=utf-8"
    fields = dict(line.split(": ", 1) for line in answer.text.splitlines())
    assert fields["Contact"] == "mailto:security@example.com"
    ahead = datetime.fromisoformat(fields["Expires"]) - datetime.now(UTC)
    assert timedelta(days=28) < ahead < timedelta(days=32)


async def test_without_a_contact_there_is_no_security_txt(tmp_path: Path) -> None:
    """A file that names nobody helps nobody; the answer says what names somebody."""
    async with client(tmp_path) as http:
        answer = await http.get("/.well-known/security.txt")

    assert answer.status_code == 404
    assert "ASYNCBG_SERVER__SECURITY_CONTACT" in answer.json()["detail"]


@pytest.mark.parametrize("contact", ["security@example.com", "http://example.com", "mailto:a@b\nContact: c", "tel:x"])
def test_a_contact_that_is_no_uri_is_refused(contact: str) -> None:
    """One line names the setting and the forms there are."""
    with pytest.raises(SettingsError, match=r"ASYNCBG_SERVER__SECURITY_CONTACT .*mailto:security@example\.com"):
        load_settings(server={"security_contact": contact})
