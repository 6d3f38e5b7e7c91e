"""What the networks see: the n-th image of a training is a pure function of the seed and n.

Image number n decides its own source, target, references, latents, noise and augmentation, whichever process draws
it. So a resumed training sees what an uninterrupted one sees, and two processes of batch B what one of 2 B does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from raygen import images
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.photos import Load
from raygen.families.recipes import Balance


class Batch(NamedTuple):
    """N images and what is to become of them; H = W = the model's image size."""

    x: Tensor  # (N, C, H, W) in [-1, 1]: the sources
    domain: Tensor  # (N,) long: their foreground domains y
    product: Tensor  # (N,) long: their background domains p
    target: Tensor  # (N,) long: the wanted domains ỹ
    z: Tensor  # (2, N, latent_dim): two latents each
    noise: Tensor  # (2, N, noise_size): M's noise for each
    references: Tensor  # (2, N, C, H, W): two images of the target domain each

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class Draw(NamedTuple):
    """What image number n is made of."""

    source: int  # index of a photo
    references: tuple[int, int]
    target: int  # domain
    random: np.random.Generator  # for what follows: augmentation, latents, noise


class Sampler:
    """Draws sources, targets and references, balanced over the cells (product × domain) of a defect set.

    Args:
        domains: of every photo, 0 for normal.
        products: of every photo, counted from 0.
        seed: of the training.
        balance: "cells" draws every cell that has photos equally often, "defect_types" every domain (as the paper
            does), "none" every photo. Targets are always drawn from the domains alike.
    """

    def __init__(
        self, domains: ArrayLike, products: ArrayLike, seed: int, balance: Balance = "cells"
    ) -> None:
        self.seed = seed
        self.domains = np.asarray(domains)
        self.products = np.asarray(products)
        self.num_domains = int(self.domains.max()) + 1
        photos = np.arange(len(self.domains))
        self._of_domain = [self._groups(photos[self.domains == d], balance) for d in range(self.num_domains)]
        match balance:
            case "cells":
                self._sources = [cell for cells in self._of_domain for cell in cells]
            case "defect_types":
                self._sources = [photos[self.domains == d] for d in range(self.num_domains)]
            case "none":
                self._sources = [photos]

    def _groups(self, photos: np.ndarray, balance: Balance) -> list[np.ndarray]:
        if balance != "cells":
            return [photos]
        cells = (photos[self.products[photos] == p] for p in np.unique(self.products))
        return [cell for cell in cells if len(cell)]

    def draw(self, n: int) -> Draw:
        """Draws image number n of the training, from 0."""
        random = np.random.Generator(np.random.Philox(key=np.array([self.seed, n], np.uint64)))
        source = _pick(random, self._sources)
        target = int(random.integers(self.num_domains))
        references = _pick(random, self._of_domain[target]), _pick(random, self._of_domain[target])
        return Draw(source, references, target, random)


def _pick(random: np.random.Generator, groups: list[np.ndarray]) -> int:
    group = groups[random.integers(len(groups))]
    return int(group[random.integers(len(group))])


@dataclass(frozen=True)
class BatchMaker:
    """Draws, loads and augments the images of given numbers. It can be pickled if `load` can."""

    sampler: Sampler
    load: Load
    sizes: DTGANConfig
    augment: bool

    def __call__(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The fields of a `Batch` of N numbers, its images uint8 (…, H, W, C)."""
        draws = [self.sampler.draw(n) for n in numbers]
        photos = iter(self.load([index for draw in draws for index in (draw.source, *draw.references)]))
        x, references, latents = [], [], []
        for draw in draws:
            images = [
                augmented(next(photos), draw.random) if self.augment else next(photos) for _ in range(3)
            ]
            x.append(images[0])
            references.append(np.stack(images[1:]))
            size = (2, self.sizes.latent_dim + self.sizes.noise_size)
            latents.append(draw.random.standard_normal(size, np.float32))
        sources = [draw.source for draw in draws]
        z, noise = np.split(np.stack(latents, axis=1), [self.sizes.latent_dim], axis=2)
        return {
            "x": np.stack(x),
            "domain": self.sampler.domains[sources],
            "product": self.sampler.products[sources],
            "target": np.array([draw.target for draw in draws]),
            "z": z,
            "noise": noise,
            "references": np.stack(references, axis=1),
        }


def to_batch(fields: dict[str, np.ndarray]) -> Batch:
    """A `BatchMaker`'s arrays as tensors, its images in [-1, 1]."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fields.items()}
    references = tensors["references"]
    return Batch(
        **{name: tensors[name] for name in ("domain", "product", "target", "z", "noise")},
        x=images.to_model(tensors["x"]),
        references=images.to_model(references.flatten(0, 1)).unflatten(0, references.shape[:2]),
    )


def augmented(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """The paper's (Appendix A): with probability 1/2 a random resized crop of 0.8 to 1 of the area and an aspect
    ratio of 0.9 to 1.1; with probability 1/2 a horizontal flip."""
    size = pixels.shape[0]
    crop, flip = random.random(2) < 0.5
    area, ratio = random.uniform(0.8, 1.0), np.exp(random.uniform(np.log(0.9), np.log(1.1)))
    at = random.random(2)
    if crop:
        width = min(size, size * np.sqrt(area * ratio))
        height = min(size, size * np.sqrt(area / ratio))
        left, top = at * (size - width, size - height)
        image = Image.fromarray(pixels.squeeze())
        box = (left, top, left + width, top + height)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
        pixels = np.asarray(image).reshape(pixels.shape)
    return pixels[:, ::-1] if flip else pixels
