"""The marker of personal fields: ``Annotated[str, Personal("email")]``."""


class Personal:
    """Marks a parameter or a field as personal: ``Annotated[str, Personal("email")]``, or just ``Personal``."""

    __slots__ = ("kind",)

    def __init__(self, kind: str = "personal") -> None:
        """``kind`` names what it is in the pseudonym: ``[email:ab12cd34]``; a ``secret`` gets no pseudonym at all."""
        self.kind = kind

    def __repr__(self) -> str:
        """As written in an annotation."""
        return f"Personal({self.kind!r})"
