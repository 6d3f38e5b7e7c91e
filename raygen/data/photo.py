"""A photograph of a defect set."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from raygen.depth import PixelRange


class Photo(NamedTuple):
    """One photograph of a defect set as a photo of one defect type; one that shows two stands there twice."""

    uri: str
    product: str
    defect_type: str  # "normal" for a defect-free one
    mask_uri: str | None  # of its pixel mask, where there is one; or of the annotations that draw it
    split: str  # "train", "val", "test" …; "" where nobody says
    etag: str | None
    more_masks: tuple[str, ...] = ()  # of the mask's other parts
    mask_part: str = ""  # what of the mask is its own: values, "1,2", or a name in annotations; "" for all
    pixel_range: PixelRange | None = (
        None  # of a file of more than 8 bits: the levels that are black and white
    )
    group: str = ""  # what is shown, where the set tells: photos of one group never belong into two splits

    def row(self) -> list[Any]:
        """Its fields for JSON, without those at the end that have their defaults. (A group decides nothing.)"""
        fields, defaults = list(self[:-1]), self._field_defaults
        while len(fields) > 6 and fields[-1] == defaults[self._fields[len(fields) - 1]]:
            fields.pop()
        return fields

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Photo":
        """The inverse."""
        fields: list[Any] = [tuple(field) if isinstance(field, list) else field for field in row]
        return cls(*fields)

    @property
    def content(self) -> str:
        """What decides its pixels, for keys."""
        told = f"{self.uri} {self.etag}"
        return told if self.pixel_range is None else f"{told} {list(self.pixel_range)}"

    @property
    def mask_uris(self) -> tuple[str, ...]:
        """All parts of its mask."""
        return (self.mask_uri, *self.more_masks) if self.mask_uri else ()
