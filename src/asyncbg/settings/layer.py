"""A layer: what one place says of the settings, as a tree; a name that is no setting is refused here."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from asyncbg.errors import SettingsError
from asyncbg.settings.schema import DELIMITER, PREFIX, Schema, SettingPath, variable

SECRETS_DIR = "ASYNCBG_SECRETS_DIR"
"""A variable that says where to look, and is no setting itself."""
# Kubernetes tells a pod of every service by such variables; a service called asyncbg must not stop the start.
_SERVICE_LINK = re.compile(r"ASYNCBG_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://\S+:\d+")


@dataclass(frozen=True, slots=True)
class Layer:
    """What one place says: values as a tree, and the name of the place for each leaf."""

    values: dict[str, Any]
    origins: dict[SettingPath, str]


def of_variables(variables: Mapping[str, str | None], origin: str, schema: Schema) -> Layer:
    """A layer out of ``ASYNCBG_SECTION__NAME`` variables; ``ASYNCBG_SECTION`` may hold a JSON object."""
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
    """A layer out of nested tables."""
    layer = Layer({}, {})
    for name, value in tree.items():
        _add(layer, (name,), value, origin, schema)
    return layer


def _add(layer: Layer, path: SettingPath, value: Any, origin: str, schema: Schema) -> None:
    """Put a value in its place and remember where it came from; refuse a name that is no setting."""
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
    """A whole section in one variable."""
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
