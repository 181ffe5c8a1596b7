"""The example app, before and after: the difference is the import, the lifespan and the router, and nothing else."""

import difflib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from starlette.testclient import TestClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "signup"


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Load one of the two files, to run in a directory of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ASYNCBG_DATABASE_URL", "sqlite:///asyncbg.db")
    loaded: list[str] = []

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(f"signup_{name}", EXAMPLE / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        loaded.append(spec.name)
        spec.loader.exec_module(module)
        return module

    yield load
    for name in loaded:
        del sys.modules[name]


def test_only_the_import_the_lifespan_and_the_router_differ() -> None:
    """Every route, every dependency and every task is the same text in both files."""
    before, after = ((EXAMPLE / f"{name}.py").read_text("utf-8").splitlines() for name in ("before", "after"))
    changes = [line for line in difflib.ndiff(before, after) if line[0] in "+-" and line[1:].strip()]

    assert [line[2:] for line in changes if line[0] == "-"] == [
        "from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException",
        'app = FastAPI(title="Signup")',
    ]
    assert [line[2:] for line in changes if line[0] == "+"] == [
        "from fastapi import Depends, FastAPI, HTTPException",
        "from asyncbg import AsyncBG, BackgroundTasks",
        "bg = AsyncBG()",
        'app = FastAPI(title="Signup", lifespan=bg.lifespan)',
        'app.include_router(bg.router, prefix="/bg")',
    ]


@pytest.mark.parametrize("name", ["before", "after"])
def test_both_do_the_same(name: str, load: Callable[[str], ModuleType], tmp_path: Path) -> None:
    """The same requests get the same answers and have the same effects."""
    with TestClient(load(name).app) as client:
        answers = [
            client.post("/signup", params={"email": "ada.canary7f3a@canary7f3a.example", "language": "fr"}),
            client.post("/signup", params={"email": "ada.canary7f3a@canary7f3a.example"}),
            client.post("/members/ada.canary7f3a@canary7f3a.example/reminder"),
            client.post("/members/bob.canary7f3a@canary7f3a.example/reminder"),
        ]
        if name == "after":
            wait_for_all(client)

    assert [answer.status_code for answer in answers] == [200, 409, 200, 404]
    assert [answer.json() for answer in answers[::2]] == [{"message": "welcome"}, {"message": "on its way"}]
    assert sorted((tmp_path / "outbox.txt").read_text().splitlines()) == [
        "welcome (en) to ada.canary7f3a@canary7f3a.example",
        "welcome (fr) to ada.canary7f3a@canary7f3a.example",
    ]
    assert (tmp_path / "index.txt").read_text() == "ada.canary7f3a@canary7f3a.example\n"
    assert (tmp_path / "audit.txt").read_text() == "signup of ada.canary7f3a@canary7f3a.example\n"


def test_after_there_is_more_to_see(load: Callable[[str], ModuleType]) -> None:
    """Each task is a job, with a state, events and a batch for the request that added it."""
    with TestClient(load("after").app) as client:
        client.post("/signup", params={"email": "ada.canary7f3a@canary7f3a.example"})
        jobs = wait_for_all(client)

    assert [job["task"].rpartition(":")[2] for job in reversed(jobs)] == ["write", "send_welcome", "index_member"]
    assert {job["state"] for job in jobs} == {"succeeded"}
    assert len({job["batch"] for job in jobs}) == 1
    assert all(job["durable"] for job in jobs)


def wait_for_all(client: TestClient) -> list[dict[str, str]]:
    """All jobs, newest first, when they are final."""
    items = client.get("/bg/jobs").json()["items"]
    return [client.get(f"/bg/jobs/{item['id']}", params={"wait": 5}).json() for item in items]
