"""Heuristics: whether the value behind the name of a secret is one; ``password: required`` is prose.

A wrong yes hides a word of a log line, a wrong no shows a secret: ``=`` and quotes speak for a secret, prose against.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from asyncbg.privacy.patterns.words import PASSWORD

_WHOLE_WORDS = frozenset(
    (
        "pin",
        "sid",
        "sig",
        "ssn",
        "otp",
        "cvv",
        "cvv2",
        "cvc",
        "cvc2",
        "jwt",
        "auth",
        "sess",
        "ticket",
        "connect.sid",
    )
)
_DIGITS = ("verif", "confirm", "security", "one-time", "otp", "pin", "cvv", "cvc", "ssn")
_LOOSE = ("code", "cred", "cookie", "sess", "connect", "sid", "auth", "sig", "ticket")
_PASSWORDS = ("pass", "pw", "contrase", "mot", "identified", "requirepass", *PASSWORD)
_MARKUP = (">", "&gt;")


@dataclass(frozen=True, slots=True)
class Kind:
    """What a name implies: ``loose`` ones precede a plain word as often as a secret."""

    is_password: bool
    is_digits: bool
    is_loose: bool
    is_whole_word: bool
    is_key: bool
    is_parameter: bool


@lru_cache(maxsize=512)
def kind_of(name: str) -> Kind:
    return Kind(
        is_password=name.startswith(_PASSWORDS),
        is_digits=name.startswith(_DIGITS),
        is_loose=name.startswith(_LOOSE),
        is_whole_word=name in _WHOLE_WORDS,
        is_key=name.startswith("key"),
        is_parameter=name in ("ticket", "signature", "code"),
    )


_SAYINGS = """
    none null nil true false yes no on off ok okay empty unset set str string text bytes int bool any optional
    secretstr secretbytes required missing invalid expired incorrect wrong mismatch mismatched changed reset
    updated failed failure field must is not the a an and or for to in too this that value input unknown
    undefined default disabled enabled redacted filtered masked hidden removed omitted accepted rejected denied
    refused revoked valid verified absent present provided given bearer basic digest refreshed rotated created
    await lambda yield new async function
    deleted issued error success see please use should cannot can may will was has does did stored plain
    plaintext unexpected expected checked skipped bcrypt argon2 argon2id scrypt pbkdf2 sha256 md5 eof newline
    indent dedent name number op identifier include same-origin
"""
_SAID = frozenset(_SAYINGS.split())  # words about a secret, or placeholders of one
_PLACEHOLDER = re.compile(
    r"""[\W_xX]*|%\(?\w*\)?[srd]|\$\{?[A-Z_][A-Z0-9_]*+\}?|\$\d{1,2}|\$[{(]\S*|:[a-z_]\w*|[({\[<][^\n]*[)}\]>]"""
    r"""|[*•]+\S{0,4}|\S{0,4}[*•]{4,}\S{0,4}"""
)
_CODE = re.compile(
    r"[A-Za-z_][\w.]*+[(\[](?:[\w\"'\s*:(\[{)\]-].*)?$|"
    r"(?:self|cls|settings|config|conf|cfg|os|request|args|"
    r"kwargs|opts|options|params|form|data|payload|user|ctx|env|environ|creds|credentials|body)\.[A-Za-z_.]+$|_?[a-z_]+(?:\.[a-z_]+)*[._](?:password|secret|token|key)$|"
    r"rf?[\"']|_[a-z]+$"
)
_DOTTED = re.compile(
    r"[A-Za-z_]+(?:\.[A-Za-z_]+)+|(?:[A-Z]*[a-z]{2,}|[A-Z]{2,})(?:[A-Z]+[a-z]{2,})*"
)  # a name in a program
_NUMBERED = re.compile(
    r"(?:[A-Za-z]+|\d{1,2}|[A-Za-z]+\d{1,2})(?:[-_/.](?:[A-Za-z]+|\d{1,2}|[A-Za-z]+\d{1,2}))*"
)  # `worker-3`
_PAIR_BEFORE = re.compile(r"""[(\[]\s?[bru]?\\*["'][\w-]*$""")
_PAIR_AFTER = re.compile(r"""\\*["']\s?[)\]]""")
_ABOUT_SYNTAX = re.compile(r"(?:unexpected|illegal|invalid|bad|unknown|expected|next|last|current|syntax|end)[ _]$")
_GOES_ON = re.compile(r" [A-Za-z]{2,}(?![\w=:])")
_SIGNS = frozenset("!@#$%^&*+=~/")
_PATH = re.compile(r"(?:~|\.{1,2})?(?:/[\w.@-]+){2,}/?|[A-Za-z]:\\\S+")
_RESOURCE = re.compile(r"0x[0-9a-fA-F]+|[A-Z]{2}[0-9a-f]{32}|S-1-[\d-]+")  # `session 0x1f`, `SID SM0a…`
_COLONS = (":", "\uff1a")  # the second is the wide one of Chinese and Japanese
_SIGN = re.compile("[:=\uff1a\uff1d]")
_GRANT = re.compile(r"user|role|login|@")


def is_placeholder(value: str) -> bool:
    """Whether a value is a placeholder of a secret: ``***``, ``${TOKEN}``, ``<redacted>``, ``$1``."""
    return value.lower() in _SAID or ((not value.isalnum() or value[0] in "xX") and bool(_PLACEHOLDER.fullmatch(value)))


def is_secret(text: str, name: re.Match[str], rest: re.Match[str], kind: Kind, value: str) -> bool:
    """Whether the value behind the name of a secret is one."""
    bare = value.strip(" ").rstrip(".:!?")
    if not bare or bare.lower() in _SAID or is_placeholder(value):
        return False
    if "gap" not in rest.re.groupindex:  # an option, a header of cookies
        return bare.lower() != name[0]
    if _is_named_otherwise(text, name, rest, value):
        return False
    if kind.is_digits:
        return (3 if rest["gap"] != " " else 4) <= sum(map(str.isdigit, value)) <= 10
    judge = _is_plain_value if rest["quoted"] is None else _is_quoted_value
    return judge(text, name, rest, kind, bare)


def _is_named_otherwise(text: str, name: re.Match[str], rest: re.Match[str], value: str) -> bool:
    """A part of an ARN, a variable of psql, an id, a step of PAM, a tag without a value, ``identified by`` in prose."""
    word, gap, start = name[0], rest["gap"], name.start()
    if word == "identified by":
        return not (text[start : name.end()].isupper() or _GRANT.search(text[max(0, start - 100) : start].lower()))
    if gap == ":":
        before = text[start - 1 : start]
        is_step = before == "(" and value.isalpha() and text.startswith(")", rest.end())
        return before == ":" or is_step or value.startswith("?")  # `${PASSWORD:?must be set}`
    if gap == " ":
        return word in ("sid", "sess", "session")  # `session 5f1b… started`
    if gap == " :":
        return rest["quoted"] is not None
    if gap.endswith(_MARKUP) and "=>" not in gap:
        return not text.startswith(("<", "&lt;"), rest.end())  # `<token>` alone; `<token>x7</token>` has a value
    return (word == "code" and len(value) < 16) or (
        word.startswith(("sid", "sess")) and bool(_RESOURCE.fullmatch(value))
    )


def _is_quoted_value(text: str, name: re.Match[str], rest: re.Match[str], kind: Kind, bare: str) -> bool:
    gap = rest["gap"].strip()
    if "value" in gap or gap.startswith('";s'):
        return not kind.is_loose or _looks_random(bare)
    if "," in gap and not _is_pair(text, name, rest):
        return False
    if kind.is_password and name[0] != "pass":
        return True
    if len(bare) < 3:  # `accesskey="n"`
        return False
    if not gap or "==" in gap or _is_about_syntax(text, name):  # `unexpected token '}'`
        return bool(gap) and _looks_random(bare)
    return (
        _looks_random(bare) or " " in bare
        if kind.is_loose
        else not (bare.isupper() and bare.isalpha() and len(bare) < 7)
    )


def _is_plain_value(text: str, name: re.Match[str], rest: re.Match[str], kind: Kind, bare: str) -> bool:
    """Without quotes a value may be a word of the sentence, or code in a traceback."""
    word, gap = name[0], rest["gap"]
    if _CODE.match(bare) or bare.lower() == word:
        return False
    is_said = _SIGN.search(gap) is None and "%" not in gap and ">" not in gap  # `the password is …`
    if gap == " ":  # `password hunter2`
        return _is_odd(bare) if kind.is_password else len(bare) > 15 and _looks_random(bare)
    if is_said or (word == "pass" and (bare.isdigit() or "=" not in gap)):
        return _is_odd(bare) if kind.is_password else _looks_random(bare)
    if not kind.is_password and _PATH.fullmatch(bare):
        return False
    is_told = gap.strip()[-1:] in _COLONS
    if kind.is_password:
        return _is_password(text, word, rest, bare, is_told=is_told)
    if (bare.isdigit() and len(bare) < 6) or (
        _DOTTED.fullmatch(bare) and ("." in bare or (bare[0].isupper() and not bare.isupper()))
    ):
        return False
    if " " in bare:  # a scheme and its credentials, or `auth: token expired`
        credentials = bare.split()[-1]
        if is_placeholder(credentials):
            return False
        return _looks_random(credentials) or (word == "authorization" and credentials.lower() not in _SAID)
    if is_told or "==" in gap or kind.is_loose or _is_about_syntax(text, name):
        return _looks_random(bare)
    return not (bare.isupper() and bare.isalpha() and len(bare) < 7)


def _is_password(text: str, word: str, rest: re.Match[str], bare: str, *, is_told: bool) -> bool:
    """``PWD=/home`` is a directory; ``pw:api`` and ``password: must be longer`` are no secrets."""
    if word == "pwd" and bare.startswith(("/", "~", "C:")):
        return False
    return not is_told or (_is_odd(bare) if word == "pw" else _ends_there(text, rest, bare))


def _is_pair(text: str, name: re.Match[str], rest: re.Match[str]) -> bool:
    """``(b'authorization', b'Bearer x7')``: the pair alone is in brackets."""
    before = text[max(0, name.start() - 24) : name.start()]
    return bool(_PAIR_BEFORE.search(before) and _PAIR_AFTER.match(text, rest.end()))


def _is_about_syntax(text: str, name: re.Match[str]) -> bool:
    return _ABOUT_SYNTAX.search(text[max(0, name.start() - 12) : name.start()].lower()) is not None


def _ends_there(text: str, rest: re.Match[str], bare: str) -> bool:
    """``password: opensesame`` ends there; ``password: must be longer`` continues as a sentence."""
    plain_word = bare.isalpha() or (bare.isdigit() and len(bare) < 3) or _is_compound(bare)
    return not (plain_word and _GOES_ON.match(text, rest.end()))


def _looks_random(text: str) -> bool:
    """Whether this is no ordinary word: digits among letters, odd capitals, signs, or sheer length."""
    if len(text) < 6 or _is_compound(text) or _DOTTED.fullmatch(text):
        return False
    if any(map(str.isdigit, text)):
        return text.isdigit() or (any(map(str.isalpha, text)) and not _NUMBERED.fullmatch(text))
    return not _SIGNS.isdisjoint(text) or not (text[1:].islower() or text.isupper()) or len(text) > 24


def _is_odd(text: str) -> bool:
    """``hunter2`` behind ``the password is``: a letter and something that is none."""
    signs = sum(c.isdigit() or c in _SIGNS for c in text)
    return 0 < signs < len(text) > 4 and not _is_compound(text)


def _is_compound(text: str) -> bool:
    """``case-sensitive``, ``not_found``: words joined."""
    return all(part.isalpha() and (part.islower() or part.isupper()) for part in re.split("[-_/]", text))
