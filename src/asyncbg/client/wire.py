"""Requests: arguments validated and encoded as a path, a query or JSON."""

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from pydantic import SecretStr

from asyncbg.errors import ArgumentsError, ErrorItem

Params = Sequence[tuple[str, str]]
Words = str | Sequence[str] | None


def check_bounds(**bounds: float | None) -> None:
    """Raise ValueError for the first bound that is not more than 0."""
    for name, bound in bounds.items():
        if bound is not None and not bound > 0:
            raise ValueError(f"{name} should be more than 0, not {bound!r}")


def job_path(job_id: str) -> str:
    """Return the path of a job. Raises ValueError for an invalid id."""
    if not job_id.strip("."):
        raise ValueError(f"job_id should be the id of a job, not {job_id!r}")
    return f"/jobs/{quote(job_id, safe='')}"


def query(**given: Words) -> Params:
    """Return a query: None is left out, a sequence becomes one parameter an item."""
    return [
        (name, word)
        for name, words in given.items()
        if words is not None
        for word in ([words] if isinstance(words, str) else words)
    ]


def json_body(task: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the body if it has a JSON form. Raises ArgumentsError, without the values."""
    try:
        json.dumps(body, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ArgumentsError(task, [ErrorItem(loc=["args"], msg=f"no JSON form: {error}", type="json")]) from error
    return body


def checked_idempotency_key(key: str) -> str:
    """Return the key. Raises ValueError for a key that the service would reject."""
    if not (key.isascii() and key.isprintable() and len(key) <= 255):
        raise ValueError("idempotency_key should be 1 to 255 printable ASCII characters")
    return key


def checked_url(base_url: str) -> str:
    """Return the URL without its last slash. Raises ValueError for an invalid URL, without its password."""
    try:
        parts = urlsplit(base_url)
        is_address = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_address = False
    if not is_address or "?" in base_url or "#" in base_url:
        raise ValueError("base_url should be like http://host:8000 or https://host/prefix")
    if "@" in parts.netloc:
        raise ValueError("base_url should hold no user name or password; give a key as api_key=")
    return base_url.rstrip("/")


def checked_key(api_key: SecretStr | str | None) -> SecretStr | None:
    """Return the key, hidden from every repr. Raises ValueError, without the key, where no header can carry it."""
    if api_key is None:
        return None
    text = api_key if isinstance(api_key, str) else api_key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("api_key should be printable ASCII without blanks; was a line break read with it?")
    return SecretStr(text)
