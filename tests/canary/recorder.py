"""Keeps what the taps of one process see: counts of all of it, and every leak, in a directory that the suite shares.

A leak is written at once and the counts are in a shared map, so that both survive a process that is killed.
"""

import json
import mmap
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from .allowed import reason_for
from .search import Search

DIRECTORY = "CANARY_DIR"
"""The variable that names the directory, in the suite and in every child process."""

KINDS = ("output", "log", "body", "header", "span")
_MOST_LEAKS = 200


@dataclass(frozen=True)
class Leak:
    """Personal data that came out."""

    kind: str
    where: str
    test: str
    text: str

    def __str__(self) -> str:
        """For the list at the end of a run."""
        return f"{self.kind}: {self.where}\n    in {self.test}\n    {self.text!r}"


class Recorder:
    """The recorder of this process."""

    def __init__(self, directory: Path) -> None:
        """Write to ``directory`` unless the environment names another by then."""
        self._directory = directory
        self._leaks = 0
        handle, _ = tempfile.mkstemp(".counts", f"{os.getpid()}-", directory)
        os.truncate(handle, 16 * len(KINDS))
        self._counts = memoryview(mmap.mmap(handle, 0)).cast("Q")
        os.close(handle)

    def see(self, kind: str, where: str, data: bytes, search: Search | None = None) -> None:
        """Search ``data``, which is whole or goes on from what ``search`` has seen; count it."""
        cell = 2 * KINDS.index(kind)
        self._counts[cell] += 1
        self._counts[cell + 1] += len(data)
        found = (search or Search()).feed(data)
        if leaked := [text for text in found if reason_for(kind, where, text) is None]:
            self._write(Leak(kind, where, os.environ.get("PYTEST_CURRENT_TEST", "no test"), leaked[0]))

    def _write(self, leak: Leak) -> None:
        self._leaks += 1
        if self._leaks <= _MOST_LEAKS:
            directory = Path(os.environ.get(DIRECTORY, self._directory))
            with (directory / f"{os.getpid()}.leaks").open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(leak)) + "\n")


def leaks_in(directory: Path) -> list[Leak]:
    """All leaks that the processes of a run have written."""
    lines = (line for path in sorted(directory.glob("*.leaks")) for line in path.read_text("utf-8").splitlines())
    return [Leak(**json.loads(line)) for line in lines]


def counts_in(directory: Path) -> Iterator[dict[str, tuple[int, int]]]:
    """Of each process and kind, how many records and bytes were watched."""
    for path in directory.glob("*.counts"):
        cells = memoryview(path.read_bytes()).cast("Q")
        yield {kind: (cells[2 * n], cells[2 * n + 1]) for n, kind in enumerate(KINDS)}
