"""The search language of jobs: ``task:send_email state:queued,scheduled``. Every term narrows the search."""

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from asyncbg.core.job import FINAL_STATES, JobRecord, JobState
from asyncbg.errors import JobNotFoundError, JobStateError
from asyncbg.store.base import JobQuery

_TERMS = ("task", "state", "queue", "tag", "owner", "batch")
_UNFINISHED = frozenset(JobState) - FINAL_STATES
_PAGE = 500


class SearchError(ValueError):
    """A search that cannot be parsed; the message says why."""


def unfinished(text: str) -> JobQuery:
    """Return a query for the unfinished jobs that a search matches. Raises SearchError, also for an empty search."""
    query = parse_search(text)
    states = (query.states or _UNFINISHED) & _UNFINISHED
    if not states:
        raise SearchError("finds only jobs that are final, and those cannot be cancelled")
    return replace(query, states=states, most_value_bytes=0)


def parse_search(text: str) -> JobQuery:
    """Parse a search. A value with blanks is quoted: ``tag:"two words"``. Raises SearchError."""
    found: dict[str, Any] = {}
    for word in _words(text):
        name, colon, value = word.partition(":")
        if not colon or name not in _TERMS or not value:
            raise SearchError(f"should be terms such as task:NAME; the terms are {', '.join(_TERMS)}")
        if name in found:
            raise SearchError(f"should hold each term once; {name} is there twice")
        found[name] = value
    if not found:
        raise SearchError("should hold at least one term such as task:NAME: without any it would find every job")
    states = _states(found.pop("state", ""))
    return JobQuery(states=states, **found)


def _words(text: str) -> Sequence[str]:
    try:
        return shlex.split(text)
    except ValueError:
        raise SearchError("should close every quote that it opens") from None


def _states(text: str) -> frozenset[JobState]:
    try:
        return frozenset(JobState(word) for word in text.split(",") if word)
    except ValueError:
        raise SearchError(f"should name states of {', '.join(JobState)}") from None


async def cancel_matching(
    find: Callable[[JobQuery], Awaitable[Sequence[JobRecord]]],
    cancel: Callable[[str], Awaitable[Any]],
    query: JobQuery,
    *,
    most: int,
) -> tuple[int, bool]:
    """Cancel up to ``most`` of the jobs that a query matches. Return how many, and whether there are more.

    The newest are cancelled first, so that a cancelled job does not release the next of its batch. A job that became
    final meanwhile does not count.
    """
    matched = 0
    while page := await find(replace(query, limit=min(_PAGE, most - matched) or 1)):
        if matched >= most:
            return matched, True
        outcomes = await asyncio.gather(*(cancel(record.id) for record in page), return_exceptions=True)
        for outcome in outcomes:
            if not isinstance(outcome, BaseException):
                matched += 1
            elif not isinstance(outcome, JobStateError | JobNotFoundError):
                raise outcome
        query = replace(query, before_n=page[-1].n)
    return matched, False
