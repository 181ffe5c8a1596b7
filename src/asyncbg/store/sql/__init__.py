"""The statements, outside the code: each has a name and says why it is written as it is."""

import re
from collections.abc import Mapping
from importlib.resources import files

_NAME = re.compile(r"^-- name: (\w+)$", re.MULTILINE)


def load_script(file_name: str) -> str:
    """The text of a script that ships with the package."""
    return files(__name__).joinpath(file_name).read_text(encoding="utf-8")


def load_statements(file_name: str) -> Mapping[str, str]:
    """The statements of a file by the name in the ``-- name:`` line above each."""
    parts = _NAME.split(load_script(file_name))
    return {name: body.strip().rstrip(";") for name, body in zip(parts[1::2], parts[2::2], strict=True)}
