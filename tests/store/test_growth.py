"""What the engine does all the time costs the same, however much is stored."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest


def load_benchmark() -> ModuleType:
    """The benchmark, which fills a database and has the operations by name."""
    path = Path(__file__).parents[2] / "benchmarks" / "growth.py"
    spec = importlib.util.spec_from_file_location("growth", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


growth = load_benchmark()


@pytest.mark.parametrize("kind", growth.KINDS)
async def test_the_work_does_not_grow_with_what_is_stored(kind: str) -> None:
    """Counted in steps of SQLite's virtual machine, with one job of a kind and with two thousand."""
    few, many = [await growth.measure(kind, size, 2, growth.StepCounter()) for size in (1, 2_000)]

    grown = {name: (cost, many[name]) for name, cost in few.items() if many[name] > growth.LIMIT * cost}
    assert not grown
