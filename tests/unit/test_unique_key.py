"""The unique key of a task: refused where it can never work, made of the defaults too, else an error of its call."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import Depends, FastAPI

from asyncbg import AsyncBG, BackgroundTasks, Progress
from asyncbg.engine.target import prepare_target
from asyncbg.errors import ArgumentsError, UniqueKeyError
from asyncbg.testing import ManualBG


async def report(days: int = 1, *, zone: str = "UTC") -> None: ...
async def one(a: int, /, b: int = 2) -> None: ...
async def several(a: int, *rest: int, **more: int) -> None: ...
async def supplied(a: int, progress: Progress = Progress(), mailer: object = Depends(dict)) -> None: ...
async def nothing() -> None: ...


async def awaited(**_: object) -> str:
    """A key that would have to be awaited."""
    return ""


@pytest.fixture
def bg(tmp_path: Path) -> AsyncBG:
    """An engine, not started."""
    return AsyncBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)


@pytest.mark.parametrize(
    ("task", "key", "told"),
    [
        (report, "{day}", "{day} .* is no parameter of the task; use {days}, {zone}"),
        (report, "{}", "{} .* has no name; use {days}, {zone}"),
        (report, "{0}", r"\{0\} .* has no name"),
        (report, "{days:{width}}", "{width} .* is no parameter"),
        (report, "{days:{}}", "has no name"),
        (report, "{days.real}", "{days.real} is an attribute of a parameter; pass a function"),
        (report, "{zone[0]}", "is an attribute of a parameter"),
        (report, "{days!x}", "unknown conversion"),
        (report, "{days", "no format string"),
        (report, "days}", "no format string"),
        (report, 5, "text or a function, not int"),
        (report, awaited, "plain function"),
        (report, lambda day: "", r"\(days, zone\) and does not take them"),
        (report, lambda days: "", "take the others with \\*\\*_"),
        (report, lambda days, zone, more: "", "missing a required argument: 'more'"),
        (report, lambda *args: "", "does not take them"),
        (nothing, "{days}", "has no parameters, so leave the field out"),
        (nothing, lambda days: "", "no argument"),
        (supplied, "{progress}", "supplied when the job runs"),
        (supplied, "{mailer}", "supplied when the job runs"),
        (supplied, lambda a, progress: "", "does not take them"),
        (several, "{a.real}", "is an attribute of"),
    ],
)
def test_a_key_that_can_never_work_is_refused_when_decorated(
    bg: AsyncBG, task: Callable[..., Any], key: Any, told: str
) -> None:
    """The error names the task, the field and what to do; nothing is registered."""
    with pytest.raises(UniqueKeyError, match=f"^bad key= of task '{task.__name__}': .*{told}"):
        bg.task(key=key)(task)
    with pytest.raises(UniqueKeyError):
        bg.schedule("* * * * *")(bg.task(key=key)(task))

    assert bg._parts.registry.names == []


class Texts:
    """A function of another kind."""

    def __call__(self, **arguments: Any) -> str:
        """All of them."""
        return str(sorted(arguments.items()))


@pytest.mark.parametrize(
    ("task", "key", "args", "kwargs", "made"),
    [
        (report, "{days}", (), {}, "1"),
        (report, "{days}", ("7",), {}, "7"),
        (report, "{days:03}-{zone!r}", (7,), {"zone": "x"}, "007-'x'"),
        (report, "{{{days}}}", (), {}, "{1}"),
        (report, "nightly", (), {}, "nightly"),
        (report, lambda days, zone: f"{days}{zone}", (), {}, "1UTC"),
        (report, lambda zone, **_: zone, (), {}, "UTC"),
        (report, lambda **_: 5, (), {}, "5"),
        (report, Texts(), (3,), {}, "[('days', 3), ('zone', 'UTC')]"),
        (one, "{a}-{b}", (1,), {}, "1-2"),
        (one, lambda a, b: f"{a}-{b}", (1, 3), {}, "1-3"),
        (several, "{a} {rest}", (1,), {}, "1 []"),
        (several, "{a} {rest} {x}", (1, 2, 3), {"x": 4}, "1 [2, 3] 4"),
        (several, Texts(), (1, 2), {"x": 4}, "[('a', 1), ('rest', [2]), ('x', 4)]"),
        (supplied, "{a}", (1,), {}, "1"),
        (supplied, Texts(), (1,), {"mailer": {}}, "[('a', 1)]"),
    ],
)
def test_a_key_is_made_of_all_arguments(
    bg: AsyncBG, task: Callable[..., Any], key: Any, args: tuple[Any, ...], kwargs: dict[str, Any], made: str
) -> None:
    """Those left to their defaults, validated ones, positional ones; none that is supplied when the job runs."""
    assert prepare_target(bg._parts.enqueuer, bg.task(key=key)(task), args, kwargs).new.unique_key == made


class Unspeakable:
    """A result that has no text."""

    def __str__(self) -> str:
        """Fail."""
        raise SystemExit


def _raise(error: type[BaseException]) -> Callable[..., str]:
    def key(**_: object) -> str:
        raise error("x")

    return key


@pytest.mark.parametrize(
    "key",
    [
        _raise(ZeroDivisionError), _raise(asyncio.CancelledError), _raise(SystemExit), _raise(KeyboardInterrupt),
        _raise(GeneratorExit), _raise(StopIteration), lambda **_: Unspeakable(), lambda **_: "\ud800", "{days:%Y}",
    ],
)  # fmt: skip
async def test_a_key_that_cannot_be_made_is_an_error_of_its_call(tmp_path: Path, key: Any) -> None:
    """It names the task: 422 over HTTP and in a route, and the slot of a schedule is lost, no other."""
    bg, ran = ManualBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path), []
    bg.schedule("* * * * *")(task := bg.task(name="nightly", key=key)(report))

    @bg.schedule("* * * * *")
    async def other() -> None:
        ran.append("other")

    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")

    @app.post("/report")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(task)

    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        with pytest.raises(UniqueKeyError, match=r"^bad key= of task 'nightly': its (format|function) failed with"):
            await task.enqueue()
        answers = [await http.post("/report"), await http.post("/bg/jobs", json={"task": "nightly"})]
        bg.clock.advance(minutes=1)  # type: ignore[attr-defined]  # a ManualClock
        await bg.drain()
        bg.clock.advance(minutes=1)  # type: ignore[attr-defined]  # a ManualClock
        await bg.drain()
        ready = await http.get("/bg/health/ready")

    assert [answer.status_code for answer in (*answers, ready)] == [422, 422, 200]
    assert ["nightly" in answer.text for answer in answers] == [True, False]
    assert answers[1].json()["errors"][0]["type"] == "unique_key"
    assert ran == ["other", "other"]
    assert bg._parts.errors.counts["schedule"] == 2


async def test_a_call_left_to_its_defaults_has_the_key_of_one_that_names_them(tmp_path: Path) -> None:
    """In a route, over HTTP and by a schedule."""
    bg = ManualBG(database_url=f"sqlite:///{tmp_path}/jobs.db", data_dir=tmp_path)
    bg.schedule("* * * * *")(task := bg.task(key="{days}")(report))
    app = FastAPI(lifespan=bg.lifespan)
    app.include_router(bg.router, prefix="/bg")

    @app.post("/report")
    async def route(tasks: BackgroundTasks) -> str:
        job = tasks.add_task(task)
        await tasks.commit()
        return job.id

    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        first = await task.enqueue(1)
        in_route = await http.post("/report")
        by_name = await http.post("/bg/jobs", json={"task": "report"})
        bg.clock.advance(minutes=1)  # type: ignore[attr-defined]  # a ManualClock
        await bg.drain()
        scheduled = (await http.get("/bg/jobs", params={"tag": "schedule"})).json()["items"]

    assert in_route.json() == first.id
    assert by_name.status_code == 202
    assert len(scheduled) == 1


def test_a_schedule_says_which_parameter_needs_a_default(bg: AsyncBG) -> None:
    """Nobody is there to give it any."""
    with pytest.raises(
        ArgumentsError, match=r"task 'one': a: .*a schedule passes no arguments, so give the parameter a"
    ):
        bg.schedule("* * * * *")(one)
