"""Erasure of one person from the files below the data directory, beside a writing service."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from asyncbg.core.files import files_below
from asyncbg.ops.erasure.email_matcher import EmailMatcher

_LOG = "notifications.log"
_START = b"notification for "


@dataclass(slots=True)
class FilesErased:
    """Counts of erased lines and removed files, and what was left."""

    lines: int = 0
    removed: int = 0
    elsewhere: list[str] = field(default_factory=list)
    longer: set[str] = field(default_factory=set)
    """Other people's addresses in these files that contain the person's."""


def uploads_with(data_dir: Path, address: EmailMatcher) -> frozenset[str]:
    """Return the tokens of the uploaded files that contain the address."""
    return frozenset(path.stem for path in _files(data_dir / "uploads") if _names_address(path, address))


def erase_files(data_dir: Path, address: EmailMatcher, *, kept: frozenset[str] = frozenset()) -> FilesErased:
    """Erase the address from all files; the uploads in ``kept`` belong to running jobs and are skipped."""
    done = FilesErased()
    for path in _files(data_dir):
        if not _names_address(path, address):
            done.longer |= _longer_addresses(path, address)
            continue
        folder = path.relative_to(data_dir).parts[0]
        if path == data_dir / _LOG:
            done.lines += _erase_lines(path, address)
            done.longer |= _longer_addresses(path, address)
        elif folder in ("work", "attachments") or (folder == "uploads" and path.stem not in kept):
            path.unlink(missing_ok=True)
            done.removed += 1
        elif folder != "uploads":
            done.elsewhere.append(str(path.relative_to(data_dir)))
    return done


def _erase_lines(path: Path, address: EmailMatcher) -> int:
    """Overwrite each line with the address in place, so that concurrent appends are not lost."""
    erased, offset = 0, 0
    with path.open("rb+", buffering=0) as file:
        lines = file.read().splitlines(keepends=True)
        for line in lines:
            if address.is_in(line.decode("utf-8", "replace")):
                body = line.rstrip(b"\n")
                replacement = (_START + address.replacement.encode())[: len(body)]
                os.pwrite(file.fileno(), replacement.ljust(len(body)), offset)
                erased += 1
            offset += len(line)
        os.fsync(file.fileno())
    return erased


def _names_address(path: Path, address: EmailMatcher) -> bool:
    content = _content(path)
    return any(address.is_in(_around(content, *match.span())) for match in address.raw.finditer(content))


def _longer_addresses(path: Path, address: EmailMatcher) -> set[str]:
    content = _content(path)
    return address.longer_addresses(content.decode("utf-8", "replace")) if address.raw.search(content) else set()


def _around(content: bytes, start: int, end: int) -> str:
    """Return a match with its context, to recognize a part of a longer address."""
    part = content[max(0, start - 8) : end + 8]
    return (part.replace(b"\0", b"") if b"\0" in part else part).decode("utf-8", "replace")


def _files(directory: Path) -> Iterator[Path]:
    yield from (path for path in files_below(directory) if not path.is_symlink())


def _content(path: Path) -> bytes:
    """Return a file's bytes, empty for a removed file. An unreadable file is an error: it may contain the address."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
