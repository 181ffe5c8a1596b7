"""Errors of outbound requests, retryable or final. Messages contain only the origin of a URL."""

import os
from typing import NoReturn

import aiohttp
from yarl import URL

from asyncbg.errors import AsyncBGError, FinalError
from asyncbg.service.integrations.egress import BadUrlError, EgressRefusedError

MAX_HEADER_BYTES, MAX_HEADERS = 65_536, 256
"""Limits of the total size and the number of response headers."""


class OutboundError(AsyncBGError):
    """An outbound request failed. ``status`` and ``retry_after_s`` come from the response, if there was one."""

    def __init__(self, message: str, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class FetchError(OutboundError):
    """A fetch failed temporarily: no connection, a timeout, 408, 429 or 5xx."""


class FetchRejectedError(FetchError, FinalError):
    """A fetch failed permanently: another 4xx, too many redirects or an invalid one."""


class NotJsonError(FetchError, FinalError):
    """The response is not JSON."""


class TooLargeError(FetchError, FinalError):
    """The decoded response is larger than ASYNCBG_OUTBOUND__MAX_BYTES."""


class WebhookError(OutboundError):
    """A delivery failed and is retried: no connection, a timeout, or any status but 2xx and 410."""


class WebhookRejectedError(WebhookError, FinalError):
    """The message cannot be delivered: its payload has no JSON form, or the receiver is gone."""


class WebhookGoneError(WebhookRejectedError):
    """The receiver answered 410 Gone."""


def raise_outbound_error(cause: Exception, url: URL, error: type[OutboundError]) -> NoReturn:
    """Raise ``error`` for an error of the HTTP client, naming the peer by its origin."""
    origin = url.origin()
    match cause:
        case aiohttp.ClientConnectorError(os_error=EgressRefusedError() as refused):
            raise refused from None
        case aiohttp.InvalidURL():
            raise BadUrlError("the URL is malformed; its form is https://host:port/path?query") from None
        case aiohttp.ClientConnectorDNSError():
            said = f"the host of {origin} could not be resolved"
        case aiohttp.ClientConnectorCertificateError():
            said = f"the certificate of {origin} is not valid"
        case aiohttp.ClientConnectorSSLError():
            said = f"no TLS connection to {origin} could be made"
        case aiohttp.ClientConnectorError(os_error=OSError(errno=int(errno))):
            said = f"cannot connect to {origin}: {os.strerror(errno)}"
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError():
            said = f"{origin} closed the connection before its answer was complete"
        case aiohttp.ClientPayloadError():
            said = f"{origin} sent a truncated body"
        case aiohttp.ClientResponseError():
            said = f"{origin} {_unreadable(cause)}"
        case _:
            said = f"the request to {origin} failed ({type(cause).__name__})"
    raise error(said) from None  # the cause may quote the whole URL


def _unreadable(cause: aiohttp.ClientResponseError) -> str:
    """Return why the client could not parse the head of a response. Its own message may quote headers."""
    if "Got more than" in cause.message:
        return f"answered with a header over {MAX_HEADER_BYTES // 1024} KiB"
    if "Too many headers" in cause.message:
        return f"answered with more than {MAX_HEADERS} headers"
    if "Expected HTTP" in cause.message:
        return "did not answer in HTTP"
    return "answered in malformed HTTP"
