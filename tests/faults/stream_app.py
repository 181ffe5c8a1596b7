"""The application that the stream loop kills: a task that publishes so many events of its own."""

import asyncio
import json

from fastapi import FastAPI

from asyncbg import AsyncBG, current_job

bg = AsyncBG()
app = FastAPI(lifespan=bg.lifespan)
app.include_router(bg.router)


@bg.task
async def announce(count: int) -> None:
    """Publish ``count`` events, some at once and some one by one, so that commits of both kinds are streamed."""
    job = current_job()
    for first in range(0, count, 10):
        batch = range(first, min(first + 10, count))
        if first % 20:
            await asyncio.gather(*(job.publish("thing.done", {"n": n}) for n in batch))
        else:
            for n in batch:
                await job.publish("thing.begun", {"n": n, "note": json.dumps("ünïcode\n") * 3})
