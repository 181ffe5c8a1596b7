"""Reading the settings: an error is one line that names the variable, and every value knows where it came from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError

from asyncbg.errors import SettingsError
from asyncbg.settings.model import Settings
from asyncbg.settings.place import layers
from asyncbg.settings.schema import SettingPath, schema_of, variable
from asyncbg.settings.section import ApiKey
from asyncbg.settings.under_test import is_test_process, private_folder

_CHOSEN = frozenset({"argument", "environment"})
_HIDDEN = "**********"
_SCHEMA = schema_of(Settings)


@dataclass(frozen=True, slots=True)
class SettingSource:
    """One setting, its value fit for showing (secrets hidden) and where it came from."""

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
    """As :func:`load_settings`; but where tests are run, only an argument or the environment names the database.

    The default, a ``.env`` and a profile lead to what the developer works with, whose waiting jobs a test would run.
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
    """Read all settings as ``load_settings`` does, and say for each its value and where it comes from.

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
    """The settings, and the place each one that is not a default came from."""
    origins = {leaf: origin for layer in reversed(layers(overrides, _SCHEMA)) for leaf, origin in layer.origins.items()}
    try:
        return Settings(**overrides), origins
    except ValidationError as error:
        raise SettingsError(_one_line(error, origins)) from None


def _at(tree: Any, path: SettingPath) -> Any:
    """The value at a path."""
    for name in path:
        tree = tree[name]
    return tree


def _origin(leaf: SettingPath, origins: Mapping[SettingPath, str]) -> str:
    """Where a value came from, in words."""
    origin = origins.get(leaf, "default")
    return f"environment {variable(leaf)}" if origin == "environment" else origin


def _one_line(error: ValidationError, origins: Mapping[SettingPath, str]) -> str:
    """The first thing wrong, named by its variable; never the value."""
    details = error.errors(include_url=False, include_context=False, include_input=False)
    where = tuple(str(part) for part in details[0]["loc"])
    leaf = next((where[:depth] for depth in (2, 1) if where[:depth] in _SCHEMA.leaves), where[:1])
    inner = "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in where[len(leaf) :] if _may_be_named(part))
    origin = next((f" ({origins[known]})" for known in origins if known[: len(leaf)] == leaf), "")
    wrong = details[0]["msg"].removeprefix("Value error, ")
    more = f" ({len(details) - 1} more are wrong)" if len(details) > 1 else ""
    return f"{variable(leaf)}{inner}{origin}: {wrong[:1].lower()}{wrong[1:]}; correct it or remove it{more}"


def _may_be_named(part: str) -> bool:
    """A key a person wrote may itself be a secret in the wrong place."""
    return part.isdigit() or part in ApiKey.model_fields


def _without_password(url: str) -> str:
    """The URL with the password, in the userinfo or as an option, hidden."""
    url = re.sub(r"(?<=://)([^/@:]*):[^/]*@", rf"\1:{_HIDDEN}@", url)
    return re.sub(r"(?i)([?&]\w*(?:password|secret|token)\w*=)[^&]*", rf"\g<1>{_HIDDEN}", url)
