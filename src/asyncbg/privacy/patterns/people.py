"""Patterns of e-mail addresses, account numbers and card numbers."""

import re

from asyncbg.privacy.pseudonyms import CARD, SOME_IBAN, pseudonym

# A letter of any script with the marks that ``\w`` leaves out (combining, Indic, Thai, joiners).
_W = r"\w\u0300-\u036f\u0900-\u0dff\u0e00-\u0eff\u200c\u200d"
_CJK = r"\u3000-\u9fff\uac00-\ud7af\uff00-\uff1f\uff21-\uffef"
_AT = r"(?:@|%(?:25)?40|&\#(?:0*+64|[xX]0*+40);|&commat;|\\u0040|\\x40|\uff20|\ufe6b)"
AT_HINTS = ("@", "%40", "%2540", "&#", "commat", "u0040", "x40", "\uff20", "\ufe6b")
_NOT_A_HOST = (
    r"png|jpe?g|gif|svg|webp|avif|ico|s?css|m?js|[jt]sx?|json|map|html?|xml|ya?ml|txt|log|journal|csv|pdf|tar|t?gz|bz2|whl|exe|dll|bak|lock|"
    r"service|socket|timer|target|mount|slice|scope|device"
)


def _address(letter: str, *, escaped: bool) -> re.Pattern[str]:
    """Return a pattern of addresses of these letters; in escaped text one may begin right behind an escape."""
    start = rf"(?<![{letter}.+'%-])"
    if escaped:
        start = (
            rf"(?:{start}(?!(?<=\\)[nrt])|(?<=%(?:20|22|26|27|28|29|2[cCfF]|3[aAbBcCdDeEfF]|0[aAdD]|5[bBdD]|7[bBcCdD]))"
            r"|(?<=%25(?:20|22|26|27|28|29|2[cCfF]|3[aAbBcCdDeEfF]|5[bBdD]|7[bBcCdD]))"
            r"|(?<=\\[nrt])|(?<=\\u00(?:3[cCeEdD]|2[267])))"
        )
    return re.compile(
        rf"""{start}
        (?P<lead>[.+'-]*+(?:[{_CJK}]++(?=[A-Za-z0-9]))?+)
        (?P<address>
            (?: [{letter}](?:[{letter}.+'-]++|&\#43;
                  |%(?:2(?:[BbDdEe]|5(?!40))|5[Ff]|[89A-Fa-f][0-9A-Fa-f]|(?![0-9A-Fa-f]{{2}})(?=\w)))*+
              | \\?"(?=[^"\n]{{1,64}}"[@%])[^"\n\\:,={{}}]{{1,64}}+\\?"
            )
            {_AT}@?
            (?! \d+\.\d+ | [\w.-]*\.(?:{_NOT_A_HOST})(?![\w-]|\.\w) )
            (?: (?:[{letter}][{letter}-]*+\.)+(?:xn--[A-Za-z0-9-]++|[A-Za-z]{{2,63}}+|[^\W\d_A-Za-z][{letter}]++)
              | localhost\b
              | \[(?:IPv6:)?[0-9A-Fa-f.:]{{2,45}}+]
            )
        )""",
        re.VERBOSE,
    )


_ADDRESSES = {
    (is_ascii, escaped): _address("A-Za-z0-9_" if is_ascii else _W, escaped=escaped)
    for is_ascii in (True, False)
    for escaped in (True, False)
}
_SPELT = re.compile(
    r"(?<![\w.+-])([\w.+-]++\s?[\[({]\s?(?:at|ät|@)\s?[])}]\s?[\w-]++(?:(?:\s?[\[({]\s?(?:dot|punkt)\s?[])}]\s?|\.)[\w-]++)++)",
    re.IGNORECASE,
)
_TOOLS = ("git@", "hg@", "svn@")

_CARD = re.compile(
    r"""[2-69](?:(?<=%B.)|(?<![0-9A-Za-z\u00c0-\u04ff].))(?<!\d[.-].)
    (?: \d{12,18}+
      | \d{3}(?P<gap>[ \t._+-]|\ -\ |%20|\ \ )
        (?: \d{4}(?P=gap)\d{4}(?P=gap)\d{4}(?:(?P=gap)\d{3})?
          | \d{6}(?P=gap)\d{4,5} ) )
    (?![0-9A-Za-z\u00c0-\u04ff]|[.-]\d)""",
    re.VERBOSE,
)
_ISSUED = re.compile(
    r"""(?: 4(?:\d{12}|\d{15}|\d{18})
      | (?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720|220[0-4]|9792)\d{12}
      | 3[47]\d{13}
      | 3(?:0[0-5]|095|[689]\d)(?:\d{11}|\d{13})
      | (?:6011|65\d\d|64[4-9]\d|62\d\d|81\d\d|35(?:2[89]|[3-8]\d))\d{12,15}
      | (?:50\d\d|5[6-8]\d\d|6277|6304|636[2-9]|6390|67\d\d|60\d\d)\d{12,15} )""",
    re.VERBOSE,
)
_DOUBLED = bytes.maketrans(b"0123456789", b"0246813579")
_BARCODE = re.compile(r"(?:ean|gtin|isbn|barcode|upc)\W{0,3}(?:13)?\W{0,3}$", re.IGNORECASE)

_ACCOUNT = re.compile(
    r"\d(?:(?<=(?<![A-Za-z0-9])[A-Za-z]{2}.)|(?<=\?\d\d[A-Z]{2}.))\d(?=(?:[ ._+\-]|%20)?[A-Za-z0-9]{4})"
)
_LIKE_AN_ACCOUNT = re.compile(r"(?<![A-Za-z0-9])[A-Za-z]{2}\d\d(?:(?:[ ._+\-]|%20)?[A-Za-z0-9]){11,29}+(?![A-Za-z0-9])")
_MOST_CHECKED = 300  # a text with more of them is a list: the rest goes without a question
# ISO 13616: how long an IBAN is in each country of the registry.
_COUNTRIES = """
    15:NO 16:BE 18:DK,FO,FI,GL,NL,SD 19:MK,SI 20:AT,BA,EE,KZ,XK,LT,LU 21:CH,HR,LI,LV
    22:BG,BH,CR,DE,GB,GE,IE,ME,RS,VA 23:AE,GI,IL,IQ,OM,SO,TL 24:AD,CZ,ES,MD,PK,RO,SA,SE,SK,TN,VG 25:LY,PT,ST
    26:IS,TR 27:BI,DJ,FR,GR,IT,MC,MR,SM 28:AL,AZ,BY,CY,DO,GT,HN,HU,LB,NI,PL,SV 29:BR,EG,PS,QA,UA 30:JO,KW,MU,YE
    31:MT,SC 32:LC 33:RU
"""
_SHAPES = {
    country: re.compile(
        rf"[A-Za-z]{{2}}\d\d(?:(?:[ ._+\-]|%20)?[A-Za-z0-9]){{{int(length) - 4}}}"
        r"(?:(?![A-Za-z0-9])|(?=(?:EUR|GBP|CHF|USD)\b))"
    )
    for length, countries in (item.split(":") for item in _COUNTRIES.split())
    for country in countries.split(",")
}
_NUMERIC = {ord(c): str(int(c, 36)) for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}


def hide_addresses(text: str) -> str:
    """``text`` with e-mail addresses as pseudonyms, also quoted, percent-encoded, HTML-escaped and spelt out."""
    pattern = _ADDRESSES[text.isascii(), "%" in text or "\\" in text]
    text = pattern.sub(_hide_address, text)
    if "at)" in text or "at]" in text:
        text = _SPELT.sub(lambda match: pseudonym(match[0], kind="email"), text)
    return text


def _hide_address(match: re.Match[str]) -> str:
    lead, address = match.groups()
    if (
        address.startswith(_TOOLS)
        or match.string.startswith((":~", ":/"), match.end())
        or (address[0].isdigit() and _is_message_id(match))
    ):
        return match[0]
    return f"{lead}{pseudonym(address, kind='email')}"


def _is_message_id(match: re.Match[str]) -> bool:
    """``Message-ID: <20261122.17@mail.example.com>`` names a message, not a person."""
    return "message-id" in match.string[max(0, match.start() - 16) : match.start()].lower()


Span = tuple[int, int, str]


def find_accounts(text: str) -> list[Span]:
    """Return the spans of IBANs: the length of their country, and 1 modulo 97 (ISO 13616, ISO 7064)."""
    spans: list[Span] = []
    done = 0
    for checked, match in enumerate(_ACCOUNT.finditer(text)):
        if checked == _MOST_CHECKED:
            return spans + [(*seen.span(), SOME_IBAN) for seen in _LIKE_AN_ACCOUNT.finditer(text, done)]
        start = match.start() - 2
        shape = _SHAPES.get(text[start : start + 2].upper())
        seen = shape.match(text, start) if shape and start >= done else None
        if seen and _is_one_modulo_97(seen[0]):
            done = seen.end()
            spans.append((start, done, pseudonym(seen[0], kind="iban")))
    return spans


def _is_one_modulo_97(text: str) -> bool:
    iban = (text if text.isalnum() else re.sub(r"%20|[\W_]", "", text)).upper()
    return int((iban[4:] + iban[:4]).translate(_NUMERIC)) % 97 == 1


def find_cards(text: str) -> list[Span]:
    """Return the spans of card numbers: of a known issuer, and valid by Luhn's check (ISO/IEC 7812-1, annex B)."""
    spans: list[Span] = []
    found = _CARD.finditer(text)
    for match in found:
        if len(spans) == _MOST_CHECKED:
            return [*spans, (*match.span(), CARD), *((*seen.span(), CARD) for seen in found)]
        seen = match[0]
        digits = re.sub(r"\D", "", seen.replace("%20", ""))
        if _is_card(digits):
            if len(digits) == 13 and _BARCODE.search(text[max(0, match.start() - 16) : match.start()]):
                continue
            spans.append((match.start(), match.end(), CARD))
        elif len(digits) == 19 and match["gap"] and _is_card(digits[:16]):
            spans.append((match.start(), match.end() - 3 - len(match["gap"]), CARD))
    return spans


def _is_card(digits: str) -> bool:
    if not _ISSUED.fullmatch(digits):
        return False
    reverse = digits[::-1].encode()
    return (sum(reverse[0::2]) + sum(reverse[1::2].translate(_DOUBLED)) - 48 * len(reverse)) % 10 == 0
