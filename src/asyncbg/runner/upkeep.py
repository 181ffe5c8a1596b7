"""The chores: heartbeat, rescue, the log's tail, retention. One loop each, none of which ends on an error."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from asyncbg.errors import AsyncBGError

logger = logging.getLogger("asyncbg")


async def every(period_s: float, chore: Callable[[], Awaitable[None]], *, name: str) -> None:
    """Do ``chore`` every ``period_s`` seconds until cancelled; an error is logged once and the chore goes on."""
    failing = False
    while True:
        await asyncio.sleep(period_s)
        try:
            await chore()
            failing = False
        except AsyncBGError as error:
            if not failing:
                logger.error("%s fails, and is tried again: %s", name, error)
            failing = True
