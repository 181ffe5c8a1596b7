"""Replacements of values that must not be shown: a fixed word, or a keyed pseudonym that still correlates."""

import hashlib
import html
import os
import re
from functools import lru_cache
from urllib.parse import unquote

SECRET = "[secret]"  # nosec B105  # noqa: S105 - what is shown instead of one
CARD = "[card]"
SOME_PHONE, SOME_IBAN = "[phone]", "[iban]"  # in a crowd of them; else each has a pseudonym
_SECRET_KINDS = frozenset({"secret", "password", "token"})


_NOT_A_DIGIT = re.compile(r"[^0-9]+")


class _Pseudonyms:
    """The key that ties a value to its pseudonym: random in each process unless one is set."""

    key: bytes = os.urandom(32)


def use_pseudonym_key(key: bytes) -> None:
    """Make pseudonyms the same in every process that uses this key."""
    if not key:
        raise ValueError("the pseudonym key is empty; give some random bytes")
    _Pseudonyms.key = hashlib.sha256(key).digest()


def mask(value: object, kind: str = "personal") -> str:
    """Return the replacement of a value: ``[secret]``, ``[card]``, or a pseudonym for every other kind."""
    if kind in _SECRET_KINDS:
        return SECRET
    return CARD if kind == "card" else pseudonym(value, kind=kind)


def pseudonym(value: object, *, kind: str = "personal") -> str:
    """Return a pseudonym such as ``[email:ab12cd34]``: equal for equal values, irreversible without the key.

    The digits are a keyed BLAKE2s digest (RFC 7693, section 2.9), which costs a third of HMAC-SHA256.
    """
    return _pseudonym(kind, str(value), _Pseudonyms.key)


@lru_cache(maxsize=64)  # log lines about one person are close together
def _pseudonym(kind: str, text: str, key: bytes) -> str:
    named = f"{kind}\0{_NORMAL.get(kind, str)(text)}".encode("utf-8", "surrogatepass")
    return f"[{kind}:{hashlib.blake2s(named, digest_size=4, key=key).hexdigest()}]"


def _normal_email(text: str) -> str:
    """An address as it would be typed, in lower case: ``ADA%40Example.com`` is ``ada@example.com``."""
    if "%" in text:
        text = text.replace("%2540", "@").replace("%40", "@")
        text = unquote(text) if "%" in text else text
    if "&" in text:
        text = html.unescape(text)
    return text.lower() if text.isascii() else text.replace("\uff20", "@").casefold()


def _normal_phone(text: str) -> str:
    """Digits; with the calling code where it is known: ``00`` goes, ten digits alone are North American."""
    digits = digits_of(text)
    if digits.startswith("00"):
        return digits[2:]
    american = len(digits) == 10 and "+" not in text and digits[0] not in "01"
    return f"1{digits}" if american else digits


def digits_of(number: str) -> str:
    """The digits of a phone number, without the ``(0)`` that is not dialled from abroad."""
    if number.isdigit():
        return number
    if "(0)" in number or "%" in number:
        for mark in ("(0)", "%20", "%2B", "%2b"):
            number = number.replace(mark, "")
    return _NOT_A_DIGIT.sub("", number)


def _normal_iban(text: str) -> str:
    return re.sub(r"%20|[\W_]", "", text).upper()


_NORMAL = {"email": _normal_email, "phone": _normal_phone, "iban": _normal_iban}
