"""Importing CSV files: uploads that leave nothing behind, rows stored once whatever happens, reasons told."""

import asyncio
import os
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Collection
from pathlib import Path

import pytest

from asyncbg.core.clock import ManualClock
from asyncbg.errors import BadCursorError
from asyncbg.service.integrations.csv_encoding import NotCsvError
from asyncbg.service.integrations.csv_reader import Rejection, RowTooLongError
from asyncbg.service.integrations.imports import (
    ImportOvertakenError,
    ImportResult,
    Imports,
    NothingStoredError,
    TooManyRowsError,
)
from asyncbg.service.integrations.uploads import Upload, UploadGoneError, UploadTooLargeError
from asyncbg.settings import UploadSettings
from asyncbg.store.sqlite.database import Database

HEADER = b"name,age\n"


class Crash(Exception):  # noqa: N818
    """Stands for a process that ends in the middle."""


async def chunks_of(data: bytes, size: int = 10_000) -> AsyncIterator[bytes]:
    """A request's body as it arrives."""
    for start in range(0, len(data), size):
        yield data[start : start + size]


def rows(count: int) -> bytes:
    """A file of ``count`` rows."""
    return HEADER + b"".join(b"name %d,%d\n" % (number, number) for number in range(count))


async def needs_none(tokens: Collection[str]) -> Collection[str]:
    """No job is going to read any of them."""
    return ()


def quiet(rows: int, read: int, total: int, message: str) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
async def imports(database: Database, tmp_path: Path, clock: ManualClock) -> Imports:
    """Imports with the default limits."""
    return await opened(database, tmp_path, clock)


async def opened(database: Database, tmp_path: Path, clock: ManualClock, **limits: int) -> Imports:
    """Imports with some limits."""
    imports = Imports(database, tmp_path / "data", UploadSettings(**limits), clock=clock, find_needed=needs_none)
    await imports.open()
    return imports


async def imported(imports: Imports, data: bytes, *, job: str = "job-1", user_id: int = 1) -> ImportResult:
    """Receive and import a file."""
    upload = await imports.receive(chunks_of(data), file_name="people.csv")
    return await imports.run(job, user_id=user_id, upload=upload, on_progress=quiet)


async def numbers(database: Database) -> list[int]:
    """The row numbers stored of the first import, in order."""
    query = "SELECT place & 4294967295 FROM import_row ORDER BY place"
    return [number for (number,) in await database.read(lambda connection: connection.execute(query).fetchall())]


def files(tmp_path: Path) -> list[Path]:
    """What lies in the uploads directory."""
    return list((tmp_path / "data" / "uploads").iterdir())


# -- receiving ---------------------------------------------------------------------------------------------------------


async def test_an_upload_is_kept_under_a_name_of_our_own_for_our_eyes_only(imports: Imports, tmp_path: Path) -> None:
    """The client's name is for people; on disk the file has a random one and is private."""
    data = rows(200_000)

    upload = await imports.receive(chunks_of(data), file_name="../../etc/\u202epeople\r\n .csv")

    (path,) = files(tmp_path)
    assert path.read_bytes() == data
    assert (upload.size, upload.file_name, path.stem) == (len(data), "people .csv", upload.token)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(
    ("sent", "shown"),
    [
        ("", "upload.csv"),
        ("/", "upload.csv"),
        ("C:\\Users\\Ada\\people.csv", "people.csv"),
        ("x" * 300 + ".csv", "x" * 95 + "….csv"),
        ("x" * 300, "x" * 100),
        ("Zoe\u0301.csv", "Zoé.csv"),
    ],
)
async def test_a_file_name_is_made_fit_to_be_shown(imports: Imports, sent: str, shown: str) -> None:
    """Directories, controls and excess length go; a name that is nothing gets one."""
    assert (await imports.receive(chunks_of(HEADER), file_name=sent)).file_name == shown


async def test_an_upload_over_the_limit_leaves_nothing(database: Database, tmp_path: Path, clock: ManualClock) -> None:
    """The limit is counted in bytes as they come, and is exact."""
    imports = await opened(database, tmp_path, clock, max_bytes=20_000)

    assert (await imports.receive(chunks_of(b"x" * 20_000), file_name="a.csv")).size == 20_000
    with pytest.raises(UploadTooLargeError, match="larger than 20,000 bytes"):
        await imports.receive(chunks_of(b"x" * 20_001), file_name="a.csv")

    assert len(files(tmp_path)) == 1


async def test_a_client_that_goes_away_leaves_nothing(imports: Imports, tmp_path: Path) -> None:
    """An error in the middle of the body removes the partial file and is passed on."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        await imports.receive(broken(), file_name="a.csv")

    assert files(tmp_path) == []


async def test_a_cancelled_upload_leaves_nothing(imports: Imports, tmp_path: Path) -> None:
    """Cancelling the request in the middle of the body removes the partial file."""
    waiting = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        yield b"x" * 3_000_000
        waiting.set()
        await asyncio.Event().wait()

    receiving = asyncio.create_task(imports.receive(endless(), file_name="a.csv"))
    await waiting.wait()
    receiving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await receiving

    assert files(tmp_path) == []


async def test_discarding_an_upload_twice_is_fine(imports: Imports, tmp_path: Path) -> None:
    """The file is removed; that it is gone already is no error."""
    upload = await imports.receive(chunks_of(HEADER), file_name="a.csv")

    await imports.discard(upload)
    await imports.discard(upload)

    assert files(tmp_path) == []


async def test_an_upload_that_a_job_is_going_to_read_stays(
    database: Database, tmp_path: Path, clock: ManualClock
) -> None:
    """However old it is; one beside it that no job names goes."""
    needed: set[str] = set()

    async def find_needed(tokens: Collection[str]) -> Collection[str]:
        return needed.intersection(tokens)

    imports = Imports(database, tmp_path / "data", UploadSettings(), clock=clock, find_needed=find_needed)
    await imports.open()
    waits, left = [await imports.receive(chunks_of(HEADER), file_name="a.csv") for _ in range(2)]
    needed.add(waits.token)
    clock.advance(days=30)

    await imports.open()

    assert [path.stem for path in files(tmp_path)] == [waits.token] != [left.token]


async def test_a_link_among_the_uploads_is_left_alone(imports: Imports, tmp_path: Path, clock: ManualClock) -> None:
    """A sweep looks at files of ours only, never at what a link leads to."""
    outside = tmp_path / "outside.csv"
    outside.write_text("theirs")
    os.utime(outside, (0, 0))
    link = tmp_path / "data" / "uploads" / f"{'0' * 32}.csv"
    link.symlink_to(outside)
    clock.advance(days=30)

    await imports.open()

    assert link.is_symlink()
    assert outside.read_text() == "theirs"


async def test_opening_sweeps_out_what_was_left_behind(imports: Imports, tmp_path: Path, clock: ManualClock) -> None:
    """Old partial files and the uploads of ended imports go at the next start; an upload that waits stays."""
    await imported(imports, rows(1))
    waiting = await imports.receive(chunks_of(HEADER), file_name="waiting.csv")
    partial = tmp_path / "data" / "uploads" / f"{'0' * 32}.part"
    partial.touch()
    os.utime(partial, (clock.now_ms() / 1_000, clock.now_ms() / 1_000))
    clock.advance(days=2)

    await imports.open()
    assert [path.stem for path in files(tmp_path)] == [waiting.token]

    clock.advance(days=6)
    await imports.open()
    assert files(tmp_path) == []


# -- importing ---------------------------------------------------------------------------------------------------------


async def test_an_import_stores_rows_and_tells_what_it_rejected(imports: Imports, clock: ManualClock) -> None:
    """The record shows the file, both counts, and each rejection by row and column."""
    result = await imported(imports, b"name,age\nAda,36\nBob\nEve,4\x002\nMax,7\n")

    assert result == ImportResult(rows_stored=2, rows_rejected=2)
    (record,) = (await imports.list(1)).items
    assert (record.id, record.file, record.status, record.error) == ("job-1", "people.csv", "completed", None)
    assert (record.rows_stored, record.rows_rejected) == (2, 2)
    assert record.rejections == (
        Rejection(3, None, "expected 2 columns, found 1"),
        Rejection(4, 2, "contains a NUL character"),
    )
    assert (record.started_ms, record.finished_ms) == (clock.now_ms(), clock.now_ms())
    assert await imports.rows("job-1") == [{"name": "Ada", "age": "36"}, {"name": "Max", "age": "7"}]
    assert await imports.rows("job-1", first_row=4, limit=1) == [{"name": "Max", "age": "7"}]


async def test_values_come_back_as_they_were(imports: Imports) -> None:
    """Quotes, line breaks, empty values and any script survive the way through the database."""
    table = {"a": 'x"y\\', "b": "1\r\n2", "c": "", "d": "日本 𝄞 \u2028\x1f"}
    data = ",".join(table) + "\n" + ",".join('"' + value.replace('"', '""') + '"' for value in table.values())

    await imported(imports, data.encode())

    assert await imports.rows("job-1") == [table]


async def test_progress_counts_rows_and_bytes_up_to_the_end(imports: Imports) -> None:
    """Progress is told behind each commit and ends with all rows and all bytes."""
    data = rows(5_000)
    upload = await imports.receive(chunks_of(data), file_name="a.csv")
    told: list[tuple[int, int, int, str]] = []

    await imports.run("job-1", user_id=1, upload=upload, on_progress=lambda *args: told.append(args))

    assert [item[0] for item in told] == [2_000, 4_000, 5_000]
    assert told == sorted(told)
    assert told[-1] == (5_000, len(data), len(data), "5,000 rows stored, 0 rejected")


async def test_a_header_alone_imports_no_rows(imports: Imports) -> None:
    """A file without rows is imported and says so; there was nothing to store."""
    assert await imported(imports, HEADER) == ImportResult(0, 0, warnings=("there are no rows below the header",))
    assert (await imports.list(1)).items[0].status == "completed"


async def test_rejections_are_kept_up_to_a_bound_and_counted_beyond(imports: Imports) -> None:
    """A thousand reasons are shown, all rejections are counted, a download has them with what the rows hold."""
    result = await imported(imports, HEADER + b"1,x\n" + b"x\n" * 5_000)
    assert (result.rows_stored, result.rows_rejected) == (1, 5_000)
    (record,) = (await imports.list(1)).items
    assert (record.rows_rejected, len(record.rejections)) == (5_000, 1_000)

    found = await imports.rejected("job-1", user_id=1)

    assert found
    rejected = [one async for page in found.pages for one in page]
    assert [one.row for one in rejected] == list(range(3, 5_003))
    assert {one.cells for one in rejected} == {("x",)}
    assert await imports.rejected("job-1", user_id=2) is None


async def test_a_file_whose_every_row_is_rejected_fails(imports: Imports) -> None:
    """It is no success: the error says so, and names the first row and its reason."""
    with pytest.raises(NothingStoredError, match=r"all 3 rows were rejected, .*; row 2: expected \d columns, found 1"):
        await imported(imports, HEADER + b"x\n" * 3)

    (record,) = (await imports.list(1)).items
    assert (record.status, record.rows_rejected, len(record.rejections)) == ("failed", 3, 3)


async def test_imports_are_paged_newest_first_and_only_the_users_own(imports: Imports) -> None:
    """Pages go back in time; another user's imports are not in them."""
    for number in range(3):
        await imported(imports, rows(number), job=f"job-{number}")
    await imported(imports, rows(1), job="other", user_id=2)

    first = await imports.list(1, limit=2)
    second = await imports.list(1, limit=2, cursor=first.next)

    assert [record.id for record in [*first.items, *second.items]] == ["job-2", "job-1", "job-0"]
    assert second.next is None
    with pytest.raises(BadCursorError):
        await imports.list(1, cursor="x")


# -- going on ----------------------------------------------------------------------------------------------------------


async def test_an_import_goes_on_at_its_cursor(imports: Imports, database: Database) -> None:
    """An attempt that ended in the middle is continued: every row is stored once, progress goes on from there."""
    upload = await imports.receive(chunks_of(rows(5_000) + b"bad\n"), file_name="a.csv")

    def crash(rows: int, read: int, total: int, message: str) -> None:
        if rows >= 4_000:
            raise Crash

    with pytest.raises(Crash):
        await imports.run("job-1", user_id=1, upload=upload, on_progress=crash)
    assert (await imports.list(1)).items[0].status == "running"
    assert await numbers(database) == list(range(2, 4_002))

    told: list[int] = []
    result = await imports.run("job-1", user_id=1, upload=upload, on_progress=lambda *args: told.append(args[0]))

    assert result == ImportResult(5_000, 1)
    assert told == [5_001]
    assert await numbers(database) == list(range(2, 5_002))


async def test_a_cancelled_import_stops_and_can_go_on(imports: Imports, database: Database) -> None:
    """Cancelling an import between or inside its steps leaves rows and cursor together."""
    upload = await imports.receive(chunks_of(rows(20_000)), file_name="a.csv")

    def cancel(*args: object) -> None:
        running.cancel()

    running = asyncio.create_task(imports.run("job-1", user_id=1, upload=upload, on_progress=cancel))
    with pytest.raises(asyncio.CancelledError):
        await running

    assert await imports.run("job-1", user_id=1, upload=upload, on_progress=quiet) == ImportResult(20_000, 0)
    assert await numbers(database) == list(range(2, 20_002))


KILLED = """
import asyncio, os, signal, sys
from pathlib import Path
from asyncbg.core.clock import SystemClock
from asyncbg.store.sqlite.database import Database
from asyncbg.service.integrations.imports import Imports
from asyncbg.service.integrations.uploads import Upload
from asyncbg.settings import UploadSettings

def die(rows, read, total, message):
    if rows >= 6_000:
        os.kill(os.getpid(), signal.SIGKILL)

async def main(directory, token, size):
    database = Database(f"{directory}/test.db")
    await database.open()
    imports = Imports(database, Path(directory) / "data", UploadSettings(), clock=SystemClock(), find_needed=None)
    await imports.run("job-1", user_id=1, upload=Upload(token, "a.csv", int(size)), on_progress=die)

asyncio.run(main(*sys.argv[1:]))
"""


async def test_a_killed_process_costs_no_row_and_doubles_none(
    imports: Imports, database: Database, tmp_path: Path
) -> None:
    """After kill -9 in the middle of a file the next process stores the rest, each row once."""
    upload = await imports.receive(chunks_of(rows(20_000)), file_name="a.csv")
    command = [sys.executable, "-c", KILLED, str(tmp_path), upload.token, str(upload.size)]
    killed = await asyncio.to_thread(subprocess.run, command, check=False, timeout=60)
    assert killed.returncode == -9
    assert len(await numbers(database)) == 6_000

    assert await imports.run("job-1", user_id=1, upload=upload, on_progress=quiet) == ImportResult(20_000, 0)

    assert await numbers(database) == list(range(2, 20_002))


async def test_a_complete_import_is_not_run_again(imports: Imports, database: Database) -> None:
    """A job that runs again after its import was complete gets the same result, even without the file."""
    upload = await imports.receive(chunks_of(rows(3)), file_name="a.csv")
    await imports.run("job-1", user_id=1, upload=upload, on_progress=quiet)
    await imports.discard(upload)

    assert await imports.run("job-1", user_id=1, upload=upload, on_progress=quiet) == ImportResult(3, 0)
    assert await numbers(database) == [2, 3, 4]


async def test_two_workers_on_one_import_store_every_row_once(imports: Imports, database: Database) -> None:
    """Where a lease lapsed and two workers run the same import, one goes on and the other is stopped."""
    upload = await imports.receive(chunks_of(rows(20_000)), file_name="a.csv")

    outcomes = await asyncio.gather(
        *(imports.run("job-1", user_id=1, upload=upload, on_progress=quiet) for _ in range(2)),
        return_exceptions=True,
    )

    assert {type(outcome) for outcome in outcomes} == {ImportResult, ImportOvertakenError}
    assert await numbers(database) == list(range(2, 20_002))


# -- failing -----------------------------------------------------------------------------------------------------------


async def test_a_file_that_is_no_csv_fails_with_the_reason(imports: Imports) -> None:
    """The import is marked as failed and the record says why."""
    with pytest.raises(NotCsvError):
        await imported(imports, b"")

    (record,) = (await imports.list(1)).items
    assert (record.status, record.error) == ("failed", "the file is empty; send a CSV file with a header row")
    assert record.finished_ms is not None


async def test_an_endless_row_fails_behind_the_rows_before_it(imports: Imports) -> None:
    """What stood before the broken row stays stored, and the reason names the row."""
    with pytest.raises(RowTooLongError):
        await imported(imports, rows(3_000) + b'"' + b"x\n" * 800_000)

    (record,) = (await imports.list(1)).items
    assert (record.status, record.rows_stored) == ("failed", 3_000)
    assert record.error == "row 3002 is longer than 1,048,576 bytes; is a closing quote missing?"


@pytest.mark.parametrize(("count", "limit"), [(2_501, 2_500), (9, 1)])
async def test_rows_over_the_limit_fail_the_import(
    database: Database, tmp_path: Path, clock: ManualClock, count: int, limit: int
) -> None:
    """The rows up to the limit are stored, the import fails and says so, and trying again changes nothing."""
    imports = await opened(database, tmp_path, clock, max_rows=limit)
    upload = await imports.receive(chunks_of(rows(count)), file_name="a.csv")

    for _ in range(2):
        with pytest.raises(TooManyRowsError):
            await imports.run("job-1", user_id=1, upload=upload, on_progress=quiet)

        (record,) = (await imports.list(1)).items
        assert (record.status, record.rows_stored) == ("failed", limit)
        assert record.error == f"the file has more than {limit:,} rows; the first {limit:,} were imported and stay"
    assert await numbers(database) == list(range(2, limit + 2))


async def test_as_many_rows_as_the_limit_are_fine(database: Database, tmp_path: Path, clock: ManualClock) -> None:
    """The limit itself is allowed, blank lines at the end or not."""
    imports = await opened(database, tmp_path, clock, max_rows=10)

    assert await imported(imports, rows(10) + b"\n\n , \n") == ImportResult(10, 0, rows_skipped=3)


@pytest.mark.parametrize("token", ["0" * 32, "../../test", "/etc/hostname", ""])
async def test_an_upload_that_is_not_there_fails_the_import(imports: Imports, token: str) -> None:
    """A removed upload and a forged token are the same: there is no such file."""
    with pytest.raises(UploadGoneError, match="send it again"):
        await imports.run("job-1", user_id=1, upload=Upload(token, "a.csv", 1), on_progress=quiet)

    assert (await imports.list(1)).items[0].status == "failed"


async def test_giving_up_marks_a_running_import_only(imports: Imports) -> None:
    """An import given up is failed with the reason; one that has ended stays as it ended."""
    await imported(imports, rows(1), job="done")
    upload = await imports.receive(chunks_of(rows(1)), file_name="a.csv")

    def crash(*args: object) -> None:
        raise Crash

    with pytest.raises(Crash):
        await imports.run("job-1", user_id=1, upload=upload, on_progress=crash)
    for job in ("job-1", "done"):
        await imports.fail(job, reason="cancelled")

    assert [(record.status, record.error) for record in (await imports.list(1)).items] == [
        ("failed", "cancelled"),
        ("completed", None),
    ]
