"""Finds one e-mail address in texts and raw bytes, however it is written there."""

import re
import unicodedata
from collections.abc import Iterator
from typing import Any

from email_validator import EmailNotValidError, validate_email

from asyncbg.errors import AsyncBGError
from asyncbg.privacy import mask

_ESCAPES = re.compile(r"[%\\&]")
# What may stand before an address: nothing that would make it part of a longer one, but the end of an escape.
_BEFORE = r"(?:(?<![\w.+-])|(?<=%[0-9a-f]{2})|(?<=\\[abfnrtv])|(?<=\\u[0-9a-f]{4})|(?<=\\x[0-9a-f]{2}))"
# What may stand behind it: no more of a domain, unless that is how the name of a file ends.
_FILE = r"\.(?:csv|tsv|txt|json|jsonl|xml|html?|pdf|docx?|xlsx?|ods|eml|msg|vcf|ics|log|png|jpe?g|gz|bak)\b"
_AFTER = rf"(?:(?={_FILE})|(?![\w-]|\.\w))"
_LEFT, _RIGHT = re.compile(r"[\w.+-]{0,64}\Z"), re.compile(r"[\w.+-]{0,255}")
"""What may be more of a longer address; neither its local part nor its domain is longer (RFC 5321, 4.5.3.1)."""


class InvalidAddressError(AsyncBGError):
    """What was given is no e-mail address."""


class EmailMatcher:
    """One person's address, in any case, and as JSON, URLs and HTML may escape it.

    An address that only contains this one (``ada@example.com.au``, ``not.ada@example.com``) is somebody else's.
    """

    def __init__(self, text: str) -> None:
        """Take the address. Raises InvalidAddressError, which does not repeat it."""
        try:
            found = validate_email(text.strip(), check_deliverability=False, test_environment=True)
        except EmailNotValidError:
            raise InvalidAddressError("that is no e-mail address; give one, such as ada@example.com") from None
        forms = {found.normalized, text.strip(), f"{found.local_part}@{found.ascii_domain}"}
        self._plain = sorted({form for one in forms for form in _cases(one)})
        core = "|".join("".join(_character(char) for char in form) for form in self._plain)
        wide = b"|".join(re.escape(b"\0".join(bytes([byte]) for byte in form.encode())) for form in self._plain)
        self._loose = re.compile(f"(?:{core})", re.IGNORECASE)
        self._strict = re.compile(f"{_BEFORE}(?:{core}){_AFTER}", re.IGNORECASE)
        self.raw = re.compile(b"(?:" + core.encode() + b"|" + wide + b")", re.IGNORECASE)
        """Finds it in the bytes of any file, UTF-16 too, whatever stands around it."""
        self.replacement = mask(found.normalized, "email")
        """What takes its place."""

    def is_in(self, text: str) -> bool:
        """Whether the text names this address."""
        return self._may_be_in(text) and self._strict.search(text) is not None

    def redacted(self, text: str) -> str:
        """The text with the address replaced."""
        return self._strict.sub(lambda _: self.replacement, text) if self._may_be_in(text) else text

    def redacted_json(self, value: Any) -> Any:
        """A JSON value with the address replaced in every text, keys too."""
        if isinstance(value, str):
            return self.redacted(value)
        if isinstance(value, list):
            return [self.redacted_json(item) for item in value]
        if isinstance(value, dict):
            return {self.redacted(name): self.redacted_json(item) for name, item in value.items()}
        return value

    def longer_addresses(self, text: str) -> set[str]:
        """Other people's addresses in the text that contain this one."""
        if not self._may_be_in(text):
            return set()
        found = (_whole(text, *match.span()) for match in self._loose.finditer(text))
        return {one for one in found if not self._strict.search(one)}

    def _may_be_in(self, text: str) -> bool:
        """Quick to say no: most texts hold neither the address as it is nor an escape of any kind."""
        lower = text.lower()
        return any(form in lower for form in self._plain) or _ESCAPES.search(text) is not None


def _whole(text: str, start: int, end: int) -> str:
    """A match with everything around it that belongs to the same address."""
    before, after = _LEFT.search(text[max(0, start - 64) : start]), _RIGHT.match(text, end)
    return (before[0] if before else "") + text[start:end] + (after[0] if after else "")


def _cases(text: str) -> Iterator[str]:
    """Small letters, composed and not; the pattern takes capitals too."""
    for form in ("NFC", "NFD"):
        yield unicodedata.normalize(form, text).lower()


def _character(char: str) -> str:
    """One character in every way it may be written."""
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
    return f"(?>{'|'.join(dict.fromkeys(ways))})"  # atomic: two ways may be the same text
