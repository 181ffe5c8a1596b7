"""The headers of an event stream, and whether its client takes gzip."""

import re
from typing import Final

MEDIA_TYPE: Final = "text/event-stream"


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header (RFC 9110, section 12.5.3) takes gzip by name."""
    for coding in header.lower().split(","):
        name, _, weight = coding.partition(";")
        if name.strip() in {"gzip", "x-gzip"}:
            return not re.fullmatch(r"\s*q\s*=\s*0(\.0*)?\s*", weight)
    return False


def stream_headers(*, gzip: bool = False, typed: bool = True) -> dict[str, str]:
    """By name; ``typed``: there is a body."""
    headers = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no", "Vary": "Accept-Encoding"}
    if typed:
        headers["Content-Type"] = f"{MEDIA_TYPE}; charset=utf-8"
    if gzip:
        headers["Content-Encoding"] = "gzip"
    return headers


RAW_HEADERS = {
    gzip: [(name.lower().encode(), value.encode()) for name, value in stream_headers(gzip=gzip).items()]
    for gzip in (False, True)
}
"""Those of every stream: encoded once, and the same bytes for all."""
