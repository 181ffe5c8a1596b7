"""A loop that does one thing periodically, and does not end on an error."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asyncbg.errors import AsyncBGError, OutageError

logger = logging.getLogger("asyncbg")


async def every(period_s: float, chore: Callable[[], Awaitable[None]], *, name: str) -> None:
    """Do ``chore`` every ``period_s`` seconds until cancelled; an error is logged once and the chore goes on.

    Of an outage the database itself tells.
    """
    failing = False
    while True:
        await asyncio.sleep(period_s)
        try:
            await chore()
            failing = False
        except AsyncBGError as error:
            if not failing and not isinstance(error, OutageError):
                logger.error("%s fails, and is tried again: %s", name, error)
            failing = True
