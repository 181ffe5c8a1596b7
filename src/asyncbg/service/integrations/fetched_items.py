"""Summary of the items of a fetched JSON document: validated, counted, summed, with a sample."""

import math
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

SAMPLE_ITEMS = 5
REJECTIONS_KEPT = 10
MAX_VALUE = 1e15
_Text = Annotated[str, StringConstraints(max_length=200)]


class Item(BaseModel):
    """Model of an item; other members are ignored. ``value``, ``amount`` or ``price`` is summed.

    A bare number is an item's value, a bare string its name.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    id: int | _Text | None = None
    name: _Text | None = None
    value: float | None = Field(
        default=None, ge=-MAX_VALUE, le=MAX_VALUE, validation_alias=AliasChoices("value", "amount", "price")
    )


class ItemRejection(BaseModel):
    """An invalid item: its index in the document and the reason, never its content."""

    index: int
    reason: str


class ItemSummary(BaseModel):
    """The summary of a document; ``items`` is the sum of ``valid`` and ``rejected``."""

    items: int = 0
    valid: int = 0
    rejected: int = 0
    sum: float = 0.0
    sample: list[Item] = []
    rejections: list[ItemRejection] = []


def summarize(document: Any) -> ItemSummary:
    """Validate every item of a document. Return the counts, the first valid items and the first rejections."""
    found, values = ItemSummary(), []
    for index, given in enumerate(items_in(document)):
        found.items += 1
        try:
            item = _item(given)
        except ValidationError as error:
            _reject(found, index, error)
        else:
            _add(found, item)
            values.append(item.value or 0.0)
    found.sum = math.fsum(values)
    return found


def items_in(document: Any) -> list[Any]:
    """Return the items of a JSON document.

    A list: its entries. An object: the entries of its only list (``{"items": […], "next": 2}``), else its members. Null
    has no items; any other value is one item.
    """
    match document:
        case None:
            return []
        case list():
            return document
        case dict():
            lists = [value for value in document.values() if isinstance(value, list)]
            return lists[0] if len(lists) == 1 else list(document.values())
        case _:
            return [document]


def _item(value: Any) -> Item:
    """Return the validated item. Raises ValidationError."""
    if isinstance(value, str):
        return Item.model_validate({"name": value})
    if isinstance(value, int | float) and not isinstance(value, bool):
        return Item.model_validate({"value": value})
    return Item.model_validate(value)


def _add(found: ItemSummary, item: Item) -> None:
    found.valid += 1
    if len(found.sample) < SAMPLE_ITEMS:
        found.sample.append(item)


def _reject(found: ItemSummary, index: int, error: ValidationError) -> None:
    found.rejected += 1
    if len(found.rejections) < REJECTIONS_KEPT:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = f"{first['loc'][0]}: " if first["loc"] else ""  # a field of the model, never a name from the document
        reason = "should be an object, a number or a text" if first["type"] == "model_type" else first["msg"]
        found.rejections.append(ItemRejection(index=index, reason=f"{place}{reason}"))
