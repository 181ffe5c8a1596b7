"""Files that go with mails: uploaded before, named by the path that the upload was answered with, kept for a week."""

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
"""The only form a file is named by: our own token, which cannot be guessed, and the name that its reader sees."""


class AttachmentError(FinalError):
    """An attachment is not there, or there is too much of them."""


class Received(NamedTuple):
    """An upload: what names it from now on, its name for people, and how large it is."""

    path: str
    file_name: str
    size: int


class Attachments:
    """The attachments below ``data_dir``. No path of a caller's is ever opened: the token in it finds our own file."""

    def __init__(self, data_dir: Path, *, min_free_bytes: int, clock: Clock) -> None:
        """Keep the files in ``data_dir/attachments`` and leave ``min_free_bytes`` of the disk to others."""
        self._uploads = Uploads(
            data_dir / "attachments", max_bytes=MAX_ATTACHMENT_BYTES, min_free_bytes=min_free_bytes, clock=clock
        )

    async def open(self) -> None:
        """Create the directory, and remove what is older than a week: no mail is tried for so long."""
        await self._uploads.open()
        await self._uploads.discard(*(Upload(token, "", 0) for token in await self._uploads.old_tokens()))

    async def receive(self, chunks: AsyncIterator[bytes], *, file_name: str) -> Received:
        """Keep a file. Raises UploadTooLargeError, UploadSpaceError and whatever ``chunks`` raises."""
        upload = await self._uploads.receive(chunks, file_name=file_name)
        return Received(f"/attachments/{upload.token}/{upload.file_name}", upload.file_name, upload.size)

    async def load(self, paths: Sequence[str]) -> list[Attachment]:
        """The files of these paths. Raises AttachmentError."""
        found = [await run_sync(self._load, path) for path in paths]
        if sum(len(one.content) for one in found) > MAX_TOTAL_BYTES:
            raise AttachmentError(f"the attachments of a mail hold more than {MAX_TOTAL_BYTES // 1024**2} MiB")
        return found

    def _load(self, path: str) -> Attachment:
        if not re.fullmatch(PATH, path):
            raise AttachmentError("an attachment is named by the path that POST /attachments answered with")
        _, _, token, name = path.split("/", 3)
        try:
            with self._uploads.read(Upload(token, name, 0)) as file:
                return Attachment(name, file.read())
        except FinalError:
            raise AttachmentError("an attachment is not there, or older than a week; upload it again") from None
