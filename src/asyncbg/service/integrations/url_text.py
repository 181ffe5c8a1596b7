"""A URL as text: its parts byte for byte, what is not legal in one quoted, a reference resolved (RFC 3986)."""

import re
from typing import NamedTuple, Self

_PARTS = re.compile(
    r"(?:([A-Za-z][A-Za-z0-9+.-]*):)?(?://([^/?#]*))?([^?#]*)(\?[^#]*)?(?:#.*)?", re.DOTALL
)  # RFC 3986, appendix B
# Quoted is what is not legal; but brackets stay, which browsers send too, and what no URL may hold, to be refused.
_ILLEGAL = re.compile(rb"[^A-Za-z0-9._~!$&'()*+,;=:@/?%\[\]\\\x00-\x1f\x7f-]")


class UrlText(NamedTuple):
    """The parts of a URL or of a reference to one; None for one that is not there. A fragment is dropped.

    ``query`` begins with its question mark, so that an empty query is not none.
    """

    scheme: str | None
    authority: str | None
    path: str
    query: str | None

    @classmethod
    def split(cls, text: str) -> Self:
        """Cut a text into parts; each stays as it is written."""
        scheme, authority, path, query = _PARTS.fullmatch(text).groups()  # type: ignore[union-attr]  # fits any text
        return cls(scheme.lower() if scheme else None, authority, path, query)

    @classmethod
    def of_location(cls, raw: bytes) -> Self:
        """A ``Location`` as it came: bytes that are not legal are quoted one by one, as browsers do.

        Raises UnicodeDecodeError for a host that is not UTF-8.
        """
        scheme, authority, path, query = cls.split(raw.strip(b" \t").decode("latin-1"))
        host = None if authority is None else authority.encode("latin-1").decode()
        return cls(scheme, host, path, query).quoted("latin-1")

    def quoted(self, encoding: str = "utf-8") -> Self:
        """Percent-encode in path and query what is not legal in a URL, and nothing else."""
        return self._replace(
            path=_quote(self.path.encode(encoding)),
            query=None if self.query is None else _quote(self.query.encode(encoding)),
        )

    def resolve(self, reference: "UrlText") -> "UrlText":
        """Where ``reference`` leads from here (RFC 3986, 5.2.2)."""
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
        """What a request line asks for."""
        path = self.path if self.path.startswith("/") else f"/{self.path}"
        return path + (self.query or "")

    def __str__(self) -> str:
        """The text again, without a fragment."""
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
