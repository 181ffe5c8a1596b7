"""Encryption at rest: what a database file holds of arguments and results is ciphertext, bound to its job and field.

AES-256-GCM (NIST SP 800-38D) with a random 96-bit nonce for each value; the additional data names the job and the
field, so that a ciphertext moved elsewhere does not open. A value reads ``enc:1:<key id>:<base64 of nonce, ciphertext,
tag>``. Several keys make a ring: the first one encrypts, every one decrypts.
"""

import base64
import binascii
import hashlib
import hmac
import json
import os
from collections.abc import Sequence
from typing import Any

from asyncbg.errors import SettingsError, UnreadableError

KEY_BYTES = 32
_PREFIX = "enc:1:"
_DIGEST = "hmac:"
_NONCE_BYTES = 12
_ID_CHARS = 8
_UNREADABLE = '{"[encrypted]": '


def read_key(text: str) -> bytes:
    """Parse a key of 64 hexadecimal digits, or base64 in either alphabet. Raises ValueError, without the key."""
    try:
        if len(text) == 2 * KEY_BYTES:
            return bytes.fromhex(text)
        key = base64.b64decode(text.rstrip("=").translate(str.maketrans("-_", "+/")) + "=", validate=True)
    except (ValueError, binascii.Error):
        key = b""
    if len(key) != KEY_BYTES:
        raise ValueError("should be 32 random bytes in base64 or hexadecimal: make one with `openssl rand -base64 32`")
    return key


def is_encrypted(text: str) -> bool:
    """Whether a stored value is ciphertext."""
    return text.startswith(_PREFIX)


def key_id_of(text: str) -> str:
    """Return the id of the key that a stored value is encrypted with."""
    return text[len(_PREFIX) :].partition(":")[0]


def require_readable(text: str) -> None:
    """Raise UnreadableError for a value that could not be decrypted when it was read."""
    if text.startswith(_UNREADABLE):
        raise UnreadableError(str(json.loads(text)["[encrypted]"]))


class Encryption:
    """A key ring: the first key encrypts, every key decrypts. Without keys values are stored as they are."""

    def __init__(self, keys: Sequence[bytes] = ()) -> None:
        """Pass the encrypting key first. Raises SettingsError where ``cryptography`` is not installed."""
        self._ciphers: dict[str, Any] = {_key_id(key): _cipher(key) for key in keys}
        self._first = next(iter(self._ciphers), "")
        self._lookup = hmac.digest(keys[0], b"asyncbg lookup", "sha256") if keys else b""

    @property
    def is_on(self) -> bool:
        """Whether what is stored is encrypted."""
        return bool(self._ciphers)

    @property
    def key_ids(self) -> tuple[str, ...]:
        """The ids of the keys, the one that encrypts first."""
        return tuple(self._ciphers)

    def encrypt(self, text: str, job_id: str, field: str) -> str:
        """Encrypt ``text`` for ``field`` of the job."""
        if not self._ciphers:
            return text
        nonce = os.urandom(_NONCE_BYTES)
        box = self._ciphers[self._first].encrypt(nonce, text.encode("utf-8", "surrogatepass"), _bound_to(job_id, field))
        return f"{_PREFIX}{self._first}:{binascii.b2a_base64(nonce + box, newline=False).decode()}"

    def decrypt(self, stored: str, job_id: str, field: str) -> str:
        """Decrypt the stored value of ``field`` of the job; return a plain value unchanged. Raises UnreadableError."""
        if not stored.startswith(_PREFIX):
            return stored
        cipher = self._ciphers.get(key_id_of(stored))
        if cipher is None:
            raise UnreadableError(
                f"the {_WORDS.get(field, field)} of this job can be read only with the encryption key "
                f"of id {key_id_of(stored)}, which is not in ASYNCBG_PRIVACY__ENCRYPTION_KEYS; add it there"
            )
        try:
            box = binascii.a2b_base64(stored[len(_PREFIX) + _ID_CHARS + 1 :], strict_mode=True)
            opened: bytes = cipher.decrypt(box[:_NONCE_BYTES], box[_NONCE_BYTES:], _bound_to(job_id, field))
        except (_invalid_tag(), ValueError):
            raise UnreadableError(
                f"the {_WORDS.get(field, field)} of this job cannot be decrypted: "
                "it was changed in the database, or belongs to another job; restore it from a backup"
            ) from None
        return opened.decode("utf-8", "surrogatepass")

    def decrypt_or_explain(self, stored: str, job_id: str, field: str) -> str:
        """Decrypt; where that fails return JSON that says why, which :func:`require_readable` recognizes."""
        if not stored.startswith(_PREFIX):
            return stored
        try:
            return self.decrypt(stored, job_id, field)
        except UnreadableError as error:
            return json.dumps({"[encrypted]": str(error)})

    def reencrypt(self, stored: str, job_id: str, field: str) -> str:
        """Encrypt a stored value under the first key, unless it is already. Raises UnreadableError."""
        if is_encrypted(stored) and key_id_of(stored) == self._first:
            return stored
        return self.encrypt(self.decrypt(stored, job_id, field), job_id, field)

    def new_digest_key(self) -> str:
        """Return a new key for :meth:`digest`, encrypted under the first key."""
        return self.encrypt(os.urandom(KEY_BYTES).hex(), "", "lookup")

    def use_digest_key(self, stored: str) -> None:
        """Use the database's key for :meth:`digest`. Raises UnreadableError."""
        self._lookup = bytes.fromhex(self.decrypt(stored, "", "lookup"))

    def digest(self, text: str | None, field: str) -> str | None:
        """Return a deterministic keyed digest (HMAC-SHA256) of a text that is only compared."""
        if text is None or not self._ciphers or text.startswith(_DIGEST):
            return text
        named = f"{field}\0{text}".encode("utf-8", "surrogatepass")
        return _DIGEST + hmac.digest(self._lookup, named, "sha256").hex()


_WORDS = {"args": "arguments"}


def _bound_to(job_id: str, field: str) -> bytes:
    return f"asyncbg:1:{job_id}:{field}".encode()


def _key_id(key: bytes) -> str:
    """Return an id of a key that reveals nothing of the key."""
    return hashlib.sha256(b"asyncbg key id" + key).hexdigest()[:_ID_CHARS]


def _cipher(key: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    except ImportError:
        raise SettingsError(
            "ASYNCBG_PRIVACY__ENCRYPTION_KEYS needs the package cryptography; "
            "install it with: pip install 'fastapi-asyncbg[encryption]'"
        ) from None
    return AESGCM(key)


def _invalid_tag() -> type[Exception]:
    from cryptography.exceptions import InvalidTag

    return InvalidTag
