"""The client's errors: a problem document becomes the error that the engine itself raises.

::

    AsyncBGError
    ├── ClientError
    │   ├── ApiError             the service responded with an error that has no class below
    │   ├── UnreachableError     no response: refused, cut off, timed out; also a ConnectionError
    │   └── StreamError          the response is no event stream of this service
    └── …                        JobNotFoundError, OverloadedError, ArgumentsError: see asyncbg.errors
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, cast

from asyncbg.errors import (
    ArgumentsError,
    AsyncBGError,
    DatabaseError,
    ErrorItem,
    IdempotencyError,
    JobNotFoundError,
    JobStateError,
    NotRunningError,
    OverloadedError,
    QuotaError,
    UnknownTaskError,
)

_KIND = "urn:problem-type:asyncbg:"
_RETRYABLE: Final = frozenset({408, 425, 429})
_SERVER_ERROR: Final = 500
_DAY_S: Final = 86_400.0


class ClientError(AsyncBGError):
    """The root of errors between the client and the service."""


class ApiError(ClientError):
    """The service responded with an error (RFC 9457) that has no class of its own in asyncbg.

    ``status``, ``title``, ``detail``, ``type`` and ``errors`` are the problem document's, ``retry_after_s`` is the
    answer's Retry-After.
    """

    def __init__(
        self,
        status: int,
        title: str,
        detail: str = "",
        *,
        type: str = "about:blank",  # noqa: A002 - the RFC's name
        errors: Sequence[ErrorItem] = (),
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status} {title}: {detail}" if detail else f"{status} {title}")
        self.status = status
        self.title = title
        self.detail = detail
        self.type = type
        self.errors = list(errors)
        self.retry_after_s = retry_after_s


class UnreachableError(ClientError, ConnectionError):
    """The service did not respond, or its response was cut off. A stream can be resumed after ``last_event_id``."""

    def __init__(self, url: str, reason: str, *, last_event_id: str | None = None) -> None:
        super().__init__(f"no whole answer from {url}: {reason}")
        self.url = url
        self.reason = reason
        self.last_event_id = last_event_id


class StreamError(ClientError):
    """The response is no event stream of this service; a retry would not change that."""


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The subject of a request, which errors name: a problem document does not repeat it."""

    job_id: str = ""
    task: str = ""
    action: str = ""
    key: str = ""


def is_transient(error: AsyncBGError) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, ApiError):
        return error.status >= _SERVER_ERROR or error.status in _RETRYABLE
    return isinstance(error, UnreachableError | OverloadedError | DatabaseError | NotRunningError)


def is_refusal(error: AsyncBGError) -> bool:
    """Whether the request had no effect, so that even a non-idempotent request may be repeated."""
    if isinstance(error, ApiError):
        return error.status in {429, 503}
    return isinstance(error, OverloadedError | DatabaseError | NotRunningError)


def error_of(status: int, headers: Mapping[str, str], text: str, *, about: About, now_ms: int) -> AsyncBGError:  # noqa: C901 - one row for each error
    """Return the error for a response; ``now_ms`` is the current time, for a Retry-After date."""
    problem = _problem(text)
    title, detail = str(problem.get("title") or f"HTTP status {status}"), str(problem.get("detail") or "")
    kind, errors = str(problem.get("type") or "about:blank"), cast("list[ErrorItem]", _items(problem.get("errors")))
    retry_after_s = read_retry_after(headers.get("Retry-After", ""), now_ms)
    match kind.removeprefix(_KIND):
        case "job-not-found":
            return JobNotFoundError(about.job_id)
        case "job-state":
            return JobStateError(about.job_id, str(problem.get("state") or "in a state that forbids it"), about.action)
        case "unknown-task":
            known = problem.get("known")
            return UnknownTaskError(about.task, [str(name) for name in known] if isinstance(known, list) else [])
        case "invalid-arguments":
            return ArgumentsError(about.task, errors)
        case "idempotency-key-reused":
            return IdempotencyError(about.key)
        case "overloaded":
            return OverloadedError(detail, retry_after_s=retry_after_s or 1)
        case "quota":
            return QuotaError(detail, retry_after_s=retry_after_s or 1)
        case "database-unavailable":
            return DatabaseError(detail)
        case "not-running" | "not-ready":
            return NotRunningError(detail)
    if 300 <= status < 400:
        detail = f"it redirects to {headers.get('Location', 'nowhere')}; give the client that address as its base_url"
    return ApiError(status, title, detail, type=kind, errors=errors, retry_after_s=retry_after_s)


def read_retry_after(value: str, now_ms: int) -> float | None:
    """Seconds to wait, a day at most, out of a Retry-After header (RFC 9110, 10.2.3), which may be a date, or None."""
    if value.isascii() and value.isdecimal():
        return min(float(value), _DAY_S)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    seconds = (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() - now_ms / 1000
    return min(max(seconds, 0.0), _DAY_S)


def _problem(text: str) -> dict[str, Any]:
    """The members of a problem document, or none where the answer is something else, such as a proxy's page."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def _items(value: object) -> list[dict[str, Any]]:
    """The well-formed members of ``errors``."""
    return [
        {"loc": list(item["loc"]), "msg": str(item["msg"]), "type": str(item["type"])}
        for item in (value if isinstance(value, list) else [])
        if isinstance(item, dict) and isinstance(item.get("loc"), list) and {"msg", "type"} <= item.keys()
    ]
