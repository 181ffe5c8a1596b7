"""Finds a datum of a fake person in what comes out, however it is written and wherever it is cut."""

import re
from collections.abc import Iterator

from .people import DOCUMENTED, NUMBERS, TAG

_SEPARATORS = b" ./-()+\t\xa0"
_AROUND = 80
_OVERLAP = 96
_API_KEY = re.compile(rb"abg_[0-9A-Za-z]{49}")


def bare(data: bytes) -> bytes:
    """In lower case, without what may stand between the digits of a number."""
    return data.lower().replace(b"%20", b"").translate(None, _SEPARATORS)


def _national(number: str) -> bytes:
    """A phone number as it ends wherever it is dialled from; any other whole."""
    return re.sub(r"^\+(49|1) ", "", number).encode()


_WORDS = (TAG.encode(), DOCUMENTED.encode(), DOCUMENTED.replace("@", "%40").encode())
_DIGITS = tuple(bare(_national(number)) for number in NUMBERS)


def leaks(data: bytes) -> Iterator[str]:
    """What stands around each datum in ``data``. A working API key is one, too."""
    lower, digits = data.lower(), bare(data)
    for word in _WORDS:
        yield from _around_each(word, lower, data)
    for number in _DIGITS:
        yield from _around_each(number, digits, digits)
    if b"abg_" in data:
        for key in _API_KEY.findall(data):
            yield from _around_each(key, data, data)


def _around_each(datum: bytes, within: bytes, shown: bytes) -> Iterator[str]:
    at = within.find(datum)
    while at >= 0:
        yield shown[max(0, at - _AROUND) : at + _AROUND].decode("utf-8", "replace")
        at = within.find(datum, at + 1)


class Search:
    """A search through one output, chunk by chunk; it keeps of the past what a datum may have begun with."""

    def __init__(self) -> None:
        """Nothing was seen yet."""
        self._tail = b""

    def feed(self, chunk: bytes) -> list[str]:
        """The leaks in this chunk and across its beginning."""
        data = self._tail + chunk
        found = list(leaks(data))
        self._tail = b"" if found else data[-_OVERLAP:]
        return found
