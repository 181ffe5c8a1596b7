"""The parser of event streams, case by case as the standard has them (WHATWG HTML, section 9.2.6)."""

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asyncbg.client.error import StreamError
from asyncbg.client.sse_parser import LONGEST_RETRY_MS, ServerEvent, SSEParser


def parse(*chunks: bytes) -> list[tuple[str, str, str]]:
    """The frames of a stream that comes in these chunks."""
    parser = SSEParser()
    return [(frame.event, frame.data, frame.id) for chunk in chunks for frame in parser.feed(chunk)]


def by_the_book(stream: bytes) -> tuple[list[ServerEvent], str, int | None]:
    """The standard's own steps, written down as they stand there: frames, last event id and reconnection time."""
    frames: list[ServerEvent] = []
    data = event = last_id = kept_id = ""
    retry_ms = None
    *lines, _ = re.split("\r\n|\r|\n", stream.decode("utf-8", "replace").removeprefix("\ufeff"))
    for line in lines:
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if not line:
            kept_id = last_id
            if data:
                frames.append(ServerEvent(event or "message", data[:-1], last_id))
            data = event = ""
        elif field == "event":
            event = value
        elif field == "data":
            data += value + "\n"
        elif field == "id" and "\0" not in value:
            last_id = value
        elif field == "retry" and re.fullmatch("[0-9]+", value):
            retry_ms = min(int(value), LONGEST_RETRY_MS)
    return frames, kept_id, retry_ms


PIECES = [
    b"data", b"event", b"id", b"retry", b":", b": ", b" ", b"\r", b"\n", b"\r\n", b"\n\n", b"\0", b"x", b"12", b"\xef",
    b"\xef\xbb\xbf", "\u20ac".encode(), "\U0001f600".encode(), b"\xf0\x9f", b"\x0b", "\u2028".encode(), b"\x85",
    b"data: a\n", b"id: 7\n", b"event: e\r", b":c\n",
]  # fmt: skip
streams = st.lists(st.sampled_from(PIECES), max_size=60).map(b"".join)


@settings(deadline=None)
@given(stream=streams, cuts=st.lists(st.integers(0, 300), max_size=20))
def test_any_chunking_gives_what_the_standard_says(stream: bytes, cuts: list[int]) -> None:
    """However the bytes are cut, frames, id and retry are those of the standard's steps over the whole."""
    places = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    parser = SSEParser()

    frames = [frame for start, end in pairwise(places) for frame in parser.feed(stream[start:end])]

    assert (frames, parser.last_event_id, parser.retry_ms) == by_the_book(stream)


@settings(deadline=None)
@given(stream=streams)
def test_byte_by_byte_is_no_different(stream: bytes) -> None:
    """The finest chunking of all."""
    parser = SSEParser()
    frames = [frame for byte in stream for frame in parser.feed(bytes([byte]))]

    assert frames == by_the_book(stream)[0]


@pytest.mark.parametrize(
    ("stream", "told"),
    [
        pytest.param(b"data: a\n\n", [("message", "a", "")], id="a type is message unless named"),
        pytest.param(b"\xef\xbb\xbfdata: a\n\n", [("message", "a", "")], id="one byte order mark is dropped"),
        pytest.param(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n", [], id="a second one is part of the field's name"),
        pytest.param(b"data: a\n\n\xef\xbb\xbfdata: b\n\n", [("message", "a", "")], id="and so is a later one"),
        pytest.param(b"data: a\r\rdata: b\r\r", [("message", "a", ""), ("message", "b", "")], id="CR ends a line"),
        pytest.param(b"data: a\r\n\r\ndata: b\n\n", [("message", "a", ""), ("message", "b", "")], id="so does CRLF"),
        pytest.param(b"data: a\ndata: b\n\n", [("message", "a\nb", "")], id="data of several lines"),
        pytest.param(b"data:a\ndata:  b\n\n", [("message", "a\n b", "")], id="one space after the colon is dropped"),
        pytest.param(b"data\ndata\n\n", [("message", "\n", "")], id="fields without a colon are empty"),
        pytest.param(b"data:\n\n", [("message", "", "")], id="empty data is told"),
        pytest.param(
            b"event: x\n\ndata: a\n\n", [("message", "a", "")], id="no data: nothing told, the type forgotten"
        ),
        pytest.param(b": x\ndata: a\n:\n\n", [("message", "a", "")], id="comments are nothing"),
        pytest.param(b"data: a\nfoo: b\nDATA: c\n\n", [("message", "a", "")], id="unknown fields are nothing"),
        pytest.param(b"data: a\n\ndata: b\n", [("message", "a", "")], id="a block the end cuts off is not told"),
        pytest.param(b"data: a:b\n\n", [("message", "a:b", "")], id="only the first colon counts"),
        pytest.param(b"data: \xe2\x82\n\n", [("message", "\ufffd", "")], id="broken UTF-8 is replaced"),
        pytest.param(
            "data: a\u2028b\x0bc\x85d\n\n".encode(), [("message", "a\u2028b\x0bc\x85d", "")], id="no other line breaks"
        ),
        pytest.param(
            b"id: 1\ndata: a\n\ndata: b\n\n", [("message", "a", "1"), ("message", "b", "1")], id="an id holds on"
        ),
        pytest.param(
            b"id: 1\ndata: a\n\nid\ndata: b\n\n",
            [("message", "a", "1"), ("message", "b", "")],
            id="an empty id ends it",
        ),
        pytest.param(
            b"id: 1\ndata: a\n\nid: 2\x003\ndata: b\n\n",
            [("message", "a", "1"), ("message", "b", "1")],
            id="an id with a NUL is ignored",
        ),
    ],
)
def test_a_stream_is_read_as_the_standard_says(stream: bytes, told: list[tuple[str, str, str]]) -> None:
    """One case of the standard each, as a whole and byte by byte."""
    assert parse(stream) == told
    assert parse(*(bytes([byte]) for byte in stream)) == told


def test_a_crlf_may_be_split_over_chunks() -> None:
    """The LF that follows a CR in the next chunk, empty ones between, ends no second line."""
    assert parse(b"data: a\r", b"", b"\ndata: b\r", b"\n\r", b"\n") == [("message", "a\nb", "")]


def test_a_cr_ends_its_block_at_once() -> None:
    """A frame is told when its blank line is there, not when the byte after it has come."""
    assert parse(b"data: a\r\r") == [("message", "a", "")]


def test_a_character_may_be_split_over_chunks() -> None:
    """Its bytes come together again."""
    smile = "\U0001f600".encode()
    assert parse(b"data: " + smile[:1], smile[1:3], smile[3:] + b"\n\n") == [("message", "\U0001f600", "")]


def test_an_id_alone_moves_the_cursor() -> None:
    """A block without data tells nothing, and its id is where to go on; one that is cut off changes nothing."""
    parser = SSEParser(last_event_id="e-1")
    parser.feed(b"id: e-2\n\n")
    assert parser.last_event_id == "e-2"
    parser.feed(b"id: e-3\n")
    assert parser.last_event_id == "e-2"


def test_a_new_connection_goes_on_with_the_cursor_of_the_last() -> None:
    """What comes without an id has the one the stream was opened with."""
    assert SSEParser(last_event_id="e-1").feed(b"data: a\n\n") == [ServerEvent("message", "a", "e-1")]


@pytest.mark.parametrize("value", [b"", b"-1", b"1.5", b"1s", b"0x10", b"1 ", "\u0661".encode(), b"1\x00"])
def test_a_bogus_retry_is_ignored(value: bytes) -> None:
    """Only ASCII digits are a time; what was asked for before stays."""
    parser = SSEParser()
    parser.feed(b"retry: 10\nretry: " + value + b"\n")
    assert parser.retry_ms == 10


@pytest.mark.parametrize(("value", "retry_ms"), [(b"0", 0), (b"007", 7), (b"9" * 5_000, LONGEST_RETRY_MS)])
def test_a_retry_holds_at_once_and_within_reason(value: bytes, retry_ms: int) -> None:
    """It needs no blank line; one of many digits is an hour."""
    parser = SSEParser()
    parser.feed(b"retry:" + value + b"\n")
    assert parser.retry_ms == retry_ms


@pytest.mark.parametrize(
    "chunks",
    [
        pytest.param([b"data: " + b"x" * 40] * 3, id="one line without an end"),
        pytest.param([b"data: xxxxxxxxx\n"] * 12, id="many lines"),
        pytest.param([b"data: xxxxxxxxx\n" * 12 + b"\n"], id="in one chunk"),
        pytest.param([b":" + b"x" * 40] * 3, id="a comment"),
    ],
)
def test_a_frame_too_large_is_refused(chunks: list[bytes]) -> None:
    """What is held of a frame is bounded; the error names the bound and the remedy."""
    parser = SSEParser(max_frame_bytes=100)
    with pytest.raises(StreamError, match=r"larger than 100 bytes.*max_frame_bytes"):
        any(parser.feed(chunk) for chunk in chunks)


def test_the_bound_is_for_one_frame() -> None:
    """Any number of frames and comments may come one after another."""
    parser = SSEParser(max_frame_bytes=100)
    assert len(parser.feed(b"data: " + b"x" * 80 + b"\n\n") * 3) == 3
    assert len(parser.feed((b": " + b"x" * 80 + b"\n") * 50 + b"data: y\n\n" * 50)) == 50
