"""What runs on a failing disk: ``acknowledge.py DATABASE COUNT`` prints one line for each attempt to enqueue.

``accepted ID`` is printed when the engine has acknowledged the job, ``refused`` when it has not; ``logged`` repeats
what the engine logged as an error.
"""

import asyncio
import logging
import sys

from asyncbg.engine import Engine
from asyncbg.errors import DatabaseError
from asyncbg.settings import load_settings

DATABASE, COUNT = sys.argv[1], int(sys.argv[2])
engine = Engine(load_settings(database_url=f"sqlite:///{DATABASE}", runner={"shutdown_grace_s": 0}))


class Echo(logging.Handler):
    """Print errors as they are logged."""

    def emit(self, record: logging.LogRecord) -> None:
        """One line."""
        print("logged", record.getMessage(), flush=True)  # noqa: T201 - what the tests read


@engine.task
async def note() -> None:
    """A job that is over at once."""


async def main() -> None:
    """Enqueue one after another, whatever becomes of each."""
    async with engine:
        engine._parts.runner.begin_drain()
        for _ in range(COUNT):
            try:
                job = await note.enqueue()
            except DatabaseError:
                print("refused", flush=True)  # noqa: T201 - what the tests read
            else:
                print("accepted", job.id, flush=True)  # noqa: T201 - what the tests read


if __name__ == "__main__":
    logging.getLogger("asyncbg").addHandler(Echo(level=logging.ERROR))
    asyncio.run(main())
