"""The counters of the processes at one database, kept in a file for each place, so that any of them can add them up."""

import os
from collections.abc import Sequence
from pathlib import Path

from asyncbg.store.sqlite.process_slot import Place


class SharedCounts:
    """Text that each process keeps in ``<database>-counts<place>``; it outlives the process, as counters must."""

    def __init__(self, database: Path | None, place: Place) -> None:
        """``database`` None (in memory) is seen by one process only: nothing is kept."""
        self._database = database
        self._place = place

    def write(self, text: str) -> None:
        """Blocking: replace what is kept for our place; readers see the old text or the new one. Raises OSError."""
        if self._database is None:
            return
        path = self._path(self._place.name)
        file = os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(f"{path}.new").replace(path)

    def ours(self) -> str | None:
        """Blocking: what is kept for our place, by whoever held it last. Raises OSError."""
        return None if self._database is None else self._read(self._place.name)

    def others(self) -> Sequence[str]:
        """Blocking: what is kept for every other place, held or not. Raises OSError."""
        found = [self._read(name) for name in self._place.names() if name != self._place.name]
        return [text for text in found if text is not None]

    def _read(self, name: str) -> str | None:
        try:
            return self._path(name).read_text("utf-8")
        except FileNotFoundError:
            return None

    def _path(self, name: str) -> Path:
        return Path(f"{self._database}-counts{name}")
