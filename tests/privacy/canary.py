"""Everything that came out of the service, and where a fake person is seen in it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.canary.allowed import reason_for
from tests.canary.search import leaks


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
        found = {where: list(_leaking(where.partition(" ")[2], text))[:3] for where, text in self.texts.items()}
        return {where: what for where, what in found.items() if what}

    def __str__(self) -> str:
        """For an assertion's message."""
        return json.dumps(self.leaking(), indent=1, ensure_ascii=False)


def _leaking(where: str, text: str) -> Iterator[str]:
    """What is seen of the person there and is not allowed for the whole suite."""
    yield from (found for found in leaks(text.encode()) if reason_for("body", where, found) is None)
