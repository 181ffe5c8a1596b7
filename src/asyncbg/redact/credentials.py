"""What secrets look like in text: keys, tokens, passwords by their name, credentials in headers and URLs.

Every pattern here is linear: it starts only where a run of its characters starts, and never takes back what it took.
"""

import re

from asyncbg.redact.pseudonym import SECRET

_HINTS = (
    *("pass", "pwd", "kennwort", "contrase", "senha", "wachtwoord", "mot de", "mot_de", "secret", "token", "credential"),
    *("cookie", "key", "auth", "sess", "sid", "otp", "pin", "cvv", "cvc", "sig", "ticket", "identified by", "ssn"),
)  # parts of the names below
_QUOTE = r"""(?:\\*+["'`]|&quot;|&\#(?:34|39|x27);|%22)"""
_NAMED = re.compile(
    rf"""
    (?P<name>
        (?P<password>
            pass(?:wor[dt]|wd|phrase|code|[_-]?key)(?:[_-]?(?:confirm(?:ation)?|again|repeat|hash|digest|old|new|\d))?
          | pwd | kennwort | contrase(?:ñ|n|\\u00f1)a | senha | wachtwoord | mot[ _]de[ _]passe | identified[ ]by
          | (?<![a-z])pass
        )
      | (?P<random>
            (?:secret|token)(?:[_ -]?(?:access[_-]?)?key|[_-]?value|[_-]hash)?
          | (?:api|access|private|encrypt(?:ion)?|signing|session|master|auth|account|shared[_-]?access|storage|licen[sc]e
              |ssh|webhook|service|subscription|consumer|app(?:lication)?|client|deploy|hmac|jwt)[_ -]?key(?:[_-]?value)?
          | (?<![a-z])jwt
        )
      | (?P<loose>
            credentials? | cookie | (?:php|j)?sess(?:ion)?[_-]?id | session(?:[_-]?(?:key|cookie))? | connect\.sid
          | (?<![a-z])(?:sid|auth|sig) | (?:proxy-)?authorization | x-amz-(?:signature|credential) | (?<=[?&])ticket
        )
      | (?P<digits>(?<![a-z])(?:[a-z]{{0,8}}[_-])?(?:otp|pin|cvv2?|cvc2?|ssn|pin[_ -]?code|otp[_ -]?code))
    )
    (?P<gap>
        (?:{_QUOTE}?\]?[^\S\r\n]*+(?:=>|:=|={{1,3}}|:|%3[ad])[^\S\r\n]*+)
      | {_QUOTE},[^\S\r\n]*+(?=b?\\*["'])
      | >
      | [^\S\r\n]++(?=["'])
      | [^\S\r\n]++(?:is|was|ist|lautet|war|est|es|é)[^\S\r\n]*+:?[^\S\r\n]++
    )
    (?:
        [bru]{{0,2}}(?P<open>{_QUOTE})(?P<quoted>(?:(?!(?P=open))(?:\\.|[^\\\n]))*+)
      | (?P<plain>
            (?:digest|aws4-hmac-sha256|hawk|oauth|signature)[ ][^"'\r\n\\]++
          | (?![\[{{(<])(?:(?:bearer|basic|token|apikey|negotiate|ntlm)[ ]++)?[^\s,;&"'`<>)\]}}|\\]++
        )
    )
    """,
    re.IGNORECASE | re.VERBOSE,
)
_OPTION = re.compile(
    r"(?P<name>(?<![\w-])--[a-z-]{0,20}(?:password|passwd|token|secret|api-key|pass)[ ]++)(?P<plain>[^\s\-\"'<\[{(]\S*+)",
    re.IGNORECASE,
)
_COOKIES = re.compile(r"""((?:set-)?cookie["']?\s?+:\s?+)(?=[^\s"';,=]++=)[^"'\r\n\\]++""", re.IGNORECASE)
_SAID = re.compile(
    "|".join(
        (
            r"none|null|nil|true|false|yes|no|on|off|ok|okay|empty|unset|set|str|string|text|bytes|int|bool|any|optional",
            r"secretstr|required|missing|invalid|expired|incorrect|wrong|mismatch(?:ed)?|changed|reset|updated|failed|failure",
            r"field|must|is|not|the|a|an|and|or|for|to|in|too|this|that|value|input|unknown|undefined|default|disabled|enabled",
            r"redacted|filtered|masked|hidden|removed|omitted|accepted|rejected|denied|refused|revoked|valid|verified|absent",
            r"present|provided|given|bearer|basic|digest|refreshed|rotated|created|deleted|issued|error|success|see|please|use",
            r"should|cannot|can|may|will|was|has|does|did|stored|plain(?:text)?|unexpected|expected|checked|skipped",
            r"bcrypt|argon2(?:id)?|scrypt|pbkdf2|sha256|md5|eof|newline|indent|dedent|name|number|op|identifier|include|same-origin",
        )
    ),
    re.IGNORECASE,
)  # what is said of a secret, or stands where one would
_PLACEHOLDER = re.compile(
    r"""[\W_xX]*|%\(?\w*\)?[srd]|\$\{?[A-Z_][A-Z0-9_]*+\}?|[({\[<][^\n]*[)}\]>]|[*•]+\S{0,4}|\S{0,4}[*•]{4,}\S{0,4}"""
)
_CODE = re.compile(
    r"[A-Za-z_][\w.]*+[(\[].*|(?:self|cls|settings|config|conf|cfg|os|request|args|kwargs|opts|options|params|form|data|payload|"
    r"user|ctx|env|environ|creds|credentials|body)\.[A-Za-z_.]+|[a-z_]+(?:\.[a-z_]+)*\.(?:password|secret|token|key)"
)
_ERROR_BEFORE = re.compile(r"(?:unexpected|illegal|invalid|bad|unknown|expected|next|last|current|syntax|end)[ _]$", re.IGNORECASE)

_USERINFO = re.compile(r"(?<=://)(?!\[secret]@)([^\s/?#\"'<>`]*)@")
_NO_USERINFO = re.compile(r"(?:git|hg|svn|anonymous|anon)|[^:@]*:(?:[*x•]{3,}|\[secret])", re.IGNORECASE)
_PEM = re.compile(
    r"-----BEGIN [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----[^-]*+(?:-(?!----)[^-]*+)*+(?:-----END[^-\n]{0,50}-----)?",
)
_JWT = re.compile(r"(?<![\w-])eyJ[\w-]{5,}+(?:\.[\w-]*+){1,4}")
_SCHEME = re.compile(r"\b(bearer|basic)(\s++|%20|\+)([A-Za-z0-9._~+/-]{8,}+=*+)", re.IGNORECASE)

_KEY_HINTS = (
    *("AKIA", "ASIA", "gh", "glpat-", "gldt-", "glrt-", "xox", "xapp-", "k_live_", "k_test_", "whsec_", "AIza", "ya29.", "GOCSPX"),
    *("npm_", "pypi-", "sk-", "SG.", "SK", "abg_", "hf_", "dop_v1_", "shp", "key-", "hvs.", "glsa_", "hooks.", "webhooks/"),
    *("dckr_pat_", "ATATT", "gsk_", "xai-", "AGE-SECRET", "sq0", ":AA", "dapi", "lin_api_", "NRAK-", "PMAK-", "sbp_"),
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
      | sbp_[0-9a-f]{32,}+
      | hooks\.slack\.com/services/[\w/]{10,}+ | (?<=api/)webhooks/\d{8,}/[\w-]{20,}+
    )""",
    re.VERBOSE,
)


def hide_credentials(text: str) -> str:
    """``text`` without the secrets in it."""
    lower = text.lower()
    if "private key" in lower:
        text = _PEM.sub(SECRET, text)
    for hint in _HINTS:
        if hint in lower:
            text = _hide_named(text)
            break
    if "://" in text and "@" in text:
        text = _USERINFO.sub(_hide_userinfo, text)
    if "eyJ" in text:
        text = _JWT.sub(SECRET, text)
    if "bearer" in lower or "basic" in lower:
        text = _SCHEME.sub(_hide_scheme, text)
    for hint in _KEY_HINTS:
        if hint in text:
            return _KEYS.sub(_hide_key, text)
    return text


def _hide_named(text: str) -> str:
    if "ookie" in text or "OOKIE" in text:
        text = _COOKIES.sub(lambda match: match[0] if match[0].endswith(SECRET) else match[1] + SECRET, text)
    if "--" in text:
        text = _OPTION.sub(_hide_option, text)
    return _NAMED.sub(_hide_value, text)


def _hide_value(match: re.Match[str]) -> str:
    """``password="hunter2"`` keeps its name and quotes; ``password: required`` says something about one."""
    plain = match["plain"]
    value: str = match["quoted"] if plain is None else plain
    if not _is_value(match, value):
        return match[0]
    start, end = match.span("quoted" if plain is None else "plain")
    return f"{match.string[match.start() : start]}{SECRET}{match.string[end : match.end()]}"


def _is_value(match: re.Match[str], value: str) -> bool:
    """Whether what stands behind the name of a secret is one."""
    bare = value.rstrip(".:!?")
    if not bare or _PLACEHOLDER.fullmatch(value) or _SAID.fullmatch(bare):
        return False
    gap, is_plain = match["gap"].strip(), match["plain"] is not None
    if is_plain and (_CODE.match(value) or bare.lower() == match["name"].lower()):
        return False
    if match["digits"]:
        return 3 <= sum(c.isdigit() for c in value) <= 10
    told = is_plain and gap[-1:] not in "=>" and "%" not in gap  # `name: value` and `name is value` are how people write
    if is_plain and match["gap"][:1].isspace() and "=" not in gap:  # `the password is …`, `password : …`
        return _looks_random(bare) if ":" not in gap else _is_told(match, bare)
    if not gap and not match["password"]:  # `unexpected token '}'`
        return False
    if match["password"]:
        if match["name"].lower() == "pwd" and value.startswith(("/", "~", "C:")):
            return False
        if match["name"].lower() == "pass" and (bare.isdigit() or told):
            return _looks_random(bare)
        return _is_told(match, bare) if told else True
    if bare.isdigit() and len(bare) < 6:
        return False
    if _ERROR_BEFORE.search(match.string[max(0, match.start() - 12) : match.start()]):
        return _looks_random(bare)
    if match["loose"]:
        return " " in value if match["name"].lower().endswith("authorization") and is_plain else _looks_random(bare)
    return _looks_random(bare) if told else not (bare.isupper() and bare.isalpha())


def _is_told(match: re.Match[str], bare: str) -> bool:
    """``password: opensesame`` ends there; ``password: must be longer`` goes on as a sentence."""
    goes_on = re.match(r" [A-Za-z]{2,}(?![\w=:])", match.string[match.end() : match.end() + 24])
    plain_word = bare.isalpha() or (bare.isdigit() and len(bare) < 3) or _is_compound(bare)
    return not (goes_on and plain_word)


def _looks_random(text: str) -> bool:
    """Whether nobody would write this as a word: digits among letters, odd capitals, signs, or sheer length."""
    if len(text) < 5 or _is_compound(text):
        return False
    if any(c.isdigit() for c in text):
        return not text.isdigit() or len(text) >= 6
    return any(c in "!@#$%^&*+=~/" for c in text) or not (text[1:].islower() or text.isupper()) or len(text) > 24


def _is_compound(text: str) -> bool:
    """``case-sensitive``, ``not_found``: words joined."""
    return all(part.isalpha() and (part.islower() or part.isupper()) for part in re.split("[-_/]", text))


def _hide_option(match: re.Match[str]) -> str:
    return match[0] if _PLACEHOLDER.fullmatch(match["plain"]) else f"{match['name']}{SECRET}"


def _hide_userinfo(match: re.Match[str]) -> str:
    return match[0] if _NO_USERINFO.fullmatch(match[1]) else f"{SECRET}@"


def _hide_scheme(match: re.Match[str]) -> str:
    """``Bearer x7…`` loses its token; ``basic information`` is prose."""
    token = match[3]
    is_token = any(c.isdigit() or c in "=_/+" for c in token) or (token[1:] != token[1:].lower() and not token.isupper())
    return f"{match[1]}{match[2]}{SECRET}" if is_token else match[0]


def _hide_key(match: re.Match[str]) -> str:
    """A key stands alone; in the middle of a longer word its prefix is chance."""
    start = match.start()
    return match[0] if start and match.string[start - 1].isalnum() else SECRET
