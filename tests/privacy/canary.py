"""Fake people whose every datum carries one tag, and the search for it in all that comes out."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

TAG = "canary7f3a"
"""In every name, address, message, token and password; in no path, id or word of the service."""


@dataclass(frozen=True)
class Canary:
    """One fake person."""

    name: str = f"Ada Q. {TAG}-name"
    email: str = f"ada.{TAG}@example.com"
    phone: str = "+49 30 90182 7310"
    card: str = "4539 1488 0343 6467"
    iban: str = "DE89 3704 0044 0532 0130 00"
    token: str = f"ghp_{TAG}AbCdEfGhIjKlMnOpQrStUvWxYz01"
    password: str = f"hunter2-{TAG}"

    @property
    def text(self) -> str:
        """A message with everything in it."""
        return (
            f"Dear {self.name}, we reached you at {self.email} and {self.phone}; card {self.card}, IBAN {self.iban}; "
            f"Authorization: Bearer {self.token}; password={self.password}"
        )

    def url(self, base: str, path: str) -> str:
        """A URL with the person in its userinfo and query."""
        return f"{base.replace('://', f'://user:{self.password}@')}{path}?to={quote(self.email)}&token={self.token}"


_DIGITS = [re.sub(r"\D", "", number) for number in (Canary.phone, Canary.card)] + ["DE89370400440532013000"]
_SEPARATORS = re.compile(r"(?<=\w)(?:[ ./-]|%20|\+)(?=\w)")


def leaks(text: str) -> Iterator[str]:
    """What of the person is in a text, with what stands around it."""
    for found in re.finditer(re.escape(TAG), text, re.IGNORECASE):
        yield text[max(0, found.start() - 80) : found.end() + 40]
    bare = _SEPARATORS.sub("", text)
    for number in _DIGITS:
        for found in re.finditer(number, bare):
            yield bare[max(0, found.start() - 80) : found.end() + 40]


@dataclass
class Collected:
    """Everything that came out, by where it came from."""

    texts: dict[str, str]

    def add(self, where: str, text: str | bytes) -> None:
        """Keep a text under a name of its own."""
        shown = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        self.texts[f"{len(self.texts)} {where}"] = shown

    def add_files(self, directory: Path, *names: str) -> None:
        """Keep files whole; one that is empty would prove nothing."""
        for name in names:
            text = (directory / name).read_text("utf-8")
            assert text, f"{name} is empty"
            self.add(name, text)

    def leaking(self) -> dict[str, list[str]]:
        """The places where the person is seen."""
        found = {where: list(leaks(text))[:3] for where, text in self.texts.items()}
        return {where: what for where, what in found.items() if what}

    def __str__(self) -> str:
        """For an assertion's message."""
        return json.dumps(self.leaking(), indent=1, ensure_ascii=False)
