"""A loop that does one thing periodically, and does not end on an error."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asyncbg.core.error_log import ErrorLog, ends_task
from asyncbg.errors import AsyncBGError, OutageError

logger = logging.getLogger("asyncbg")


async def every(
    period_s: float, chore: Callable[[], Awaitable[None]], *, name: str, errors: ErrorLog | None = None
) -> None:
    """Do ``chore`` every ``period_s`` seconds until cancelled; an error is logged once and the chore goes on.

    Of an outage the database itself tells. What is no AsyncBGError is logged with its traceback, and counted in
    ``errors`` each time.
    """
    errors = errors or ErrorLog()
    failing = False
    while True:
        await asyncio.sleep(period_s)
        try:
            await chore()
            failing = False
            errors.recovered(name)
        except AsyncBGError as error:
            if not failing and not isinstance(error, OutageError):
                logger.error("%s fails, and is tried again: %s", name, error)
            failing = True
        except BaseException as error:
            if ends_task(error):
                raise
            errors.add_once(name, error, "%s fails, and is tried again", name, is_ours=True)
