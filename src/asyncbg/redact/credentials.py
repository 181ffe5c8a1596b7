"""What secrets look like in text: keys, tokens, credentials in headers and URLs.

Every pattern here is linear: it starts only where a run of its characters starts, and never takes back what it took.
"""

import re

from asyncbg.redact.named import HINTS as NAME_HINTS
from asyncbg.redact.named import hide_named
from asyncbg.redact.pseudonym import SECRET

_USERINFO = re.compile(
    r"""(?<=://)(?!(?:git|hg|svn|anonymous)@|[^\s/?\#"'<>`:@]*+:[*x•]{3,}@)[^\s\0-\x08/?\#"'<>`]+@"""
)
_LOGIN = re.compile(  # `ada:hunter2@10.0.0.5`, `curl -u ada:hunter2`
    r""":[^\s:@/'"\0-\x08]{1,128}@(?=\d{1,3}(?:\.\d{1,3}){3}|[\w.-]+:\d{2,5}\b)"""
    r"""|(?<=[ ]-u[ ])[^\s:\-\0-\x08]++:[^\s"'\0-\x08]++"""
)
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^-]*+(?:-(?!----)[^-]*+)*+(?:-----END[^-\n]{0,50}-----)?",
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+(?:\.[\w-]*+){1,4}")
_SCHEME = re.compile(r"\b(bearer|basic)(\s++|%20|\+)([A-Za-z0-9._~+/-]{8,}+=*+)(?![A-Za-z0-9])", re.IGNORECASE)

_KEY_HINTS = (
    *(
        "AKIA",
        "ASIA",
        "gh",
        "github_pat_",
        "glpat-",
        "gldt-",
        "glrt-",
        "xox",
        "xapp-",
        "k_live_",
        "k_test_",
        "whsec_",
        "AIza",
        "ya29.",
        "GOCSPX",
    ),
    *(
        "npm_",
        "pypi-",
        "sk-",
        "SG.",
        "SK",
        "abg_",
        "hf_",
        "dop_v1_",
        "shp",
        "key-",
        "hvs.",
        "glsa_",
        "hooks.",
        "webhooks/",
    ),
    *(
        "dckr_pat_",
        "ATATT",
        "gsk_",
        "xai-",
        "AGE-SECRET",
        "sq0",
        ":AA",
        "dapi",
        "lin_api_",
        "NRAK-",
        "PMAK-",
        "sbp_",
        "xkeysib-",
        "r8_",
        "pplx-",
        "EAAC",
    ),
)
_KEYS = re.compile(
    r"""
    (?: (?:AKIA|ASIA)[A-Z0-9]{12,}+
      | gh[pousr]_[A-Za-z0-9]{16,}+
      | github_pat_[A-Za-z0-9_]{16,}+
      | gl(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{16,}+
      | xox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{8,}+ | xapp-\d-[A-Za-z0-9-]{10,}+
      | [srp]k_(?:live|test)_[A-Za-z0-9]{8,}+ | whsec_[A-Za-z0-9+/]{16,}+=*
      | AIza[\w-]{30,}+ | ya29\.[\w-]{20,}+ | GOCSPX-[\w-]{20,}+
      | npm_[A-Za-z0-9]{20,}+ | pypi-[\w-]{16,}+
      | sk-(?:ant|proj|svcacct|admin|or|lf)-[\w-]{12,}+ | sk-[A-Za-z0-9]{20,}+
      | SG\.[\w-]{16,}+\.[\w-]{16,}+ | SK[0-9a-f]{32}
      | abg_[\w-]{8,}+
      | hf_[A-Za-z0-9]{20,}+ | dop_v1_[0-9a-f]{32,}+ | shp(?:at|ss|ca|pa)_[0-9a-fA-F]{32} | key-[0-9a-f]{32}
      | hvs\.[\w-]{20,}+ | glsa_\w{20,}+ | dckr_pat_[\w-]{16,}+ | ATATT[\w-]{20,}+=* | gsk_[A-Za-z0-9]{20,}+
      | xai-[A-Za-z0-9]{20,}+ | AGE-SECRET-KEY-1[A-Z0-9]{20,}+ | sq0(?:atp|csp|idp)-[\w-]{16,}+
      | \d{8,10}:AA[\w-]{32,}+ | dapi[0-9a-f]{32} | lin_api_[A-Za-z0-9]{20,}+ | (?:NRAK|PMAK)-[A-Za-z0-9-]{20,}+
      | sbp_[0-9a-f]{32,}+ | xkeysib-[0-9a-f-]{32,}+ | r8_[A-Za-z0-9]{30,}+ | pplx-[A-Za-z0-9]{30,}+
      | EAAC[A-Za-z0-9]{20,}+
      | hooks\.slack\.com/services/[\w/]{10,}+ | (?<=api/)webhooks/\d{8,}/[\w-]{20,}+
    )""",
    re.VERBOSE,
)


def hide_credentials(text: str) -> str:
    """``text`` without the secrets in it."""
    lower = text.lower()
    if "private key" in lower:
        text = _PEM.sub(SECRET, text)
        lower = text.lower()
    for hint in NAME_HINTS:
        if hint in lower:
            text = hide_named(text, lower)
            break
    if "://" in text and "@" in text:
        text = _USERINFO.sub(f"{SECRET}@", text)
    if ("@" in text and ":" in text) or " -u " in text:
        text = _LOGIN.sub(_hide_login, text)
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    if "bearer" in lower or "basic" in lower:
        text = _SCHEME.sub(_hide_scheme, text)
    for hint in _KEY_HINTS:
        if hint in text:
            return _KEYS.sub(_hide_key, text)
    return text


def _hide_login(match: re.Match[str]) -> str:
    return f":{SECRET}@" if match[0][0] == ":" else SECRET


def _hide_scheme(match: re.Match[str]) -> str:
    """``Bearer x7…`` loses its token; ``basic information`` is prose."""
    token = match[3]
    is_token = any(c.isdigit() or c in "=+" for c in token) or (token[1:] != token[1:].lower() and not token.isupper())
    return f"{match[1]}{match[2]}{SECRET}" if is_token else match[0]


def _hide_key(match: re.Match[str]) -> str:
    """A key stands alone; in the middle of a longer word its prefix is chance."""
    start = match.start()
    return match[0] if start and match.string[start - 1].isalnum() else SECRET
