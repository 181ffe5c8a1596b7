"""HTML pages: the frame of all pages, and the start page with its style and links."""

from collections.abc import Mapping
from typing import Final

from fastapi.responses import HTMLResponse

from asyncbg.web.headers import content_policy

LINKS: Final = {
    "jobs": "Jobs, newest first (JSON)",
    "events": "Events as they are published (stream)",
    "metrics": "Metrics (Prometheus)",
    "health/ready": "Health: readiness",
}
"""The links of the start page, relative to it, with their labels."""
_STYLE: Final = """
body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem; }
input, button { font: inherit; padding: .3rem .6rem; }
[role=alert] { border-left: .3rem solid #b3261e; padding-left: .8rem; }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e8eaed; } a { color: #8ab4f8; } }
"""
_PAGE: Final = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
_START: Final = """<header><h1>asyncbg</h1></header>
<main>
<p>Background jobs: on disk before the response leaves, visible, cancellable, retried, streamed.</p>
{body}
</main>"""
_NAVIGATION: Final = """<nav aria-label="Routes">
<ul>
{items}
</ul>
</nav>"""


def html_page(*, title: str, style: str, body: str) -> str:
    """Return a whole HTML page; ``body`` is HTML already."""
    return _PAGE.format(title=title, style=style, body=body)


def start_page(
    body: str, *, forms: str = "'none'", status_code: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """Return the start page with ``body``; ``forms`` is the policy's source list for its forms."""
    return HTMLResponse(
        html_page(title="asyncbg", style=_STYLE, body=_START.format(body=body)),
        status_code,
        {
            "Content-Security-Policy": content_policy(style=_STYLE, forms=forms),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **(headers or {}),
        },
    )


def navigation(links: Mapping[str, str]) -> str:
    """Return a list of links as HTML."""
    return _NAVIGATION.format(
        items="\n".join(f'<li><a href="{href}">{label}</a></li>' for href, label in links.items())
    )
