"""A real server behind a proxy that can be cut, and Chromium before it."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from playwright.async_api import Browser, BrowserContext, ConsoleMessage, Error, Page, async_playwright
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from asyncbg import AsyncBG, Progress, current_job
from asyncbg.event import EventFilter
from asyncbg.settings import RunnerSettings, Settings, StreamSettings

CHROMIUM = Path("/usr/bin/chromium")
_IS_INSTALLED = CHROMIUM.exists()
TIMEOUT_S = 40
_FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
_CSP = "default-src 'none'; script-src 'self'; connect-src 'self'"
_PAGE = '<!DOCTYPE html><meta charset="utf-8"><title>test</title>'


@dataclass
class Request:
    """A request that reached the server."""

    method: str
    path: str
    query: str
    cursor: str
    status: int = 0
    is_open: bool = True

    @property
    def is_stream(self) -> bool:
        """Whether it is for events as they happen."""
        return self.path.endswith("/events") and "follow=false" not in self.query


class RequestLog:
    """Middleware that keeps what was asked, and refuses streams while it is told to."""

    def __init__(self, app: ASGIApp, requests: list[Request], refuses: Callable[[Request], bool]) -> None:
        """Log the requests for ``app`` into ``requests``."""
        self._app = app
        self._requests = requests
        self._refuses = refuses

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Log, and serve."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        cursor = dict(scope["headers"]).get(b"last-event-id", b"").decode()
        request = Request(scope["method"], scope["path"], scope["query_string"].decode(), cursor)
        self._requests.append(request)

        async def send_on(message: Message) -> None:
            request.status = message.get("status", request.status)
            await send(message)

        try:
            if self._refuses(request):
                await send_on({"type": "http.response.start", "status": 503, "headers": []})
                await send_on({"type": "http.response.body", "body": b""})
            else:
                await self._app(scope, receive, send_on)
        finally:
            request.is_open = False


class Proxy:
    """A TCP proxy whose connections can be cut."""

    def __init__(self, port: int) -> None:
        """Lead to ``port``."""
        self.port = port
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        """Run; gives the URL."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            self.cut()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Break every connection, as a lost network does."""
        for writer in self._writers:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self._writers.add(writer)
        try:
            upstream_reader, upstream = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            writer.transport.abort()
        else:
            self._writers.add(upstream)
            await asyncio.gather(_copy(reader, upstream), _copy(upstream_reader, writer))
            await _closed(upstream)
            self._writers.discard(upstream)
        await _closed(writer)
        self._writers.discard(writer)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def _closed(writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        await writer.wait_closed()


@dataclass
class Site:
    """A running application as a browser finds it."""

    database: Path
    settings: dict[str, Any]
    bg: AsyncBG = field(init=False)
    url: str = ""
    proxy: Proxy = field(init=False)
    requests: list[Request] = field(default_factory=list)
    refuses_streams: bool = False
    orders: dict[str, "asyncio.Queue[Any]"] = field(default_factory=dict)
    _server: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)

    async def start(self) -> int:
        """Serve, in a new life; gives the port."""
        self.bg = AsyncBG(
            Settings(
                database_url=f"sqlite:///{self.database}",
                stream=StreamSettings(**{"retry_ms": 50, **self.settings}),
                runner=RunnerSettings(shutdown_grace_s=0),
            )
        )
        self._register_task(self.bg)
        app = FastAPI(lifespan=self.bg.lifespan)
        app.include_router(self.bg.router, prefix="/bg")

        @app.get("/")
        async def show_page() -> HTMLResponse:
            return HTMLResponse(_PAGE, headers={"Content-Security-Policy": _CSP})

        logged = RequestLog(app, self.requests, lambda request: self.refuses_streams and request.is_stream)
        return await self._server.enter_async_context(serving(logged, self.bg))

    async def stop(self) -> None:
        """End this life of the server."""
        await self._server.aclose()

    async def restart(self) -> None:
        """Stop, and serve again the same database behind the same address."""
        await self.stop()
        self.proxy.port = await self.start()

    async def submit(self, name: str = "a") -> str:
        """A job that does what it is ordered under that name."""
        self.orders[name] = asyncio.Queue()
        return (await self.bg.submit("obey", {"name": name}, owner="anonymous")).id

    def order(self, *orders: Any, name: str = "a") -> None:
        """A number is progress to report, a text an event to publish, None the end and an exception a failure."""
        for item in orders:
            self.orders[name].put_nowait(item)

    async def log(self, job_id: str) -> list[str]:
        """The ids of all stored events of a job."""
        wanted = EventFilter(jobs=frozenset({job_id}))
        events, _ = await self.bg.backend.events(after_seq=0, wanted=wanted, limit=1000)
        return [f"{self.bg.backend.epoch}-{event.seq}" for event in events]

    @property
    def streams(self) -> list[Request]:
        """The requests for streams so far."""
        return [request for request in self.requests if request.is_stream]

    @property
    def open_streams(self) -> list[Request]:
        """Those that are open now."""
        return [request for request in self.streams if request.is_open]

    def _register_task(self, bg: AsyncBG) -> None:
        @bg.task(name="obey", retries=0)
        async def obey(name: str, progress: Progress = Progress()) -> str:
            while (order := await self.orders[name].get()) is not None:
                match order:
                    case int():
                        progress.set(order, total=10, message=f"step {order}")
                    case str():
                        await current_job().publish("thing.done", {"name": order})
                    case _:
                        raise order
            return "done"


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, bg: AsyncBG) -> AsyncIterator[int]:
    """Run ``app`` on a real server; gives its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=5))
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0.005)
        assert not task.done(), "the server did not start"
    try:
        yield listener.getsockname()[1]
    finally:
        bg.streams.drain()
        server.should_exit = True
        await task
        listener.close()


class Tab:
    """One page, and what its script told."""

    def __init__(self, page: Page, site: Site) -> None:
        """Listen to ``page``."""
        self.page = page
        self.noise: list[str] = []
        """What came up on the console, errors too."""
        self.errors: list[str] = []
        """What was raised and not caught."""
        self.seen: list[dict[str, Any]] = []
        self._site = site
        self._told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def open(self, path: str = "/") -> "Tab":
        """Load the page."""
        self.page.on("console", self._note)
        self.page.on("pageerror", self._note_error)
        await self.page.expose_binding("tell", lambda _, item: self._told.put_nowait(item))
        await self.page.goto(self._site.url + path)
        return self

    async def watch(self, job_id: str, options: str = "{}", watch_options: str = "") -> None:
        """Follow a job with the module; the page tells each event."""
        await self.page.evaluate(
            f"""async (jobId) => {{
              const {{ AsyncBG }} = await import("/bg/asyncbg.js");
              globalThis.bg ??= new AsyncBG({{ retryMs: 50, pollMs: 50, ...{options} }});
              const watch = (globalThis.watching = bg.watch(jobId, {{ onEvent: tell, {watch_options} }}));
              watch.done.then((event) => tell({{ type: "done", event }}), (error) => tell({{ type: "failed", status: error.status, message: error.message }}));
            }}""",  # noqa: E501
            job_id,
        )

    async def until(self, *types: str, where: Callable[[dict[str, Any]], bool] = lambda _: True) -> dict[str, Any]:
        """What is told next of one of these types; everything on the way is in ``seen``."""
        try:
            async with asyncio.timeout(TIMEOUT_S):
                while True:
                    item = await self._told.get()
                    self.seen.append(item)
                    if item["type"] in types and where(item):
                        return item
        except TimeoutError:
            told = [(item["type"], item.get("id"), item.get("data")) for item in self.seen]
            asked = [(r.method, r.path, r.query, r.cursor, r.status, r.is_open) for r in self._site.requests[-20:]]
            raise AssertionError(f"no {types} came; told: {told}; asked: {asked}; console: {self.noise}") from None

    async def progress(self, current: int) -> dict[str, Any]:
        """The report of so much progress."""
        return await self.until("job.progress", where=lambda item: item["data"]["current"] == current)

    def stored(self, job_id: str) -> list[str]:
        """The ids of the stored events of a job, as they were told."""
        return [item["id"] for item in self.seen if item.get("subject") == job_id and item.get("id")]

    def _note(self, message: ConsoleMessage) -> None:
        # The browser itself writes there what the network answered; scripts keep quiet.
        if not message.text.startswith("Failed to load resource"):
            self.noise.append(message.text)

    def _note_error(self, error: Error) -> None:
        self.noise.append(str(error))
        self.errors.append(str(error))


OpenSite = Callable[..., Awaitable[Site]]
OpenTab = Callable[[Site], Awaitable[Tab]]


@pytest_asyncio.fixture(loop_scope="session")
async def open_site(tmp_path: Path) -> AsyncIterator[OpenSite]:
    """Start an application with the given stream settings, behind a proxy."""
    async with contextlib.AsyncExitStack() as stack:

        async def start(**settings: Any) -> Site:
            site = Site(tmp_path / "asyncbg.db", settings)
            site.proxy = Proxy(await site.start())
            stack.push_async_callback(site.stop)
            site.url = await stack.enter_async_context(site.proxy.serving())
            return site

        yield start


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium, started once; each test has a context of its own."""
    if not _IS_INSTALLED:
        pytest.skip(f"{CHROMIUM} is missing: apt-get install chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=_FLAGS)
        yield browser
        await browser.close()


@pytest_asyncio.fixture(loop_scope="session")
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    """One person's browser: its pages are tabs that know of each other."""
    async with await browser.new_context() as context:
        yield context


@pytest.fixture
def open_tab(context: BrowserContext) -> OpenTab:
    """Open a tab on a site's empty page, which has a strict Content-Security-Policy."""

    async def open_one(site: Site) -> Tab:
        return await Tab(await context.new_page(), site).open()

    return open_one


async def until(condition: Callable[[], bool], otherwise: Callable[[], Sequence[Any] | str]) -> None:
    """Wait for something that the browser brings about; ``otherwise`` is what to show if it does not."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while not condition():  # noqa: ASYNC110 - seen from outside, there is no event to await
                await asyncio.sleep(0.005)
    except TimeoutError:
        raise AssertionError(f"it did not happen: {otherwise()}") from None
