"""Loading the settings: an error is one line that names the variable, and the origin of every value is known."""

import atexit
import logging
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from pydantic import ValidationError

from asyncbg.errors import SettingsError
from asyncbg.settings.model import ApiKey, Settings
from asyncbg.settings.schema import SettingPath, schema_of, variable
from asyncbg.settings.sources import layers

logger = logging.getLogger("asyncbg")

_OF_PYTEST: Final = ("PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_WORKER")
_CHOSEN = frozenset({"argument", "environment"})
_HIDDEN = "**********"
_SCHEMA = schema_of(Settings)


@dataclass(frozen=True, slots=True)
class SettingSource:
    """One setting, its value with secrets hidden, and its origin."""

    name: str
    variable: str
    value: object
    origin: str


def load_settings(**overrides: Any) -> Settings:
    """Read all settings; ``overrides`` are nested: ``load_settings(server={"port": 0})``.

    Raises SettingsError, one line, naming the setting by its variable and what to do about it.
    """
    return _load(overrides)[0]


def load_engine_settings(**overrides: Any) -> Settings:
    """Load as :func:`load_settings`, except that in tests only an argument or the environment may name the database.

    The default, ``.env`` and profiles name the developer's database, whose waiting jobs a test would run.
    """
    settings, origins = _load(overrides)
    if not is_test_process():
        return settings
    chosen = {name for name in ("database_url", "data_dir") if origins.get((name,)) in _CHOSEN}
    if "database_url" in chosen:
        return settings
    folder = private_folder()
    private: dict[str, Any] = {"database_url": f"sqlite:///{folder}/asyncbg.db", "data_dir": folder / "data"}
    return settings.model_copy(update={name: value for name, value in private.items() if name not in chosen})


def setting_sources(**overrides: Any) -> tuple[SettingSource, ...]:
    """Read all settings as ``load_settings`` does. Return the value and the origin of each.

    An origin is ``argument``, ``environment ASYNCBG_X``, ``.env``, ``secrets file``, the profile file or ``default``.
    """
    settings, origins = _load(overrides)
    shown = settings.model_dump(mode="json")
    shown["database_url"] = _without_password(settings.database_url)
    return tuple(
        SettingSource(".".join(leaf), variable(leaf), _at(shown, leaf), _origin(leaf, origins))
        for leaf in _SCHEMA.leaves
    )


def _load(overrides: Mapping[str, Any]) -> tuple[Settings, Mapping[SettingPath, str]]:
    """Return the settings, and the origin of each that is not a default."""
    origins = {leaf: origin for layer in reversed(layers(overrides, _SCHEMA)) for leaf, origin in layer.origins.items()}
    try:
        return Settings(**overrides), origins
    except ValidationError as error:
        raise SettingsError(_one_line(error, origins)) from None


def _at(tree: Any, path: SettingPath) -> Any:
    """Return the value at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _origin(leaf: SettingPath, origins: Mapping[SettingPath, str]) -> str:
    """Return the origin of a value as text."""
    origin = origins.get(leaf, "default")
    return f"environment {variable(leaf)}" if origin == "environment" else origin


def _one_line(error: ValidationError, origins: Mapping[SettingPath, str]) -> str:
    """Return the first error, named by its variable; never the value."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    where = tuple(str(part) for part in details[0]["loc"])
    leaf = next((where[:depth] for depth in (2, 1) if where[:depth] in _SCHEMA.leaves), where[:1])
    inner = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in where[len(leaf) :] if _may_be_named(part))
    origin = next((f" ({origins[known]})" for known in origins if known[: len(leaf)] == leaf), "")
    wrong = details[0]["msg"].removeprefix("Value error, ")
    more = f" ({len(details) - 1} more errors)" if len(details) > 1 else ""
    return f"{variable(leaf)}{inner}{origin}: {wrong[:1].lower()}{wrong[1:]}; correct it or remove it{more}"


def _may_be_named(part: str) -> bool:
    """Whether part of a location may be shown: a key that a person wrote may be a misplaced secret."""
    return part.isdigit() or part in ApiKey.model_fields


def _without_password(url: str) -> str:
    """Return the URL with passwords hidden, in the userinfo and in options."""
    url = re.sub(r"(?<=://)([^/@:]*):[^/]*@", rf"\1:{_HIDDEN}@", url)
    return re.sub(r"(?i)([?&]\w*(?:password|secret|token)\w*=)[^&]*", rf"\g<1>{_HIDDEN}", url)


def is_test_process() -> bool:
    """Whether this process runs tests: under pytest, or as ``python -m unittest``.

    That pytest or unittest is imported proves nothing: libraries import them too, and a server that mistook itself for
    a test would lose its jobs. pytest sets a variable; a process that it starts is no test process.
    """
    under_pytest = "_pytest.main" in sys.modules and any(name in os.environ for name in _OF_PYTEST)
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    return under_pytest or (spec is not None and spec.name in {"unittest", "unittest.__main__"})


@cache
def private_folder() -> Path:
    """Return a new folder for the database and files of this process, removed at exit. It is logged once."""
    folder, pid = Path(tempfile.mkdtemp(prefix="asyncbg-test-")), os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == pid else None)
    logger.warning(
        "this process runs tests and ASYNCBG_DATABASE_URL is not set: asyncbg uses a temporary database in %s, and not "
        "the one of the project; set it, or pass AsyncBG(database_url=...), to choose another",
        folder,
    )
    return folder
