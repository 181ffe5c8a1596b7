"""The sources of settings, the strongest first: arguments, environment, ``.env``, secrets directory, profile.

Each is read into a layer: its values as a tree, and the origin of each. A name that is no setting is refused here.
"""

import io
import json
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from asyncbg.core.files import is_file, names_in
from asyncbg.errors import SettingsError
from asyncbg.settings.schema import DELIMITER, PREFIX, Schema, SettingPath, variable
from asyncbg.settings.value import PROFILE_NAME

SECRETS_DIR = "ASYNCBG_SECRETS_DIR"
"""A variable that names the secrets directory, and is no setting itself."""
# Kubernetes sets such variables for every service in the namespace; a service named asyncbg must not fail the start.
_SERVICE_LINK = re.compile(r"ASYNCBG_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")
_SECRETS_DIR_DEFAULT = Path("/run/secrets")
_PROFILE_DIR = Path("settings")


@dataclass(frozen=True, slots=True)
class Layer:
    """The values of one source as a tree, and the name of the source for each leaf."""

    values: dict[str, Any]
    origins: dict[SettingPath, str]


def of_variables(variables: Mapping[str, str | None], origin: str, schema: Schema) -> Layer:
    """Build a layer from ``ASYNCBG_SECTION__NAME`` variables; ``ASYNCBG_SECTION`` may hold a JSON object."""
    layer = Layer({}, {})
    for name in sorted(variables, key=lambda name: name.count(DELIMITER)):  # whole sections first, single values on top
        value, path = variables[name], tuple(name.upper().removeprefix(PREFIX).lower().split(DELIMITER))
        if name.upper() == SECRETS_DIR or _is_service_link(name, value or "", schema):
            continue
        if not schema.knows(path):
            raise SettingsError(schema.unknown(path, origin))
        if value is None:
            raise SettingsError(f"{variable(path)} ({origin}): has no value; write {variable(path)}=value or remove it")
        _add(layer, path, value if path in schema.leaves else _json_object(path, value, origin), origin, schema)
    return layer


def of_tree(tree: Mapping[str, Any], origin: str, schema: Schema) -> Layer:
    """Build a layer from nested tables."""
    layer = Layer({}, {})
    for name, value in tree.items():
        _add(layer, (name,), value, origin, schema)
    return layer


def _add(layer: Layer, path: SettingPath, value: Any, origin: str, schema: Schema) -> None:
    """Set a value and its origin. Raises SettingsError for a name that is no setting."""
    if path in schema.sections and isinstance(value, Mapping):
        for name, inner in value.items():
            _add(layer, (*path, str(name)), inner, origin, schema)
        return
    if not schema.knows(path):
        raise SettingsError(schema.unknown(path, origin))
    table = layer.values
    for name in path[:-1]:
        table = table.setdefault(name, {})
    table[path[-1]] = value
    layer.origins.update({leaf: origin for leaf in schema.leaves if leaf[: len(path)] == path})


def _json_object(path: SettingPath, value: str, origin: str) -> Mapping[str, Any]:
    """Parse a whole section in one variable."""
    try:
        decoded = json.loads(value)
    except ValueError:
        decoded = None
    if not isinstance(decoded, dict):
        raise SettingsError(
            f"{variable(path)} ({origin}): is not a JSON object; set {variable((*path, 'name'))} instead"
        )
    return decoded


def _is_service_link(name: str, value: str, schema: Schema) -> bool:
    """Whether Kubernetes, not a person, set the variable."""
    known = tuple(name.removeprefix(PREFIX).lower().split(DELIMITER)) in schema.leaves
    return not known and bool(_SERVICE_LINK.fullmatch(name) or _SERVICE_ADDRESS.fullmatch(value))


def layers(arguments: Mapping[str, Any], schema: Schema) -> list[Layer]:
    """Return all layers, the strongest first."""
    environment = {name: value for name, value in os.environ.items() if name.upper().startswith(PREFIX)}
    dotenv = _dotenv()
    layers = [
        of_tree(arguments, "argument", schema),
        of_variables(environment, "environment", schema),
        of_variables(dotenv, ".env", schema),
        of_variables(_secrets(environment.get(SECRETS_DIR) or dotenv.get(SECRETS_DIR)), "secrets file", schema),
    ]
    profile = next((layer.values["profile"] for layer in layers if "profile" in layer.values), None)
    return [*layers, _profile(profile, schema)]


def _dotenv() -> dict[str, str | None]:
    """Return the ``ASYNCBG_`` variables of ``./.env``; others belong to other programs."""
    path = Path(".env")
    if not _exists(path):
        return {}
    text = _text(path, ".env")
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and PREFIX in binding.original.string.upper():
            raise SettingsError(f".env line {binding.original.line} is malformed; write it as ASYNCBG_NAME=value")
    return {k: v for k, v in dotenv_values(stream=io.StringIO(text)).items() if k.upper().startswith(PREFIX)}


def _secrets(asked: str | None) -> dict[str, str]:
    """Return the secrets: one file a setting, named like its variable (in either case), in one directory."""
    directory = Path(asked) if asked else _SECRETS_DIR_DEFAULT
    if asked and not directory.is_dir():
        raise SettingsError(f"{SECRETS_DIR} names no directory; create it or unset {SECRETS_DIR}")
    if not asked and not os.access(directory, os.R_OK | os.X_OK):
        return {}  # the default directory may belong to another user
    try:
        files = [directory / name for name in names_in(directory) if name.upper().startswith(PREFIX)]
    except OSError as error:
        raise SettingsError(f"{SECRETS_DIR}: the directory cannot be read: {(error.strerror or '').lower()}") from None
    return {file.name: _text(file, f"the secrets file of {file.name.upper()}").strip() for file in files}


def _profile(asked: object, schema: Schema) -> Layer:
    """Read ``settings/<profile>.toml``; only a profile that was named must exist."""
    name = "default" if asked is None else asked
    if not isinstance(name, str) or not re.fullmatch(PROFILE_NAME, name):
        return Layer({}, {})  # the model rejects the name
    path = _PROFILE_DIR / f"{name}.toml"
    if not _exists(path):
        if name == "default":
            return Layer({}, {})
        there = ", ".join(Path(file).stem for file in names_in(_PROFILE_DIR) if file.endswith(".toml")) or "none"
        raise SettingsError(f"ASYNCBG_PROFILE: there is no {path}; create it or choose a profile that exists ({there})")
    try:
        tree = tomllib.loads(_text(path, str(path)))
    except tomllib.TOMLDecodeError as error:
        place = re.search(r"\(at .*\)", str(error))
        raise SettingsError(f"{path} is not valid TOML {place[0] if place else ''}; correct it there") from None
    if "profile" in tree:
        raise SettingsError(f"ASYNCBG_PROFILE: {path} cannot name the profile; remove it there, set ASYNCBG_PROFILE")
    return of_tree(tree, str(path), schema)


def _exists(path: Path) -> bool:
    """Whether the file exists. Raises SettingsError where that cannot be determined, since it may hold settings."""
    try:
        return is_file(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be checked: {(error.strerror or '').lower()}; correct it") from None


def _text(path: Path, name: str) -> str:
    """Return the text of a small file. Raises SettingsError with the reason."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "unreadable").lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name} cannot be read: {why}; correct the file or remove it") from None
