"""A disk that can lose power: what was written to it, in order, and what may be left of that after a cut.

The model is SQLite's own, of its crash tests (https://sqlite.org/testing.html#crash_testing, ``src/test6.c``) and of
https://sqlite.org/atomiccommit.html#_hardware_assumptions:

- What was written before a sync that returned is there. A sync on its way at the cut has done nothing.
- Everything else is cut at the boundaries of 512-byte sectors. Each piece, whatever became of the ones before and after
  it, is on the disk, is not, is torn (its beginning or its end is), or is garbage; so writes are reordered at will.
- A file that grew may be longer by what was not written: zeros or garbage. A truncation may have happened or not.
- Names are created and deleted when their directory is synced; until then each name may be as it was after any of the
  changes since. SQLite syncs the directory at the first sync of a journal or log it opened.
- Bytes beside a write are left alone, in the sector it ends in too ("powersafe overwrite", what SQLite assumes of any
  disk of today, https://sqlite.org/psow.html).
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass, field

SECTOR = 512

Files = dict[str, bytes]
"""The content of a directory, by name."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A file was opened, and created if there was none."""

    file: str


@dataclass(frozen=True, slots=True)
class Written:
    """Bytes were handed to the operating system."""

    file: str
    at: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncated:
    """A file was cut, or grew, to a size."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class SyncBegan:
    """A sync is on its way."""

    file: str


@dataclass(frozen=True, slots=True)
class Synced:
    """A sync returned, of the file and perhaps of its directory."""

    file: str
    directory: bool


@dataclass(frozen=True, slots=True)
class Deleted:
    """A name was removed, and perhaps its directory synced."""

    file: str
    directory: bool


@dataclass(slots=True)
class _File:
    """The bytes that are safe, and the changes that are not."""

    safe: bytearray = field(default_factory=bytearray)
    unsafe: list[Written | Truncated] = field(default_factory=list)
    in_sync: int = 0

    def sync(self) -> None:
        """What was there when the sync began is safe now."""
        for change in self.unsafe[: self.in_sync]:
            if isinstance(change, Truncated):
                _resize(self.safe, change.size)
            else:
                _put(self.safe, change.at, change.data)
        del self.unsafe[: self.in_sync]
        self.in_sync = 0


@dataclass(frozen=True, slots=True)
class Weather:
    """How much of what was not synced is left after one cut, each from 0 to 1."""

    kept: float
    torn: float
    garbage: float
    resized: float

    @classmethod
    def draw(cls, rng: random.Random) -> "Weather":
        """Often all or nothing, otherwise anything between."""
        match rng.randrange(6):
            case 0:
                return cls(kept=0.0, torn=0.0, garbage=0.0, resized=rng.choice([0.0, 1.0]))
            case 1:
                return cls(kept=1.0, torn=0.0, garbage=0.0, resized=1.0)
            case 2:  # nearly all: one piece is missing among hundreds
                return cls(kept=0.98, torn=0.01, garbage=0.0, resized=1.0)
            case 3:
                return cls(kept=rng.random(), torn=0.0, garbage=0.0, resized=0.5)
            case _:
                share = rng.random()
                return cls(kept=1 - share, torn=share / 3, garbage=share / 3, resized=rng.random())


class Disk:
    """Follows the log of one directory up to any point, and draws what a cut there would leave."""

    def __init__(self, files: Files | None = None) -> None:
        """Start with these files, safe already, or with an empty directory."""
        self._files = {name: _File(bytearray(content)) for name, content in (files or {}).items()}
        self._safe_names = dict(self._files)
        self._unsafe_names: dict[str, list[_File | None]] = {}

    def apply(self, entry: object) -> None:
        """Take the next entry of the log; what is no change of the disk is passed over."""
        match entry:
            case Opened(name):
                if name not in self._files:
                    self._name(name, _File())
            case Written(name) | Truncated(name):
                self._files[name].unsafe.append(entry)
            case SyncBegan(name):
                self._files[name].in_sync = len(self._files[name].unsafe)
            case Synced(name, directory):
                self._files[name].sync()
                self._sync_names(directory)
            case Deleted(name, directory):
                self._name(name, None)
                self._sync_names(directory)

    def _name(self, name: str, file: _File | None) -> None:
        self._unsafe_names.setdefault(name, []).append(file)
        _set(self._files, name, file)

    def _sync_names(self, directory: bool) -> None:
        if directory:
            for name, changes in self._unsafe_names.items():
                _set(self._safe_names, name, changes[-1])
            self._unsafe_names.clear()

    def seen(self) -> Files:
        """What every process sees as long as the power stays."""
        calm = Weather(kept=1.0, torn=0.0, garbage=0.0, resized=1.0)
        return {name: _left_of(file, calm, random.Random(0)) for name, file in self._files.items()}

    def cut(self, rng: random.Random) -> Files:
        """What is left after a cut now."""
        weather = Weather.draw(rng)
        left = dict(self._safe_names)
        for name, changes in self._unsafe_names.items():
            _set(left, name, rng.choice([self._safe_names.get(name), *changes]))
        return {name: _left_of(file, weather, rng) for name, file in left.items()}


def _left_of(file: _File, weather: Weather, rng: random.Random) -> bytes:
    content = bytearray(file.safe)
    for change in file.unsafe:
        if isinstance(change, Truncated):
            if rng.random() < weather.resized:
                _resize(content, change.size)
            continue
        if rng.random() < weather.resized:
            _resize(content, max(len(content), change.at + len(change.data)), rng)
        for at, piece in _pieces(change):
            _put(content, *_fate(at, piece, weather, rng))
    return bytes(content)


def _pieces(change: Written) -> Iterator[tuple[int, bytes]]:
    """A write, cut at the boundaries of the sectors it touches."""
    at, end = change.at, change.at + len(change.data)
    while at < end:
        to = min(end, (at // SECTOR + 1) * SECTOR)
        yield at, change.data[at - change.at : to - change.at]
        at = to


def _fate(at: int, piece: bytes, weather: Weather, rng: random.Random) -> tuple[int, bytes]:
    """What becomes of one piece: the bytes that reach the disk, and where."""
    chance = rng.random()
    if chance < weather.kept:
        return at, piece
    if chance < weather.kept + weather.torn:
        half = rng.randrange(len(piece) + 1)
        return (at, piece[:half]) if rng.random() < 0.5 else (at + half, piece[half:])
    if chance < weather.kept + weather.torn + weather.garbage:
        return at, rng.randbytes(len(piece))
    return at, b""


def _put(content: bytearray, at: int, data: bytes) -> None:
    if data:
        _resize(content, max(len(content), at))
        content[at : at + len(data)] = data


def _resize(content: bytearray, size: int, rng: random.Random | None = None) -> None:
    """Cut, or grow by zeros; with ``rng`` perhaps by whatever was on the disk before."""
    missing = size - len(content)
    if missing > 0:
        content += rng.randbytes(missing) if rng is not None and rng.random() < 0.5 else bytes(missing)
    del content[size:]


def _set(names: dict[str, _File], name: str, file: _File | None) -> None:
    if file is None:
        names.pop(name, None)
    else:
        names[name] = file
