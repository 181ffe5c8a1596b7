"""Keeps people out of logs: marked fields become pseudonyms, and patterns catch what free text lets slip.

The marker is the rule, the patterns are the net below it: ``redact`` knows only what looks unmistakably
personal or secret.
"""

import hmac
import logging
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin

SECRET = "[secret]"  # noqa: S105 - what is shown instead of one

# Every pattern below is linear: it starts only where a run of its characters starts, and never takes back what it took.
_NAMED = re.compile(
    r"""(?P<name>(?:pass(?:word|wd|phrase)|pwd|secret|token|credentials?|cookie|api[_-]?key|(?:access|private|secret)[_-]?key)
        ["']?\s*+[=:]\s*+|authorization["']?\s*+[=:]\s*+)
        (?!\[secret])(?:b?(?P<quote>["'])[^"'\n]*+["']|(?:(?:bearer|basic|digest|token)\s++)?[^\s,;&"'<>)\]}]++)""",
    re.IGNORECASE | re.VERBOSE,
)
_NAME_WORDS = (
    "pass",
    "pwd",
    "secret",
    "token",
    "credential",
    "cookie",
    "key",
    "authorization",
)  # parts of the names above
_USERINFO = re.compile(r"(?<=://)(?!\[secret])[^\s/?#\"'<>]*@")
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+(?:\.[\w-]*+){2,4}")
_SCHEME = re.compile(r"\b(bearer|basic)(\s++)([A-Za-z0-9._~+/-]{8,}+=*+)", re.IGNORECASE)
_EMAIL = re.compile(
    r"(?<![\w.+'-])([.+'-]*+)(\w[\w.+'-]*+(?:@|%40)(?:(?:[\w-]++\.)+[^\W\d_][\w-]*+|localhost\b|\[[0-9A-Fa-f.:]++\]))"
)
_IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?![A-Za-z0-9])")
_CARD = re.compile(
    r"(?<![\w.])(?<!\d-)(?:[2-6]\d{12,18}|[2-6]\d{3}([ -])\d{4}\1\d{4}\1\d{4}(?:\1\d{3})?|3\d{3}([ -])\d{6}\2\d{5})"
    r"(?!\w|[-.]\d)"
)
_PHONE = re.compile(
    r"(?<![\w+])\+(?!\d+\.\d+(?![\d.]))[1-9](?:[ ()./-]{0,2}\d){6,14}(?!\d)"
    r"|(?<![\w.+-])(?:\(\d{3}\) ?|\d{3}-)\d{3}-\d{4}(?![\w-])"
)
_SECRET_KINDS = frozenset({"secret", "password", "token", "card"})


class Personal:
    """Marks a parameter or a field as personal: ``Annotated[str, Personal("email")]``, or just ``Personal``."""

    __slots__ = ("kind",)

    def __init__(self, kind: str = "personal") -> None:
        """``kind`` names what it is in the pseudonym: ``[email:ab12cd34]``; a ``secret`` gets no pseudonym at all."""
        self.kind = kind

    def __repr__(self) -> str:
        """As written in an annotation."""
        return f"Personal({self.kind!r})"


class _Pseudonyms:
    """The key that ties a value to its pseudonym: random in each process unless one is set."""

    key: bytes = os.urandom(32)


def use_pseudonym_key(key: bytes) -> None:
    """Make pseudonyms the same in every process that uses this key."""
    if not key:
        raise ValueError("the pseudonym key is empty; give some random bytes")
    _Pseudonyms.key = key


def mask(value: object, kind: str = "personal") -> str:
    """A stand-in for a value: the same for the same value, and no way back without the key (HMAC-SHA256, RFC 2104)."""
    if kind in _SECRET_KINDS:
        return SECRET
    digest = hmac.digest(_Pseudonyms.key, f"{kind}\0{value}".encode("utf-8", "surrogatepass"), "sha256")
    return f"[{kind}:{digest[:4].hex()}]"


def personal_fields(annotations: Mapping[str, Any]) -> Mapping[str, str]:
    """The names whose annotation carries ``Personal``, here or inside a union or container, each with its kind."""
    kinds = {name: _personal_kind(annotation) for name, annotation in annotations.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _personal_kind(annotation: Any) -> str | None:
    """The kind of the first marker found, outermost first."""
    if get_origin(annotation) is Annotated:
        for extra in annotation.__metadata__:
            if isinstance(extra, Personal):
                return extra.kind
            if extra is Personal:
                return "personal"
    found = (_personal_kind(inner) for inner in get_args(annotation))
    return next((kind for kind in found if kind is not None), None)


def redact(text: str) -> str:
    """``text`` with what looks personal or secret replaced. Cheap where nothing does; twice is the same as once."""
    lower = text.lower()
    if any(word in lower for word in _NAME_WORDS):
        text = _NAMED.sub(_hide_value, text)
    if "://" in text:
        text = _USERINFO.sub(f"{SECRET}@", text)
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    if "bearer" in lower or "basic" in lower:
        text = _SCHEME.sub(_hide_credential, text)
    if "@" in text or "%40" in text:
        text = _EMAIL.sub(lambda match: match[1] + mask(match[2], "email"), text)
    text = _IBAN.sub(_hide_iban, text)
    text = _CARD.sub(_hide_card, text)
    if "+" in text or "-" in text:
        text = _PHONE.sub(lambda match: mask(match[0], "phone"), text)
    return text


def _hide_value(match: re.Match[str]) -> str:
    """``password="hunter2"`` keeps its name and quotes."""
    quote = match["quote"] or ""
    return f"{match['name']}{quote}{SECRET}{quote}"


def _hide_credential(match: re.Match[str]) -> str:
    """``Bearer x7…`` loses its token; ``basic information`` is prose."""
    token = match[3]
    is_token = any(c.isdigit() or c in "=_/+" for c in token) or (
        token[1:] != token[1:].lower() and not token.isupper()
    )
    return f"{match[1]}{match[2]}{SECRET}" if is_token else match[0]


def _hide_card(match: re.Match[str]) -> str:
    """A card number passes Luhn's check (ISO/IEC 7812-1, annex B)."""
    digits = [int(c) for c in reversed(match[0]) if c.isdigit()]
    total = sum(digits[0::2]) + sum(sum(divmod(2 * digit, 10)) for digit in digits[1::2])
    return match[0] if total % 10 else SECRET


def _hide_iban(match: re.Match[str]) -> str:
    """An IBAN is 1 modulo 97 (ISO 13616, ISO 7064); words in capitals may follow it."""
    words = match[0].split(" ")
    for count in range(len(words), 0, -1):
        iban = "".join(words[:count])
        if 15 <= len(iban) <= 34 and int("".join(str(int(c, 36)) for c in iban[4:] + iban[:4])) % 97 == 1:
            return " ".join([mask(iban, "iban"), *words[count:]])
    return match[0]


def redact_json(value: Any) -> Any:
    """A JSON value with every text in it, keys too, put through :func:`redact`."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, list):
        return [redact_json(item) for item in value]
    if isinstance(value, dict):
        return {redact(name): redact_json(item) for name, item in value.items()}
    return value


class RedactingFilter(logging.Filter):
    """Redacts the message, its arguments and the traceback of every record that passes. Put it on handlers."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record pass, redacted; arguments stay where they are, as uvicorn's access log formats them."""
        if isinstance(record.args, tuple):
            record.args = tuple(redact(arg) if isinstance(arg, str) else arg for arg in record.args)
        message = _message(record)
        clean = redact(message)
        if clean != message:
            record.msg, record.args = clean, ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        record.exc_text = redact(record.exc_text) if record.exc_text else record.exc_text
        record.stack_info = redact(record.stack_info) if record.stack_info else record.stack_info
        return True


def _message(record: logging.LogRecord) -> str:
    """The formatted message; where template and arguments disagree, logging itself says so later."""
    try:
        return record.getMessage()
    except (TypeError, ValueError):
        return ""
