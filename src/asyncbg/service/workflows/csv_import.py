"""Import an uploaded CSV file: stream it to disk, store its rows in batches, notify its owner, remove the upload."""

import contextlib
import hashlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, HTTPException, Path, Query, Request, Response
from pydantic import BaseModel, Field

from asyncbg import AsyncBG, BackgroundTasks, Event, EventModel, EventType, Personal, Progress, current_job
from asyncbg.auth.caller import CurrentCaller
from asyncbg.core.clock import rfc3339
from asyncbg.core.retry import is_retryable
from asyncbg.errors import JobStateError
from asyncbg.service.csv_export import Cell, csv_response, csv_stream
from asyncbg.service.inputs import PageCursor, UserId, UserNumber
from asyncbg.service.integrations.csv_columns import REJECTED_COLUMNS
from asyncbg.service.integrations.csv_dialect import Quoting
from asyncbg.service.integrations.csv_encoding import Source
from asyncbg.service.integrations.csv_reader import Rejection
from asyncbg.service.integrations.csv_row import escaped
from asyncbg.service.integrations.imports import ImportRecord, Imports, RejectedRows
from asyncbg.service.integrations.notices import Notices
from asyncbg.service.integrations.uploads import Upload, UploadSpaceError, UploadTooLargeError
from asyncbg.service.upload import OVERHEAD_BYTES, FilePart, too_large
from asyncbg.service.workflows.acceptance import accept, accepts
from asyncbg.settings import UploadSettings
from asyncbg.web.problem_route import ProblemRoute, get_and_head, limited_to
from asyncbg.web.problems import problem_docs
from asyncbg.web.schemas import Accepted

_COLUMNS = (
    "id", "file", "status", "rows_stored", "rows_rejected", "started_at", "finished_at", "error",
    "row", "column", "reason", "rows_skipped", "encoding", "delimiter", "warnings",
)  # fmt: skip
_PAGE = 20
_MAX_LIMIT = 500
_UPLOAD_DOCS: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "contentMediaType": "text/csv", "format": "binary"}},
                }
            }
        },
    }
}


class RejectionView(BaseModel):
    """A rejected row. Rows are numbered as in a spreadsheet; ``column`` null means the whole row."""

    row: int
    column: int | None
    reason: str


class ImportView(BaseModel):
    """One import. ``rejections`` are the first thousand, ``rows_rejected`` counts all.

    ``rows_skipped`` counts blank rows. ``encoding`` and ``delimiter`` were ``declared`` (by the file, its sender or a
    setting) or ``guessed``; ``quoting`` describes the quotes in the first rows. ``warnings`` lists what was left out,
    named or uncertain. ``rejected_url`` returns the rejected rows as a file to correct and upload again.
    """

    id: str
    file: str
    status: str
    rows_stored: int
    rows_rejected: int
    rejections: list[RejectionView]
    started_at: str
    finished_at: str | None
    error: str | None
    encoding: str | None
    encoding_source: Source | None
    delimiter: str | None
    delimiter_source: Source | None
    quoting: Quoting | None
    columns: list[str] | None
    rows_skipped: int
    warnings: list[str]
    rejected_url: str | None


class ImportPage(BaseModel):
    """A page of imports, newest first; ``next`` is the cursor of the next page, null on the last."""

    items: list[ImportView]
    next: str | None


class CsvImported(EventModel):
    """The import has completed."""

    event_type = "csv.imported"

    user_id: int = Field(description="the user of the file", examples=[42])
    rows_stored: int = Field(ge=0, description="rows stored in the database", examples=[1280])
    rows_rejected: int = Field(
        ge=0, description="rejected rows; `GET /user/{user_id}/imports` lists the reasons", examples=[3]
    )
    rows_skipped: int = Field(default=0, ge=0, description="blank rows", examples=[1])
    warnings: list[str] = Field(
        default=[], description="what was left out, named or uncertain", examples=[["empty columns were left out: 4"]]
    )


class CsvFailed(EventModel):
    """The import has failed; the rows before the error stay."""

    event_type = "csv.failed"

    user_id: int = Field(description="the user of the file", examples=[42])
    error: str = Field(description="the class name of the exception", examples=["CsvError"])


def csv_import_workflow(bg: AsyncBG, *, imports: Imports, notices: Notices, settings: UploadSettings) -> APIRouter:
    """Return ``POST /upload-csv/{user_id}`` and ``GET /user/{user_id}/imports``; register the task ``process_csv``."""
    router = APIRouter(route_class=ProblemRoute, tags=["workflows"])
    uploads = APIRouter(route_class=limited_to(settings.max_bytes + OVERHEAD_BYTES), tags=["workflows"])

    @bg.task(name="process_csv", retries=3)
    async def process_csv(
        user_id: UserNumber,
        upload: Annotated[str, Personal("secret")],
        file_name: Annotated[str, Personal("file")],
        size: int,
        charset: str | None = None,
        progress: Progress = Progress(),
    ) -> dict[str, Any]:
        """Store the upload's rows and notify the owner of the result; every step needs the lease of this attempt."""
        job, file = current_job(), Upload(upload, file_name, size, charset)

        def on_progress(_rows: int, bytes_read: int, bytes_total: int, message: str) -> None:
            progress.set(bytes_read, total=bytes_total, unit="bytes", message=message)

        try:
            done = await imports.run(
                job.id, owner=job.owner, user_id=user_id, upload=file, on_progress=on_progress, guard=job.guard
            )
        except Exception as error:
            if job.attempt >= job.max_attempts or not is_retryable(error):
                await imports.fail(job.id, reason=str(error), guard=job.guard)
                await job.publish(CsvFailed(user_id=user_id, error=type(error).__name__))
                await imports.discard(file, guard=job.guard)
                await job.require_lease()
                await notices.append(f"user {user_id}", f"{file_name}: import failed: {error}")
            raise
        await imports.discard(file)  # no attempt of a complete import reads it
        await job.publish(CsvImported(user_id=user_id, **asdict(done)))
        await job.require_lease()
        counted = f"{file_name}: {done.rows_stored} rows imported, {done.rows_rejected} rejected"
        await notices.append(f"user {user_id}", "; ".join([counted, *done.warnings]))
        counts = {"rows_stored": done.rows_stored, "rows_rejected": done.rows_rejected}
        return {**counts, "warnings": list(done.warnings)} if done.warnings else counts

    @bg.on(EventType.FAILED, task="process_csv")
    @bg.on(EventType.CANCELLED, task="process_csv")
    async def clean_up(event: Event) -> None:
        """Remove the upload and mark the import as failed once the job is final.

        Every process that shares the database runs this, possibly twice. A job that was retried meanwhile is skipped.
        """
        record = await bg.get(event.job_id)
        args = json.loads(record.args)
        reason, guard = record.error.message if record.error else "cancelled", bg.backend.guard_ended(record.id)
        with contextlib.suppress(JobStateError):
            await imports.fail(record.id, reason=reason, guard=guard)
            await imports.discard(Upload(args.get("upload", ""), "", 0), guard=guard)  # "": the job was erased

    @uploads.post("/upload-csv/{user_id}", name="upload_csv", **accepts(openapi_extra=_UPLOAD_DOCS))
    async def upload_csv_route(
        user_id: UserId,
        got: Annotated[_Received, Depends(_receiver(imports, settings.max_bytes), scope="function")],
        background_tasks: BackgroundTasks,
        response: Response,
    ) -> Accepted:
        """Accept a CSV file; it is imported in the background, and its owner is notified of the result."""
        upload, background_tasks.fingerprint = got.upload, got.fingerprint(user_id)
        job = background_tasks.add_task(
            process_csv, user_id, upload.token, upload.file_name, upload.size, upload.charset
        )
        body = await accept("CSV file will be processed in the background", [job], background_tasks, response)
        got.is_repeat = not job.created
        return body

    _add_reading(router, imports)
    router.include_router(uploads)
    return router


def _add_reading(router: APIRouter, imports: Imports) -> None:
    """Add the routes that list imports and rejected rows."""

    @get_and_head(
        router,
        "/user/{user_id}/imports",
        name="list_imports",
        response_model=ImportPage,
        responses={200: {"content": {"text/csv": {"schema": {"type": "string"}}}}, **problem_docs(422, 503)},
    )
    async def imports_route(
        user_id: UserId,
        caller: CurrentCaller,
        limit: Annotated[
            int | None, Query(ge=1, le=_MAX_LIMIT, description="page size; default 50, for csv all")
        ] = None,
        cursor: PageCursor = None,
        format: Annotated[Literal["json", "csv"], Query(description="csv: one line for each rejection")] = "json",  # noqa: A002 - the conventional name
    ) -> Any:
        """Return the user's imports, newest first: file, stored rows, rejected rows and reasons."""
        if format == "csv" and limit is None:
            lines = _all_lines(imports, user_id, caller.visible_owner, cursor)
            return csv_stream(f"imports-{user_id}.csv", _COLUMNS, lines)
        page = await imports.list(user_id, owner=caller.visible_owner, limit=limit or 50, cursor=cursor)
        views = [_view(record) for record in page.items]
        if format == "json":
            return ImportPage(items=views, next=page.next)
        return _table(user_id, views, page.next and f"format=csv&limit={limit}&cursor={page.next}")

    @get_and_head(
        router,
        "/user/{user_id}/imports/{import_id}/rejected",
        name="list_rejected_rows",
        response_class=Response,
        responses={
            200: {"content": {"text/csv": {"schema": {"type": "string"}}}, "description": "The rejected rows"},
            **problem_docs(404, 422, 503),
        },
    )
    async def rejected_route(
        user_id: UserId, import_id: Annotated[str, Path(description="`id` of an import")], caller: CurrentCaller
    ) -> Response:
        """Return the rejected rows of an import with the reasons, as a CSV file to correct and upload again."""
        found = await imports.rejected(import_id, user_id=user_id, owner=caller.visible_owner)
        if found is None:
            raise HTTPException(404, "the user has no import of this id; GET /user/{user_id}/imports lists them")
        header = [*REJECTED_COLUMNS, *map(escaped, found.columns)]
        return csv_stream(f"rejected-{import_id}.csv", header, _rejected_lines(found))


@dataclass(slots=True)
class _Received:
    """A received upload, the digest of its content, and whether the request is a repeat."""

    upload: Upload
    digest: hashlib.blake2b
    is_repeat: bool = False

    def fingerprint(self, user_id: int) -> str:
        """Return a fingerprint of the user, the file name and the content."""
        self.digest.update(f"{user_id} {self.upload.charset} {self.upload.file_name}".encode())
        return self.digest.hexdigest()


def _receiver(imports: Imports, max_bytes: int) -> Callable[[Request], AsyncIterator[_Received]]:
    """Return a dependency that stores the file, and removes it if the request is refused or a repeat."""

    async def received(request: Request) -> AsyncIterator[_Received]:
        got = await _receive(imports, request, max_bytes)
        try:
            yield got
        except BaseException:
            await imports.discard(got.upload)
            raise
        if got.is_repeat:
            await imports.discard(got.upload)

    return received


async def _receive(imports: Imports, request: Request, max_bytes: int) -> _Received:
    part, digest = FilePart(request, max_bytes=max_bytes), hashlib.blake2b(digest_size=32)
    chunks = _hashed(part.chunks(), digest) if "idempotency-key" in request.headers else part.chunks()
    try:
        await imports.check_space(part.announced_bytes)
        upload = await imports.receive(chunks, file_name=await part.open())
        return _Received(replace(upload, charset=part.charset), digest)
    except UploadTooLargeError:
        raise too_large(max_bytes) from None
    except UploadSpaceError as error:
        raise HTTPException(507, str(error)) from None


async def _hashed(chunks: AsyncIterator[bytes], digest: hashlib.blake2b) -> AsyncIterator[bytes]:
    async for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _table(user_id: int, views: list[ImportView], next_query: str | None) -> Response:
    lines = (line for view in views for line in _lines(view, view.rejections))
    response = csv_response(f"imports-{user_id}.csv", _COLUMNS, lines)
    if next_query:
        response.headers["Link"] = f'<?{next_query}>; rel="next"'
    return response


async def _all_lines(
    imports: Imports, user_id: int, owner: str | None, cursor: str | None
) -> AsyncIterator[Iterable[Sequence[Cell]]]:
    """Yield all imports from a cursor on as table lines with every stored rejection, one page at a time."""
    is_first = True
    while cursor or is_first:
        page = await imports.list(user_id, owner=owner, limit=_PAGE, cursor=cursor)
        for record in page.items:
            view = _view(record)
            more = await imports.rejected(record.id, user_id=user_id, owner=owner) if _has_more(record) else None
            if more is None:
                yield _lines(view, view.rejections)
                continue
            async for rejections in more.pages:
                yield _lines(view, rejections)
        cursor, is_first = page.next, False


def _has_more(record: ImportRecord) -> bool:
    return record.rows_rejected > len(record.rejections)


def _lines(view: ImportView, rejections: Sequence[RejectionView | Rejection]) -> Iterator[list[Cell]]:
    """Yield an import as table lines: one for each rejection, or a single one."""
    place = _COLUMNS.index("row")
    about = [getattr(view, name) for name in _COLUMNS[:place]]
    format_of = [view.rows_skipped, view.encoding, view.delimiter, "; ".join(view.warnings)]
    for rejection in rejections:
        yield [*about, rejection.row, rejection.column, rejection.reason, *format_of]
    if not rejections:
        yield [*about, None, None, None, *format_of]


async def _rejected_lines(found: RejectedRows) -> AsyncIterator[Iterable[Sequence[Cell]]]:
    async for page in found.pages:
        yield [(one.row, one.column, one.reason, *map(escaped, one.cells)) for one in page]


def _view(record: ImportRecord) -> ImportView:
    return ImportView(
        id=record.id,
        file=record.file,
        status=record.status,
        rows_stored=record.rows_stored,
        rows_rejected=record.rows_rejected,
        rejections=[RejectionView(row=r.row, column=r.column, reason=r.reason) for r in record.rejections],
        started_at=rfc3339(record.started_ms),
        finished_at=None if record.finished_ms is None else rfc3339(record.finished_ms),
        error=record.error,
        encoding=record.encoding,
        encoding_source=record.encoding_source,
        delimiter=record.delimiter,
        delimiter_source=record.delimiter_source,
        quoting=record.quoting,
        columns=None if record.columns is None else list(record.columns),
        rows_skipped=record.rows_skipped,
        warnings=list(record.warnings),
        rejected_url=f"/user/{record.user_id}/imports/{record.id}/rejected" if record.rows_rejected else None,
    )
