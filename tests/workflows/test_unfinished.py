"""Files that jobs still need are known by the jobs."""

import pytest

from asyncbg.fastapi import AsyncBG
from asyncbg.service.workflows.unfinished import needed_uploads, unfinished_batches


@pytest.mark.parametrize("delay_s", [0, 3_600])
async def test_an_upload_is_needed_until_its_job_is_final(delay_s: float) -> None:
    """Also by a job that is scheduled; the uploads of others are not."""
    bg = AsyncBG(database_url="sqlite:///:memory:")

    @bg.task(name="process_csv")
    async def process_csv(upload: str) -> None: ...

    async with bg:
        bg._parts.runner.stop_claiming()
        job = await bg.submit("process_csv", {"upload": "a" * 32}, delay_s=delay_s or None)

        assert set(await needed_uploads(bg.backend, ["a" * 32, "b" * 32])) == {"a" * 32}
        assert list(await unfinished_batches(bg.backend, [job.batch, "another"])) == [job.batch]
        await job.cancel()
        assert not await needed_uploads(bg.backend, ["a" * 32])
        assert not await unfinished_batches(bg.backend, [job.batch])
