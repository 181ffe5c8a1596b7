"""Secrets that tell by their own look what they are: private keys, JWTs, the vendors' keys with a prefix."""

import re

from asyncbg.privacy.pseudonym import SECRET

_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----"
    r"(?=(?:\s|\\+[nr])*+(?:MI|b3B|Proc-|Version|[A-Za-z0-9+/]{16}))"
    r"[^-]*+(?:-(?!----)[^-]*+)*+(?:-----END[^-\n]{0,50}-----)?",
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+(?:\.[\w-]*+){1,4}")
# Each alternative starts with a letter, so that most characters are passed over at once.
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
    """JWTs (RFC 7519), bot tokens, and keys that tell by a prefix what they are."""
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    if ":AA" in text:
        text = _BOT.sub(SECRET, text)
    return _KEYS.sub(_hide_key, text)


def _hide_key(match: re.Match[str]) -> str:
    """A key stands alone; in the middle of a longer word its prefix is chance."""
    start = match.start()
    return match[0] if start and match.string[start - 1].isalnum() else SECRET
