"""The words for a password and for a phone in many languages, in lower case."""

import re
from collections.abc import Iterable
from itertools import groupby

PASSWORD = (
    *("adgangskode", "clave", "geslo", "hasło", "heslo", "jelszó", "kennwort", "kodeord", "lozinka", "lösenord"),
    *("mật khẩu", "parola", "salasana", "sandi", "senha", "sifre", "sifresi", "şifre", "şifresi", "wachtwoord"),
    *("κωδικός", "пароль", "пароля", "паролю", "парола", "סיסמה", "סיסמא"),
    *("كلمة المرور", "كلمة السر", "كلمة مرور", "पासवर्ड", "รหัสผ่าน", "パスワード", "密码", "密碼", "비밀번호", "암호"),
)
PHONE = (
    *("durchwahl", "festnetz", "handy", "rufnummer", "celular", "fone", "tlf", "tlm", "tfn", "portable", "puhelin"),
    *("komórka", "ponsel", "móvil", "movil", "tél", "téléphone", "điện thoại", "κινητό", "τηλ", "τηλέφωνο"),
    *("тел", "телефон", "моб", "мобильный", "абонент", "абонента", "هاتف", "טלפון", "फ़ोन", "फोन", "मोबाइल", "โทร"),
    *("电话", "電話", "手机", "手機", "携帯", "전화", "휴대폰", "휴대전화", "핸드폰"),
)


def alternatives(words: Iterable[str]) -> str:
    """A verbose pattern for any of the words, the longest first; each branch starts with a distinct character.

    The engine skips all characters that start no branch. A word of Latin letters ends where letters end.
    """
    branches = []
    for first, group in groupby(sorted(words), key=lambda word: word[0]):
        rests = sorted((word[1:] for word in group), key=len, reverse=True)
        branches.append(f"{first}(?:{'|'.join(map(_ending, rests))})")
    return "|".join(branches)


def _ending(rest: str) -> str:
    escaped = re.escape(rest)
    return f"{escaped}(?![a-z])" if rest[-1] < "\u0370" else escaped
