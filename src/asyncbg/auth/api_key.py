"""The format of API keys and of their stored hashes.

A key is ``abg_``, 43 characters of base 62 (256 random bits) and 6 characters of checksum: the CRC-32 of everything
before it, so that a mistyped key is rejected without a database query. Secret scanners recognise the prefix. Only a
keyed hash is stored: ``hmac-sha256$SALT$DIGEST``, HMAC-SHA256 (RFC 2104) with a random salt for each key and the pepper
if one is set. A key has 256 random bits, so no slow hash is needed to withstand guessing.
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
    """A permission of a caller. ``admin`` includes the others, and access to the jobs of all owners."""

    SUBMIT = "submit"
    READ = "read"
    ADMIN = "admin"


ALL_SCOPES: Final = frozenset(Scope)
DEFAULT_SCOPES: Final = frozenset({Scope.SUBMIT, Scope.READ})


def new_key() -> str:
    """Return a random key. Show it once, and store only its :func:`hash_key`."""
    body = PREFIX + _base62(secrets.randbits(256), 43)
    return body + _checksum(body)


def is_key(text: str) -> bool:
    """Whether ``text`` has the form of a key and its checksum is right."""
    return _FORM.fullmatch(text) is not None and hmac.compare_digest(text[-6:], _checksum(text[:-6]))


def hint_of(key: str) -> str:
    """Return the first characters of a key, which identify it in lists and do not help to guess it."""
    return key[:_HINT]


def hash_key(key: str, *, pepper: bytes = b"") -> str:
    """Return the hash to store for ``key``; the salt is random, so each call returns another hash."""
    salt = secrets.token_hex(16)
    return f"{_SCHEME}${salt}${_digest(key, salt, pepper)}"


def is_hash(text: str) -> bool:
    """Whether ``text`` has the form of a hash made by :func:`hash_key`."""
    return _HASH.fullmatch(text) is not None


def matches(key: str, stored: str, *, pepper: bytes = b"") -> bool:
    """Whether ``stored`` is a hash of ``key``. Compares in constant time."""
    _, salt, digest = stored.split("$")
    return hmac.compare_digest(_digest(key, salt, pepper), digest)


def new_token() -> str:
    """Return a random token for a session or a ticket: 256 bits in URL-safe base 64."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def hash_token(token: str, purpose: str) -> bytes:
    """Return the hash to store for a token; each ``purpose`` (up to 16 characters) gives another hash."""
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
