"""What docs/client.md says of the Python client is what it does: its programs run, its tables name what there is."""

import asyncio
import inspect
import re
import socket
import types
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvicorn

import asyncbg.client.error
from asyncbg.client import Client, ClientError
from asyncbg.service.server import create_app
from asyncbg.settings import Settings

DOCUMENT = (Path(__file__).parents[2] / "docs" / "client.md").read_text("utf-8")
TIMEOUT_S = 30


def program(words: str) -> types.ModuleType:
    """The one Python snippet with these words, as a module."""
    (code,) = [code for code in re.findall(r"^```python\n(.*?)^```$", DOCUMENT, re.M | re.S) if words in code]
    module = types.ModuleType("snippet")
    exec(compile(code, "client.md", "exec"), module.__dict__)  # noqa: S102 - our own document
    return module


def first_cells(head: str) -> list[str]:
    """The code in the first cells of the table that begins with this head."""
    (table,) = re.findall(rf"^\| {head} \|.*\n\|[-|]+\n((?:\|.*\n)+)", DOCUMENT, re.M)
    return [name for row in table.splitlines() for name in re.findall(r"`([^`]+)`", row.split(" | ")[0])]


@pytest.fixture
async def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[str]:
    """The standalone service, on a free port."""
    monkeypatch.chdir(tmp_path)
    settings = Settings(database_url=f"sqlite:///{tmp_path}/asyncbg.db", data_dir=tmp_path / "data")
    async with _serving(settings) as url:
        yield url


@asynccontextmanager
async def _serving(settings: Settings) -> AsyncIterator[str]:
    app = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        app.state.asyncbg._begin_shutdown()
        server.should_exit = True
        await task
        listener.close()


async def test_the_first_program_runs(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It submits a job, prints its events to the final one, and its result."""
    async with asyncio.timeout(TIMEOUT_S):
        await program("async def main").main(url)

    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:2]] == ["job.queued", "job.started"]
    assert lines[-2].split()[0] == "job.succeeded"


async def test_the_second_program_goes_on_where_it_stopped(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It notes its place after each event; started again it tells only what came since."""
    module = program("async def bookkeeping")
    arguments = {"email": "ada.canary7f3a@canary7f3a.example", "message": "hello"}
    async with asyncio.timeout(TIMEOUT_S), Client(url) as client:
        probe = await client.submit("send_notification", arguments)
        ids = [probe.id]
        module.PLACE.write_text((await anext(client.watch(probe.id))).id or "")
        for _ in range(2):
            running = asyncio.create_task(module.bookkeeping(url))
            ids.append((await client.submit("send_notification", arguments)).id)
            last = [event async for event in client.watch(ids[-1])][-1]
            while module.PLACE.read_text() != last.id:  # noqa: ASYNC110 - a file tells nobody
                await asyncio.sleep(0.01)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

    assert capsys.readouterr().out.split() == [word for job_id in ids for word in (job_id, "job.succeeded")]


def test_every_call_is_described_with_its_parameters() -> None:
    """The table has each public method, and names parameters it has; filters are left out of ``page``."""
    described = dict(re.findall(r"^(\w+)\((.*)\)$", "\n".join(first_cells("call")), re.M))
    public = {name: method for name, method in inspect.getmembers(Client, inspect.isfunction) if name[0] != "_"}

    assert set(described) == set(public)
    for name, words in described.items():
        named = [word for word in words.split(", ") if word not in {"*", "…"}]
        has = [word for word in inspect.signature(public[name]).parameters if word != "self"]
        assert named == (has[-len(named) :] if "…" in words else has), name


def test_every_argument_is_described() -> None:
    """The table has all but the address and what is for tests."""
    arguments = set(inspect.signature(Client.__init__).parameters) - {"self", "base_url", "clock", "rng", "sleep"}

    assert set(first_cells("argument")) == arguments


def test_every_error_is_described() -> None:
    """The table has each class of the client's own."""
    classes = inspect.getmembers(asyncbg.client.error, inspect.isclass)

    assert set(first_cells("error")) == {name for name, kind in classes if issubclass(kind, ClientError)}
