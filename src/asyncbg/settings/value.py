"""The types of setting values; an error says what to write instead."""

import codecs
import ipaddress
import json
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from asyncbg.privacy.encryption import read_key

DAY_S = 86_400.0
MIB = 1024 * 1024
PROFILE_NAME = r"^[A-Za-z0-9_-]{1,64}$"


def listed(value: object) -> object:
    """Parse a list: JSON (``["a", "b"]``) or words separated by commas (``a, b``)."""
    if not isinstance(value, str):
        return value
    if value.lstrip().startswith("["):
        return decoded(value)
    return [word.strip() for word in value.split(",") if word.strip()]


def decoded(value: object) -> object:
    """Parse JSON text; return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("is not valid JSON") from None


def _charset(name: str) -> str:
    """Validate a character encoding."""
    try:
        codecs.lookup(name)
    except (LookupError, ValueError):
        raise ValueError("is no known encoding; write utf-8, windows-1252 or shift_jis, for instance") from None
    return name


def _delimiter(text: str) -> str:
    """Validate a column delimiter; ``tab`` and ``\\t`` name the tab character."""
    text = "\t" if text.lower() in {"tab", "\\t"} else text
    if len(text) != 1 or text.isalnum() or text in "\r\n\"' \0":
        raise ValueError("should be one character that separates columns, such as ; or |, or the word tab")
    return text


def _database_url(url: str) -> str:
    """Accept ``sqlite:///relative``, ``sqlite:////absolute``, ``sqlite:///:memory:`` and ``postgresql://…``."""
    forms = "use sqlite:///file.db, sqlite:////absolute/file.db, sqlite:///:memory: or postgresql://user@host/name"
    if any(character.isspace() or not character.isprintable() for character in url):
        raise ValueError(f"contains a blank or a control character; {forms}")
    if url.startswith("sqlite:///"):
        path = url.removeprefix("sqlite:///")
        if not path.strip("/") or path.endswith("/") or set(path) & set("?#"):
            raise ValueError(f"names no file; {forms}")
        return url
    if not url.startswith("postgresql://"):
        raise ValueError(f"is of no known kind; {forms}")
    try:
        parts = urlsplit(url)
        named = parts.hostname or parts.path.strip("/")
        _ = parts.port
    except ValueError:
        named = None
    if not named:
        raise ValueError(f"names no host or database, or a malformed port; {forms}")
    return url


def _host(host: str) -> str:
    """Validate a bare host name or address."""
    if set(host) & set(" /@\t\r\n"):
        raise ValueError("should be a bare host name or address, without scheme, path or blanks")
    return host


def _ehlo_name(name: str) -> str:
    """Validate a qualified name or an address literal (RFC 5321, 4.1.2 and 4.1.3)."""
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    if re.fullmatch(rf"{label}(\.{label})+", name) and len(name) <= 253 and not re.fullmatch(r"[0-9.]+", name):
        return name
    if (literal := re.fullmatch(r"\[(IPv6:)?([0-9A-Fa-f.:]+)\]", name)) and _is_address(
        literal[2], 6 if literal[1] else 4
    ):
        return name
    raise ValueError("should be a qualified name like mail.example.com, or an address literal like [192.0.2.7]")


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _sender(address: str) -> str:
    """Validate ``user@host`` or ``Name <user@host>``, on one line."""
    if not re.fullmatch(r"(?:[^<>\r\n]*<)?[^\s<>@]+@[^\s<>@]+>?", address) or address.count("<") != address.count(">"):
        raise ValueError("should be an address like asyncbg@example.com or Name <asyncbg@example.com>")
    return address


def _contact(uri: str) -> str:
    """Validate a security contact: a URI of RFC 9116, 2.5.3, on one line."""
    if not re.fullmatch(r"(mailto:[^\s@]+@[^\s@]+|https://[^\s/]+\S*|tel:\+?[0-9.()-]+)", uri):
        raise ValueError("should be mailto:security@example.com, https://… or tel:+1-202-555-0143")
    return uri


def ring(keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
    """Validate every key, and that none occurs twice."""
    if len({read_key(key.get_secret_value()) for key in keys}) != len(keys):
        raise ValueError("has a key twice; give each key once, the one that encrypts first")
    return keys


Text = Annotated[str, Field(min_length=1)]
Secret = Annotated[SecretStr, Field(min_length=1)]
Host = Annotated[Text, AfterValidator(_host)]
Port = Annotated[int, Field(ge=0, le=65_535)]
Delay = Annotated[float, Field(ge=0, le=30 * DAY_S)]
EhloName = Annotated[Text, AfterValidator(_ehlo_name)]
Sender = Annotated[Text, AfterValidator(_sender)]
Contact = Annotated[Text, AfterValidator(_contact)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
ProfileName = Annotated[str, Field(pattern=PROFILE_NAME)]
Charset = Annotated[str, AfterValidator(_charset)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]
