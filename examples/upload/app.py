"""Import an uploaded CSV file in the background, with a progress bar that is live: ``uvicorn app:app``."""

import asyncio
import csv
import shutil
from pathlib import Path
from uuid import UUID, uuid4

from fastapi import FastAPI, UploadFile
from fastapi.responses import FileResponse

from asyncbg import AsyncBG, BackgroundTasks, Progress

PAGE = Path(__file__).with_name("index.html")
UPLOADS = Path("uploads")
ROW_S = 0.02

bg = AsyncBG()
app = FastAPI(title="Upload", lifespan=bg.lifespan)
app.include_router(bg.router, prefix="/bg")


@bg.task(retries=2)
async def import_csv(upload: UUID, progress: Progress = Progress()) -> dict[str, int]:
    """Go through the rows of an upload. It is named by an id of our own: a path could be any file's."""
    path = UPLOADS / f"{upload}.csv"
    rows = await asyncio.to_thread(read_rows, path)
    for number, _row in enumerate(rows, start=1):
        await asyncio.sleep(ROW_S)  # in the place of real work
        progress.set(number, total=len(rows), unit="rows", message=f"row {number} of {len(rows)}")
    await asyncio.to_thread(path.unlink, missing_ok=True)
    return {"rows": len(rows)}


def read_rows(path: Path) -> list[list[str]]:
    """All rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@app.post("/upload", status_code=202)
def upload_csv(file: UploadFile, background_tasks: BackgroundTasks) -> dict[str, str]:
    """Keep the file, and import it after the answer: what counts is on disk by then."""
    upload = uuid4()
    UPLOADS.mkdir(exist_ok=True)
    with (UPLOADS / f"{upload}.csv").open("wb") as kept:
        shutil.copyfileobj(file.file, kept)
    return {"job": background_tasks.add_task(import_csv, upload).id}


@app.get("/")
async def show_page() -> FileResponse:
    """The page."""
    return FileResponse(PAGE)
