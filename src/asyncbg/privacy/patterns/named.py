"""Secrets known by their name: ``password=…``, ``"token": "…"``, ``Authorization: …``, ``--secret …``.

Names are searched for in lower case, which is cheap; the costly check of a value runs only behind a name.
"""

import re
from collections.abc import Iterator

from asyncbg.privacy.patterns.secret_heuristics import Kind, is_secret, kind_of
from asyncbg.privacy.patterns.words import PASSWORD, alternatives
from asyncbg.privacy.pseudonyms import SECRET

HINTS = (
    *("pass", "pwd", "pw", "contrase", "mot de", "mot_de", "secret", "token", "credential", "cookie", "key", "auth"),
    *("sess", "sid", "otp", "pin", "cvv", "cvc", "sig", "ticket", "identified by", "ssn", "jwt", "code=", "one-time"),
    *("ion code", "ion_code", "ty code", "ty_code", *(word for word in PASSWORD if word.isascii())),
)  # parts of the names below
HINTS_BEYOND_ASCII = tuple(word for word in PASSWORD if not word.isascii())
# Each alternative starts with a letter of its own, so that most characters are skipped immediately.
_NAMES = rf"""
      a(?:uth(?:orization|tok)?(?![a-z]))
    | c(?:redentials?(?![a-z]) | ookie(?![a-z]) | vv2?(?![a-z0-9]) | vc2?(?![a-z0-9])
        | onfirmation[ _-]code(?![a-z]) | ontrase(?:ñ|n|\\u00f1)a(?![a-z]) | onnect\.sid(?![a-z]))
    | i(?:dentified\ by(?![a-z]))
    | j(?:wt(?![a-z]))
    | k(?:ey(?:[_-]?value)?(?=(?:\\|["'`&\])=:>\s%])))
    | m(?:ot[ _]de[ _]passe(?![a-z]))
    | o(?:tp(?:[_ -]?code)?(?![a-z]) | ne-time[ _](?:code|password)(?![a-z]))
    | p(?:ass(?:wor[dt]|wd|phrase|code|[_-]?key)?
          (?:[_-]?(?:confirm(?:ation)?|again|repeat|hash|digest|old|new|\d))?(?![a-z])
        | wd?(?![a-z]) | in(?:[_ -]?code)?(?![a-z]))
    | r(?:equirepass(?![a-z]))
    | s(?:ecurity[ _-]code(?![a-z]) | ecret(?:[_-]id|[_ -]?(?:access[_-]?)?key|[_-]?value|[_-]hash)?(?![a-z])
        | sn(?![a-z]) | id(?![a-z])
        | ess(?:ion)?(?:[_-]?(?:id|key|cookie))?(?![a-z]) | ig(?:nature)?(?![a-z]))
    | t(?:oken(?:[_ -]?key|[_-]?value|[_-]hash)?(?![a-z]) | icket(?![a-z]))
    | v(?:erification[ _-]code(?![a-z]))
    | {alternatives(PASSWORD)}
    | code(?==)
    """
_NAME = re.compile(_NAMES, re.VERBOSE)
_BEFORE_KEY = re.compile(
    r"(?:api|access|private|encrypt(?:ion)?|signing|session|master|auth|account|storage|licen[sc]e|ssh|webhook|service|"
    r"subscription|consumer|app(?:lication)?|client|deploy|hmac|jwt|aes|fernet|shared)[_ -]?$"
)
_NOT_A_PASS = re.compile(r"(?:by|com|tres|sur|over|under|im|multi|single|one|two|first|second|high|low|band)$")
_NOT_A_PASSWORD = re.compile(r"(?<![a-z])no$")  # NOPASSWD of sudo
_NOT_A_SECRET = re.compile(r"(?:existing|pull)[_-]?$")  # they name an object of Kubernetes
_QUOTE = r"""(?:\\*+["'`]|&quot;|&\#(?:34|39|x27);|%22)"""
_RESTS = rf"""
    (?:_(?:base|hash|v?\d{{1,2}}|test|prod(?:uction)?|live|dev|old|new|BASE|HASH|TEST|PROD|LIVE|DEV|OLD|NEW))?
    (?P<gap>
        {_QUOTE}?\]?[^\S\r\n]*+\\{{0,2}}(?:=>|:=|={{1,3}}|[:\uff1a\uff1d]|%3[ADad])[^\S\r\n]*+
      | {_QUOTE}?[^\S\r\n]++value[^\S\r\n]?[:=][^\S\r\n]?                 # <add key="password" value="…">
      | {_QUOTE},[^\S\r\n]?{_QUOTE}value{_QUOTE}[^\S\r\n]?:[^\S\r\n]?       # {{"name": "PASSWORD", "value": "…"}}
      | (?:[ ][\w:-]{{1,40}}="[^"<>\n]{{0,120}}"){{1,3}}>                         # <password type="text">…
      | ";s:\d{{1,4}}:(?=")                                            # PHP's serialize
      | =\{{(?=[^\s{{}};]*?[^A-Za-z_\s{{}};][^\s{{}};]*\}}(?:[;"']|$))
      | {_QUOTE},[^\S\r\n]*+(?=b?\\*["'])
      | >|&gt;
      | [^\S\r\n]++(?=["'])
      | [ ](?!%3)(?=[^\s"'/<>()=:,.\-][^\s"'/<>()=:,.]*[0-9!@$%^&*])(?=[^\s"'/<>()=:,.]{{4}})
      | [ ]for[ ](?:user[ ]|account[ ])?[^\s:]{{1,64}}:[ ]
      | [^\S\r\n]++(?:is|was|ist|lautet|war|est|es|é):?[^\S\r\n]++
    )
    (?:
        [bBrRuUnN]{{0,2}}(?P<open>{_QUOTE})(?P<quoted>(?:[^\\\n"'`&%]++|(?!(?P=open))(?:\\.|[^\\\n]))*+)
      | (?P<plain>
            (?i:digest|aws4-hmac-sha256|hawk|oauth|signature)[ ](?=[^\s=]++=)[^"'\r\n\\]++
          | (?![\[{{(<\0-\x08])(?:(?i:bearer|basic|token|apikey|negotiate|ntlm)[ ]++(?!\[))?
            (?:[^\s\0-\x08,;&"'`<>()\]}}|\\]++|&(?:amp|\#38);|\((?:[^\s\0-\x08"'(),;]*+\))?+)++
        )
    )
    """
_REST = re.compile(_RESTS, re.VERBOSE)
_NAME_AND_REST = re.compile(f"(?:{_NAMES})(?:{_RESTS})", re.VERBOSE)
_OPTION = re.compile(r"(?<=\w)[ ]++(?P<plain>[^\s\-\"'<\[{(]\S*+)")
_COOKIES = re.compile(r"""["']?\s?+:\s?+(?P<plain>(?=[^\s"';,=\[]++=)[^"'\r\n\\]++)""")

_CHECKED_CHARS = 200  # characters of a value that are checked
_MOST_CHECKED = 100  # a text with more names than this is no log line, and checking them takes its time


def hide_named(text: str, lower: str) -> str:
    """Return ``text`` without the values of secrets; ``lower`` is the same in lower case."""
    if len(lower) != len(text):
        lower = re.sub("[A-Z]+", lambda capitals: capitals[0].lower(), text)
    pieces: list[str] = []
    done = 0
    for start, end in _values(text, lower):
        pieces += text[done:start], SECRET
        done = end
    return "".join([*pieces, text[done:]]) if pieces else text


def _values(text: str, lower: str) -> Iterator[tuple[int, int]]:
    """Yield the spans of the values of named secrets."""
    name = _NAME.search(lower)
    checked = 0
    while name and checked < _MOST_CHECKED:
        checked += 1
        past = name.end()
        kind = kind_of(name[0])
        rest = _rest(text, name) if _is_separate(text, name, kind) else None
        if rest:
            start, end = rest.span("quoted" if rest["plain"] is None else "plain")
            is_value = is_secret(text, name, rest, kind, text[start : min(end, start + _CHECKED_CHARS)])
            if is_value:
                yield start, end
            if is_value or end - start >= _CHECKED_CHARS:
                past = rest.end()
        name = _NAME.search(lower, past)
    if name:
        yield from _unchecked_values(lower, name.start())


def _unchecked_values(lower: str, start: int) -> Iterator[tuple[int, int]]:
    """Yield the value behind every name, unchecked: a text with hundreds of names is no log line."""
    for match in _NAME_AND_REST.finditer(lower, start):
        start, end = match.span("quoted" if match["plain"] is None else "plain")
        if lower[start : start + 1] > "\x08":
            yield start, end


def _is_separate(text: str, name: re.Match[str], kind: Kind) -> bool:
    """``key`` needs to be an ``api_key``; ``pin`` must not end ``mapping``; ``ticket`` is a parameter of a URL."""
    start = name.start()
    if name[0] == "pass":
        return _NOT_A_PASS.search(text[max(0, start - 6) : start].lower()) is None
    if name[0] == "passwd":
        return _NOT_A_PASSWORD.search(text[max(0, start - 3) : start].lower()) is None
    if name[0] == "secret":
        return _NOT_A_SECRET.search(text[max(0, start - 9) : start].lower()) is None
    if kind.is_whole_word:
        before = text[start - 1 : start]
        if before.isalpha() and not (before.islower() and text[start].isupper()):
            return False
    if kind.is_key:
        return _BEFORE_KEY.search(text[max(0, start - 14) : start].lower()) is not None
    if name[0] == "token":
        return not text[max(0, start - 9) : start].lower().endswith("publickey")  # of a .NET assembly
    return not kind.is_parameter or text[max(0, start - 5) : start].lower().endswith(("?", "&", "amz-", "goog-"))


def _rest(text: str, name: re.Match[str]) -> re.Match[str] | None:
    """The gap and the value behind a name."""
    end = name.end()
    if name[0] == "cookie" and (cookies := _COOKIES.match(text, end)):
        return cookies
    if text[end : end + 1] == " " and text[max(0, name.start() - 24) : end].rpartition(" ")[2].startswith("--"):
        return _OPTION.match(text, end)
    return _REST.match(text, end)
