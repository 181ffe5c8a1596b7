"""Webhook signatures as in Standard Webhooks: HMAC-SHA256 over ``id.timestamp.body``, with key rotation.

The specification: https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence

from asyncbg.errors import AsyncBGError, FinalError

ID_HEADER = "webhook-id"
TIMESTAMP_HEADER = "webhook-timestamp"
SIGNATURE_HEADER = "webhook-signature"
_PREFIX = "whsec_"
_VERSION = "v1"
_MESSAGE_ID = re.compile(r"[!-\-/-~]{1,256}")  # visible ASCII without the full stop, which separates the signed parts
_TIMESTAMP = re.compile(r"[0-9]{1,12}")


class SigningError(FinalError):
    """The secret or the message id cannot be used for signing."""


class SignatureError(AsyncBGError):
    """A received message is not signed by any of the secrets, or its timestamp is outside the tolerance."""


class WebhookSigner:
    """Signer and verifier of webhook messages.

    Each secret is ``whsec_`` followed by base64, or raw text whose UTF-8 bytes are the key. With several secrets, a
    message carries one signature for each, so that a receiver can verify it during a rotation.
    """

    def __init__(self, secrets: Sequence[str]) -> None:
        """Parse at least one secret. Raises SigningError for an empty or malformed one."""
        if not secrets:
            raise SigningError("no webhook secret is given; set ASYNCBG_OUTBOUND__WEBHOOK_SECRET")
        self._keys = [_key(secret) for secret in secrets]

    def sign(self, message_id: str, timestamp_s: int, body: bytes) -> dict[str, str]:
        """Return the headers ``webhook-id``, ``webhook-timestamp`` (seconds) and ``webhook-signature``.

        Keep ``message_id`` for every delivery attempt of one message: receivers deduplicate by it.
        """
        check_message_id(message_id)
        return {
            ID_HEADER: message_id,
            TIMESTAMP_HEADER: str(timestamp_s),
            SIGNATURE_HEADER: " ".join(self._signatures(message_id, str(timestamp_s), body)),
        }

    def verify(self, headers: Mapping[str, str], body: bytes, *, now_s: int, tolerance_s: int = 300) -> None:
        """Raise SignatureError unless a signature matches and the timestamp is within ``tolerance_s`` of ``now_s``.

        Header names are case-insensitive.
        """
        lowered = {name.lower(): value for name, value in headers.items()}
        missing = [name for name in (ID_HEADER, TIMESTAMP_HEADER, SIGNATURE_HEADER) if not lowered.get(name)]
        if missing:
            raise SignatureError(f"the message has no {', '.join(missing)} header")
        timestamp = lowered[TIMESTAMP_HEADER]
        if not _TIMESTAMP.fullmatch(timestamp) or abs(now_s - int(timestamp)) > tolerance_s:
            raise SignatureError(f"the message's timestamp is not within {tolerance_s} s of now")
        expected = self._signatures(lowered[ID_HEADER], timestamp, body)
        given = [part.encode() for part in lowered[SIGNATURE_HEADER].split(" ")]
        if not any(hmac.compare_digest(ours.encode(), theirs) for ours in expected for theirs in given):
            raise SignatureError("no signature of the message matches any of the secrets")

    def _signatures(self, message_id: str, timestamp: str, body: bytes) -> list[str]:
        signed = b".".join((message_id.encode(), timestamp.encode(), body))
        digests = (hmac.digest(key, signed, hashlib.sha256) for key in self._keys)
        return [f"{_VERSION},{base64.b64encode(digest).decode()}" for digest in digests]


def split_secrets(text: str) -> list[str]:
    """Return the secrets of one setting: separated by blanks, ``whsec_`` secrets also by commas, or a JSON list.

    A raw secret may contain a comma, so a comma separates only if every part has the prefix. Raises SigningError.
    """
    if text.lstrip().startswith("["):
        return _json_list(text)
    parts = [part for part in re.split(r"[\s,]+", text) if part]
    return parts if all(part.startswith(_PREFIX) for part in parts) else text.split()


def _json_list(text: str) -> list[str]:
    try:
        secrets = json.loads(text)
    except ValueError:
        secrets = None
    if not isinstance(secrets, list) or not all(isinstance(secret, str) for secret in secrets):
        raise SigningError("the webhook secrets begin with [ but are not a JSON list of texts")
    return secrets


def check_message_id(message_id: str) -> None:
    """Raise SigningError for an id that could shift the signed parts or inject a header."""
    if not _MESSAGE_ID.fullmatch(message_id):
        raise SigningError("a webhook message id is 1 to 256 visible ASCII characters without a full stop")


def _key(secret: str) -> bytes:
    """Return the key bytes of one secret. Errors never quote it."""
    if not secret.startswith(_PREFIX):
        key = secret.encode()
    else:
        encoded = secret.removeprefix(_PREFIX)
        try:
            key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
        except (binascii.Error, ValueError):
            raise SigningError(f"a webhook secret begins with {_PREFIX} but the rest is not base64") from None
    if not key:
        raise SigningError("a webhook secret is empty; set ASYNCBG_OUTBOUND__WEBHOOK_SECRET to whsec_ and base64")
    return key
