"""What secrets look like in text: named, as logins, after a scheme of HTTP, or by their own look.

Every pattern here is linear: it starts only where a run of its characters starts, and never takes back what it took.
"""

import re

from asyncbg.privacy.patterns.keys import hide_keys, hide_private_keys
from asyncbg.privacy.patterns.logins import hide_logins
from asyncbg.privacy.patterns.named import HINTS, HINTS_BEYOND_ASCII, hide_named
from asyncbg.privacy.pseudonym import SECRET

_SCHEME = re.compile(
    r"""([Bb](?<!\w.)(?i:earer|asic)|[LNPXlnpx](?i:(?<=auth .)|(?<=authenticate .))(?i:ogin|tlm|lain|oauth2))"""
    r"""(\s++|%20|\+|["'],\s?["'])([A-Za-z0-9._~+/-]{8,}+=*+)(?![A-Za-z0-9])"""
)


def hide_credentials(text: str) -> str:
    """``text`` without the secrets in it."""
    lower = text.lower()
    if "private key" in lower:
        text = hide_private_keys(text)
        lower = text.lower()
    for hint in HINTS if text.isascii() else (*HINTS, *HINTS_BEYOND_ASCII):
        if hint in lower:
            text = hide_named(text, lower)
            break
    text = hide_logins(text, lower)
    if "bearer" in lower or "basic" in lower or "auth" in lower:
        text = _SCHEME.sub(_hide_scheme, text)
    return hide_keys(text)


def _hide_scheme(match: re.Match[str]) -> str:
    """``Bearer x7…`` loses its token; ``basic information`` is prose."""
    token = match[3]
    is_token = any(c.isdigit() or c in "=+" for c in token) or (token[1:] != token[1:].lower() and not token.isupper())
    return f"{match[1]}{match[2]}{SECRET}" if is_token else match[0]
