"""``add_task`` takes what Starlette's takes: any function, any signature."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest
from fastapi import FastAPI, Request, UploadFile
from pydantic import BaseModel

from asyncbg import AsyncBG, BackgroundTasks, Job, JobBackgroundTasks
from asyncbg.errors import ArgumentsError

seen: list[Any] = []


@pytest.fixture(autouse=True)
def _nothing_seen() -> None:
    seen.clear()


async def everything(a: Any, /, b: int, *rest: int, c: str = "c", **named: Any) -> None:
    """Every kind of parameter."""
    seen.append((a, b, rest, c, named))


def plain_everything(a: Any, /, b: int, *rest: int, c: str = "c", **named: Any) -> None:
    """Every kind of parameter, in a thread."""
    seen.append((a, b, rest, c, named))


async def awkward(model_config: str, copy: int, schema: bool, json: list[int], validate: str = "v") -> None:
    """Names that pydantic models use themselves."""
    seen.append((model_config, copy, schema, json, validate))


async def named_like_ours(func: str, args: int, kwargs: str, engine: str, prepared: int) -> None:
    """Names that our own functions use."""
    seen.append((func, args, kwargs, engine, prepared))


def unannotated(a, b=2, *c, **d):  # type: ignore[no-untyped-def]
    """No annotation at all."""
    seen.append((a, b, c, d))


async def later(item: "Item", items: "list[Item]") -> None:
    """Annotations that name what comes later in the module."""
    seen.append((item, items))


class Item(BaseModel):
    """A model."""

    name: str
    price: float = 0


@dataclass
class Point:
    """A dataclass."""

    x: int
    y: int = 0


class Greeter:
    """Methods of every kind."""

    def __init__(self, word: str = "hello") -> None:
        """Remember the word."""
        self.word = word

    async def __call__(self, name: str) -> None:
        """Callable itself."""
        seen.append(f"{self.word} {name}")

    def greet(self, name: str) -> None:
        """A method."""
        seen.append(f"{self.word} {name}")

    async def greet_async(self, name: str) -> None:
        """An async method."""
        seen.append(f"{self.word} {name}")

    async def itself(this, self: str) -> None:  # noqa: N805 - the name of the parameter is the point
        """A parameter called self."""
        seen.append(f"{this.word} {self}")

    @classmethod
    async def of_class(cls, name: str) -> None:
        """A class method."""
        seen.append(f"{cls.__name__} {name}")

    @staticmethod
    def static(name: str) -> None:
        """A static method."""
        seen.append(name)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator as people write them."""

    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        seen.append("before")
        return await function(*args, **kwargs)

    return wrapper


@logged
async def decorated(name: str, times: int = 1) -> None:
    """Below a decorator."""
    seen.append(name * times)


@logged
async def decorated_otherwise(number: int) -> None:
    """Below the same decorator, with another signature."""
    seen.append(number)


@pytest.fixture
def run(app: FastAPI, serve: Any) -> Callable[..., Any]:
    """``await run(function, *args, **kwargs)``: hand it over in a request and wait for its job."""

    async def request(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job:
        jobs: list[Job] = []

        @app.post("/")
        async def route(background_tasks: BackgroundTasks) -> None:
            jobs.append(background_tasks.add_task(function, *args, **kwargs))

        http = await serve(app)
        answer = await http.post("/")
        assert answer.status_code == 200, answer.text
        await jobs[0].result(timeout=5)
        return jobs[0]

    return request


@pytest.mark.parametrize("function", [everything, plain_everything])
@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((1, 2), {}, (1, 2, (), "c", {})),
        ((1,), {"b": 2}, (1, 2, (), "c", {})),
        ((1, 2, 3, 4), {"c": "d"}, (1, 2, (3, 4), "d", {})),
        ((1, 2), {"a": 9, "e": [1, {"f": None}]}, (1, 2, (), "c", {"a": 9, "e": [1, {"f": None}]})),
        (({"deep": [1.5, True]}, 2), {}, ({"deep": [1.5, True]}, 2, (), "c", {})),
    ],
)
async def test_positional_and_keyword_arguments_arrive_as_given(
    run: Any, function: Any, args: Any, kwargs: Any, expected: Any
) -> None:
    """Positional-only, positional, *args, keyword-only and **kwargs, sync and async."""
    await run(function, *args, **kwargs)

    assert seen == [expected]


async def test_parameters_may_be_named_like_pydantic_s_own(run: Any) -> None:
    """``model_config``, ``copy``, ``schema`` and ``json`` are names like any other."""
    await run(awkward, "m", copy=1, schema=True, json=[1])

    assert seen == [("m", 1, True, [1], "v")]


async def test_parameters_may_be_named_like_ours(run: Any) -> None:
    """Only ``func`` cannot be given by keyword, as in Starlette, where it names the function."""
    await run(named_like_ours, "f", args=1, kwargs="k", engine="e", prepared=2)

    assert seen == [("f", 1, "k", "e", 2)]


async def test_parameters_need_no_annotation(run: Any) -> None:
    """What is not annotated takes anything that has a JSON form as it is."""
    await run(unannotated, "a", 3, 4, e=5)

    assert seen == [("a", 3, (4,), {"e": 5})]


async def test_annotations_may_name_what_comes_later(run: Any) -> None:
    """Models are validated when added and rebuilt from JSON when the task runs, also inside containers."""
    await run(later, {"name": "a"}, items=[Item(name="b", price=2)])

    assert seen == [(Item(name="a"), [Item(name="b", price=2)])]


async def test_an_annotation_that_names_nothing_known_takes_anything(run: Any) -> None:
    """As with names that are imported for type checkers only; the other parameters are validated all the same."""

    async def function(a: "Missing", b: int) -> None:  # type: ignore[name-defined]  # noqa: F821 - the point
        seen.append((a, b))

    await run(function, "a", "2")
    assert seen == [("a", 2)]


async def test_defaults_are_the_function_s_when_it_runs(run: Any, bg: AsyncBG) -> None:
    """A default is not stored with the job: a new default counts for the jobs that wait."""
    job = await run(everything, 1, 2)

    record = await bg.get(job.id)
    assert "c" not in record.args


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (Greeter("hi"), "hi Ada"),
        (Greeter("hi").greet, "hi Ada"),
        (Greeter("hi").greet_async, "hi Ada"),
        (Greeter("hi").itself, "hi Ada"),
        (Greeter.of_class, "Greeter Ada"),
        (Greeter.static, "Ada"),
        (functools.partial(Greeter("hi").greet), "hi Ada"),
        (functools.partial(functools.partial(Greeter.of_class)), "Greeter Ada"),
        (seen.append, "Ada"),
        (lambda name: seen.append(f"my {name}"), "my Ada"),
    ],
)
async def test_any_callable_will_do(run: Any, function: Any, expected: str) -> None:
    """Objects, bound methods, class and static methods, partials, builtins and lambdas."""
    await run(function, "Ada")

    assert seen == [expected]


async def test_a_parameter_called_self_is_given_by_keyword(run: Any) -> None:
    """``self`` of the container stands in nobody's way."""
    await run(Greeter("hi").itself, self="Ada")

    assert seen == ["hi Ada"]


async def test_a_partial_brings_its_arguments(run: Any, bg: AsyncBG) -> None:
    """A partial is taken apart: the function below it is durable, and the arguments are checked together."""
    job = await run(functools.partial(everything, 1, c="p"), 2, d=3)

    assert seen == [(1, 2, (), "p", {"d": 3})]
    assert (await bg.get(job.id)).durable


async def test_functions_below_one_decorator_keep_their_own_signatures(app: FastAPI, serve: Any, bg: AsyncBG) -> None:
    """The wrapper's code is the same, what it wraps is not."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(decorated, "a", times="2"))
        jobs.append(background_tasks.add_task(decorated_otherwise, "3"))

    http = await serve(app)
    await http.post("/")
    await jobs[1].result(timeout=5)

    assert seen == ["before", "aa", "before", 3]
    assert [(await bg.get(job.id)).durable for job in jobs] == [True, True]


async def test_closures_of_one_definition_keep_their_own_defaults(app: FastAPI, serve: Any) -> None:
    """Each keeps what it closes over."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        for number in (1, 2):

            async def function(text: str, number: int = number) -> None:
                seen.append((text, number))

            jobs.append(background_tasks.add_task(function, "a"))

    http = await serve(app)
    await http.post("/")
    await jobs[1].result(timeout=5)

    assert seen == [("a", 1), ("a", 2)]


@pytest.mark.parametrize("mock", [Mock(return_value=None), AsyncMock(return_value=None)], ids=["Mock", "AsyncMock"])
async def test_a_mock_records_its_call(run: Any, mock: Mock) -> None:
    """As tests of routes with background tasks often do."""
    await run(mock, "a", b=2)

    mock.assert_called_once_with("a", b=2)


async def test_a_builtin_that_tells_no_signature_takes_anything(run: Any) -> None:
    """Its arguments cannot be checked when added."""
    target = {"a": 1}

    await run(target.update, {"b": 2}, c=3)

    assert target == {"a": 1, "b": 2, "c": 3}


@pytest.mark.parametrize(
    ("args", "kwargs", "where"),
    [
        ((), {}, "missing"),
        (("a", "b", "c"), {}, "too many"),
        (("a",), {"name": "b"}, "given twice"),
        (("a",), {"colour": "red"}, "unknown"),
        (("a",), {"times": "often"}, "wrong type"),
    ],
)
async def test_what_does_not_fit_raises_where_it_is_added(bg: AsyncBG, args: Any, kwargs: Any, where: str) -> None:
    """Python would raise in the background; here the call in the route raises, with pydantic's list of errors."""
    tasks = JobBackgroundTasks(engine=bg)

    with pytest.raises(ArgumentsError) as caught:
        tasks.add_task(decorated, *args, **kwargs)

    assert caught.value.errors, where
    assert tasks.tasks == []


# What is in an argument


async def test_an_argument_is_a_copy(app: FastAPI, serve: Any) -> None:
    """What the route does to a list after adding it does not change the job: JSON was taken of it."""
    jobs: list[Job] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        names = ["a"]
        jobs.append(background_tasks.add_task(unannotated, names))
        names.append("b")

    http = await serve(app)
    await http.post("/")
    await jobs[0].result(timeout=5)

    assert seen == [(["a"], 2, (), {})]


async def test_a_request_is_no_json_but_runs(app: FastAPI, serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    """An object such as the request makes the job not durable; it runs with the object itself."""
    jobs: list[Job] = []
    given: list[Request] = []

    async def path_of(request: Request) -> None:
        seen.append(request.url.path)

    @app.post("/here")
    async def route(request: Request, background_tasks: BackgroundTasks) -> None:
        given.append(request)
        jobs.append(background_tasks.add_task(path_of, request))
        jobs.append(background_tasks.add_task(unannotated, request))

    http = await serve(app)
    with caplog.at_level(logging.WARNING, "asyncbg"):
        await http.post("/here")
    await jobs[1].result(timeout=5)

    assert seen == ["/here", (given[0], 2, (), {})]
    assert [(await http.get(f"/bg/jobs/{job.id}")).json()["durable"] for job in jobs] == [False, False]


async def test_an_upload_is_no_json_but_runs(app: FastAPI, serve: Any) -> None:
    """It must be read in the route, as FastAPI closes it with the request; its name is still there."""
    jobs: list[Job] = []

    async def name_of(file: UploadFile, content: bytes) -> None:
        seen.append((file.filename, content))

    @app.post("/")
    async def route(file: UploadFile, background_tasks: BackgroundTasks) -> None:
        jobs.append(background_tasks.add_task(name_of, file, await file.read()))

    http = await serve(app)
    await http.post("/", files={"file": ("a.txt", b"abc")})
    await jobs[0].result(timeout=5)

    assert seen == [("a.txt", b"abc")]


async def test_an_object_of_any_class_is_handed_over_itself(run: Any, bg: AsyncBG) -> None:
    """A session, a client, a generator: not durable, not copied, not consumed."""
    session = object()
    numbers = (number for number in range(3))

    job = await run(unannotated, session, numbers)

    assert seen == [(session, numbers, (), {})]
    assert list(numbers) == [0, 1, 2]
    assert not (await bg.get(job.id)).durable


async def test_an_instance_of_the_wrong_class_raises_at_the_call(bg: AsyncBG) -> None:
    """An annotation with any class is checked by ``isinstance``."""

    def function(greeter: Greeter) -> None: ...

    with pytest.raises(ArgumentsError):
        JobBackgroundTasks(engine=bg).add_task(function, "no greeter")  # type: ignore[arg-type]


async def test_dataclasses_and_models_survive_where_the_signature_names_them(run: Any, bg: AsyncBG) -> None:
    """They are rebuilt from their JSON when the task runs."""
    durable = await run(of_points, Point(1, 2), [Point(3)])
    assert seen == [(Point(1, 2), [Point(3)])]
    assert (await bg.get(durable.id)).durable


async def of_points(point: Point, points: list[Point]) -> None:
    """Takes dataclasses."""
    seen.append((point, points))


async def test_an_unnamed_dataclass_is_handed_over_itself(run: Any, bg: AsyncBG) -> None:
    """Without an annotation nothing tells how to read it back, so the job is not durable."""
    job = await run(unannotated, Point(1, 2))

    assert seen == [(Point(1, 2), 2, (), {})]
    assert not (await bg.get(job.id)).durable
