"""The application that the shutdown tests serve: jobs that hold on until the next start, short ones, deaf ones."""

import asyncio
import os
import time

from fastapi import FastAPI

from asyncbg import AsyncBG, Progress

bg = AsyncBG()
app = FastAPI(lifespan=bg.lifespan)
app.include_router(bg.router)
HOLDS = os.environ["HOLDS"] == "yes"


@bg.task(priority=9)
async def hold() -> str:
    """Go on for ever in a process that is to be stopped, end at once in the next."""
    if HOLDS:
        await asyncio.Event().wait()
    return "done"


@bg.task(priority=9)
def deaf(progress: Progress = Progress()) -> None:
    """Stay in a thread, whatever anybody says; the progress says that the thread has begun."""
    progress.set(1)
    if HOLDS:
        time.sleep(60)


@bg.task
async def short() -> None:
    """One of a long queue."""
    await asyncio.sleep(0.02)
