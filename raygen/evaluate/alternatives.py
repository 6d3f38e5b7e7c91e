"""What a user could have without a training: samples of a family that learns nothing, made of some photos here."""

import tempfile
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from raygen.checkpoint import CheckpointConfig, save_checkpoint
from raygen.data.defects import load_photos, mask_content
from raygen.data.photo import Photo
from raygen.data.survey import Kind
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
    known: tuple[Photo, ...]  # those that it takes something of
    cells: tuple[tuple[str, str], ...]  # product and defect type
    normals: tuple[Photo, ...]  # those that it puts them on
    count: int  # of each cell and mode
    seed: int

    @classmethod
    def of(cls, family: str, real: RealSet, count: int, seed: int) -> Self:
        """Of a set's training photos."""
        normals = [p for product in real.products for p in real.of_cell(product, NORMAL)[:count]]
        defects = [photo for photo in real.train if photo.defect_type != NORMAL]
        return cls(
            family=family,
            known=tuple(defects if takes(family) == "defects" else normals),
            cells=real.cells,
            normals=tuple(normals),
            count=count,
            seed=seed,
        )

    def name(self, cell: tuple[str, str], mode: Mode, number: int) -> str:
        """Of a sample, unlike any other's."""
        return f"{self.key}/{'/'.join(cell)}/{mode}/{number}"

    @cached_property
    def key(self) -> str:
        """A digest of all that decides the samples, but for their size."""
        photos = (f"{p.content} {p.defect_type} {mask_content(p)}" for p in self.known + self.normals)
        cells = ("/".join(cell) for cell in self.cells)
        return digest(self.family, self.count, self.seed, *cells, *photos)

    def __len__(self) -> int:
        return self.count * len(self.cells) * len(MODES)

    def make(self, image_size: int, channels: int) -> Made:
        """Makes them; none of a defect type of which nothing can be taken.

        Raises:
            UserError: the family makes other types than these, or a photo cannot be read.
        """
        products, defect_types = (tuple(sorted(set(names))) for names in zip(*self.cells, strict=True))
        family = FAMILIES[self.family]
        assert family.recipe is not None
        config = family.recipe.model_validate(
            {"defects": "-", "output": "-", "image_size": image_size, "channels": channels}
        )
        collector = family.collector()(config)
        taken = [(photo, collector.take(photo)) for photo in self.known]
        kept = [(photo, one) for photo, one in taken if not one.refused]
        if not kept:  # of these few
            return Made(
                [],
                np.empty((0, *[image_size] * 2, channels), np.uint8),
                np.empty((0, *[image_size] * 2), np.uint8),
            )
        contents = collector.contents(*map(list, zip(*kept, strict=True)))
        made_types = {reference.defect_type for reference in contents.references}
        if not made_types & set(defect_types):
            raise UserError(
                f"probe.alternatives: {self.family} makes {', '.join(sorted(made_types))}, and the set has "
                f"{', '.join(defect_types)}; name its types so, types = {{{defect_types[0]} = "
                f'"{min(made_types)}"}}'
            )
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
            for defect_type in (kind for of, kind in self.cells if of == product and kind in made_types):
                for mode in MODES:
                    some = normals[random.integers(len(normals), size=self.count)]
                    seeds = random.integers(2**62, size=self.count)
                    views = Views(some, [product] * self.count, None, None)
                    made = generator.make(views, SampleRequest(defect_type, mode, 0), seeds)
                    names += [self.name((product, defect_type), mode, n) for n in range(self.count)]
                    pixels.append(made.pixels)
                    masks.append(made.masks)
        return Made(names, np.concatenate(pixels), np.concatenate(masks))


def takes(name: str) -> Kind:
    """What a family takes a bank of.

    Raises:
        UserError: no family that needs no training has this name.
    """
    family = FAMILIES.get(name)
    takes_bank = family is not None and family.recipe is not None and issubclass(family.recipe, BankConfig)
    if family is None or not takes_bank or not family.has_masks:  # a judge has none
        raise UserError(f"probe.alternatives: {name!r} is no family that makes samples without a training")
    return family.takes
