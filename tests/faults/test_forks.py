"""A place and the lock of the checkpoints belong to the process that took them, whatever its children do."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from time import sleep

import pytest

from asyncbg.store.sqlite.file_lock import FileLock
from asyncbg.store.sqlite.process_slot import ProcessSlot

Child = Callable[[], tuple[int, Callable[[], None]]]


def _forked() -> tuple[int, Callable[[], None]]:
    """A child by ``os.fork`` that sleeps; its id, and how to collect it."""
    pid = os.fork()
    if pid == 0:
        sleep(60)
        os._exit(0)
    return pid, lambda: _wait(pid)


def _multiprocessed() -> tuple[int, Callable[[], None]]:
    process = get_context("fork").Process(target=sleep, args=(60,), daemon=True)
    process.start()
    assert process.pid is not None
    return process.pid, process.join


def _executed() -> tuple[int, Callable[[], None]]:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    return process.pid, lambda: _done(process)


def _wait(pid: int) -> None:
    os.waitpid(pid, 0)


def _done(process: "subprocess.Popen[bytes]") -> None:
    process.wait()


@contextmanager
def living(start: Child) -> Iterator[None]:
    """A child that lives until the block ends."""
    pid, collect = start()
    try:
        yield
    finally:
        os.kill(pid, signal.SIGKILL)
        collect()


CHILDREN = pytest.mark.parametrize("start", [_forked, _multiprocessed, _executed])


@CHILDREN
def test_a_place_is_free_when_it_is_left_though_a_child_lives_on(tmp_path: Path, start: Child) -> None:
    """A neighbour finds it gone at once, and the next process takes it."""
    mine, next_one = ProcessSlot(tmp_path / "jobs.db"), ProcessSlot(tmp_path / "jobs.db")
    mine.acquire()
    with living(start):
        mine.release()

        assert next_one.gone([mine.name]) == [mine.name]
        next_one.acquire()
        assert next_one.name == mine.name
        next_one.release()


@CHILDREN
def test_a_child_that_ends_does_not_free_its_parents_place(tmp_path: Path, start: Child) -> None:
    """Neither its birth nor its end lets anybody take what the parent still holds."""
    mine, neighbour = ProcessSlot(tmp_path / "jobs.db"), ProcessSlot(tmp_path / "jobs.db")
    mine.acquire()
    try:
        with living(start):
            assert neighbour.gone([mine.name]) == []
        assert neighbour.gone([mine.name]) == []
    finally:
        mine.release()


KILLED = """
import os, signal, subprocess, sys, time
from multiprocessing import get_context
from pathlib import Path
from asyncbg.store.sqlite.process_slot import ProcessSlot

place = ProcessSlot(Path(sys.argv[1]))
place.acquire()
if sys.argv[2] == "fork":
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
elif sys.argv[2] == "multiprocessing":
    process = get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    child = process.pid
else:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False).pid
print(child, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["fork", "multiprocessing", "subprocess"])
def test_the_place_of_a_killed_process_is_free_though_its_child_lives_on(tmp_path: Path, how: str) -> None:
    """The child has let go of what it inherited, so that the kernel frees the lock with the parent."""
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(tmp_path / "jobs.db"), how], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    child = int(process.stdout.readline())
    try:
        assert process.wait(20) == -signal.SIGKILL
        assert ProcessSlot(tmp_path / "jobs.db").gone(["0"]) == ["0"]
    finally:
        os.kill(child, signal.SIGKILL)
        process.stdout.close()


def test_a_lock_that_is_tried_while_a_child_is_born_is_free_afterwards(tmp_path: Path) -> None:
    """Who looks whether a place is free holds its lock for a moment; a child born in it keeps nothing."""
    looking, other = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    looking.open(create=True)
    other.open(create=True)
    assert looking.try_lock()
    with living(_forked):
        looking.unlock()

        assert other.try_lock()
    looking.close()
    other.close()
