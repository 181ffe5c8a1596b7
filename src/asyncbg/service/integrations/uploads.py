"""Uploaded files on disk, stored under random tokens until they are discarded."""

import errno
import os
import re
import secrets
import shutil
import unicodedata
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import anyio
from anyio.to_thread import run_sync

from asyncbg.core.clock import Clock
from asyncbg.core.files import names_in
from asyncbg.errors import AsyncBGError, FinalError
from asyncbg.service.integrations.private_directory import make_private_directory

PART_AGE_MS = 24 * 3_600_000
"""Age at which a partial file is removed: its process has died."""
UPLOAD_AGE_MS = 7 * PART_AGE_MS
"""Age at which a complete upload is removed, unless an unfinished job needs it."""

_WRITE_BYTES = 1_048_576
_NAME_CHARS = 100
_TOKEN = re.compile("[0-9a-f]{32}")
_FULL = {errno.ENOSPC, errno.EDQUOT}


class UploadTooLargeError(AsyncBGError):
    """The upload exceeds the limit; its partial file was removed."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the upload is larger than {limit_bytes:,} bytes; send it in parts or raise upload.max_bytes")
        self.limit_bytes = limit_bytes


class UploadSpaceError(AsyncBGError):
    """The disk is too full for the upload; its partial file was removed."""

    def __init__(self) -> None:
        super().__init__(
            "there is too little disk space for the upload; the operator can free some, move ASYNCBG_DATA_DIR or lower "
            "ASYNCBG_UPLOAD__MIN_FREE_BYTES; then send it again"
        )


class UploadGoneError(FinalError):
    """The uploaded file no longer exists."""

    def __init__(self) -> None:
        super().__init__("the uploaded file no longer exists: its import has completed or failed; send it again")


@dataclass(frozen=True, slots=True)
class Upload:
    """A stored file: its token, its display name, its size in bytes and the charset that its sender declared."""

    token: str
    file_name: str = field(repr=False)
    size: int
    charset: str | None = None


class Uploads:
    """A directory of uploads, accessible by its owner only."""

    def __init__(self, directory: Path, *, max_bytes: int, min_free_bytes: int, clock: Clock) -> None:
        """Store files of at most ``max_bytes`` in ``directory``, and keep ``min_free_bytes`` of the disk free."""
        self._directory = directory
        self._max_bytes = max_bytes
        self._min_free_bytes = min_free_bytes
        self._clock = clock
        self._limiter = anyio.CapacityLimiter(4)

    async def open(self) -> None:
        """Create the directory and remove partial files of dead processes."""
        await run_sync(self._open, limiter=self._limiter)

    async def check_space(self, expected_bytes: int) -> None:
        """Raise UploadSpaceError if the disk has no room for ``expected_bytes`` more."""
        await run_sync(self._check_space, expected_bytes, limiter=self._limiter)

    async def receive(self, chunks: AsyncIterator[bytes], *, file_name: str, token: str | None = None) -> Upload:
        """Stream ``chunks`` to disk, under a new token unless given. When this returns, the file survives a power cut.

        Raises UploadTooLargeError, UploadSpaceError and any error of ``chunks``. On an error or cancellation, the
        partial file is removed.
        """
        token = token or secrets.token_hex(16)
        try:
            size = await self._write(token, chunks)
            await run_sync(self._complete, token, limiter=self._limiter)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await run_sync(self._remove, token, limiter=self._limiter)
            if isinstance(error, OSError) and error.errno in _FULL:
                raise UploadSpaceError from error
            raise
        return Upload(token, display_name(file_name), size)

    def read(self, upload: Upload) -> BinaryIO:
        """Open the file, in a worker thread. Raises UploadGoneError."""
        if not _TOKEN.fullmatch(upload.token):  # a token may come from a client's own job arguments
            raise UploadGoneError
        try:
            return self._whole(upload.token).open("rb")
        except FileNotFoundError as error:
            raise UploadGoneError from error

    async def discard(self, *uploads: Upload) -> None:
        """Remove the files; a missing one is ignored."""
        for upload in uploads:
            await run_sync(self.remove, upload, limiter=self._limiter)

    def remove(self, upload: Upload) -> None:
        """Remove the file, in a worker thread; a missing one is ignored."""
        if _TOKEN.fullmatch(upload.token):  # a token may come from a client's own job arguments
            self._remove(upload.token)

    async def tokens(self) -> list[str]:
        """Return the tokens of all complete uploads."""
        return await run_sync(self._tokens, limiter=self._limiter)

    async def old_tokens(self) -> list[str]:
        """Return the tokens of complete uploads older than ``UPLOAD_AGE_MS``."""
        return await run_sync(lambda: self._older_than(UPLOAD_AGE_MS, ".csv"), limiter=self._limiter)

    def _open(self) -> None:
        make_private_directory(self._directory)
        for token in self._older_than(PART_AGE_MS, ".part"):
            self._part(token).unlink(missing_ok=True)

    def _tokens(self) -> list[str]:
        return [Path(name).stem for name in names_in(self._directory) if name.endswith(".csv")]

    def _older_than(self, age_ms: int, suffix: str) -> list[str]:
        """Return the tokens of regular files older than ``age_ms``; symbolic links are skipped."""
        oldest_ms = self._clock.now_ms() - age_ms
        with os.scandir(self._directory) as entries:
            return [
                path.stem
                for path, entry in ((Path(entry.path), entry) for entry in entries)
                if path.suffix == suffix
                and _TOKEN.fullmatch(path.stem)
                and entry.is_file(follow_symlinks=False)
                and entry.stat(follow_symlinks=False).st_mtime_ns // 1_000_000 < oldest_ms
            ]

    async def _write(self, token: str, chunks: AsyncIterator[bytes]) -> int:
        size, buffer = 0, bytearray()
        await run_sync(self._create, token, limiter=self._limiter)
        async for chunk in chunks:
            size += len(chunk)
            if size > self._max_bytes:
                raise UploadTooLargeError(self._max_bytes)
            buffer += chunk
            if len(buffer) >= _WRITE_BYTES:
                await run_sync(self._append, token, bytes(buffer), limiter=self._limiter)
                buffer.clear()
        await run_sync(self._append, token, bytes(buffer), limiter=self._limiter)
        return size

    def _create(self, token: str) -> None:
        self._check_space(0)
        os.close(os.open(self._part(token), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))

    def _append(self, token: str, data: bytes) -> None:
        """Append to an existing file: a write after the removal must not create the file again."""
        self._check_space(len(data))
        with os.fdopen(os.open(self._part(token), os.O_WRONLY | os.O_APPEND), "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]

    def _complete(self, token: str) -> None:
        part, whole = self._part(token), self._whole(token)
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        now_ns = self._clock.now_ms() * 1_000_000
        os.utime(part, ns=(now_ns, now_ns))
        part.rename(whole)
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _remove(self, token: str) -> None:
        self._part(token).unlink(missing_ok=True)  # first, so that it can no longer be renamed
        self._whole(token).unlink(missing_ok=True)

    def _check_space(self, expected_bytes: int) -> None:
        if shutil.disk_usage(self._directory).free < self._min_free_bytes + expected_bytes:
            raise UploadSpaceError

    def _part(self, token: str) -> Path:
        return self._directory / f"{token}.part"

    def _whole(self, token: str) -> Path:
        return self._directory / f"{token}.csv"


def display_name(file_name: str) -> str:
    """Return a client's file name without directories, control and direction characters, at most 100 characters."""
    name = unicodedata.normalize("NFC", file_name).replace("\\", "/").rsplit("/", 1)[-1]
    name = " ".join("".join(char for char in name if char == " " or unicodedata.category(char)[0] not in "CZ").split())
    stem, dot, suffix = name.rpartition(".")
    if len(name) > _NAME_CHARS and dot and len(suffix) < _NAME_CHARS // 2:
        name = f"{stem[: _NAME_CHARS - len(suffix) - 2]}….{suffix}"
    return name[:_NAME_CHARS] or "upload.csv"
