"""The container in dependencies, routers and mounted apps: one container for a request, wherever it is asked for."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any, TypeAlias

import pytest
from fastapi import APIRouter, Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp, Receive, Scope, Send

from asyncbg import AsyncBG, BackgroundTasks, RequestBackgroundTasks
from tests.dropin.conftest import jobs, note, ran


async def in_a_coroutine(background_tasks: BackgroundTasks) -> None:
    """A dependency."""
    jobs.append(background_tasks.add_task(note, "coroutine"))


def in_a_thread(background_tasks: BackgroundTasks, _: Annotated[None, Depends(in_a_coroutine)]) -> None:
    """A dependency with a dependency."""
    jobs.append(background_tasks.add_task(note, "thread"))


class InAClass:
    """A dependency that is a class."""

    def __init__(self, background_tasks: BackgroundTasks) -> None:
        """Take the container along."""
        self.background_tasks = background_tasks

    def work(self) -> None:
        """Add when asked."""
        jobs.append(self.background_tasks.add_task(note, "class"))


async def test_dependencies_and_the_route_share_one_container(app: FastAPI, serve: Any) -> None:
    """All that a request adds is one batch, in the order added: dependencies first, as they are resolved."""

    @app.post("/", dependencies=[Depends(in_a_thread)])
    async def route(in_a_class: Annotated[InAClass, Depends()], background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(note, "route"))
        in_a_class.work()

    http = await serve(app)
    await http.post("/")
    await jobs[-1].result(timeout=5)

    assert ran == ["coroutine", "thread", "route", "class"]
    assert {job.batch for job in jobs} == {jobs[0].id}


@pytest.mark.parametrize("scope", ["request", "function", None])
@pytest.mark.parametrize("kind", ["async", "sync"])
async def test_a_dependency_with_yield_may_add_before_and_after(
    app: FastAPI, serve: Any, stored: Callable[[], list[str]], scope: Any, kind: str
) -> None:
    """Before its yield in the request's batch, after it too where it ends before the response, else at once."""

    done = asyncio.Event()

    async def after() -> None:
        done.set()

    async def session(background_tasks: RequestBackgroundTasks) -> AsyncIterator[str]:
        jobs.append(background_tasks.add_task(note, "before"))
        yield "session"
        jobs.append(background_tasks.add_task(after))

    def plain_session(background_tasks: RequestBackgroundTasks) -> Iterator[str]:
        jobs.append(background_tasks.add_task(note, "before"))
        yield "session"
        jobs.append(background_tasks.add_task(after))

    used = session if kind == "async" else plain_session

    @app.post("/")
    async def route(session: Annotated[str, Depends(used, scope=scope)], background_tasks: BackgroundTasks) -> str:
        jobs.append(background_tasks.add_task(note, session))
        return session

    http = await serve(app)
    assert (await http.post("/")).json() == "session"
    for job in jobs[:2]:
        await job.result(timeout=5)
    async with asyncio.timeout(5):
        await done.wait()

    one_batch = scope == "function"
    assert (jobs[2].batch == jobs[0].batch) is one_batch


async def test_a_router_with_a_prefix_and_dependencies_of_its_own(app: FastAPI, serve: Any) -> None:
    """The container works below ``include_router``, nested, with dependencies on every level."""
    inner = APIRouter(prefix="/inner", dependencies=[Depends(in_a_coroutine)])

    @inner.post("/{name}")
    async def route(name: str, background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(note, name))

    outer = APIRouter(prefix="/outer")
    outer.include_router(inner)
    app.include_router(outer, prefix="/v1", dependencies=[Depends(in_a_thread)])

    http = await serve(app)
    assert (await http.post("/v1/outer/inner/route")).status_code == 200
    await jobs[-1].result(timeout=5)

    assert ran == ["coroutine", "thread", "route"]


class Middleware:
    """An ASGI middleware around an app."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap."""
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on."""
        await self.app(scope, receive, send)


def mount_below_a_router(app: FastAPI, sub: FastAPI) -> None:
    """In an included router."""
    router = APIRouter()
    router.mount("/sub", sub)
    app.include_router(router)


MOUNTS: dict[str, Callable[[FastAPI, FastAPI], Any]] = {
    "directly": lambda app, sub: app.mount("/sub", sub),
    "with a middleware": lambda app, sub: app.mount("/sub", Middleware(sub)),
    "below a Mount": lambda app, sub: app.router.routes.append(Mount("/sub", routes=[Mount("", app=sub)])),
    "below a Starlette app": lambda app, sub: app.mount("/sub", Starlette(routes=[Mount("/", app=sub)])),
    "below a router": mount_below_a_router,
}


@pytest.mark.parametrize("how", MOUNTS)
async def test_a_mounted_app_uses_the_engine_of_the_app_around_it(app: FastAPI, serve: Any, how: str) -> None:
    """Starlette runs no lifespan of a mounted app; the engine is found there all the same."""
    sub = FastAPI()

    @sub.post("/work")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(note, "mounted"))

    MOUNTS[how](app, sub)
    http = await serve(app)

    assert (await http.post("/sub/work")).status_code == 200
    await jobs[0].result(timeout=5)
    assert ran == ["mounted"]


async def test_an_app_mounted_later_is_told_by_hand(app: FastAPI, bg: AsyncBG, serve: Any) -> None:
    """What is mounted while the app runs finds no engine until it is given one; the error says how."""
    sub = FastAPI()

    @sub.post("/work")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(note, "later"))

    http = await serve(app)
    app.mount("/sub", sub)

    assert (await http.post("/sub/work")).status_code == 500
    sub.state.asyncbg = bg
    assert (await http.post("/sub/work")).status_code == 200
    await jobs[0].result(timeout=5)


async def test_a_dependency_override_replaces_what_adds(app: FastAPI, serve: Any) -> None:
    """FastAPI's way to test routes works on dependencies that use the container."""
    app.dependency_overrides[in_a_thread] = in_a_coroutine

    @app.post("/", dependencies=[Depends(in_a_thread)])
    async def route() -> None: ...

    http = await serve(app)
    await http.post("/")
    await jobs[0].result(timeout=5)

    assert ran == ["coroutine"]


Tasks: TypeAlias = Annotated[BackgroundTasks, "with a note"]


async def test_the_alias_may_be_annotated_further(app: FastAPI, serve: Any) -> None:
    """``Annotated[BackgroundTasks, …]`` is still the container."""

    @app.post("/")
    async def route(background_tasks: Tasks) -> None:
        jobs.append(background_tasks.add_task(note, "a"))

    http = await serve(app)
    await http.post("/")

    await jobs[0].result(timeout=5)
