"""The process that the kill loop kills: an engine at work, that leaves word of everything it was told was done.

It is forked from the loop, so that it starts in milliseconds; what it does from there on is what any process does.
Its words are lines in a file: a line that is written is kept by the kernel, however the writer ends.
"""

import asyncio
import json
import os
import random
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from asyncbg.core.event import Event
from asyncbg.engine import Engine, Job, Task
from asyncbg.engine.context import current_job
from asyncbg.engine.progress import Progress
from asyncbg.engine.target import prepare_target
from asyncbg.errors import AsyncBGError
from asyncbg.settings import load_settings

COROUTINES = 4
DRAIN_S = 300.0


class FragileError(Exception):
    """What a fragile job fails with at its first attempt."""


class Diary:
    """What the engine acknowledged or published, one JSON line each."""

    def __init__(self, path: Path) -> None:
        """Append to ``path``."""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: str, *words: object) -> None:
        """Write one line, in one write."""
        os.write(self._file, json.dumps([kind, *words]).encode() + b"\n")


class Victim:
    """The engine, its tasks and what is done with it."""

    def __init__(self, directory: Path, port: int, seed: int) -> None:
        """Work on the database in ``directory``; effects go to the receiver at ``port``."""
        self.rng = random.Random(seed)
        self.diary = Diary(directory / "diary.jsonl")
        self.port = port
        runner = {"concurrency": 20, "threads": 2, "shutdown_grace_s": 2}
        self.engine = Engine(load_settings(database_url=f"sqlite:///{directory / 'jobs.db'}", runner=runner))
        task = self.engine.task
        self.quick = task(name="quick")(_quick)
        self.steps = task(name="steps")(_steps)
        self.fragile = task(name="fragile", retries=2)(_fragile)
        self.once = task(name="once", at_most_once=True)(_wait)
        self.slow = task(name="slow")(_slow)
        self.effect = task(name="effect", retries=3)(self.post)
        self.known: list[Job] = []
        self._listen()

    def _listen(self) -> None:
        """Note every stored event before it is published."""

        def note(events: Sequence[Event]) -> None:
            self.diary.note("told", [[event.seq, event.type, event.job_id] for event in events])

        self.engine._parts.relay.listeners.insert(0, note)

    async def post(self, n: int) -> int:
        """Tell the receiver, with the job's id as the key that makes it one effect."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(json.dumps([current_job().id, current_job().attempt, n]).encode() + b"\n")
            assert await reader.readline() == b"ok\n"
        finally:
            writer.close()
        return n

    async def work(self) -> None:
        """Enqueue, cancel and retry until killed."""
        async with self.engine, asyncio.TaskGroup() as group:
            self.diary.note("open")
            for _ in range(COROUTINES):
                group.create_task(self._enqueue_many())
            group.create_task(self._steer())

    async def drain(self) -> None:
        """Run until every job is final, and end as a process does that is asked to."""
        async with self.engine, asyncio.timeout(DRAIN_S):
            while any((await self.engine.backend.counts()).values()):  # noqa: ASYNC110 - asked of the file itself
                await asyncio.sleep(0.05)

    async def _enqueue_many(self) -> None:
        orders: list[Callable[[int], Awaitable[object]]] = [
            self.quick.enqueue, self.steps.enqueue, self.fragile.enqueue, self.once.enqueue, self.effect.enqueue,
        ]  # fmt: skip
        while True:
            n = self.rng.randrange(1_000)
            if self.rng.random() < 0.03:
                await self._one(self.slow.enqueue, n)
            elif self.rng.random() < 0.15:
                await self._batch(n)
            else:
                await self._one(self.rng.choice(orders), n)
            await asyncio.sleep(self.rng.random() * 0.06)

    async def _one(self, enqueue: Callable[[int], Awaitable[object]], n: int) -> None:
        job = await enqueue(n)
        assert isinstance(job, Job)
        self.diary.note("accepted", job.id)
        self.known.append(job)

    async def _batch(self, n: int) -> None:
        choice: list[Task[..., Any]] = [self.quick, self.effect, self.steps]
        tasks = [self.rng.choice(choice) for _ in range(3)]
        prepared = [prepare_target(self.engine._parts.enqueuer, task, (n,), {}) for task in tasks]
        accepted = await self.engine._parts.enqueuer.accept(prepared)
        for job_id in accepted.ids:
            self.diary.note("accepted", job_id)
        self.known += [one.job for one in prepared]

    async def _steer(self) -> None:
        while True:
            await asyncio.sleep(self.rng.random() * 0.1)
            if not self.known:
                continue
            job = self.rng.choice(self.known[-30:])
            verb = self.rng.choice(["cancel", "retry"])
            try:
                state = await (job.cancel("enough") if verb == "cancel" else job.retry())
            except AsyncBGError:
                continue  # its state forbids it
            self.diary.note(verb, job.id, state.value)


async def _quick(n: int) -> int:
    return n


async def _wait(n: int) -> int:
    await asyncio.sleep(0.02)
    return n


async def _slow(n: int) -> int:
    """Long enough to be met by a kill now and then, by three seldom."""
    await asyncio.sleep(0.3)
    return n


async def _steps(n: int, progress: Progress = Progress()) -> int:
    for _ in range(5):
        progress.advance(1)
        await asyncio.sleep(0.004)
    return n


async def _fragile(n: int) -> int:
    await asyncio.sleep(0.005)
    if current_job().attempt == 1:
        raise FragileError("the first attempt always fails")
    return n
