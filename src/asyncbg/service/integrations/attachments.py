"""Mail attachments: uploaded in advance, named by the path in the upload's response, kept for a week."""

import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import NamedTuple

from anyio.to_thread import run_sync

from asyncbg.core.clock import Clock
from asyncbg.errors import FinalError
from asyncbg.service.integrations.mail_message import Attachment
from asyncbg.service.integrations.uploads import Upload, Uploads

MAX_ATTACHMENT_BYTES = 10 * 1024 * 1024
MAX_ATTACHMENTS = 10
MAX_TOTAL_BYTES = 20 * 1024 * 1024
PATH = r"^/attachments/[0-9a-f]{32}/[^/\\\x00-\x1f\x7f]{1,100}$"
"""Pattern of an attachment's path: a random token, and the file name shown to the recipient."""


class AttachmentError(FinalError):
    """An attachment does not exist, or the attachments of a mail are too large."""


class Received(NamedTuple):
    """An uploaded attachment: its path, its display name and its size in bytes."""

    path: str
    file_name: str
    size: int


class Attachments:
    """The attachments below ``data_dir``. Files are found by token; a caller's path is never opened."""

    def __init__(self, data_dir: Path, *, min_free_bytes: int, clock: Clock) -> None:
        """Store files in ``data_dir/attachments`` and keep ``min_free_bytes`` of the disk free."""
        self._uploads = Uploads(
            data_dir / "attachments", max_bytes=MAX_ATTACHMENT_BYTES, min_free_bytes=min_free_bytes, clock=clock
        )

    async def open(self) -> None:
        """Create the directory and remove files older than a week: no mail is retried that long."""
        await self._uploads.open()
        await self._uploads.discard(*(Upload(token, "", 0) for token in await self._uploads.old_tokens()))

    async def receive(self, chunks: AsyncIterator[bytes], *, file_name: str) -> Received:
        """Store a file. Raises UploadTooLargeError, UploadSpaceError and any error of ``chunks``."""
        upload = await self._uploads.receive(chunks, file_name=file_name)
        return Received(f"/attachments/{upload.token}/{upload.file_name}", upload.file_name, upload.size)

    async def load(self, paths: Sequence[str]) -> list[Attachment]:
        """Return the files at these paths. Raises AttachmentError."""
        found = [await run_sync(self._load, path) for path in paths]
        if sum(len(one.content) for one in found) > MAX_TOTAL_BYTES:
            raise AttachmentError(f"the attachments of a mail hold more than {MAX_TOTAL_BYTES // 1024**2} MiB")
        return found

    def _load(self, path: str) -> Attachment:
        if not re.fullmatch(PATH, path):
            raise AttachmentError("an attachment is named by the path in the response of POST /attachments")
        _, _, token, name = path.split("/", 3)
        try:
            with self._uploads.read(Upload(token, name, 0)) as file:
                return Attachment(name, file.read())
        except FinalError:
            raise AttachmentError("an attachment does not exist or is older than a week; upload it again") from None
