"""The JavaScript client as it is served: whole, typed, cached by its ETag, never sniffed."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from fastapi import FastAPI

from asyncbg import AsyncBG
from asyncbg.web.assets import STATIC


@pytest.fixture
async def http(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an application with the router under a prefix."""
    app = FastAPI()
    app.include_router(AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db").router, prefix="/bg")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        yield client


@pytest.mark.parametrize(("name", "media_type"), [("asyncbg.js", "text/javascript"), ("asyncbg.d.ts", "text/plain")])
async def test_the_client_is_served_below_the_prefix(http: httpx.AsyncClient, name: str, media_type: str) -> None:
    """The module and its types, as they lie in the package; a cache has to ask before it uses them."""
    answer = await http.get(f"/bg/{name}")

    assert answer.status_code == 200
    assert answer.content == (STATIC / name).read_bytes()
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_head_has_the_headers_alone(http: httpx.AsyncClient) -> None:
    """HEAD answers what GET does, without the body."""
    get, head = await http.get("/bg/asyncbg.js"), await http.head("/bg/asyncbg.js")

    assert head.status_code == 200
    assert head.headers == get.headers
    assert not head.content


@pytest.mark.parametrize("form", ["{}", "W/{}", '"other", {}', "*"])
async def test_who_has_it_gets_304(http: httpx.AsyncClient, form: str) -> None:
    """The ETag names the content: If-None-Match with it is answered without a body."""
    etag = (await http.get("/bg/asyncbg.js")).headers["etag"]
    answer = await http.get("/bg/asyncbg.js", headers={"If-None-Match": form.format(etag)})

    assert answer.status_code == 304
    assert answer.headers["etag"] == etag
    assert not answer.content


async def test_who_has_another_version_gets_this_one(http: httpx.AsyncClient) -> None:
    """An ETag of other content does not help."""
    answer = await http.get("/bg/asyncbg.js", headers={"If-None-Match": '"other"'})

    assert answer.status_code == 200


def test_every_export_is_typed() -> None:
    """What the module exports is what its types declare, and nothing else is a value there."""
    exported = r"^export (?:async )?(?:class|function|const) (\w+)"
    module, types = ((STATIC / name).read_text("utf-8") for name in ("asyncbg.js", "asyncbg.d.ts"))

    assert re.findall(exported, types, re.MULTILINE) == re.findall(exported, module, re.MULTILINE)
    assert "export default" not in module


def test_every_option_and_method_is_typed() -> None:
    """The options that the module knows and the public methods of its classes stand in the types."""
    module, types = ((STATIC / name).read_text("utf-8") for name in ("asyncbg.js", "asyncbg.d.ts"))
    options = re.findall(r"const known = \{(.*?)\}|Object\.assign\(known, \{(.*?)\}", module)
    names = [name for pair in options for name in re.findall(r"\w+", "".join(pair))]
    body = module[module.index("export class AsyncBG {") : module.index("class Hub")]
    methods = set(re.findall(r"^  (?:async )?(\w+)\(.*\) \{$", body, re.MULTILINE)) - {"constructor"}
    inner = {"start", "opened", "heard", "lost", "poll"}
    """Between the watch and the connection: no business of who follows a job."""

    assert len(names) == 13
    assert not [name for name in names if not re.search(rf"^  {name}\??:", types, re.MULTILINE)]
    assert not [name for name in methods - inner if not re.search(rf"^  {name}\(", types, re.MULTILINE)]


def test_every_option_is_described() -> None:
    """The table of options in docs/javascript.md has those of the types, and no other."""
    types = (STATIC / "asyncbg.d.ts").read_text("utf-8")
    interface = types[types.index("interface Options {") :]
    declared = re.findall(r"^  (\w+)\?:", interface[: interface.index("\n}")], re.MULTILINE)
    document = (Path(__file__).parents[2] / "docs" / "javascript.md").read_text("utf-8")
    table = document[document.index("## Options of") : document.index("A ticket is good once")]
    first_cells = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)

    assert sorted(re.findall(r"\w+", " ".join(first_cells))) == sorted(declared)


def test_the_module_runs_under_the_strictest_policy() -> None:
    """It makes no code from text, touches no page and writes nothing to the console."""
    module = (STATIC / "asyncbg.js").read_text("utf-8")

    assert not re.findall(r"\beval\b|new Function|innerHTML|\b(?:document|console)\.\w", module)
