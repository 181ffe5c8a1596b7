"""URLs as text: split without normalization, illegal characters quoted, references resolved (RFC 3986)."""

import re
from typing import NamedTuple, Self

_PARTS = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL
)  # RFC 3986, appendix B
# Brackets are not quoted, as in browsers; nor are characters for which the URL is refused later.
_ILLEGAL = re.compile(rb"[^A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]\\\x00-\x1f\x7f-]")


class UrlText(NamedTuple):
    """The parts of a URL or of a relative reference; None for a missing part. The fragment is dropped.

    ``query`` includes its question mark, so that an empty query differs from a missing one.
    """

    scheme: str | None
    authority: str | None
    path: str
    query: str | None

    @classmethod
    def split(cls, text: str) -> Self:
        """Split a URL into its parts, unchanged except for the scheme's case."""
        scheme, authority, path, query = _PARTS.fullmatch(text).groups()  # type: ignore[union-attr]  # fits any text
        return cls(scheme.lower() if scheme else None, authority, path, query)

    @classmethod
    def of_location(cls, raw: bytes) -> Self:
        """Parse a ``Location`` header; illegal bytes are percent-encoded, as in browsers.

        Raises UnicodeDecodeError for a host that is not UTF-8.
        """
        scheme, authority, path, query = cls.split(raw.strip(b" \t").decode("latin-1"))
        host = None if authority is None else authority.encode("latin-1").decode()
        return cls(scheme, host, path, query).quoted("latin-1")

    def quoted(self, encoding: str = "utf-8") -> Self:
        """Percent-encode only the illegal characters in path and query."""
        return self._replace(
            path=_quote(self.path.encode(encoding)),
            query=None if self.query is None else _quote(self.query.encode(encoding)),
        )

    def resolve(self, reference: "UrlText") -> "UrlText":
        """Resolve ``reference`` against this URL (RFC 3986, 5.2.2)."""
        scheme, authority, path, query = reference
        if scheme is None:
            scheme = self.scheme
            if authority is None:
                authority = self.authority
                if not path:
                    return UrlText(scheme, authority, self.path, self.query if query is None else query)
                if not path.startswith("/"):
                    path = (self.path.rpartition("/")[0] or "") + "/" + path
        return UrlText(scheme, authority, _without_dots(path), query)

    @property
    def target(self) -> str:
        """Return the request target: path and query."""
        path = self.path if self.path.startswith("/") else f"/{self.path}"
        return path + (self.query or "")

    def __str__(self) -> str:
        """Return the URL without a fragment."""
        scheme = "" if self.scheme is None else f"{self.scheme}:"
        authority = "" if self.authority is None else f"//{self.authority}"
        return f"{scheme}{authority}{self.path}{self.query or ''}"


def _quote(text: bytes) -> str:
    return _ILLEGAL.sub(lambda found: b"%%%02X" % found[0][0], text).decode("ascii")


def _without_dots(path: str) -> str:
    """Remove ``.`` and ``..`` segments (RFC 3986, 5.2.4)."""
    kept: list[str] = []
    segments = path.split("/")
    for segment in segments:
        if segment == "..":
            del kept[max(1, len(kept) - 1) :]
        elif segment != ".":
            kept.append(segment)
    if segments[-1] in (".", ".."):
        kept.append("")
    return "/".join(kept)
