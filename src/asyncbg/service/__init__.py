"""The standalone service ``asyncbg serve``: an application built on the library's public names."""

from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version


def version() -> str:
    """Return the version of the installed distribution; ``0`` for a source tree that is not installed."""
    try:
        return distribution_version("fastapi-asyncbg")
    except PackageNotFoundError:
        return "0"
