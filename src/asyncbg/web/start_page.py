"""The pages of the service: one frame for all, and the first page with its style and where it leads."""

from collections.abc import Mapping
from typing import Final

from fastapi.responses import HTMLResponse

from asyncbg.web.headers import content_policy

LINKS: Final = {
    "jobs": "Jobs, newest first (JSON)",
    "events": "Events as they happen (stream)",
    "metrics": "Metrics (Prometheus)",
    "health/ready": "Health: ready for work?",
}
"""Where the first page leads, relative to it, and what is there."""
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
_FIRST: Final = """<header><h1>asyncbg</h1></header>
<main>
<p>Background jobs: on disk before the response leaves, visible, cancellable, retried, streamed.</p>
{body}
</main>"""
_NAVIGATION: Final = """<nav aria-label="What there is">
<ul>
{items}
</ul>
</nav>"""


def html_page(*, title: str, style: str, body: str) -> str:
    """A whole page; what is handed over is HTML already."""
    return _PAGE.format(title=title, style=style, body=body)


def start_page(
    body: str, *, forms: str = "'none'", status_code: int = 200, headers: Mapping[str, str] | None = None
) -> HTMLResponse:
    """The first page around ``body``; ``forms`` is where its forms may be sent to, as a policy's source list."""
    return HTMLResponse(
        html_page(title="asyncbg", style=_STYLE, body=_FIRST.format(body=body)),
        status_code,
        {
            "Content-Security-Policy": content_policy(style=_STYLE, forms=forms),
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            **(headers or {}),
        },
    )


def navigation(links: Mapping[str, str]) -> str:
    """A list of links, each with its label."""
    return _NAVIGATION.format(
        items="\n".join(f'<li><a href="{href}">{label}</a></li>' for href, label in links.items())
    )
