"""API keys: 256 random bits in a form that scanners recognise and typos do not survive, and what is kept of one.

A key is ``abg_``, 43 characters of base 62 (the 256 bits) and 6 more: the CRC-32 of all before it, so that a mistyped
key is told from an unknown one without a look into any table. Only a keyed hash of it is kept:
``hmac-sha256$SALT$DIGEST``, HMAC-SHA256 (RFC 2104) under a salt of its own and the pepper, if one is set. The key has
256 bits of chance, so no slow hash is needed to withstand guessing.
"""

import hashlib
import hmac
import re
import secrets
import string
import zlib
from enum import StrEnum
from typing import Final

PREFIX: Final = "abg_"
_DIGITS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_FORM: Final = re.compile(r"abg_([0-9A-Za-z]{43})([0-9A-Za-z]{6})")
_HASH: Final = re.compile(r"hmac-sha256\$([0-9a-f]{32})\$([0-9a-f]{64})")
_SCHEME: Final = "hmac-sha256"
_HINT: Final = len(PREFIX) + 8
_TOKEN_BYTES: Final = 32


class Scope(StrEnum):
    """What a caller may do. ``admin`` holds the others, and sees what is everybody's."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
USUAL_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ})


def new_key() -> str:
    """A fresh key. Show it once, keep its :func:`hash_key`."""
    body = PREFIX + _base62(secrets.randbits(256), 43)
    return body + _checksum(body)


def is_key(text: str) -> bool:
    """Whether ``text`` has the form of a key and its checksum is right."""
    return _FORM.fullmatch(text) is not None and hmac.compare_digest(text[-6:], _checksum(text[:-6]))


def hint_of(key: str) -> str:
    """The first characters of a key: enough to tell keys apart, far from enough to use one."""
    return key[:_HINT]


def hash_key(key: str, *, pepper: bytes = b"") -> str:
    """What is kept of ``key``; different each time, since the salt is."""
    salt = secrets.token_hex(16)
    return f"{_SCHEME}${salt}${_digest(key, salt, pepper)}"


def is_hash(text: str) -> bool:
    """Whether ``text`` is something :func:`hash_key` made."""
    return _HASH.fullmatch(text) is not None


def matches(key: str, stored: str, *, pepper: bytes = b"") -> bool:
    """Whether ``stored`` is the hash of ``key``. Takes as long wherever the two differ."""
    _, salt, digest = stored.split("$")
    return hmac.compare_digest(_digest(key, salt, pepper), digest)


def new_token() -> str:
    """A random token for a session or a ticket: 256 bits in URL-safe base 64."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def hash_token(token: str, purpose: str) -> bytes:
    """What is kept of a token; the hash for one ``purpose`` (up to 16 characters) is good for no other."""
    return hashlib.blake2b(token.encode("utf-8", "replace"), digest_size=32, person=purpose.encode()).digest()


def _digest(key: str, salt: str, pepper: bytes) -> str:
    return hmac.new(bytes.fromhex(salt) + pepper, key.encode("utf-8", "replace"), hashlib.sha256).hexdigest()


def _checksum(body: str) -> str:
    return _base62(zlib.crc32(body.encode()), 6)


def _base62(number: int, width: int) -> str:
    digits = ""
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits = _DIGITS[digit] + digits
    return digits
