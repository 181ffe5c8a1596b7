"""The application whose jobs report progress: ``python progress_app.py DATABASE`` runs them without serving HTTP."""

import asyncio
import os
import signal
import sys
import time

from fastapi import FastAPI

from asyncbg import AsyncBG, Progress, current_job

if __name__ == "__main__":
    os.environ["ASYNCBG_DATABASE_URL"] = f"sqlite:///{sys.argv[1]}"
bg = AsyncBG(runner={"concurrency": 3})  # few, so that six jobs at once need two processes
app = FastAPI(lifespan=bg.lifespan)
app.include_router(bg.router)


@bg.task(name="count")
async def count(steps: int, pause_s: float) -> int:
    """Report each step; the total is the moment it was reported, which no pattern takes for something personal."""
    progress = Progress()
    for step in range(1, steps + 1):
        progress.set(step, total=time.monotonic())
        if step < steps:
            await asyncio.sleep(pause_s)
    return os.getpid()


@bg.task(name="count_on", retries=2)
async def count_on(steps: int) -> None:
    """Report and publish again and again, whatever becomes of the lease."""
    progress = Progress()
    for step in range(1, steps + 1):
        progress.set(step, total=steps, message=f"attempt {current_job().attempt}")
        await asyncio.sleep(0.02)


async def main() -> None:
    """Run jobs until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    async with bg:
        print("running", flush=True)  # noqa: T201 - what the tests read
        await stopped.wait()


if __name__ == "__main__":
    asyncio.run(main())
