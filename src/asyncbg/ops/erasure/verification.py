"""The verification of an erasure: the raw bytes of every file are searched, whatever SQLite thinks is in them."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from asyncbg.core.files import files_below, is_file, names_in
from asyncbg.ops.erasure.email_matcher import EmailMatcher

_CHUNK = 8 << 20
_OVERLAP = 4_096


@dataclass(slots=True)
class Verification:
    """What was looked at, and in which files the address is still found, how often."""

    files: int = 0
    bytes: int = 0
    found: dict[str, int] = field(default_factory=dict)


def verify_erased(database: Path, data_dir: Path, address: EmailMatcher, *, longer: Iterable[str] = ()) -> Verification:
    """Search the database, what SQLite and we keep beside it, and the data directory.

    In a page of the database texts stand without anything between them, so no place counts as a part of a longer
    address unless it is one of ``longer``, which other people have in living rows.
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
    """How often the address is found in one file; a file that goes away meanwhile has none."""
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
    """Whether a place belongs to one of the longer addresses."""
    for other in others:
        for match in address.raw.finditer(other):
            begin = at - match.start()
            if begin >= 0 and content[begin : begin + len(other)].lower() == other:
                return True
    return False
