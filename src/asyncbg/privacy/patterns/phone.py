"""Patterns of phone numbers: international ones by country, national ones by shape or by the word before."""

import re

from asyncbg.privacy.patterns.words import PHONE, alternatives
from asyncbg.privacy.pseudonyms import SOME_PHONE, digits_of, pseudonym

# ITU-T E.164: calling codes with the digits that may follow each; others of the list get 6 to 12.
_CODES = """
    1:10:10 7:10:10 20:8:10 27:9:9 30:10:10 31:9:9 32:8:9 33:9:9 34:9:9 36:8:9 39:6:11 40:9:9 41:9:9
    43:6:12 44:9:10 45:8:8 46:7:10 47:8:8 48:9:9 49:6:12 51:8:9 52:10:11 53:6:8 54:10:11 55:10:11 56:9:9 57:8:10
    58:10:10 60:8:10 61:9:9 62:7:12 63:8:10 64:8:10 65:8:8 66:8:9 81:9:10 82:8:11 84:9:10 86:8:12 90:10:10 91:10:10
    92:9:10 93:9:9 94:9:9 95:7:10 98:10:10
"""
_KNOWN = {code: (int(least), int(most)) for code, least, most in (item.split(":") for item in _CODES.split())}
_THREE = re.compile(
    r"21[12368]|2[2-6]\d|29[0178]|35\d|37\d|38[0-35-79]|42[0134]|50\d|59\d|67\d|68\d|69[0-2]|"
    r"800|808|85[0-6]|870|88\d|96\d|97[0-9]|99[2-68]"
)

_GAP = r"(?:[ .\-/]|\ [\-/]\ )"
_SHAPED = re.compile(
    rf"""
    [+(0-9%]
    (?: (?<=\+)(?<![^\W_]\+)(?<!\+\+)[1-9](?:[ ()./\-]{{0,3}}+\d){{6,14}}               # +49 (0)30 123456
      | (?<=%)2[Bb][1-9](?:(?:[ ()./+\-]|%20){{0,3}}+\d){{6,14}}                       # %2B4930123456
      | (?<=\()(?<![^\W_]\()
        (?: \+[1-9]\d{{0,2}}\)(?:[ ()./\-]{{0,3}}+\d){{6,13}}                          # (+49) 30 123456
          | [1-9]\d\d\)\ ?-?\ ?\d{{3}}[ .\-]?\d{{4}}                                    # (555) 123-4567
          | 0\d{{1,4}}\)(?:\ ?[\-/]\ ?|\ )?\d{{3,8}}(?:[ \-]\d{{2,5}}){{0,3}}            # (030) 123456
          | [1-9]\d\)\ ?9?\ ?\d{{4}}[ \-]\d{{4}}                                         # (11) 91234-5678
          | [1-9]\d\d\)\ ?\d{{3}}[ \-]\d\d[ \-]\d\d )                                  # (495) 123-45-67
      | (?<=[0-9])(?<![0-9A-Za-z_\u00c0-\u04ff./\#+\-].)(?<!\d:.)
        (?: (?P<groups>\d{{3}}(?:\ [0-9A-Z]{{4}}){{2,}}+(?:\ [0-9A-Z]{{1,4}}\b)?|\d(?:\ [0-9A-Fa-f]{{2}}){{6,}}+)
          | (?<=0)0[1-9](?:{_GAP}?\(?\d\)?){{7,13}}                                      # 0049 30 123456
          | (?<=0)[1-9]\d{{0,4}}(?!\.\d{{1,3}}(?![\d.]))
            (?:{_GAP}\d{{2,8}}){{1,5}}                                                # 030 1234567
          | (?<=1)[ .\-]?\(?[2-9]\d\d\)?[ .\-]?\d{{3}}[ .\-]\d{{4}}                     # 1-800-555-0199
          | (?<=[2-9])\d\d(?P<gap>[ ./\-])\d{{3}}(?:(?P=gap)|-)\d{{4}}                   # 555-123-4567
          | (?<=1)[3-9]\d[ \-]\d{{4}}[ \-]\d{{4}}                                         # 138-0013-8000
          | (?<=1)[38]00\ \d{{3}}\ \d{{3}}                                              # 1300 555 012
          | (?<=[6-9])\d\d\ \d\d\ \d\d\ \d\d                                             # 612 34 56 78
          | (?<=[1-9])\d\ 9\d{{4}}-\d{{4}}                                             # 11 91234-5678
          | (?<=8)[ \-]\(?\d{{3}}\)?[ \-]\d{{3}}[ \-]\d\d[ \-]\d\d                   # 8 (495) 123-45-67
          | (?<=5)55[\-. ]01\d\d )                                                     # 555-0123
    )(?!\d)""",
    re.VERBOSE,
)
_WORD = rf"""c(?:ell(?:phone|ular[ei]?)?|ontact(?:o|s|e|es|ez|en)?|all(?:ed|ee|er|ing|back)?)|d(?:ial(?:ed|led|ling)?)
    |f(?:ax)|g(?:sm)|h(?:p(?=[.:]))|k(?:om(?=[.:]))|m(?:ob(?:il(?:e|iel|n[íiy]|telefon)?)?(?![a-z])|sisdn)
    |p(?:hone|h(?=[ .:])|uh(?![a-z]))|s(?:ms)|t(?:el(?:[eé](?:f|ph|p|m[oó]v)[^\W\d_]{{0,9}})?(?![a-z]))
    |v(?:iber)|w(?:hatsapp)
    |{alternatives(PHONE)}"""
_WEAK = ("cell", "call", "dial", "sms", "contact", "ph ")
_NAMED = re.compile(
    rf"""(?P<word>{_WORD})
    (?:_(?:home|work|mobile|private|office|main|primary|secondary|personal|business|cell|alt|[12]))?
    (?:[ _-]?(?:on[ ]file|numbers?|nummer|número|numero|num|no|nr|n°|e164
        |to|at|us|me|him|her|on|from|sent|is|was|ist|lautet|est|es)(?![a-z])){{0,3}}+
    [\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]{{0,6}}+(?:[^\w+(\n/\\]|\\(?!u)|%3[ad]){{0,8}}+(?:(?<=\W)[bu](?=['"]))?+["']?
    (?P<number>(?:\+|%2b|\\u002b)?\(?\d(?:(?:[ ()./\-]|%20){{0,3}}\d){{6,14}}+)(?!\d)""",
    re.VERBOSE,
)
_SAYS = re.compile("[:=]")  # `cell=2025550143`
_DATE = re.compile(r"(?:\d{1,2}([/. -])\d{1,2}\1(?:\d{4}|\d\d)|(?:19|20)\d\d([/. -])\d\d\2\d\d)(?!\1?\d)")
_OTHERWISE = re.compile(
    rf"{_DATE.pattern}|\d{{5}}-\d{{4}}$|\d{{3}}(?:\.\d{{3}}){{3}}$"
)  # a date, a postal code, an IP address
_AFTER = re.compile(
    r"(?P<extension>(?:,?\ ?(?:[Ee]xt\.?|EXT|[xX]|[Ee]xtension|[Pp]oste|[Dd]urchwahl|DW)[ :]?\d{1,6}|\#\d{1,5})(?!\w))"
    r"|[0-9A-Za-z\u00c0-\u04ff@]|[.\-/:]\d"  # a longer word or number, an address
    r"|\ ?(?:ns|[mµu]?s|sec(?:onds?)?|bytes|[kKMGT]i?[Bb]|%(?![23][0-9A-F])|px|"  # or what it counts
    r"rows|items|lines|records|requests|times)(?!\w)"
)
_OTHER_NUMBERS = (
    *(
        "id",
        "order",
        "invoice",
        "ref",
        "reference",
        "req",
        "request",
        "sku",
        "part",
        "serial",
        "case",
        "ticket",
        "tracking",
    ),
    *(
        "batch",
        "job",
        "isbn",
        "version",
        "build",
        "bestellung",
        "rechnung",
        "commande",
        "facture",
        "pedido",
        "item",
        "article",
    ),
    *("account", "model", "transaction", "trace", "range", "bytes", "lines", "rows", "offset"),
)
_BETWEEN = " #:.=\"'-\t"

_MOST_CHECKED = 100  # a text with more numbers than this is a list of them: the rest goes without a question

Span = tuple[int, int, str]


def find_named_phones(text: str) -> list[Span]:
    """Return the spans of numbers that the word before calls phone numbers."""
    lower = text.lower()
    if len(lower) != len(text):  # a capital whose small letter takes two: words are found as they are
        lower = text
    spans: list[Span] = []
    found = _NAMED.finditer(lower)
    for match in found:
        start, end = match.span("number")
        number = text[start:end]
        is_vague = number.isdigit() and number[0] != "0" and f"{match['word']} ".startswith(_WEAK)
        is_vague = is_vague and (end - start < 10 or _SAYS.search(text, match.end("word"), start) is None)
        if not is_vague and not _DATE.match(number) and (end := _whole(text, end)):
            spans.append(_span(text, start, end))
            if len(spans) == _MOST_CHECKED:
                break
    return spans + [(*match.span("number"), SOME_PHONE) for match in found]


def find_phones(text: str) -> list[Span]:
    """Return the spans of numbers in the shape of phone numbers."""
    spans: list[Span] = []
    found = _SHAPED.finditer(text)
    for match in found:
        start = match.start()
        end = _whole(text, start + _length(match))
        if not end and match.string.startswith("@", match.end()) and match[0][0] == "+":  # `SIP/+12025550143@trunk`
            end = match.end()
        if end > start and not _is_another_number(text, start):
            spans.append(_span(text, start, end))
            if len(spans) == _MOST_CHECKED:
                break
    return spans + [(*match.span(), SOME_PHONE) for match in found]


def _length(match: re.Match[str]) -> int:
    """Return the length of the phone number in a match; minus its position where it is none."""
    seen = match[0]
    if match["groups"]:
        return -match.start()
    if seen[0] in "+%" or seen.startswith(("00", "(+")):
        return _international_length(seen) or -match.start()
    if seen[0] == "0" and (_OTHERWISE.match(seen) or not 9 <= sum(map(str.isdigit, seen)) <= 12):
        return -match.start()
    return len(seen)


def _international_length(number: str) -> int:
    """The length of a number that starts with a calling code, without what follows it; 0 where no country has it."""
    digits = digits_of(number)
    if digits.startswith("00"):
        digits = digits[2:]
    if not digits:
        return 0
    code = digits[:1] if digits[0] in "17" else digits[:2]
    if code not in _KNOWN and not _THREE.match(digits):
        return 0
    least, most = _KNOWN.get(code, (7, 13))
    count = len(digits) - len(code)
    if count <= most:
        return len(number) if count >= least else 0
    shorter = re.sub(r"(?<=\d)\D+\d+$", "", number)
    return _international_length(shorter) if shorter != number else 0


def _whole(text: str, end: int) -> int:
    """Return the end of the number with its extension; 0 where it continues as something else."""
    after = _AFTER.match(text, end)
    if after is None:
        return end
    return after.end() if after["extension"] else 0


def _is_another_number(text: str, start: int) -> bool:
    """``order 555-123-4567`` is no phone number; ``+`` and parentheses leave no doubt."""
    if text[start] in "+(%":
        return False
    before = text[max(0, start - 32) : start].rstrip(_BETWEEN).lower()
    if before.endswith(("no", "number", "nr")):
        before = before.removesuffix("no").removesuffix("number").removesuffix("nr").rstrip(_BETWEEN)
    return before.endswith(_OTHER_NUMBERS)


def _span(text: str, start: int, end: int) -> Span:
    return start, end, pseudonym(text[start:end], kind="phone")
