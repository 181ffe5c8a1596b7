"""``/docs``: the OpenAPI document as a static page, without scripts or external resources.

FastAPI's own pages load scripts from a content delivery network, which the content security policy forbids.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from html import escape
from typing import Any, Final

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse

from asyncbg.web.headers import content_policy
from asyncbg.web.problem_route import ProblemRoute, get_and_head
from asyncbg.web.start_page import html_page

_PATH: Final = "/docs"
_METHODS: Final = ("get", "post", "put", "patch", "delete")
_STYLE: Final = """
body { font: 1.05rem/1.5 system-ui, sans-serif; max-width: 56rem; margin: 2rem auto; padding: 0 1rem; }
details { border-top: 1px solid #8884; padding: .4rem 0; }
summary { cursor: pointer; }
summary b { display: inline-block; min-width: 4.5rem; }
table { border-collapse: collapse; }
td, th { text-align: left; vertical-align: top; padding: .15rem .8rem .15rem 0; }
pre { background: #8882; padding: .6rem; overflow-x: auto; }
@media (prefers-color-scheme: dark) { body { background: #14171a; color: #e8eaed; } a { color: #8ab4f8; } }
"""
_BODY: Final = """<header><h1>{title} {version}</h1><p>{description}</p></header>
<p>For machines: <a href="openapi.json">openapi.json</a>, <a href="asyncapi.json">asyncapi.json</a> (events).</p>
<main>
{body}
</main>"""


def install_docs(app: FastAPI) -> None:
    """Add the page to ``app``, which was created with ``docs_url=None``, and set ``docs_url``."""
    router = APIRouter(route_class=ProblemRoute)

    @get_and_head(router, _PATH, include_in_schema=False)
    async def show_docs(request: Request) -> HTMLResponse:
        """Return the OpenAPI document as a page, grouped by tag."""
        policy = content_policy(style=_STYLE)
        return HTMLResponse(docs_page(request.app.openapi()), headers={"Content-Security-Policy": policy})

    app.include_router(router)
    app.docs_url = _PATH


def docs_page(document: Mapping[str, Any]) -> str:
    """Return the HTML page of an OpenAPI document."""
    info = document["info"]
    title = escape(info["title"])
    body = _BODY.format(
        title=title,
        version=escape(info["version"]),
        description=escape(info.get("description", "")),
        body="\n".join(_sections(document)),
    )
    return html_page(title=f"{title}: API", style=_STYLE, body=body)


def _sections(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield a heading for each tag, followed by its operations."""
    operations = [
        (method, path, item[method])
        for path, item in document["paths"].items()
        for method in _METHODS
        if method in item
    ]
    described = {tag["name"]: tag.get("description", "") for tag in document.get("tags", ())}
    for tag in dict.fromkeys([*described, *(_tag(operation) for _, _, operation in operations)]):
        below = [found for found in operations if _tag(found[2]) == tag]
        if below:
            yield f"<h2>{escape(tag.capitalize())}</h2>\n<p>{escape(described.get(tag, ''))}</p>"
            yield from (_operation(*found) for found in below)


def _tag(operation: Mapping[str, Any]) -> str:
    return next(iter(operation.get("tags", ())), "other")


def _operation(method: str, path: str, operation: Mapping[str, Any]) -> str:
    """Return one operation as a collapsed element."""
    parts = [
        f"<p>{escape(operation.get('description', ''))}</p>",
        _table(("parameter", "in", "meaning"), map(_parameter, operation.get("parameters", ()))),
        *_bodies(operation.get("requestBody", {}).get("content", {})),
        _table(("status", "meaning"), _answers(operation["responses"])),
    ]
    head = f"<b>{method.upper()}</b> <code>{escape(path)}</code> {escape(operation.get('summary', ''))}"
    return "\n".join((f"<details><summary>{head}</summary>", *filter(None, parts), "</details>"))


def _parameter(parameter: Mapping[str, Any]) -> tuple[str, str, str]:
    needed = "required; " if parameter.get("required") else ""
    schema = parameter.get("schema", {})
    return (
        parameter["name"],
        parameter["in"],
        needed + (parameter.get("description") or schema.get("description") or ""),
    )


def _answers(responses: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the status codes in order, each with its description."""
    for status in sorted(responses):
        kinds = ", ".join(responses[status].get("content", {}))
        description = responses[status].get("description", "")
        yield status, f"{description} ({kinds})" if kinds else description


def _bodies(content: Mapping[str, Any]) -> Iterator[str]:
    """Yield each request media type, with an example if there is one."""
    for kind, body in content.items():
        yield f"<p>Body: <code>{escape(kind)}</code></p>"
        examples = body.get("schema", {}).get("examples", ())
        if examples:
            yield f"<pre>{escape(json.dumps(examples[0], indent=2, ensure_ascii=False))}</pre>"


def _table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Return a table, or an empty string without rows."""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>" if body else ""
