"""Detection of a CSV file's encoding and of the end of its text.

The order follows the HTML standard: the byte order mark, the declared charset, detection (charset-normalizer for what
is not UTF-8), Windows-1252. A declared charset that the bytes contradict is ignored with a warning.
"""

import codecs
import os
import re
import string
from collections.abc import Iterable
from dataclasses import dataclass
from typing import BinaryIO, Literal

from asyncbg.errors import FinalError

CHUNK_BYTES = 524_288

Source = Literal["declared", "guessed"]

UTF_16 = ("utf-16-le", "utf-16-be")
_MARKS = ((codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, UTF_16[0]), (codecs.BOM_UTF16_BE, UTF_16[1]))
_ASCII = string.ascii_letters + string.digits + "\t\r\n \",;|:=<>'#_-/"
_NOT_FOR_FILES = {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined", "utf-7", "mbcs", "oem"}
# The meaning of a label in browsers (WHATWG Encoding), and the displayed name of a Python codec.
_LABELS = {
    **dict.fromkeys(("iso-8859-1", "iso8859-1", "latin-1", "latin1", "l1", "ansi", "windows-1252"), "cp1252"),
    **dict.fromkeys(("shift-jis", "shift_jis", "sjis", "x-sjis", "ms_kanji", "windows-31j"), "cp932"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk", "windows-936"), "gb18030"),
    **dict.fromkeys(("euc-kr", "ks_c_5601-1987", "korean", "windows-949"), "cp949"),
    **dict.fromkeys(("macintosh", "x-mac-roman", "mac"), "mac-roman"),
    **dict.fromkeys(("utf-16", "unicode", "ucs-2", "iso-10646-ucs-2"), "utf-16"),
    **dict.fromkeys(("iso-8859-9", "latin5"), "cp1254"),
    **dict.fromkeys(("tis-620", "iso-8859-11"), "cp874"),
    "x-mac-cyrillic": "mac-cyrillic", "big5-hkscs": "big5hkscs",
}  # fmt: skip
_SHOWN = {
    "cp932": "shift_jis", "cp949": "euc-kr", "cp874": "windows-874", "mac-roman": "macintosh", "utf-16-le": "utf-16le",
    "utf-16-be": "utf-16be", "big5hkscs": "big5", "ascii": "us-ascii",
}  # fmt: skip
_CANDIDATES = [
    "cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp932", "gb18030", "big5", "cp949", "euc_jp",
    "koi8_r", "mac_roman", "cp437", "cp850", "cp852", "cp866", "iso8859_2",
]  # fmt: skip
_SAMPLE_BYTES = 65_536
_SURE = 0.2
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0e-\x1f]")
_ESCAPED = re.compile("[\udc80-\udcff]")
_PADDING = {"utf-16-le": (b"\0\0", b"\x1a\0"), "utf-16-be": (b"\0\0", b"\0\x1a")}


class CsvError(FinalError):
    """The file cannot be read as CSV; a retry with the same file fails too."""


class NotCsvError(CsvError):
    """The file is not CSV, or its encoding is not supported."""


@dataclass(frozen=True, slots=True)
class Encoding:
    """A codec, the length of the byte order marks, how the codec was determined, and warnings."""

    codec: str
    start: int
    source: Source
    warnings: tuple[str, ...] = ()


def find_encoding(file: BinaryIO, head: bytes, *, declared: str | None) -> Encoding:
    """Return the encoding of a file that begins with ``head``; reads up to the first byte that is not ASCII.

    Raises NotCsvError for UTF-32.
    """
    if head.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        raise NotCsvError("the file is UTF-32 text; save it as UTF-8")
    for mark, codec in _MARKS:
        if head.startswith(mark):
            return _marked(head, mark, codec, declared)
    part = _first_part(file, head)
    if not declared:
        return _guess(head, part)
    wanted = codec_of(declared)
    if wanted is None:
        return _contradicted(_guess(head, part), "the declared charset is unknown; the file was read as")
    if confirmed := _confirmed(wanted, head, part):
        return Encoding(confirmed, 0, "declared")
    return _contradicted(
        _guess(head, part), f"the file is not {encoding_in_words(wanted)}, as declared; it was read as"
    )


def codec_of(label: str) -> str | None:
    """Return Python's codec for a charset label; None if it is unknown or not a superset of ASCII."""
    label = label.strip().strip("'\"").lower()
    try:
        info = codecs.lookup(_LABELS.get(label, label))
        name = info.name.replace("_", "-")
        if name in {"utf-16", *UTF_16, "utf-32", "utf-32-le", "utf-32-be"}:
            return name
        if name in _NOT_FOR_FILES or _ASCII.encode(name) != _ASCII.encode("ascii"):
            return None
    except (LookupError, UnicodeError, TypeError, ValueError):
        return None
    return "utf-8" if name == "utf-8-sig" else name


def shown_encoding(codec: str) -> str:
    """Return the web's name of a codec: ``windows-1252``, ``shift_jis``, ``utf-16le``."""
    if re.fullmatch("cp125[0-8]", codec):
        return f"windows-{codec[2:]}"
    if re.fullmatch("iso8859-[0-9]+", codec):
        return f"iso-8859-{codec[8:]}"
    return _SHOWN.get(codec, codec)


def encoding_in_words(codec: str) -> str:
    """Return a codec's name for messages: ``UTF-16``, ``windows-1252``."""
    return codec.upper()[:6].rstrip("-") if codec.startswith("utf-") else shown_encoding(codec)


def content_end(file: BinaryIO, codec: str) -> tuple[int, int, bool]:
    """Return the end of the text without padding: the offset, the number of zero bytes, and whether ^Z was found."""
    size = end = file.seek(0, os.SEEK_END)
    zero, stop = _PADDING.get(codec, (b"\0", b"\x1a"))
    unit, zeros, has_stop = len(zero), 0, False
    if unit > 1 and size % unit:
        return size, 0, False
    while end:
        begin = max(0, end - CHUNK_BYTES)
        file.seek(begin)
        tail = file.read(end - begin)
        kept = tail.rstrip(b"\0")
        kept += b"\0" * (-len(kept) % unit) if len(kept) < len(tail) else b""
        zeros += len(tail) - len(kept)
        text = kept if unit > 1 else kept.rstrip(b"\r\n")
        if not kept and begin:
            end = begin
        elif text.endswith(stop):
            has_stop, end = True, begin + len(text) - unit
        else:
            return begin + len(kept), zeros, has_stop
    return 0, zeros, has_stop


def decode_leniently(data: bytes, codec: str) -> str:
    """Decode the start of a file, which may end inside a character; what cannot be decoded becomes surrogates."""
    if codec in UTF_16:
        return data[: len(data) // 2 * 2].decode(codec, "replace")
    return codecs.getincrementaldecoder(codec)("surrogateescape").decode(data)


def _marked(head: bytes, mark: bytes, codec: str, declared: str | None) -> Encoding:
    start = len(mark)
    while head.startswith(mark, start):
        start += len(mark)
    wanted = codec_of(declared) if declared else None
    if wanted in {None, codec} or (wanted == "utf-16" and codec in UTF_16):
        return Encoding(codec, start, "declared")
    other = shown_encoding(wanted or "")
    warning = f"the byte order mark says {shown_encoding(codec)}, the declared charset {other}; the mark was followed"
    return Encoding(codec, start, "declared", (warning,))


def _first_part(file: BinaryIO, head: bytes) -> bytes:
    """Return the first chunk of the file that is not ASCII, or empty bytes."""
    part = head
    while part and part.isascii():
        part = file.read(CHUNK_BYTES)
    return part


def _contradicted(guess: Encoding, why: str) -> Encoding:
    return Encoding(guess.codec, 0, "guessed", (f"{why} {shown_encoding(guess.codec)}", *guess.warnings))


def _confirmed(wanted: str, head: bytes, part: bytes) -> str | None:
    """Return the declared codec, or None if the bytes contradict it."""
    utf_16 = _unmarked_utf_16(head)
    if wanted.startswith("utf-32"):
        raise NotCsvError("the file is declared as UTF-32 text; save it as UTF-8")
    if wanted.startswith("utf-16"):
        if wanted != "utf-16" and _is_text(decode_leniently(head, wanted)):
            return wanted
        return utf_16
    return wanted if not utf_16 and _fits(part, wanted) else None


def _guess(head: bytes, part: bytes) -> Encoding:
    if utf_16 := _unmarked_utf_16(head):
        return Encoding(utf_16, 0, "guessed", ("UTF-16 was guessed: the file has no byte order mark",))
    if _fits(part, "utf-8"):
        return Encoding("utf-8", 0, "guessed")
    codec, is_sure = _detect(part)
    if is_sure:
        return Encoding(codec, 0, "guessed")
    warning = f"the encoding {shown_encoding(codec)} is a weak guess; look at what was stored, or declare the charset"
    return Encoding(codec, 0, "guessed", (warning,))


def _fits(part: bytes, codec: str) -> bool:
    """Whether most non-ASCII characters decode; a few invalid ones belong to broken rows."""
    text = decode_leniently(part, codec)
    invalid = len(_ESCAPED.findall(text))
    return not invalid or sum(not char.isascii() for char in text) - invalid >= invalid


def _unmarked_utf_16(head: bytes) -> str | None:
    """Detect UTF-16 without a byte order mark by the zero high bytes of ASCII characters."""
    head = head.rstrip(b"\0\x1a") + b"\0"
    head = head[: len(head) // 2 * 2]
    zeros = (head[1::2].count(0), head[0::2].count(0))
    for codec, here, there in zip(UTF_16, zeros, reversed(zeros), strict=True):
        if here < 2 or here <= 20 * there or not _is_text(text := decode_leniently(head, codec)):
            continue
        if here * 3 > len(head) or (_is_one_script(text) and not _is_plain_text(head)):
            return codec
    return None


def _is_plain_text(head: bytes) -> bool:
    """Whether the bytes are ASCII or UTF-8 text without control characters, apart from zeros."""
    return not _CONTROL.search(head) and _fits(head, "utf-8")


def _is_text(text: str) -> bool:
    """Whether the text has lines or columns and no control or private characters."""
    has_shape = "\n" in text or "\r" in text or any(delimiter in text for delimiter in ",;\t|")
    return has_shape and not re.search("[\0-\x08\x0e-\x19\x1b-\x1f\ufffd\ufffe\uffff\ue000-\uf8ff]", text)


def _is_one_script(text: str) -> bool:
    """Whether most letters belong to one script; bytes wrongly decoded in pairs yield many."""
    blocks = [ord(char) >> 8 for char in text if char.isalpha() and not char.isascii()]
    cjk = sum(0x30 <= block <= 0x9F or 0xAC <= block <= 0xD7 for block in blocks)
    common = max((blocks.count(block) for block in set(blocks)), default=0)
    return bool(blocks) and max(common, cjk) * 10 > len(blocks) * 9


def _detect(part: bytes) -> tuple[str, bool]:
    """Return the codec of a text that is not UTF-8, and whether the detection is reliable."""
    from charset_normalizer import from_bytes

    sample = _around(part)
    matches = from_bytes(sample, cp_isolation=_CANDIDATES)
    found = {match.encoding.replace("_", "-"): match for match in matches}
    best = matches.best()
    western = _decoded(sample, "cp1252")
    if western is not None and _is_western(western) and ("cp1252" in found or best is None or best.coherence < _SURE):
        return "cp1252", False
    if best is None:
        return "cp1252", False
    codec = codecs.lookup(best.encoding).name.replace("_", "-")
    return codec, best.coherence >= _SURE and not _is_western(western or "é")


def _around(part: bytes) -> bytes:
    """Return a sample beginning with the first line that is not ASCII."""
    first = next(at for at, byte in enumerate(part) if byte > 127)
    return part[part.rfind(b"\n", 0, first) + 1 :][:_SAMPLE_BYTES]


def _decoded(data: bytes, codec: str) -> str | None:
    try:
        return data.decode(codec)
    except UnicodeDecodeError:
        return None


def _is_western(text: str) -> bool:
    """Whether accented letters are rare, as in the languages of Windows-1252."""
    words: Iterable[str] = re.findall(r"\w*[^\W\d_a-zA-Z]\w*", text)
    letters = [char for word in words for char in word if char.isalpha()]
    return sum(not char.isascii() for char in letters) * 2 <= len(letters)
