"""Secrets in text: named ones, logins (``user:password@host``), tokens after an HTTP scheme, keys known by their form.

Every pattern here is linear: it starts only where a run of its characters starts and does not backtrack.
"""

import re
from itertools import islice

from asyncbg.privacy.patterns.named import HINTS, HINTS_BEYOND_ASCII, hide_named
from asyncbg.privacy.patterns.secret_heuristics import is_placeholder
from asyncbg.privacy.pseudonyms import SECRET

_SCHEME = re.compile(
    r"""([Bb](?<!\w.)(?i:earer|asic)|[LNPXlnpx](?i:(?<=auth .)|(?<=authenticate .))(?i:ogin|tlm|lain|oauth2))"""
    r"""(\s++|%20|\+|["'],\s?["'])([A-Za-z0-9._~+/-]{8,}+=*+)(?![A-Za-z0-9])"""
)


def hide_credentials(text: str) -> str:
    """Return ``text`` without its secrets."""
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


# Logins

_STANDS_FOR_ONE = (  # `ada:***@`, `ada:${PASSWORD}@`
    r"(?:[*x•.]{3,}+|\$\{?\w++\}?|\$\([\w ]++\)|<[^\s<>@]{1,40}+>|\{\w{0,40}+\}|%\(?\w{0,40}+\)?s|\[\w{1,40}+])@"
)
_USERINFO = re.compile(
    rf"""(?<=://)(?!(?:git|hg|svn|anonymous)@|[^\s/?\#"'<>`:@]*+:{_STANDS_FOR_ONE})[^\s\0-\x08/?\#"'<>`]+@"""
)
_LOGIN = re.compile(  # `ada:hunter2@10.0.0.5`, `ada:hunter2@db:3306`, `ada:hunter2@tcp(db)`
    rf""":(?!{_STANDS_FOR_ONE})[^\s:@/'"\0-\x08]{{1,128}}+@"""
    r"""(?=\d{1,3}(?:\.\d{1,3}){3}|[\w.-]{1,255}+:\d{2,5}\b|(?:tcp|udp|unix)\()"""
)
_ORACLE = re.compile(r"""(?<=\w/)[^\s/@"'\0-\x08]{1,128}+(?=@)""")  # `thin:ada/hunter2@//db:1521/prod`
_CURL = re.compile(
    r"""([ ]-u[ ]|--(?:proxy-)?user[ =])(?!\d+:\d+\b|["']?\$)
    (?:'[^'\n:]{1,64}+:[^'\n]{1,128}+'|"[^"\n:]{1,64}+:[^"\n]{1,128}+"|[^\s:\-"'\0-\x08]++:[^\s"'\0-\x08]++)""",
    re.VERBOSE,
)
_CALL = re.compile(  # `HTTPBasicAuth('ada', 'hunter2')`, `auth=('ada', 'hunter2')`
    r"""(auth=?\((?:login=|username=)?['"][^'"\n]{1,64}+['"],\s?(?:password=)?['"])[^'"\n\0-\x08]{1,128}+""",
    re.IGNORECASE,
)
_TOOL = re.compile(r"sshpass|mysql|mariadb|mongo|redis-cli|ldap|docker login|smbclient")
_FLAG = {  # the password on the command line of each
    "sshpass": r" -p ?", "mysql": r" -p", "mariadb": r" -p", "mongo": r" -p ?", "redis-cli": r" -a ?", "ldap": r" -w ?",
    "docker login": r" -p ?", "smbclient": r" -U [^\s%]{1,64}%",
}  # fmt: skip
_FLAGS = {tool: re.compile(rf"""[^|;&\n]{{0,120}}?{flag}(?P<value>'[^'\n]+'|"[^"\n]+"|[^\s'"\-\0-\x08][^\s'"]*+)""")
          for tool, flag in _FLAG.items()}  # fmt: skip
_MOST_TOOLS = 20  # a text with more of them is no log line


def hide_logins(text: str, lower: str) -> str:
    """``user:password`` before the host it is for, or given to a command."""
    if "@" in text:
        if "://" in text:
            text = _USERINFO.sub(f"{SECRET}@", text)
        if ":" in text:
            text = _LOGIN.sub(f":{SECRET}@", text)
        if "oracle" in lower or "sqlplus" in lower:
            text = _ORACLE.sub(SECRET, text)
    if " -" in text:
        if " -u " in text or "user" in text:
            text = _CURL.sub(rf"\1{SECRET}", text)
        text = _hide_flags(text)
    return _CALL.sub(rf"\1{SECRET}", text) if "auth" in lower and "(" in text else text


def _hide_flags(text: str) -> str:
    """``sshpass -p hunter2``: what these commands take for a password."""
    pieces: list[str] = []
    done = 0
    for tool in islice(_TOOL.finditer(text), _MOST_TOOLS):
        given = _FLAGS[tool[0]].match(text, tool.end()) if tool.start() >= done else None
        if given and not is_placeholder(given["value"].strip("'\"")):
            pieces += text[done : given.start("value")], SECRET
            done = given.end()
    return "".join([*pieces, text[done:]]) if pieces else text


# Keys

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"(?=(?:\s|\\+[nr])*+(?:MI|b3B|Proc-|Version|[A-Za-z0-9+/]{16}))"
    r"[^-]*+(?:-(?!----)[^-]*+)*+(?:-----END[^-\n]{0,50}-----)?",
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+(?:\.[\w-]*+){1,4}")
# Each alternative starts with a letter, so that most characters are skipped immediately.
_KEYS = re.compile(
    r"""A(?:KIA|SIA)[A-Z0-9]{12,}+ | ATATT[\w-]{20,}+=* | AIza[\w-]{30,}+ | AGE-SECRET-KEY-1[A-Z0-9]{20,}+
      | EAAC[A-Za-z0-9]{20,}+ | GOCSPX-[\w-]{20,}+ | NRAK-[A-Za-z0-9-]{20,}+ | PMAK-[A-Za-z0-9-]{20,}+
      | SG\.[\w-]{16,}+\.[\w-]{16,}+ | SK[0-9a-f]{32}
      | abg_[\w-]{8,}+
      | d(?:op_v1_[0-9a-f]{32,}+|ckr_pat_[\w-]{16,}+|api[0-9a-f]{32})
      | g(?:h[pousr]_[A-Za-z0-9]{16,}+|ithub_pat_\w{16,}+|l(?:pat|dt|rt|cbt|ptt|ft|soat)-[\w-]{16,}+|lsa_\w{20,}+
           |sk_[A-Za-z0-9]{20,}+)
      | h(?:f_[A-Za-z0-9]{20,}+|vs\.[\w-]{20,}+|ooks\.slack\.com/services/[\w/]{10,}+)
      | key-[0-9a-f]{32} | lin_api_[A-Za-z0-9]{20,}+ | npm_[A-Za-z0-9]{20,}+
      | p(?:ypi-[\w-]{16,}+|plx-[A-Za-z0-9]{30,}+|k_(?:live|test)_[A-Za-z0-9]{8,}+)
      | r(?:k_(?:live|test)_[A-Za-z0-9]{8,}+|8_[A-Za-z0-9]{30,}+)
      | s(?:k_(?:live|test)_[A-Za-z0-9]{8,}+|k-(?:ant|proj|svcacct|admin|or|lf)-[\w-]{12,}+|k-[A-Za-z0-9]{20,}+
           |hp(?:at|ss|ca|pa)_[0-9a-fA-F]{32}|q0(?:atp|csp|idp)-[\w-]{16,}+|bp_[0-9a-f]{32,}+)
      | w(?:hsec_[A-Za-z0-9+/]{16,}+=*|ebhooks/(?<=api/webhooks/)\d{8,}/[\w-]{20,}+)
      | x(?:ox[abeoprs](?:\.xox[bp])?-[A-Za-z0-9-]{8,}+|app-\d-[A-Za-z0-9-]{10,}+|ai-[A-Za-z0-9]{20,}+
           |keysib-[0-9a-f-]{32,}+)
      | ya29\.[\w-]{20,}+
    """,
    re.VERBOSE,
)
_BOT = re.compile(r"(?<!\d)\d{8,10}:AA[\w-]{32,}+")


def hide_private_keys(text: str) -> str:
    """Keys in PEM (RFC 7468), also cut short."""
    return _PEM.sub(SECRET, text)


def hide_keys(text: str) -> str:
    """JWTs (RFC 7519), bot tokens, and keys known by a prefix."""
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    if ":AA" in text:
        text = _BOT.sub(SECRET, text)
    return _KEYS.sub(_hide_key, text)


def _hide_key(match: re.Match[str]) -> str:
    """Replace a key, unless it is part of a longer word, where its prefix is chance."""
    start = match.start()
    return match[0] if start and match.string[start - 1].isalnum() else SECRET
