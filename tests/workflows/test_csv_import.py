"""CSV uploads: what is stored, what is refused, and that no upload is ever left behind."""

import asyncio
import base64
import contextlib
import csv
import io
import json
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from asyncbg.service.connection_limits import connection_limits
from asyncbg.service.server import create_app
from asyncbg.settings import Settings
from asyncbg.testing import serve as serving
from tests.workflows.conftest import Service, at_the_door, running

PATH = "/upload-csv/7"
NAME = "\u0438\u043c\u044f"  # Cyrillic
PEOPLE = b"name,city\nAda canary7f3a,London\nGrace,New York\n"


async def upload(service: Service, content: bytes, name: str = "people.csv") -> tuple[dict[str, Any], dict[str, Any]]:
    """Upload a file; gives the final job and the import as its owner sees it."""
    [job] = await service.post(PATH, files={"file": (name, content)})
    [shown, *_] = (await service.http.get("/user/7/imports")).json()["items"]
    assert shown["id"] == job["id"]
    assert service.uploads == []
    return job, shown


async def test_rows_are_stored_and_the_owner_is_told(service: Service) -> None:
    """The job counts the rows, the import lists them, a line and an event tell the owner, the upload is gone."""
    job, shown = await upload(service, PEOPLE)

    assert (job["task"], job["state"], job["result"]) == (
        "process_csv",
        "succeeded",
        {"rows_stored": 2, "rows_rejected": 0},
    )
    assert (shown["file"], shown["status"], shown["rows_stored"], shown["error"]) == (
        "people.csv",
        "completed",
        2,
        None,
    )
    assert job["progress"]["current"] == job["progress"]["total"] == len(PEOPLE)
    assert service.log == ["notification for user 7: people.csv: 2 rows imported, 0 rejected"]
    assert "csv.imported" in [event["type"] for event in await service.events(job["id"])]


@pytest.mark.parametrize(
    ("content", "stored"),
    [
        ("\ufeffname,city\nÄda,Köln\n".encode(), 1),
        ("name;city\nÄda;Köln\n".encode("latin-1"), 1),
        ("name\tcity\nÄda\tKöln\n".encode("utf-16"), 1),
        (b'name,note\nAda canary7f3a,"two\nlines, one ""quoted"""\n', 1),
        (b"name,city\r\nAda canary7f3a,London\r\n\r\nGrace,Paris", 2),
        (b"name,city\n", 0),
    ],
)
async def test_what_spreadsheets_write_is_read(service: Service, content: bytes, stored: int) -> None:
    """Byte order marks, encodings, delimiters, quoted line breaks, blank lines and a missing last line break."""
    job, shown = await upload(service, content)

    assert (job["state"], shown["rows_stored"], shown["rows_rejected"]) == ("succeeded", stored, 0)


@pytest.mark.parametrize("bad", [b"Grace", b"Grace,Paris,France", b"Gra\0ce,Paris", b"Gr\xc3ace,Paris"])
async def test_a_bad_row_is_rejected_alone(service: Service, bad: bytes) -> None:
    """Ragged, with a NUL or undecodable: the row and the reason are kept, the other rows are stored."""
    job, shown = await upload(service, "name,city\nÄda,London\n".encode() + bad + "\nJürgen,Köln\n".encode())

    assert job["result"] == {"rows_stored": 2, "rows_rejected": 1}
    [rejection] = shown["rejections"]
    assert rejection["row"] == 3
    assert rejection["reason"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n\n\n",
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        b'{"name": "Ada canary7f3a"}',
        b"<html><body></body></html>",
        b"name,name\nAda canary7f3a,Byron\n",
        b"name,city\nAda canary7f3a\nGrace\n",
        b'name,city\n"' + b"x" * 150_000,
    ],
)
async def test_what_is_no_csv_fails_at_once(service: Service, content: bytes) -> None:
    """One attempt; the owner is told what is wrong, and the upload is gone. A file of bad rows alone is no success."""
    job, shown = await upload(service, content)

    assert (job["state"], job["attempt"], shown["status"]) == ("failed", 1, "failed")
    assert shown["error"] == job["error"]["message"]
    assert service.log == [f"notification for user 7: people.csv: import failed: {shown['error']}"]
    assert "csv.failed" in [event["type"] for event in await service.events(job["id"])]


async def test_a_file_with_too_many_rows_fails(service: Service) -> None:
    """The limit is named, and what was stored before it is counted."""
    job, shown = await upload(service, b"n\n" + b"1\n" * 5_001)

    assert (job["state"], job["error"]["type"], shown["rows_stored"]) == ("failed", "TooManyRowsError", 5_000)


@pytest.mark.parametrize(
    ("content", "seen"),
    [
        (PEOPLE, ("utf-8", "guessed", ",", "guessed", "none", ["name", "city"], 0, [])),
        ("\ufeffsep=;\nname;city\n;\nÄda;Köln\n".encode(), ("utf-8", "declared", ";", "declared", "none",
         ["name", "city"], 1, [])),
        (b"name,,\nAda,x,\n", ("utf-8", "guessed", ",", "guessed", "none", ["name", "column_2"], 0,
         ["column 2 has no name; it is called column_2", "empty columns were left out: 3"])),
        (b"Report\n\nname,city\nAda,London\n", ("utf-8", "guessed", ",", "guessed", "none", ["name", "city"], 0,
         ["rows 1 to 2 are above the header and not part of the table; row 3 was read as the header"])),
    ],
)  # fmt: skip
async def test_an_import_shows_how_the_file_was_read(service: Service, content: bytes, seen: tuple[Any, ...]) -> None:
    """What was declared and what guessed; what was left out or named is in the job, the event and the notice too."""
    job, shown = await upload(service, content)

    names = "encoding encoding_source delimiter delimiter_source quoting columns rows_skipped warnings"
    assert tuple(shown[name] for name in names.split()) == seen
    assert job["result"].get("warnings", []) == shown["warnings"]
    [told] = [event for event in await service.events(job["id"]) if event["type"] == "csv.imported"]
    assert (told["data"]["warnings"], told["data"]["rows_skipped"]) == (shown["warnings"], shown["rows_skipped"])
    assert all(warning in service.log[0] for warning in shown["warnings"])


async def test_the_charset_of_the_part_or_the_form_is_followed(service: Service) -> None:
    """RFC 7578, 4.5 and 4.6: the file says nothing of itself."""
    content = f"{NAME},n\nAda,1\n".encode("koi8-r")
    own = part('name="file"; filename="a"\r\nContent-Type: text/csv; charset="KOI8-R"', content)
    form = part('name="_charset_"', b"koi8-r") + part('name="file"; filename="a"', content)
    for body in (own, form, part('name="file"; filename="a"', content) + part('name="_charset_"', b"koi8-r")):
        await service.post(PATH, content=body + END, headers={"content-type": FORM})
        [shown, *_] = (await service.http.get("/user/7/imports")).json()["items"]
        assert (shown["encoding"], shown["encoding_source"]) == ("koi8-r", "declared")
        assert shown["columns"][0] == NAME


async def test_rejected_rows_are_downloaded_mended_and_sent_again(service: Service) -> None:
    """With the reasons, as CSV; what a spreadsheet would run is text there, and itself again when it comes back."""
    _, shown = await upload(service, b'n,=x\n1,2\n=3\n-4,"5" disk\n6,\0\n7,8,9\n')
    assert shown["rejected_url"] == f"/user/7/imports/{shown['id']}/rejected"

    answer = await service.http.get(shown["rejected_url"])

    assert answer.content.startswith(b"\xef\xbb\xbf")
    [header, *lines] = csv.reader(io.StringIO(answer.content.decode("utf-8-sig"), newline=""))
    assert header == ["rejected_row", "rejected_column", "rejected_reason", "n", "'=x"]
    assert [(line[0], line[1], line[3:]) for line in lines] == [
        ("3", "", ["'=3"]), ("4", "2", ["'-4", '"5" disk']), ("5", "2", ["6", "\ufffd"]), ("6", "", ["7", "8", "9"]),
    ]  # fmt: skip
    mended = [line if len(line) == 5 else [*line[:4], "x"] for line in lines]
    text = io.StringIO(newline="")
    csv.writer(text).writerows([header, *mended])
    job, again = await upload(service, text.getvalue().encode())
    assert (again["columns"], again["rows_stored"], again["rejected_url"]) == (["n", "=x"], 4, None)
    assert (await service.http.get(f"/user/8/imports/{shown['id']}/rejected")).status_code == 404
    assert (await service.http.get(f"/user/7/imports/{job['id']}x/rejected")).status_code == 404


async def test_an_export_has_all_imports_or_says_where_the_next_are(service: Service) -> None:
    """Streamed whole; a page that was asked for ends with a link to the next (RFC 8288)."""
    for number in range(23):
        await service.post(PATH, files={"file": (f"{number}.csv", PEOPLE)})

    whole = await service.http.get("/user/7/imports", params={"format": "csv"})
    page = await service.http.get("/user/7/imports", params={"format": "csv", "limit": 20})
    link = re.fullmatch(r'<(\?[^>]+)>; rel="next"', page.headers["link"])
    assert link
    last = await service.http.get(page.url.join(link[1]))

    assert len(whole.text.splitlines()) == 24
    assert "link" not in whole.headers
    assert len(page.text.splitlines()) == 21
    assert (len(last.text.splitlines()), "link" in last.headers) == (4, False)


async def test_the_name_of_the_file_is_only_shown(service: Service) -> None:
    """It leads nowhere on our disk."""
    _, shown = await upload(service, PEOPLE, name="../../etc/passwd")

    assert shown["file"] == "passwd"


async def test_imports_are_listed_newest_first_in_pages(service: Service) -> None:
    """And only the user's own."""
    for name in ("a.csv", "b.csv", "c.csv"):
        await upload(service, PEOPLE, name)

    first = (await service.http.get("/user/7/imports", params={"limit": 2})).json()
    second = (await service.http.get("/user/7/imports", params={"limit": 2, "cursor": first["next"]})).json()

    assert [item["file"] for item in first["items"] + second["items"]] == ["c.csv", "b.csv", "a.csv"]
    assert second["next"] is None
    assert (await service.http.get("/user/8/imports")).json() == {"items": [], "next": None}


async def test_imports_are_exported_for_a_spreadsheet(service: Service) -> None:
    """A line for each rejection, by row and column, never by value; a file name that is a formula becomes text."""
    await upload(service, b"a,b\n1\nsecret,\x00x\n1,2\n", name="=cmd.csv")
    await upload(service, PEOPLE, name="people.csv")

    answer = await service.http.get("/user/7/imports", params={"format": "csv"})

    lines = list(csv.DictReader(io.StringIO(answer.text.removeprefix("\ufeff"), newline="")))
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    assert [line["file"] for line in lines] == ["people.csv", "'=cmd.csv", "'=cmd.csv"]
    assert [(line["row"], line["column"]) for line in lines] == [("", ""), ("2", ""), ("3", "2")]
    assert lines[2]["reason"] == "contains a NUL character"
    assert "secret" not in answer.text


@pytest.mark.parametrize(("free_bytes", "status"), [(1024**4, 507), (0, 202)])
async def test_the_free_disk_is_checked_first(
    serve: Callable[[Settings], Awaitable[Service]], settings: Settings, free_bytes: int, status: int
) -> None:
    """An upload that would not leave what is asked for is refused with the remedy, and nothing is kept."""
    limits = settings.upload.model_copy(update={"min_free_bytes": free_bytes})
    service = await serve(settings.model_copy(update={"upload": limits}))

    answer = await service.http.post(PATH, files={"file": ("people.csv", PEOPLE)})

    assert answer.status_code == status
    if status == 507:
        assert answer.headers["content-type"] == "application/problem+json"
        assert "ASYNCBG_DATA_DIR" in answer.json()["detail"]
        assert service.uploads == []


async def test_an_upload_is_readable_by_its_owner_only(service: Service) -> None:
    """A name of our own, 0600, in a directory of 0700."""
    directory = service.settings.data_dir / "uploads"
    seen: list[tuple[str, int]] = []

    async def body() -> AsyncIterator[bytes]:
        yield part('name="file"; filename="../x.csv"', PEOPLE[:10]).removesuffix(b"\r\n")
        yield PEOPLE[10:] * 1_000
        async with asyncio.timeout(5):
            while not service.uploads:
                await service.http.get("/health/live")
        seen.extend((path.name, path.stat().st_mode & 0o777) for path in service.uploads)
        yield b"\r\n" + END

    await service.http.post(PATH, content=body(), headers={"content-type": "multipart/form-data; boundary=b"})

    [(name, mode)] = seen
    assert re.fullmatch(r"[0-9a-f]{32}\.part", name)
    assert (mode, directory.stat().st_mode & 0o777) == (0o600, 0o700)


async def test_fields_around_the_file_are_ignored(service: Service) -> None:
    """A form may send more than the file."""
    [job] = await service.post(PATH, data={"a": "1", "b": "2"}, files={"file": ("x.csv", PEOPLE)})

    assert job["result"]["rows_stored"] == 2


async def test_the_upload_of_a_cancelled_job_is_removed(service: Service) -> None:
    """Whether it was running or still waiting when it was cancelled."""
    answer = await service.http.post(PATH, files={"file": ("x.csv", b"n\n" + b"1\n" * 4_000)})
    job_id = answer.json()["jobs"][0]["id"]
    await service.http.post(f"/jobs/{job_id}/cancel")
    await service.final(job_id)

    async with asyncio.timeout(5):
        while service.uploads:
            await service.http.get("/health/live")


@at_the_door
async def test_an_announced_length_over_the_limit_is_refused_before_the_body(door: Service) -> None:
    """413, and nothing is kept."""
    answer = await door.http.post(PATH, files={"file": ("big.csv", b"x" * 300_000)})

    assert answer.status_code == 413
    assert answer.headers["content-type"] == "application/problem+json"
    assert door.uploads == []


@at_the_door
async def test_a_length_over_the_limit_is_noticed_as_it_comes(door: Service) -> None:
    """A body without Content-Length is counted."""

    async def body() -> AsyncIterator[bytes]:
        yield part('name="file"; filename="big.csv"')
        for _ in range(30):
            yield b"x" * 10_000
        yield END

    answer = await door.http.post(PATH, content=body(), headers={"content-type": "multipart/form-data; boundary=b"})

    assert answer.status_code == 413
    assert door.uploads == []


def part(head: str, data: bytes = b"x") -> bytes:
    """One part of a multipart body whose boundary is ``b``."""
    return f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"


FORM = "multipart/form-data; boundary=b"
END = b"--b--\r\n"


@at_the_door
@pytest.mark.parametrize(
    ("media", "body", "status"),
    [
        ("application/json", b"{}", 415),
        ("text/csv", PEOPLE, 415),
        ("multipart/form-data", END, 400),
        ("multipart/form-data; boundary=", END, 400),
        (FORM, b"", 400),
        (FORM, b"nonsense", 400),
        (FORM, b"--b\r\nno colon\r\n\r\nx\r\n--b--\r\n", 400),
        (FORM, part('name="file"; filename="a"', b"name,city"), 400),
        (FORM, part(f'name="file"; filename="{"a" * 100_000}"') + END, 400),
        (FORM, part("name=x" + "\r\nX: y" * 100) + END, 400),
        (FORM, part('name="a"') + END, 422),
        (FORM, part('name="file"') + END, 422),
        (FORM, part('name="file"; filename=""') + END, 422),
        (FORM, part('name="other"; filename="a"') + END, 422),
        (FORM, part('name="file"; filename="a"') + part('name="file"; filename="b"') + END, 422),
    ],
)
async def test_what_is_no_upload_is_refused(door: Service, media: str, body: bytes, status: int) -> None:
    """Another media type, a malformed or incomplete body, no file, two files."""
    answer = await door.http.post(PATH, content=body, headers={"content-type": media})

    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert door.uploads == []


@pytest.mark.parametrize(
    ("head", "content", "name"),
    [
        ("filename*=utf-8''Ums%C3%A4tze.csv", PEOPLE, "Umsätze.csv"),
        ("filename=\"x.csv\"; filename*=iso-8859-1''Ums%E4tze.csv", PEOPLE, "Umsätze.csv"),
        ('filename="a.csv"\r\nContent-Transfer-Encoding: base64', base64.encodebytes(PEOPLE), "a.csv"),
        ('filename="a.csv"\r\nContent-Transfer-Encoding: quoted-printable', PEOPLE.replace(b"Ada", b"=41da"), "a.csv"),
    ],
)
async def test_a_file_comes_as_the_world_sends_it(service: Service, head: str, content: bytes, name: str) -> None:
    """Extended names and transfer encodings are decoded; a preamble and padding behind boundaries are skipped."""
    body = b"preamble\r\n" + part(f'name="file"; {head}', content) + b"--b-- \r\nepilogue"

    [job] = await service.post(PATH, content=body.replace(b"--b\r", b"--b \r"), headers={"content-type": FORM})

    [shown] = (await service.http.get("/user/7/imports")).json()["items"]
    assert (shown["id"], shown["file"], shown["rows_stored"]) == (job["id"], name, 2)


@at_the_door
async def test_an_unknown_transfer_encoding_is_refused(door: Service) -> None:
    """415, and nothing is kept: it would be stored as something else than the file."""
    body = part('name="file"; filename="a"\r\nContent-Transfer-Encoding: x-uue', PEOPLE) + END

    answer = await door.http.post(PATH, content=body, headers={"content-type": FORM})

    assert answer.status_code == 415
    assert "base64 or quoted-printable" in answer.json()["detail"]
    assert door.uploads == []


@at_the_door
async def test_the_upload_of_a_client_that_left_is_removed(door: Service) -> None:
    """The partial file goes with the connection, and no job is made."""
    client = socket.create_connection((door.http.base_url.host, door.http.base_url.port or 0))
    with contextlib.closing(client):
        client.sendall(
            b"POST /upload-csv/7 HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n"
            b"Content-Type: multipart/form-data; boundary=b\r\n\r\n"
            b'--b\r\nContent-Disposition: form-data; name="file"; filename="x.csv"\r\n\r\nname,city\r\n'
        )
        async with asyncio.timeout(5):
            while not door.uploads:
                await door.http.get("/health/live")

    async with asyncio.timeout(5):
        while door.uploads:
            await door.http.get("/health/live")


@at_the_door
async def test_an_upload_for_nobody_is_refused(door: Service) -> None:
    """A user id that is no number: 422, and nothing is kept."""
    answer = await door.http.post("/upload-csv/abc", files={"file": ("x.csv", PEOPLE)})

    assert answer.status_code == 422
    assert door.uploads == []


async def test_an_upload_that_a_shutdown_cuts_is_told_so_and_leaves_nothing(settings: Settings) -> None:
    """The answer is 503 with Retry-After, no file stays, and no job is there at the next start."""
    async with serving(create_app(settings), **connection_limits(settings.stream)) as live:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(live.url.rpartition(":")[2]))
        writer.write(
            f"POST {PATH} HTTP/1.1\r\nHost: service\r\nContent-Length: 100000\r\n"
            "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            'Content-Disposition: form-data; name="file"; filename="people.csv"\r\n\r\nname,city\nAda,'.encode()
        )
        directory = settings.data_dir / "uploads"
        async with asyncio.timeout(20):
            while not [path for path in directory.glob("*") if path.is_file()]:  # noqa: ASYNC110 - seen on disk
                await asyncio.sleep(0.005)

    start, _, document = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    assert start.startswith(b"HTTP/1.1 503 ")
    assert re.search(rb"\r\ncontent-type: application/problem\+json\r\n", start)
    assert re.search(rb"\r\nretry-after: [1-9]", start)
    assert json.loads(document)["status"] == 503
    assert [path for path in directory.glob("*") if path.is_file()] == []
    async with running(settings) as again:
        assert (await again.http.get("/jobs")).json()["items"] == []
