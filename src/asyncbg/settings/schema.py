"""Which settings there are, by path: ``("server", "port")``, which the variable ``ASYNCBG_SERVER__PORT`` sets."""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import TypeAlias

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from asyncbg.settings.section import Section

PREFIX = "ASYNCBG_"
DELIMITER = "__"

SettingPath: TypeAlias = tuple[str, ...]


class Schema:
    """The settings of a model: its fields, and those of its sections."""

    def __init__(self, model: type[BaseModel]) -> None:
        """Read the fields of ``model``."""
        self.leaves: dict[SettingPath, FieldInfo] = {}
        """Every setting by its path, in the order of the sections."""
        self.sections: set[SettingPath] = set()
        """The paths of the sections."""
        for name, field in model.model_fields.items():
            inner = _section_fields(field)
            if inner:
                self.sections.add((name,))
            self.leaves.update({(name, leaf): f for leaf, f in inner.items()} if inner else {(name,): field})

    def knows(self, path: SettingPath) -> bool:
        """Whether there is such a setting, or such a section."""
        return path in self.leaves or path in self.sections

    def unknown(self, path: SettingPath, origin: str) -> str:
        """One line for a name that is no setting, with the one that was probably meant."""
        name = re.sub(r"[^\w.-]", "?", variable(path))[:100]
        known = [variable(leaf) for leaf in self.leaves]
        tails = [variable(leaf) for leaf in self.leaves if leaf[-1] == path[-1]]
        close = (
            difflib.get_close_matches(name, known, n=1, cutoff=0.85)
            or tails[:3]
            or difflib.get_close_matches(name, known, n=1)
        )
        hint = f"did you mean {' or '.join(close)}? Correct" if close else "correct"
        return f"{name} ({origin}): no such setting; {hint} or remove it"


@functools.cache
def schema_of(model: type[BaseModel]) -> Schema:
    """The settings of ``model``, read once."""
    return Schema(model)


def variable(path: SettingPath) -> str:
    """The environment variable that sets it."""
    return PREFIX + DELIMITER.join(path).upper()


def _section_fields(field: FieldInfo) -> Mapping[str, FieldInfo]:
    """The fields of a section; none if the field is a single value."""
    kind = field.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
