"""Queries for the files that unfinished jobs still need."""

import json
from collections.abc import AsyncIterator, Collection

from asyncbg import JobState
from asyncbg.core.job import FINAL_STATES, JobRecord
from asyncbg.store.base import Backend, JobQuery

_UNFINISHED = frozenset(JobState) - FINAL_STATES
_PAGE = 500


async def unfinished_batches(backend: Backend, batches: Collection[str]) -> Collection[str]:
    """Return those of the batches that have an unfinished job."""
    return [
        batch for batch in batches if await backend.list(JobQuery(states=_UNFINISHED, batch=batch, limit=1))
    ]  # fmt: skip


async def needed_uploads(backend: Backend, tokens: Collection[str]) -> Collection[str]:
    """Return those of the uploads that an unfinished job names; all of them if a job's arguments are unreadable."""
    needed: set[str] = set()
    async for record in _unfinished_imports(backend):
        token = json.loads(record.args).get("upload")
        if token is None:
            return tokens
        needed.add(token)
    return needed.intersection(tokens)


async def _unfinished_imports(backend: Backend) -> AsyncIterator[JobRecord]:
    before_n = None
    while page := await backend.list(
        JobQuery(states=_UNFINISHED, task="process_csv", before_n=before_n, limit=_PAGE)
    ):  # fmt: skip
        for record in page:
            found = await backend.get(record.id)  # a list may show arguments in part
            if found is not None:
                yield found
        before_n = page[-1].n
