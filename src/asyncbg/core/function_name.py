"""Names of functions. Any object may be passed as one, also with properties that raise."""

from typing import Any


def module_and_qualname(function: Any) -> tuple[str | None, str | None]:
    """Return the module and the qualified name of an object; None for each that cannot be read."""
    return _read(function, "__module__"), _read(function, "__qualname__")


def display_name(function: Any) -> str:
    """Return ``module:qualname``, of its class where the object has none itself."""
    module, qualname = module_and_qualname(function)
    if qualname is None:
        return f"{type(function).__module__}:{type(function).__qualname__}"
    return f"{module or '?'}:{qualname}"


def _read(function: Any, attribute: str) -> str | None:
    try:
        value = getattr(function, attribute, None)
    except BaseException:  # noqa: BLE001 - a name that cannot be read is none, whatever the property raises
        return None
    return value if isinstance(value, str) else None
