"""The places settings come from, the strongest first: arguments, environment, ``.env``, secrets directory, profile."""

import io
import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dotenv import dotenv_values
from dotenv.parser import parse_stream

from asyncbg.core.files import is_file, names_in
from asyncbg.errors import SettingsError
from asyncbg.settings.layer import SECRETS_DIR, Layer, of_tree, of_variables
from asyncbg.settings.schema import PREFIX, Schema
from asyncbg.settings.value import PROFILE_NAME

_SECRETS_DIR_DEFAULT = Path("/run/secrets")
_PROFILE_DIR = Path("settings")


def layers(arguments: Mapping[str, Any], schema: Schema) -> list[Layer]:
    """All places, the strongest first."""
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
    """Our variables of ``./.env``; the others are somebody else's."""
    path = Path(".env")
    if not _is_there(path):
        return {}
    text = _text(path, ".env")
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and PREFIX in binding.original.string.upper():
            raise SettingsError(f".env line {binding.original.line} is malformed; write it as ASYNCBG_NAME=value")
    return {k: v for k, v in dotenv_values(stream=io.StringIO(text)).items() if k.upper().startswith(PREFIX)}


def _secrets(asked: str | None) -> dict[str, str]:
    """One file a setting, named like its variable in either case, in the directory asked for or the usual one."""
    directory = Path(asked) if asked else _SECRETS_DIR_DEFAULT
    if asked and not directory.is_dir():
        raise SettingsError(f"{SECRETS_DIR} names no directory; create it or unset {SECRETS_DIR}")
    if not asked and not os.access(directory, os.R_OK | os.X_OK):
        return {}  # the usual directory is there for other programs as well, under other users
    try:
        files = [directory / name for name in names_in(directory) if name.upper().startswith(PREFIX)]
    except OSError as error:
        raise SettingsError(f"{SECRETS_DIR}: the directory cannot be read: {(error.strerror or '').lower()}") from None
    return {file.name: _text(file, f"the secrets file of {file.name.upper()}").strip() for file in files}


def _profile(asked: object, schema: Schema) -> Layer:
    """``settings/<profile>.toml``; only a profile that was asked for has to be there."""
    name = "default" if asked is None else asked
    if not isinstance(name, str) or not re.fullmatch(PROFILE_NAME, name):
        return Layer({}, {})  # the model refuses the name
    path = _PROFILE_DIR / f"{name}.toml"
    if not _is_there(path):
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


def _is_there(path: Path) -> bool:
    """Whether there is such a file; one that cannot be looked at is an error, since it may say something."""
    try:
        return is_file(path)
    except OSError as error:
        raise SettingsError(f"{path} cannot be looked at: {(error.strerror or '').lower()}; correct it") from None


def _text(path: Path, name: str) -> str:
    """A small file's text, or one line that says why not."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = (error.strerror or "unreadable").lower() if isinstance(error, OSError) else "not UTF-8 text"
        raise SettingsError(f"{name} cannot be read: {why}; correct the file or remove it") from None
