"""Mail attachments: uploaded in advance, named by the path in the upload's response, kept for a week."""

import hashlib
import re
import secrets
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
    """An attachment does not exist for this owner, or the attachments of a mail are too large."""


class Received(NamedTuple):
    """An uploaded attachment: its path, its display name and its size in bytes."""

    path: str
    file_name: str
    size: int


class Attachments:
    """The attachments below ``data_dir``, each for the mails of its owner only.

    Files are found by token and owner; a caller's path is never opened.
    """

    def __init__(self, data_dir: Path, *, min_free_bytes: int, clock: Clock) -> None:
        """Store files in ``data_dir/attachments`` and keep ``min_free_bytes`` of the disk free."""
        self._uploads = Uploads(
            data_dir / "attachments", max_bytes=MAX_ATTACHMENT_BYTES, min_free_bytes=min_free_bytes, clock=clock
        )

    async def open(self) -> None:
        """Create the directory and remove old attachments."""
        await self._uploads.open()
        await self.remove_old()

    async def remove_old(self) -> None:
        """Remove attachments older than a week: no mail is retried that long."""
        await self._uploads.discard(*(Upload(token, "", 0) for token in await self._uploads.old_tokens()))

    async def receive(self, chunks: AsyncIterator[bytes], *, file_name: str, owner: str) -> Received:
        """Store a file of ``owner``. Raises UploadTooLargeError, UploadSpaceError and any error of ``chunks``."""
        token = secrets.token_hex(16)
        upload = await self._uploads.receive(chunks, file_name=file_name, token=_stored_as(token, owner))
        return Received(f"/attachments/{token}/{upload.file_name}", upload.file_name, upload.size)

    async def load(self, paths: Sequence[str], *, owner: str) -> list[Attachment]:
        """Return the files at these paths. Raises AttachmentError, also for a file of another owner."""
        found = [await run_sync(self._load, path, owner) for path in paths]
        if sum(len(one.content) for one in found) > MAX_TOTAL_BYTES:
            raise AttachmentError(f"the attachments of a mail hold more than {MAX_TOTAL_BYTES // 1024**2} MiB")
        return found

    def _load(self, path: str, owner: str) -> Attachment:
        if not re.fullmatch(PATH, path):
            raise AttachmentError("an attachment is named by the path in the response of POST /attachments")
        _, _, token, name = path.split("/", 3)
        try:
            with self._uploads.read(Upload(_stored_as(token, owner), name, 0)) as file:
                return Attachment(name, file.read())
        except FinalError:
            raise AttachmentError("an attachment does not exist or is older than a week; upload it again") from None


def _stored_as(token: str, owner: str) -> str:
    """Return the name of a file on disk. It depends on the owner: for another one the path names no file."""
    return hashlib.sha256(f"{token} {owner}".encode()).hexdigest()[:32]
