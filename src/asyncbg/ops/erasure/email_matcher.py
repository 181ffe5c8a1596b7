"""Search for one e-mail address in texts and raw bytes, in any case and escaping."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from email_validator import EmailNotValidError, validate_email

from asyncbg.errors import AsyncBGError
from asyncbg.privacy import mask

_ESCAPES = re.compile(r"[%\\&]")
# Before an address: no character that would make it part of a longer one, except the end of an escape.
_BEFORE = r"(?:(?<![\w.+-])|(?<=%[0-9a-f]{2})|(?<=\\[abfnrtv])|(?<=\\u[0-9a-f]{4})|(?<=\\x[0-9a-f]{2}))"
# After an address: no further domain label, unless it is the extension of a file name.
_FILE = r"\.(?:csv|tsv|txt|json|jsonl|xml|html?|pdf|docx?|xlsx?|ods|eml|msg|vcf|ics|log|png|jpe?g|gz|bak)\b"
_AFTER = rf"(?:(?={_FILE})|(?![\w-]|\.\w))"
_LEFT, _RIGHT = re.compile(r"[\w.+-]{0,64}\Z"), re.compile(r"[\w.+-]{0,255}")
"""The rest of a longer address; the lengths are the limits of local part and domain (RFC 5321, 4.5.3.1)."""


class InvalidAddressError(AsyncBGError):
    """The text is not an e-mail address."""


class EmailMatcher:
    """Matcher of one e-mail address in any case, also as escaped in JSON, URLs and HTML.

    A longer address that contains this one (``ada@example.com.au``, ``not.ada@example.com``) does not match.
    """

    def __init__(self, text: str) -> None:
        """Match the address ``text``. Raises InvalidAddressError, which does not quote it."""
        try:
            found = validate_email(text.strip(), check_deliverability=False, test_environment=True)
        except EmailNotValidError:
            raise InvalidAddressError("this is not an e-mail address; give one such as ada@example.com") from None
        forms = {found.normalized, text.strip(), f"{found.local_part}@{found.ascii_domain}"}
        self._plain = sorted({form for one in forms for form in _cases(one)})
        core = "|".join("".join(_character(char) for char in form) for form in self._plain)
        wide = b"|".join(re.escape(b"\0".join(bytes([byte]) for byte in form.encode())) for form in self._plain)
        self._loose = re.compile(f"(?:{core})", re.IGNORECASE)
        self._strict = re.compile(f"{_BEFORE}(?:{core}){_AFTER}", re.IGNORECASE)
        self.raw = re.compile(b"(?:" + core.encode() + b"|" + wide + b")", re.IGNORECASE)
        """Pattern for the raw bytes of any file, UTF-16 included, in any context."""
        self.replacement = mask(found.normalized, "email")
        """The pseudonym that replaces the address."""

    def is_in(self, text: str) -> bool:
        """Whether the text contains this address."""
        return self._may_be_in(text) and self._strict.search(text) is not None

    def redacted(self, text: str) -> str:
        """Return the text with the address replaced."""
        return self._strict.sub(lambda _: self.replacement, text) if self._may_be_in(text) else text

    def redacted_json(self, value: Any) -> Any:
        """Return a JSON value with the address replaced in every string, including keys."""
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, list):
            return [self.redacted_json(item) for item in value]
        if isinstance(value, dict):
            return {self.redacted(name): self.redacted_json(item) for name, item in value.items()}
        return value

    def longer_addresses(self, text: str) -> set[str]:
        """Return other people's addresses in the text that contain this one."""
        if not self._may_be_in(text):
            return set()
        found = (_whole(text, *match.span()) for match in self._loose.finditer(text))
        return {one for one in found if not self._strict.search(one)}

    def _may_be_in(self, text: str) -> bool:
        """A fast pre-check: whether the text contains the unescaped address or any escape."""
        lower = text.lower()
        return any(form in lower for form in self._plain) or _ESCAPES.search(text) is not None


def _whole(text: str, start: int, end: int) -> str:
    """Return the whole address around a match."""
    before, after = _LEFT.search(text[max(0, start - 64) : start]), _RIGHT.match(text, end)
    return (before[0] if before else "") + text[start:end] + (after[0] if after else "")


def _cases(text: str) -> Iterator[str]:
    """Yield the lower-case text in NFC and NFD."""
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, text).lower()


def _character(char: str) -> str:
    """Return a pattern for one character in every escaping."""
    ways: list[str] = []
    for one in dict.fromkeys((char, char.upper())):
        if len(one) != 1:
            continue
        ways.append(re.escape(one))
        ways.append("".join(f"%(?:25){{0,4}}{byte:02x}" for byte in one.encode()))
        units = one.encode("utf-16-be")
        ways.append("".join(rf"\\{{1,8}}u{units[at : at + 2].hex()}" for at in range(0, len(units), 2)))
        ways.append(f"&(?:#0{{0,6}}{ord(one)}|#x0{{0,6}}{ord(one):x});")
        if ord(one) < 0x100:
            ways.append(rf"\\{{1,8}}x{ord(one):02x}")
    if char == "@":
        ways.append("&commat;")
    return f"(?>{'|'.join(dict.fromkeys(ways))})"  # atomic: two alternatives may match the same text
