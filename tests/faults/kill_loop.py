"""Kills a working process again and again, then asks of everything it was promised whether it happened.

``python -m tests.faults.kill_loop --cycles 1000`` prints the figures of docs/reliability.md and ends with 1 if any
promise was broken. Each cycle forks a process, lets it accept and run jobs, and ends it by SIGKILL at a random moment,
the opening of the database included. A last process, that is not killed, finishes what is left.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Coroutine
from contextlib import closing
from pathlib import Path
from typing import Any

from tests.faults.verdict import Kills, judge
from tests.faults.victim import Victim

LONGEST_LIFE_S = 0.7


def fork(main: Callable[[], Coroutine[Any, Any, None]]) -> int:
    """Run a coroutine in a process of its own; its id."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        logging.disable(logging.CRITICAL)
        asyncio.run(main())
        code = 0
    except BaseException:  # noqa: BLE001 - whatever it is, the child must not return into the loop
        traceback.print_exc()
    finally:
        os._exit(code)


async def receive(diary: Path, port_to: int) -> None:
    """The peer of the effects: keeps one effect for each job id, and every delivery it was offered."""
    log = diary.open("a", buffering=1)

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if line := await reader.readline():
            log.write(line.decode())
            writer.write(b"ok\n")
        writer.close()

    server = await asyncio.start_server(take, "127.0.0.1", 0)
    os.write(port_to, f"{server.sockets[0].getsockname()[1]}\n".encode())
    await server.serve_forever()


def start_receiver(directory: Path) -> tuple[int, int]:
    """Start the receiver: its process id and its port."""
    reading, writing = os.pipe()
    pid = fork(lambda: receive(directory / "deliveries.jsonl", writing))
    os.close(writing)
    with os.fdopen(reading) as words:
        return pid, int(words.readline())


def end(pid: int, sign: int) -> int:
    """Send a signal, and wait for the end; its exit code."""
    os.kill(pid, sign)
    return wait(pid)


def wait(pid: int) -> int:
    """Wait for a process's end; its exit code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def running_now(path: Path) -> list[tuple[str, int]]:
    """The jobs that ran when the process died: id, and the number of the event that began the attempt."""
    with closing(sqlite3.connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'event'").fetchone():
            return []
        return connection.execute(
            "SELECT job.id, max(event.seq) FROM job JOIN event ON event.job = job.n AND event.type = 'job.started' "
            "WHERE job.state = 'running' GROUP BY job.n"
        ).fetchall()


def kill_again_and_again(directory: Path, cycles: int, rng: random.Random, port: int) -> Kills:
    """Do the cycles; what ran at each kill."""
    kills = Kills()
    for cycle in range(cycles):
        seed = rng.getrandbits(32)
        pid = fork(lambda seed=seed: Victim(directory, port, seed).work())  # type: ignore[misc]  # a default binds it
        time.sleep(rng.uniform(0.0, LONGEST_LIFE_S))
        if end(pid, signal.SIGKILL) != -signal.SIGKILL:
            kills.ended_by_themselves += 1
        if (directory / "jobs.db").exists():
            kills.met(running_now(directory / "jobs.db"))
        if (cycle + 1) % 100 == 0:
            print(f"{cycle + 1} kills", flush=True)  # noqa: T201 - a long run tells how far it is
    return kills


def main() -> int:
    """Run the loop and print what became of the promises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cycles", type=int, default=10)
    parser.add_argument("--seed", type=int, default=None)
    chosen = parser.parse_args()
    seed = random.SystemRandom().getrandbits(32) if chosen.seed is None else chosen.seed
    started_s = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        receiver, port = start_receiver(directory)
        try:
            kills = kill_again_and_again(directory, chosen.cycles, random.Random(seed), port)
            clean = wait(fork(Victim(directory, port, seed).drain))
        finally:
            end(receiver, signal.SIGKILL)
        figures, broken = judge(directory, kills)
    if clean != 0:
        broken.append(f"the last process did not end by itself, with every job final: exit code {clean}")
    figures = {"kills": chosen.cycles, "seed": seed, "seconds": round(time.monotonic() - started_s)} | figures
    print(json.dumps({"figures": figures, "broken": broken}, indent=2))  # noqa: T201 - the report
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
