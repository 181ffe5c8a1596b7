"""The settings by path: the variable ``ASYNCBG_SERVER__PORT`` sets ``("server", "port")``."""

import difflib
import functools
import re
from collections.abc import Mapping
from typing import TypeAlias

from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

PREFIX = "ASYNCBG_"
DELIMITER = "__"

SettingPath: TypeAlias = tuple[str, ...]


class Section(BaseModel):
    """Configuration shared by all sections."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)


class Schema:
    """The settings of a model: its fields and the fields of its sections."""

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
        """Whether the path is a setting or a section."""
        return path in self.leaves or path in self.sections

    def unknown(self, path: SettingPath, origin: str) -> str:
        """Return one line about a name that is no setting, with the closest match."""
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
    """Return the settings of ``model``, read once."""
    return Schema(model)


def variable(path: SettingPath) -> str:
    """Return the environment variable of a setting."""
    return PREFIX + DELIMITER.join(path).upper()


def _section_fields(field: FieldInfo) -> Mapping[str, FieldInfo]:
    """Return the fields of a section; none if the field is a single value."""
    kind = field.annotation
    return kind.model_fields if isinstance(kind, type) and issubclass(kind, Section) else {}
