"""The JavaScript client as static files: ``/asyncbg.js`` and its types, ``/asyncbg.d.ts``.

The folder ``asyncbg/api/static`` is an npm package. A page that imports the module needs no build step.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from fastapi import APIRouter, Request, Response

from asyncbg.web.problem_route import ProblemRoute, get_and_head

STATIC: Final = Path(__file__).parents[1] / "api" / "static"
"""Users install this folder as an npm package by its path, so the path stays."""
_MEDIA_TYPES: Final = {"asyncbg.js": "text/javascript", "asyncbg.d.ts": "text/plain"}
"""Type declarations are plain text, so that a browser shows them and never runs them."""


@dataclass(frozen=True, slots=True)
class _Asset:
    """A file and its response headers."""

    body: bytes
    headers: dict[str, str]

    @classmethod
    def read(cls, name: str) -> "_Asset":
        body = (STATIC / name).read_bytes()
        return cls(
            body,
            {
                "Content-Type": f"{_MEDIA_TYPES[name]}; charset=utf-8",
                "Cache-Control": "no-cache",
                "ETag": f'"{hashlib.sha256(body).hexdigest()[:32]}"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    def answer(self, request: Request) -> Response:
        """Return the file, or 304 where the client has it (RFC 9110, section 13.1.2: a weak comparison)."""
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if known & {self.headers["ETag"], "*"}:
            return Response(
                status_code=304, headers={name: text for name, text in self.headers.items() if name != "Content-Type"}
            )
        return Response(self.body, headers=self.headers)


class AssetRoute(ProblemRoute):
    """The route of a file; it allows any query, since pages append a version to bypass caches."""

    strict_query = False


def assets_router() -> APIRouter:
    """Return the routes of the JavaScript client, which the OpenAPI document does not list."""
    router = APIRouter(route_class=AssetRoute)
    for name in _MEDIA_TYPES:
        _serve(router, name)
    return router


def _serve(router: APIRouter, name: str) -> None:
    asset = _Asset.read(name)

    @get_and_head(router, f"/{name}", name=name, include_in_schema=False)
    async def show_asset(request: Request) -> Response:
        return asset.answer(request)
