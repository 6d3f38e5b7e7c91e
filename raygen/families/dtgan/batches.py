"""What the networks see: the n-th image of a training is a pure function of the seed and n.

Image number n decides its own source, target, references, latents, noise and augmentation, whichever process draws
it. So a resumed training sees what an uninterrupted one sees, and two processes of batch B what one of 2 B does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike
from PIL import Image
from torch import Tensor

from raygen import images
from raygen.families.blocks import sent
from raygen.families.dtgan.sizes import NORMAL, DTGANConfig
from raygen.families.inpainting import FILLS
from raygen.families.photos import Load
from raygen.families.recipes import Balance


class Batch(NamedTuple):
    """N images and what is to become of them; H = W = the model's image size."""

    x: Tensor  # (N, C, H, W) in [-1, 1]: the sources
    domain: Tensor  # (N,) long: their foreground domains y
    product: Tensor  # (N,) long: their background domains p
    target: Tensor  # (N,) long: the wanted domains ỹ
    z: Tensor  # (V, N, latent_dim): latents, at least two each
    noise: Tensor  # (V, N, noise_size): M's noise for each
    references: Tensor  # (2, N, C, H, W): two images of the target domain each
    reference_products: Tensor  # (2, N) long: theirs
    healed: Tensor  # (N, C, H, W): the sources without their defects; x itself where nobody knows
    mask: Tensor  # (N, 1, H, W): 1 on a source's defect, else 0
    taught: Tensor  # (N,): 1 where `healed` is true, of normals and of defects with a mask, else 0

    def to(self, device: torch.device) -> "Batch":
        """The same on a device."""
        return Batch(*(sent(tensor, device) for tensor in self))


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
        balance: "cells" draws every cell that has photos equally often, "defect_types" every domain (as
            StarGAN v2 does), "none" every photo. Targets are always drawn from the domains alike.
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
    load: Load  # with a mask behind the channels if `with_masks`
    sizes: DTGANConfig
    augment: bool
    with_masks: bool = False
    num_latents: int = 2

    def __call__(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The fields of a `Batch` of N numbers, its images uint8 (…, H, W, C)."""
        draws = [self.sampler.draw(n) for n in numbers]
        photos = iter(self.load([index for draw in draws for index in (draw.source, *draw.references)]))
        x, references, latents = [], [], []
        channels = self.sizes.channels
        for draw in draws:
            source, *others = next(photos), next(photos)[..., :channels], next(photos)[..., :channels]
            if self.with_masks:  # they go through the same augmentation
                source = np.concatenate([source, healed(source)], axis=2)
            views = [augmented(view, draw.random) if self.augment else view for view in (source, *others)]
            x.append(views[0])
            references.append(np.stack(views[1:]))
            size = (self.num_latents, self.sizes.latent_dim + self.sizes.noise_size)
            latents.append(draw.random.standard_normal(size, np.float32))
        sources = [draw.source for draw in draws]
        guides = np.array([draw.references for draw in draws]).T  # (2, N)
        z, noise = np.split(np.stack(latents, axis=1), [self.sizes.latent_dim], axis=2)
        pixels, mask, clean = np.split(np.stack(x), [channels, channels + 1], axis=3)
        if not self.with_masks:
            mask, clean = np.zeros_like(pixels[..., :1]), pixels
        mask = mask > 127
        is_normal = self.sampler.domains[sources] == NORMAL
        return {
            "x": pixels,
            "healed": clean,
            "mask": mask.astype(np.float32).transpose(0, 3, 1, 2),
            "taught": (is_normal | mask.any(axis=(1, 2, 3))).astype(np.float32),
            "domain": self.sampler.domains[sources],
            "product": self.sampler.products[sources],
            "target": np.array([draw.target for draw in draws]),
            "z": z,
            "noise": noise,
            "references": np.stack(references, axis=1),
            "reference_products": self.sampler.products[guides],
        }


def to_batch(fields: dict[str, np.ndarray]) -> Batch:
    """A `BatchMaker`'s arrays as tensors, its images in [-1, 1]."""
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in fields.items()}
    references = tensors["references"]
    return Batch(
        **{name: tensors[name] for name in tensors if name not in ("x", "healed", "references")},
        x=images.to_model(tensors["x"]),
        healed=images.to_model(tensors["healed"]),
        references=images.to_model(references.flatten(0, 1)).unflatten(0, references.shape[:2]),
    )


def healed(photo: np.ndarray) -> np.ndarray:
    """A photo without its defect: uint8 (H, W, C + 1), the last its mask, to uint8 (H, W, C)."""
    pixels, mask = np.ascontiguousarray(photo[..., :-1]), photo[..., -1]
    if not mask.any():
        return pixels
    hole = cv2.dilate(mask, np.ones((3, 3), np.uint8)) > 0  # its rim shows the defect still
    return np.rint(FILLS["telea"](pixels, hole)).astype(np.uint8)


def turned_over(batch: Batch) -> Tensor:
    """The sources with bright defects dark and dark ones bright: (N, C, H, W) in [-1, 1]."""
    return (2 * batch.healed - batch.x).clamp(-1, 1)


def augmented(pixels: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """StarGAN v2's, whose scheme the paper keeps (Appendix B): with probability 1/2 a random resized crop of 0.8
    to 1 of the area and an aspect ratio of 0.9 to 1.1; with probability 1/2 a horizontal flip."""
    size = pixels.shape[0]
    crop, flip = random.random(2) < 0.5
    area, ratio = random.uniform(0.8, 1.0), np.exp(random.uniform(np.log(0.9), np.log(1.1)))
    at = random.random(2)
    if crop:
        width = min(size, size * np.sqrt(area * ratio))
        height = min(size, size * np.sqrt(area / ratio))
        left, top = at * (size - width, size - height)
        box = (left, top, left + width, top + height)
        layers = [Image.fromarray(pixels[..., i]) for i in range(pixels.shape[2])]
        resized = [layer.resize((size, size), Image.Resampling.BILINEAR, box=box) for layer in layers]
        pixels = np.stack([np.asarray(layer) for layer in resized], axis=2)
    return pixels[:, ::-1] if flip else pixels
