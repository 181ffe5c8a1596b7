"""An application as anybody may write it: plain logging at DEBUG, a usual middleware, jobs that go wrong."""

import asyncio
import logging
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse

from asyncbg import AsyncBG, BackgroundTasks, Event

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
logger = logging.getLogger("shop")

bg = AsyncBG(runner={"cancel_grace_s": 0.1, "shutdown_grace_s": 0.2})
app = FastAPI(lifespan=bg.lifespan)
app.include_router(bg.router, prefix="/bg")


class Unprintable:
    """An argument without a JSON form."""

    def __init__(self, text: str) -> None:
        self.text = text

    def __repr__(self) -> str:
        return self.text


@bg.task(name="fail")
async def fail(text: str) -> None:
    """Raises, with a cause, what the caller sent."""
    try:
        dict[str, str]()[text]
    except KeyError as error:
        raise RuntimeError(f"cannot write to {text}") from error


@bg.task(name="fail_in_thread", retries=1)
def fail_in_thread(text: str) -> None:
    """The same in a thread, twice."""
    raise ValueError(text)


@bg.task(name="return_odd")
async def return_odd(text: str) -> Any:
    """A result without a JSON form."""
    return Unprintable(text)


@bg.task(name="wait_for_ever")
async def wait_for_ever(text: str) -> None:
    """Ignores its cancellation for a while."""
    for _ in range(40):
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            continue


@bg.task(name="exit")
async def exit_process(text: str) -> None:
    """What is no Exception."""
    raise SystemExit(text)


@bg.on("job.failed")
async def look(event: Event) -> None:
    """A handler that fails with what it was told and more."""
    job = await bg.get(event.job_id)
    raise RuntimeError(f"{event.data} {job.args}")


@app.middleware("http")
async def add_header(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
    """Starlette's own kind of middleware, which runs the application in a task of its own."""
    response = await call_next(request)
    response.headers["X-Shop"] = "1"
    return response


@app.post("/order")
async def order(request: Request, background_tasks: BackgroundTasks) -> dict[str, list[str]]:
    """Adds one of each, with what the body says."""
    text = (await request.body()).decode()
    tasks = (fail, fail_in_thread, return_odd, wait_for_ever, exit_process)
    jobs = [background_tasks.add_task(task, text) for task in tasks]
    jobs.append(background_tasks.add_task(lambda one: fail(one.text), Unprintable(text)))
    return {"jobs": [job.id for job in jobs]}


@app.post("/mistake")
async def mistake(request: Request, background_tasks: BackgroundTasks) -> None:
    """Arguments that do not fit: an error in the route, which the server logs."""
    background_tasks.add_task(fail, [(await request.body()).decode()])  # type: ignore[arg-type]  # on purpose


@app.post("/reuse")
async def reuse(request: Request, background_tasks: BackgroundTasks) -> Response:
    """One key for two bodies, the second one after the response."""
    text = (await request.body()).decode()
    key = " ".join(text.split())[:200]
    await bg.submit("return_odd", {"text": text}, idempotency_key=key, fingerprint="1")

    async def body() -> AsyncIterator[bytes]:
        yield b"o"
        background_tasks.add_task(return_odd.options(idempotency_key=key), text)
        yield b"k"

    return StreamingResponse(body())


@app.post("/say")
async def say(request: Request) -> None:
    """What the application itself logs."""
    logger.warning("written by the shop: %s", (await request.body()).decode())


if __name__ == "__main__":
    uvicorn.run(app, port=0, log_level="debug", ws="none")
