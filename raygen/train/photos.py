"""The defect set as a training numbers it: domains and products, what learns and what validates, pixels."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from raygen.data.defects import Photo, group_by_cell, keep_defects, list_defect_set, load_photos
from raygen.errors import UserError
from raygen.models.dtgan import DTGANConfig
from raygen.records import NORMAL
from raygen.train.batches import Load, Sampler
from raygen.train.config import TrainConfig

TRAINING_SPLITS, VALIDATION_SPLITS = ("", "train"), ("val", "validation")


@dataclass(frozen=True)
class DefectSet:
    """Photos, and the names that their domains and products have numbers of."""

    photos: Sequence[Photo]
    products: tuple[str, ...]
    defect_types: tuple[str, ...]  # domains 1, 2, …; 0 is normal

    @classmethod
    def read(cls, config: TrainConfig) -> "DefectSet":
        """Lists what the recipe names: the photos to learn from and to validate on.

        Raises:
            UserError: nothing to learn from there.
        """
        listed = list_defect_set(config.defects, types=config.types, products=config.products)
        photos = [photo for photo in listed if photo.split in TRAINING_SPLITS + VALIDATION_SPLITS]
        learning = keep_defects(
            [photo for photo in photos if photo.split in TRAINING_SPLITS], config.keep_defects
        )
        kinds = {photo.defect_type for photo in learning}
        if NORMAL not in kinds or len(kinds) < 2:
            raise UserError(
                f"defects = {config.defects}: normals and defects are both needed in its split train; "
                f"there are {', '.join(sorted(kinds)) or 'none'}"
            )
        products = tuple(sorted({photo.product for photo in learning}))
        learned = set(learning)
        kept = [
            photo
            for photo in photos
            if photo in learned
            or (photo.split in VALIDATION_SPLITS and photo.product in products and photo.defect_type in kinds)
        ]
        return cls(kept, products, tuple(sorted(kinds - {NORMAL})))

    def part(self, splits: Sequence[str]) -> "DefectSet":
        """The photos of some splits."""
        photos = [photo for photo in self.photos if photo.split in splits]
        return DefectSet(photos, self.products, self.defect_types)

    @cached_property
    def domains(self) -> list[int]:
        """Foreground domain of each photo."""
        return [(NORMAL, *self.defect_types).index(photo.defect_type) for photo in self.photos]

    def sampler(self, config: TrainConfig) -> Sampler:
        """Draws from these photos."""
        products = [self.products.index(photo.product) for photo in self.photos]
        return Sampler(self.domains, products, config.seed, config.balance)

    def describe(self) -> str:
        """`metal: 400 normal, 200 scratches; fabric: …`"""
        cells = group_by_cell(self.photos)
        return "; ".join(
            f"{product}: "
            + ", ".join(f"{len(rows):,} {kind}" for (other, kind), rows in cells.items() if other == product)
            for product in self.products
        )


def in_memory(photos: Sequence[Photo], sizes: DTGANConfig) -> Load:
    """Decodes all photos now, and gives them from memory."""
    pixels = load_photos(photos, sizes.image_size, sizes.channels)
    return pixels.__getitem__


def from_storage(photos: Sequence[Photo], sizes: DTGANConfig) -> Load:
    """Reads photos when they are wanted."""
    return partial(_read, photos, sizes)


def _read(photos: Sequence[Photo], sizes: DTGANConfig, indices: Sequence[int]) -> np.ndarray:
    return load_photos([photos[i] for i in indices], sizes.image_size, sizes.channels)
