"""The supervisor: a loop that ends by itself is started again, and one that is stopped is not."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from asyncbg.core.error_log import ErrorLog, ends_task, without_messages
from asyncbg.core.supervisor import Supervisor

SOON_S = 10
"""No test waits so long unless it fails."""


@pytest.fixture
async def supervisor() -> AsyncIterator[Supervisor]:
    """A supervisor of nothing yet."""
    supervisor = Supervisor()
    yield supervisor
    await supervisor.stop()


class _Loop:
    """A loop that does as it is told each time it is started: raise something, or go on."""

    def __init__(self, *raises: BaseException | None) -> None:
        self._raises = iter(raises)
        self.started = asyncio.Semaphore(0)

    async def __call__(self) -> None:
        self.started.release()
        error = next(self._raises, None)
        if error is not None:
            raise error
        await asyncio.Event().wait()

    async def starts(self, times: int) -> None:
        """Wait until it was started so often."""
        async with asyncio.timeout(SOON_S):
            for _ in range(times):
                await self.started.acquire()


@pytest.mark.parametrize(
    "error", [ValueError("x"), asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt(), GeneratorExit()], ids=repr
)
async def test_a_loop_that_dies_is_started_again(supervisor: Supervisor, error: BaseException) -> None:
    """Whatever it raised, and it is counted."""
    loop = _Loop(error)
    supervisor.start("one", loop)
    supervisor.start("other", _Loop())

    await loop.starts(2)

    assert supervisor.restarts == {"one": 1, "other": 0}
    assert supervisor.down == []


async def test_a_loop_that_somebody_cancelled_is_started_again(supervisor: Supervisor) -> None:
    """Only the supervisor's own stop ends it for good."""
    loop = _Loop()
    supervisor.start("one", loop)
    await loop.starts(1)

    next(task for task in asyncio.all_tasks() if task.get_name() == "asyncbg-one").cancel()

    await loop.starts(1)
    assert supervisor.restarts == {"one": 1}


async def test_a_loop_is_down_until_it_is_started_again(
    supervisor: Supervisor, caplog: pytest.LogCaptureFixture
) -> None:
    """Readiness can tell; the traceback is in the log at once, and each pause is longer than the one before."""
    loop = _Loop(RuntimeError("broken"), RuntimeError("broken"))
    supervisor.start("one", loop)
    await loop.starts(1)
    await asyncio.sleep(0)
    assert supervisor.down == ["one"]

    await loop.starts(2)

    assert supervisor.down == []
    failures = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert [record.message for record in failures] == [
        "the loop one failed and is started again in 0.1 s",
        "the loop one failed and is started again in 0.2 s",
    ]
    assert all(record.exc_info or record.exc_text for record in failures)


async def test_a_loop_that_returns_is_over(supervisor: Supervisor) -> None:
    """As the worker's does, when a shutdown has begun: it did what it was told."""

    async def returns() -> None:
        """End."""

    supervisor.start("one", returns)
    while supervisor.is_busy:  # noqa: ASYNC110 - nothing tells
        await asyncio.sleep(0)

    assert (supervisor.down, supervisor.restarts) == ([], {"one": 0})


async def test_a_stop_ends_every_loop(supervisor: Supervisor) -> None:
    """Those that run, and those that wait for their next start."""
    running, dead = _Loop(), _Loop(ValueError())
    supervisor.start("running", running)
    supervisor.start("dead", dead)
    await dead.starts(1)

    await supervisor.stop()

    assert [
        task.get_name() for task in asyncio.all_tasks() if task.get_name() in {"asyncbg-running", "asyncbg-dead"}
    ] == []
    assert not supervisor.is_busy


async def test_only_a_cancellation_of_the_task_itself_ends_it() -> None:
    """One from a future that somebody else cancelled is an error like any other."""

    async def foreign() -> bool:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        try:
            await future
        except asyncio.CancelledError as error:
            return ends_task(error)
        return False

    async def own() -> bool:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError as error:
            return ends_task(error)
        return False

    cancelled = asyncio.create_task(own())
    await asyncio.sleep(0)
    cancelled.cancel()

    assert (await foreign(), await cancelled) == (False, True)
    assert not ends_task(SystemExit())
    assert not ends_task(GeneratorExit())


def test_a_coroutine_that_is_closed_ends() -> None:
    """No task runs then."""
    assert ends_task(GeneratorExit())


def test_a_logged_error_says_where_and_not_what(caplog: pytest.LogCaptureFixture) -> None:
    """A message may quote personal data; the classes, the lines, the cause and the errors of a group are all there."""

    secret = "x7" + "f3a"

    def fail() -> None:
        try:
            {"a": 1}[secret]
        except KeyError as error:
            raise ExceptionGroup(secret, [ValueError(secret), TypeError(secret)]) from error

    errors = ErrorLog()
    try:
        fail()
    except ExceptionGroup as error:
        errors.add("handler", error, "it failed")

    text = caplog.text
    assert secret not in text
    assert [name in text for name in ("KeyError", "ExceptionGroup", "ValueError", "TypeError", "in fail")] == [True] * 5
    assert errors.counts == {"handler": 1}


def test_an_endless_recursion_is_told_in_few_lines() -> None:
    """The innermost frames tell all."""

    def descend(n: int) -> int:
        return descend(n + 1) + 1

    try:
        descend(0)
    except RecursionError as error:
        shown = without_messages(error)

    frames, found = 0, shown.__traceback__
    while found is not None:
        frames, found = frames + 1, found.tb_next
    assert 0 < frames <= 51


def test_a_log_that_fails_is_survived(caplog: pytest.LogCaptureFixture) -> None:
    """An application's own filter may raise; the error is counted all the same."""

    def breaks(_: logging.LogRecord) -> bool:
        raise RuntimeError("a filter of the application")

    errors, log = ErrorLog(), logging.getLogger("asyncbg")
    log.addFilter(breaks)
    try:
        errors.add("handler", ValueError(), "it failed")
    finally:
        log.removeFilter(breaks)

    assert errors.counts == {"handler": 1, "logging": 1}
    assert caplog.records == []


def test_what_fails_again_and_again_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """Until it has recovered, or fails in another way; it is counted each time."""
    errors = ErrorLog()
    for error in (ValueError(), ValueError(), TypeError()):
        errors.add_once("claim", error, "cannot claim")
    errors.recovered("claim")
    errors.add_once("claim", TypeError(), "cannot claim")

    assert (errors.counts["claim"], len(caplog.records)) == (4, 3)
