"""Redaction: values in free text that look personal or secret are replaced."""

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
_REPLACEMENT = re.compile(r"(\[(?:secret|card|phone|iban|[a-z][a-z_-]{1,30}:[0-9a-f]{8})])")
_MARKS = "\0\1\2\3\4\5\6\7"  # one of them marks a replacement while the rest is scanned
_MOST_PASSES = 6
_LONG = 2048  # so long a text is gone over once


def redact(text: str) -> str:
    """Return ``text`` with what looks personal or secret replaced; clean text is returned unchanged.

    Idempotent for texts of up to 2,048 characters; longer texts are scanned only once, so a value that shows only
    beside a replacement may remain. The time is linear in the length of any text, and nothing is raised.
    """
    if len(text) > _LONG:
        return _pass_over(text)
    for _ in range(_MOST_PASSES):
        clean = _pass_over(text)
        if clean == text:
            return text
        text = clean  # a value beside a replacement may be recognizable now
    return text if _pass_over(text) == text else SECRET


def _pass_over(text: str) -> str:
    """Secrets, then addresses, then numbers."""
    text = _between_replacements(hide_credentials, text)
    text = _between_replacements(_hide_addresses, text)
    return _between_replacements(_hide_numbers, text)


def _between_replacements(hide: Callable[[str], str], text: str) -> str:
    """Apply ``hide`` to a text; earlier replacements stay unchanged."""
    if "[" not in text:
        return hide(text)
    parts = _REPLACEMENT.split(text)
    if len(parts) == 1:
        return hide(text)
    mark = next((mark for mark in _MARKS if mark not in text), _MARKS[0])
    bare = mark.join(parts[::2])
    clean = hide(bare)
    if clean == bare:
        return text
    kept = clean.split(mark)
    if len(kept) != len(parts[::2]):  # one was inside of what is hidden now
        return hide(text)
    parts[::2] = kept
    return "".join(parts)


def redact_json(value: Any) -> Any:
    """Return a JSON value with every text in it redacted, keys too."""
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
    """Hide accounts, cards and phone numbers: found in plain digits, replaced in the original text."""
    plain = text if text.isascii() or not _UNUSUAL.search(text) else text.translate(_PLAIN)
    if not _SEVEN_DIGITS.match(plain):
        return text
    spans = find_accounts(plain) + find_cards(plain) + find_named_phones(plain) + find_phones(plain)
    return _cut(text, spans) if spans else text


def _cut(text: str, spans: list[Span]) -> str:
    """Replace every span; of two that overlap the one that starts first, then the longer."""
    pieces: list[str] = []
    done = 0
    for start, end, replacement in sorted(spans, key=lambda span: (span[0], -span[1])):
        if start >= done:
            pieces += text[done:start], replacement
            done = end
    return "".join([*pieces, text[done:]])
