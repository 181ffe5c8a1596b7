"""The marker of personal fields: ``Annotated[str, Personal("email")]``."""

from collections.abc import Mapping
from typing import Annotated, Any, get_args, get_origin


class Personal:
    """Marks a parameter or a field as personal: ``Annotated[str, Personal("email")]``, or just ``Personal``."""

    __slots__ = ("kind",)

    def __init__(self, kind: str = "personal") -> None:
        """``kind`` names what it is in the pseudonym: ``[email:ab12cd34]``; a ``secret`` gets no pseudonym at all."""
        self.kind = kind

    def __repr__(self) -> str:
        """As written in an annotation."""
        return f"Personal({self.kind!r})"


def personal_fields(annotations: Mapping[str, Any]) -> Mapping[str, str]:
    """The names whose annotation carries ``Personal``, here or inside a union or container, each with its kind."""
    kinds = {name: _personal_kind(annotation) for name, annotation in annotations.items()}
    return {name: kind for name, kind in kinds.items() if kind is not None}


def _personal_kind(annotation: Any) -> str | None:
    """The kind of the first marker found, outermost first."""
    if get_origin(annotation) is Annotated:
        for extra in annotation.__metadata__:
            if isinstance(extra, Personal):
                return extra.kind
            if extra is Personal:
                return "personal"
    found = (_personal_kind(inner) for inner in get_args(annotation))
    return next((kind for kind in found if kind is not None), None)
