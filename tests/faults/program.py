"""The program that the fault tests start, stop and kill: an engine on a database file, told what to do by arguments.

``program.py DATABASE MODE [TASK=COUNT …]`` enqueues the jobs, then runs jobs until SIGTERM. It prints one line for
each thing that the tests wait for. In mode ``hold`` a job never ends by itself, in mode ``go`` it ends at once, in
mode ``once`` the program ends when its own jobs have. The last line names the threads that are left.
"""

import asyncio
import os
import signal
import sys
import threading

from asyncbg.engine import Engine, Job
from asyncbg.engine.context import current_job
from asyncbg.errors import AsyncBGError
from asyncbg.settings import load_settings

DATABASE, MODE, *ORDERS = sys.argv[1:]
engine = Engine(load_settings(database_url=f"sqlite:///{DATABASE}", runner={"shutdown_grace_s": 0.1}))


def say(*words: object) -> None:
    """Print one line at once."""
    print(*words, flush=True)  # noqa: T201 - what the tests read


async def work() -> str:
    """Run as the mode says."""
    say("began", current_job().id, current_job().attempt)
    if MODE == "hold":
        await asyncio.Event().wait()
    await current_job().publish("work.done", {"pid": os.getpid()})
    say("ended", current_job().id)
    return MODE


@engine.task
async def keep() -> str:
    """A job that is run again when it is interrupted."""
    return await work()


@engine.task(at_most_once=True)
async def keep_once() -> str:
    """A job that is not."""
    return await work()


@engine.task
async def crash() -> None:
    """Take the whole process down."""
    say("crashes", current_job().attempt)
    os.kill(os.getpid(), signal.SIGKILL)


@engine.task
def in_thread() -> str:
    """A job in a worker thread."""
    return threading.current_thread().name


async def enqueue(order: str) -> list[Job]:
    """Enqueue what an argument says; ``lambda`` is a function that cannot outlive the process."""
    name, _, count = order.partition("=")
    jobs = []
    for _ in range(int(count)):
        if name == "lambda":
            jobs.append(await engine.enqueue(lambda word: work(), "x"))
        else:
            jobs.append(await engine.submit(name, {}))
        say("enqueued", jobs[-1].id)
    return jobs


async def main() -> None:
    """Run until SIGTERM, or until the own jobs are over."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    opening_ms = engine.clock.now_ms()
    try:
        async with engine:
            say("running", opening_ms)
            jobs = [job for order in ORDERS for job in await enqueue(order)]
            if MODE == "once":
                for job in jobs:
                    await job.result(20)
            else:
                await stopped.wait()
    except AsyncBGError as error:
        say("refused", type(error).__name__, error)


if __name__ == "__main__":
    asyncio.run(main())
    others = [thread for thread in threading.enumerate() if thread is not threading.main_thread()]
    for thread in others:
        thread.join(2)  # one that is just ending is not one that is left
    say("threads", *[thread.name for thread in others if thread.is_alive()])
