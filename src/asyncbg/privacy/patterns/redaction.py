"""The pattern net: what looks personal or secret in free text is replaced, whatever wrote it."""

import re
from collections.abc import Callable
from typing import Any

from asyncbg.privacy.patterns.credentials import hide_credentials
from asyncbg.privacy.patterns.people import AT_HINTS, Span, find_accounts, find_cards, hide_addresses
from asyncbg.privacy.patterns.phone import find_named_phones, find_phones
from asyncbg.privacy.pseudonyms import SECRET

# Digits of other scripts, dashes and spaces of other widths become plain ones, each one character, so places stay.
_ZEROS = (
    *(0x0660, 0x06F0, 0x07C0, 0x0966, 0x09E6, 0x0A66, 0x0AE6, 0x0B66, 0x0BE6, 0x0C66, 0x0CE6, 0x0D66, 0x0E50, 0x0ED0),
    *(0x0F20, 0x1040, 0x17E0, 0x1810, 0xFF10),
)
_PLAIN = (
    {zero + digit: str(digit) for zero in _ZEROS for digit in range(10)}
    | dict.fromkeys(range(0x2010, 0x2016), "-")
    | dict.fromkeys((0x2212, 0xFE63, 0xFF0D, 0x00AD), "-")
    | dict.fromkeys((0x00A0, 0x202F, 0x205F, 0x3000, *range(0x2000, 0x200C), 0x2060, 0xFEFF), " ")
    | {0xFF0B: "+", 0xFF08: "(", 0xFF09: ")", 0xFF0E: "."}
)
_UNUSUAL = re.compile(f"[{''.join(map(chr, _PLAIN))}]")
_SEVEN_DIGITS = re.compile(r"(?:[^0-9]*+[0-9]){7}")  # no number that is hidden has fewer
_STAND_IN = re.compile(r"(\[(?:secret|card|phone|iban|[a-z][a-z_-]{1,30}:[0-9a-f]{8})])")
_MARKS = "\0\1\2\3\4\5\6\7"  # one of them stands for a stand-in while the rest is looked at
_MOST_PASSES = 6
_LONG = 2048  # so long a text is gone over once


def redact(text: str) -> str:
    """``text`` with what looks personal or secret replaced; clean text comes back as it is.

    Twice is the same as once, but for texts over 2,048 characters, which are not looked at again for what stands out
    beside a stand-in only. It takes time linear in the length of the text, whatever the text, and raises for none.
    """
    if len(text) > _LONG:
        return _pass_over(text)
    for _ in range(_MOST_PASSES):
        clean = _pass_over(text)
        if clean == text:
            return text
        text = clean  # what was beside it may stand out now
    return text if _pass_over(text) == text else SECRET


def _pass_over(text: str) -> str:
    """Secrets, then addresses, then numbers."""
    text = _between_stand_ins(hide_credentials, text)
    text = _between_stand_ins(_hide_addresses, text)
    return _between_stand_ins(_hide_numbers, text)


def _between_stand_ins(hide: Callable[[str], str], text: str) -> str:
    """The text with something hidden; stand-ins of an earlier time stay what they are."""
    if "[" not in text:
        return hide(text)
    parts = _STAND_IN.split(text)
    if len(parts) == 1:
        return hide(text)
    mark = next((mark for mark in _MARKS if mark not in text), _MARKS[0])
    bare = mark.join(parts[::2])
    clean = hide(bare)
    if clean == bare:
        return text
    kept = clean.split(mark)
    if len(kept) != len(parts[::2]):  # one stood in the middle of what is hidden now
        return hide(text)
    parts[::2] = kept
    return "".join(parts)


def redact_json(value: Any) -> Any:
    """A JSON value with every text in it, keys too, put through :func:`redact`."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_json(item) for item in value]
    if isinstance(value, dict):
        return {redact(name): redact_json(item) for name, item in value.items()}
    return value


def _hide_addresses(text: str) -> str:
    for hint in AT_HINTS:
        if hint in text:
            return hide_addresses(text)
    return hide_addresses(text) if "at)" in text or "at]" in text else text


def _hide_numbers(text: str) -> str:
    """Accounts, cards and phone numbers, found in plain digits and cut out of the text as it is."""
    plain = text if text.isascii() or not _UNUSUAL.search(text) else text.translate(_PLAIN)
    if not _SEVEN_DIGITS.match(plain):
        return text
    spans = find_accounts(plain) + find_cards(plain) + find_named_phones(plain) + find_phones(plain)
    return _cut(text, spans) if spans else text


def _cut(text: str, spans: list[Span]) -> str:
    """Every span replaced by its stand-in; of two that overlap the one that starts first, then the longer."""
    pieces: list[str] = []
    done = 0
    for start, end, stand_in in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= done:
            pieces += text[done:start], stand_in
            done = end
    return "".join([*pieces, text[done:]])
