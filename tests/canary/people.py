"""Fake people: whose every datum carries one tag, or is one of a few numbers that the search knows."""

from dataclasses import dataclass
from urllib.parse import quote

TAG = "canary7f3a"
"""In every name, address, message, token and password; in no path, id or word of the service."""

DOCUMENTED = "ada@example.com"
"""The person of the documents and of ``asyncbg demo``, which the suite runs as they are."""

NUMBERS = (
    "+49 30 90182 7310",
    "+1 202 555 0143",
    "4539 1488 0343 6467",
    "4111 1111 1111 1111",
    "DE89 3704 0044 0532 0130 00",
)
"""A number cannot carry a tag. These are all that may be used: phones, cards, an IBAN; separators do not matter."""


@dataclass(frozen=True)
class Canary:
    """One fake person."""

    name: str = f"Ada Q. {TAG}-name"
    email: str = f"ada.{TAG}@{TAG}.example"
    phone: str = NUMBERS[0]
    card: str = NUMBERS[2]
    iban: str = NUMBERS[4]
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
