"""The defect set as a training numbers it: domains and products, what learns and what validates, pixels."""

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal, Protocol

import numpy as np

from raygen.data.defects import group_by_cell, keep_defects, list_defect_set, load_masks, load_photos
from raygen.data.photo import Photo
from raygen.data.survey import KINDS, Kind
from raygen.errors import UserError
from raygen.families.recipes import FamilyConfig
from raygen.records import NORMAL

Load = Callable[[list[int]], np.ndarray]
"""Indices of photos to their pixels, uint8 (len, H, W, C)."""


TRAINING_SPLITS, VALIDATION_SPLITS = ("", "train"), ("val", "validation")


@dataclass(frozen=True)
class DefectSet:
    """Photos, and the names that their domains and products have numbers of."""

    photos: Sequence[Photo]
    products: tuple[str, ...]
    defect_types: tuple[str, ...]  # domains 1, 2, …; 0 is normal
    notes: tuple[str, ...] = ()  # how it was read, for the user
    listed: Sequence[Photo] = ()  # all that is there

    @classmethod
    def read(cls, config: FamilyConfig, kinds: Sequence[Kind] = KINDS) -> "DefectSet":
        """Lists what the recipe names: the photos to learn from and to validate on.

        Raises:
            UserError: nothing to learn from there.
        """
        found = config.survey(kinds)
        photos = [photo for photo in found.photos if photo.split in TRAINING_SPLITS + VALIDATION_SPLITS]
        learning = keep_defects(
            [photo for photo in photos if photo.split in TRAINING_SPLITS], config.keep_defects
        )
        there = {photo.defect_type for photo in learning}
        if ("normals" in kinds and NORMAL not in there) or ("defects" in kinds and not there - {NORMAL}):
            wanted = f"{' and '.join(kinds)} are {'both ' * (len(kinds) > 1)}needed"
            raise UserError(
                f"defects = {config.defects}: {wanted} in its split train; "
                f"there are {', '.join(sorted(there)) or 'none'}"
            )
        products = tuple(sorted({photo.product for photo in learning}))
        more = _more_defects(config, products, there - {NORMAL})
        photos, learning = [*photos, *more], [*learning, *more]
        learned = set(learning)
        kept = [
            photo
            for photo in photos
            if photo in learned
            or (photo.split in VALIDATION_SPLITS and photo.product in products and photo.defect_type in there)
        ]
        return cls(kept, products, tuple(sorted(there - {NORMAL})), found.notes, found.photos)

    def part(self, splits: Sequence[str]) -> "DefectSet":
        """The photos of some splits."""
        return self.only(lambda photo: photo.split in splits)

    def only(self, wanted: Callable[[Photo], bool]) -> "DefectSet":
        """Some of the photos, under the same numbers of domains and products."""
        return self.having(list(filter(wanted, self.photos)))

    def having(self, photos: Sequence[Photo], defect_types: tuple[str, ...] | None = None) -> "DefectSet":
        """The same of other photos and, if they are given, defect types."""
        return replace(self, photos=photos, defect_types=defect_types or self.defect_types)

    def spread(self, most: int) -> list[Photo]:
        """At most so many of each cell (product × defect type), at even distances."""
        chosen: list[int] = []
        for cell in group_by_cell(self.photos).values():
            chosen += cell[:: max(1, len(cell) // most)][:most]
        return [self.photos[i] for i in chosen]

    @cached_property
    def domains(self) -> list[int]:
        """Foreground domain of each photo."""
        return [(NORMAL, *self.defect_types).index(photo.defect_type) for photo in self.photos]

    @cached_property
    def product_numbers(self) -> list[int]:
        """Number of each photo's product."""
        return [self.products.index(photo.product) for photo in self.photos]

    def untouched(self) -> str:
        """`test: 335 normal, 24 spots`: what is there and not among the photos."""
        known, counts = set(self.photos), {}
        for photo in self.listed:
            if photo not in known:
                split = "train" if photo.split in TRAINING_SPLITS else photo.split
                counts.setdefault(split, Counter())[photo.defect_type] += 1
        return "; ".join(
            f"{split}: " + ", ".join(f"{count:,} {kind}" for kind, count in sorted(of.items()))
            for split, of in sorted(counts.items())
        )

    def describe(self) -> str:
        """`metal: 400 normal, 200 scratches; fabric: …`"""
        cells = group_by_cell(self.photos)
        return "; ".join(
            f"{product}: "
            + ", ".join(f"{len(rows):,} {kind}" for (other, kind), rows in cells.items() if other == product)
            for product in self.products
            if any(other == product for other, _ in cells)
        )


def _more_defects(
    config: FamilyConfig, products: Sequence[str], defect_types: Collection[str]
) -> list[Photo]:
    """Those of the other defect set, of products and types that the first one has."""
    if config.more_defects is None:
        return []
    found = [
        photo
        for photo in list_defect_set(config.more_defects, kinds=["defects"])
        if photo.split in TRAINING_SPLITS and photo.product in products and photo.defect_type in defect_types
    ]
    if not found:
        raise UserError(
            f"more_defects = {config.more_defects}: no defects to learn from there of {', '.join(products)} and "
            f"{', '.join(sorted(defect_types))}; name a folder that has some, or leave it out"
        )
    return found


class Sizes(Protocol):
    """Those of images, as every family's sizes have them."""

    @property
    def image_size(self) -> int: ...

    @property
    def channels(self) -> int: ...


Masks = Literal["none", "all", "known"]


def loader(photos: Sequence[Photo], sizes: Sizes, *, in_memory: bool, masks: Masks = "none") -> Load:
    """Gives photos by index: uint8 (n, H, W, C), with masks a channel more.

    Args:
        photos: all of them.
        sizes: what they are brought to.
        in_memory: whether they are decoded now and kept, or read whenever they are wanted.
        masks: "all": the mask stands behind the image's channels, 0 or 255; "known": it is 0 throughout where a
            photo has none.
    """
    if in_memory:
        return _read(photos, sizes, masks, range(len(photos))).__getitem__
    return partial(_read, photos, sizes, masks)


def _read(photos: Sequence[Photo], sizes: Sizes, masks: Masks, indices: Sequence[int]) -> np.ndarray:
    some = [photos[i] for i in indices]
    pixels = load_photos(some, sizes.image_size, sizes.channels)
    if masks == "none":
        return pixels
    found = np.zeros_like(pixels[..., :1])
    rows = [row for row, photo in enumerate(some) if masks == "all" or photo.mask_uri]
    if rows:
        found[rows] = load_masks([some[row] for row in rows], sizes.image_size)
    return np.concatenate([pixels, found], axis=3)
