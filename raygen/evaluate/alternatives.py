"""What a user could have without a training: samples of a family that learns nothing, made of some photos here."""

import tempfile
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from raygen.checkpoint import CheckpointConfig, save_checkpoint
from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate.real_photos import RealSet
from raygen.families import FAMILIES
from raygen.families.family import Views
from raygen.families.recipes import BankConfig, SamplingConfig
from raygen.records import MODES, NORMAL, Mode, SampleRequest, digest


class Made(NamedTuple):
    """N samples."""

    names: list[str]
    pixels: NDArray[np.uint8]  # (N, H, W, C)
    masks: NDArray[np.uint8]  # (N, H, W), 0 or 255


class Alternative(BaseModel):
    """Samples to be made: of each cell and mode as many."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    family: str
    defects: tuple[Photo, ...]  # those that it may know
    normals: tuple[Photo, ...]  # those that it puts them on
    count: int  # of each cell and mode
    seed: int

    @classmethod
    def of(cls, family: str, real: RealSet, count: int, seed: int) -> Self:
        """Of a set's training photos.

        Raises:
            UserError: no family that needs no training has this name.
        """
        recipe = FAMILIES[family].recipe if family in FAMILIES else None
        if recipe is None or not issubclass(recipe, BankConfig) or not FAMILIES[family].has_masks:
            raise UserError(
                f"probe.alternatives: {family!r} is no family that makes samples without a training"
            )
        return cls(
            family=family,
            defects=tuple(photo for photo in real.train if photo.defect_type != NORMAL),
            normals=tuple(p for product in real.products for p in real.of_cell(product, NORMAL)[:count]),
            count=count,
            seed=seed,
        )

    def name(self, cell: tuple[str, str], mode: Mode, number: int) -> str:
        """Of a sample, unlike any other's."""
        return f"{self.key}/{'/'.join(cell)}/{mode}/{number}"

    @property
    def cells(self) -> list[tuple[str, str]]:
        return sorted({(photo.product, photo.defect_type) for photo in self.defects})

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the samples, but for their size."""
        photos = (f"{p.content} {p.defect_type}" for p in self.defects + self.normals)
        return digest(self.family, self.count, self.seed, *photos)

    def __len__(self) -> int:
        return self.count * len(self.cells) * len(MODES)

    def make(self, image_size: int, channels: int) -> Made:
        """Makes them; none of a defect type of which nothing can be taken.

        Raises:
            UserError: nothing can be taken of any of its photos, or one cannot be read.
        """
        products, defect_types = (tuple(sorted(set(names))) for names in zip(*self.cells, strict=True))
        family = FAMILIES[self.family]
        assert family.recipe is not None
        config = family.recipe.model_validate(
            {"defects": "-", "output": "-", "image_size": image_size, "channels": channels}
        )
        collector = family.collector()(config)
        taken = [(photo, collector.take(photo)) for photo in self.defects]
        kept = [(photo, one) for photo, one in taken if not one.refused]
        if not kept:
            why = f"{taken[0][0].uri}: {taken[0][1].refused}"
            raise UserError(f"probe.alternatives: {self.family} can take nothing of these defects ({why})")
        taken_types = {photo.defect_type for photo, _ in kept}
        contents = collector.contents(*map(list, zip(*kept, strict=True)))
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = save_checkpoint(
                folder,
                CheckpointConfig(
                    family=self.family,
                    model=contents.model,
                    image_size=image_size,
                    channels=channels,
                    products=products,
                    defect_types=defect_types,
                    images_seen=0,
                    trained_on="",
                ),
                contents.tensors,
                contents.references,
            )
        generator = family.generator(checkpoint, SamplingConfig(pool="-"))
        random = np.random.default_rng(self.seed)
        names, pixels, masks = [], [], []
        for product in products:
            own = [photo for photo in self.normals if photo.product == product]
            if not own:
                continue
            normals = load_photos(own, image_size, channels)
            for defect_type in (kind for of, kind in self.cells if of == product and kind in taken_types):
                for mode in MODES:
                    some = normals[random.integers(len(normals), size=self.count)]
                    seeds = random.integers(2**62, size=self.count)
                    views = Views(some, [product] * self.count, None, None)
                    made = generator.make(views, SampleRequest(defect_type, mode, 0), seeds)
                    names += [self.name((product, defect_type), mode, n) for n in range(self.count)]
                    pixels.append(made.pixels)
                    masks.append(made.masks)
        return Made(names, np.concatenate(pixels), np.concatenate(masks))
