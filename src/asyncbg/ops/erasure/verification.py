"""Verification of an erasure: a search of the raw bytes of every file, independent of SQLite."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from asyncbg.core.files import files_below, is_file, names_in
from asyncbg.ops.erasure.email_matcher import EmailMatcher

_CHUNK = 8 << 20
_OVERLAP = 4_096


@dataclass(slots=True)
class Verification:
    """The searched files and bytes, and the number of matches in each file that still contains the address."""

    files: int = 0
    bytes: int = 0
    found: dict[str, int] = field(default_factory=dict)


def verify_erased(database: Path, data_dir: Path, address: EmailMatcher, *, longer: Iterable[str] = ()) -> Verification:
    """Search the database, the files beside it and the data directory for the address.

    In a database page, texts adjoin without separators, so a match is only ignored if it is part of one of the longer
    addresses ``longer``, which exist in rows of other people.
    """
    verification = Verification()
    others = [text.encode().lower() for text in longer]
    names = [name for name in names_in(database.parent) if name.startswith(f"{database.name}-")]
    beside = [path for name in names if is_file(path := database.parent / name)]
    for path in [database, *beside, *files_below(data_dir)]:
        many = _count(path, address, others, verification)
        if many:
            verification.found[str(path)] = many
    return verification


def _count(path: Path, address: EmailMatcher, others: list[bytes], verification: Verification) -> int:
    """Return the number of matches in one file, 0 for a file removed meanwhile."""
    places: set[int] = set()
    try:
        with path.open("rb") as file:
            verification.files += 1
            start, kept = 0, b""
            while chunk := file.read(_CHUNK):
                verification.bytes += len(chunk)
                content = kept + chunk
                found = (match.start() for match in address.raw.finditer(content))
                places.update(start + at for at in found if not _is_part(content, at, address, others))
                kept = content[-_OVERLAP:]
                start += len(content) - len(kept)
    except FileNotFoundError:
        return 0
    return len(places)


def _is_part(content: bytes, at: int, address: EmailMatcher, others: list[bytes]) -> bool:
    """Whether a match is part of one of the longer addresses."""
    for other in others:
        for match in address.raw.finditer(other):
            begin = at - match.start()
            if begin >= 0 and content[begin : begin + len(other)].lower() == other:
                return True
    return False
