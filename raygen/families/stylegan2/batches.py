"""What the StyleGAN2 and DFM-GAN families see: the n-th image of a training is a pure function of the seed and n.

Image number n decides its own photo, latents, noise and augmentation, whichever process draws it; see
raygen.families.dtgan.batches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raygen import images
from raygen.families.blocks import sent
from raygen.families.photos import DefectSet, Load
from raygen.families.stylegan2.ada import NUM_DRAWS

DISCRIMINATOR, GENERATOR = 0, 1
"""The roles of latents: those of D's step, and those of G's."""

_VIEWS = 3  # of augmentation: D's real images, D's fakes, G's


class LatentSizes(NamedTuple):
    """What a mapping network and its convolutions take of randomness."""

    latent_dim: int
    noise_size: int


NO_LATENTS = LatentSizes(0, 0)
"""Of stage 1, which makes no defects."""


class Latents(NamedTuple):
    """What N images are drawn from."""

    z: Tensor  # (N, latent_dim)
    other: Tensor  # (N, latent_dim): the other latent, for style mixing
    mixing: Tensor  # (N, 2) in [0, 1): whether to mix, and from which layer on
    noise: Tensor  # (N, noise_size)

    def every_second(self) -> "Latents":
        """Those of the images 0, 2, 4, …: half a batch, and the same ones however it is spread over processes."""
        return Latents(*(tensor[::2] for tensor in self))


class GANBatch(NamedTuple):
    """N images and all the randomness of an iteration on them; H = W = the model's image size."""

    numbers: Tensor  # (N,) long: in the training
    x: Tensor  # (N, C, H, W) in [-1, 1]: photos
    masks: Tensor  # (N, 1, H, W): 1 on the defect, else -1; (N, 0, H, W) where there are none
    product: Tensor  # (N,) long
    defect_type: Tensor  # (N,) long, from 0; 0 for normals, too
    normals: tuple[Latents, Latents]  # by role
    defects: tuple[Latents, Latents]  # likewise, of the defects; empty rows in stage 1
    draws: tuple[tuple[Tensor, Tensor], ...]  # of each view: uniform and normal, (N, NUM_DRAWS) each


@dataclass(frozen=True)
class GANBatchMaker:
    """Draws, loads and flips the images of given numbers. It can be pickled if `load` can.

    Attributes:
        seed: of the training.
        cells: photos of each cell (product × defect type), which are drawn equally often.
        products: of every photo.
        defect_types: of every photo, from 0.
        load: indices of photos -> uint8 (n, H, W, C), with masks a channel more.
        mirror: whether photos are flipped, every other time.
        normal: sizes of the backbone's randomness.
        defect: of the residual blocks'; of nothing in stage 1.
    """

    seed: int
    cells: Sequence[NDArray[np.int64]]
    products: NDArray[np.int64]
    defect_types: NDArray[np.int64]
    load: Load
    mirror: bool
    normal: LatentSizes
    defect: LatentSizes = NO_LATENTS

    def __call__(self, numbers: Sequence[int]) -> dict[str, np.ndarray]:
        """The fields of a `GANBatch` of N numbers, its photos uint8 (N, H, W, C or C + 1)."""
        streams = [
            np.random.Generator(np.random.Philox(key=np.array([self.seed, n], np.uint64))) for n in numbers
        ]
        photos = [self._pick(random) for random in streams]
        pixels = self.load(photos)
        flips = [self.mirror and random.random() < 0.5 for random in streams]
        rows = [self._draw(random) for random in streams]
        return {
            "numbers": np.array(numbers, np.int64),
            "x": np.stack(
                [image[:, ::-1] if flip else image for image, flip in zip(pixels, flips, strict=True)]
            ),
            "product": self.products[photos],
            "defect_type": self.defect_types[photos],
            **{name: np.stack([row[name] for row in rows], axis=-2) for name in rows[0]},
        }

    def _pick(self, random: np.random.Generator) -> int:
        cell = self.cells[int(random.integers(len(self.cells)))]
        return int(cell[int(random.integers(len(cell)))])

    def _draw(self, random: np.random.Generator) -> dict[str, np.ndarray]:
        """One image's: each array but the last axis stands before the axis of images."""
        found: dict[str, np.ndarray] = {}
        for name, sizes in (("normal", self.normal), ("defect", self.defect)):
            found[f"{name}_z"] = random.standard_normal((2, 2, sizes.latent_dim), np.float32)
            found[f"{name}_mixing"] = random.random((2, 2), np.float32)
            found[f"{name}_noise"] = random.standard_normal((2, sizes.noise_size), np.float32)
        found["uniforms"] = random.random((_VIEWS, NUM_DRAWS), np.float32)
        found["gaussians"] = random.standard_normal((_VIEWS, NUM_DRAWS), np.float32)
        return found


def cells_of(photos: DefectSet) -> list[np.ndarray]:
    """Indices of the photos of each product × defect type that has some."""
    keys = np.stack([photos.product_numbers, photos.domains], axis=1)
    return [np.flatnonzero((keys == key).all(axis=1)) for key in np.unique(keys, axis=0)]


def to_gan_batch(fields: Mapping[str, np.ndarray], channels: int, device: torch.device) -> GANBatch:
    """A `GANBatchMaker`'s arrays as tensors on a device; `channels` are the image's, a mask stands behind."""
    # The draws stay on the CPU: augmentation looks at them to see what there is to do; and numbers, of which
    # random streams begin.
    on_cpu = ("uniforms", "gaussians", "numbers")
    t = {
        name: sent(
            torch.from_numpy(np.ascontiguousarray(array)), torch.device("cpu") if name in on_cpu else device
        )
        for name, array in fields.items()
    }
    pixels = images.to_model(t["x"])

    def latents(name: str) -> tuple[Latents, Latents]:
        def of(role: int) -> Latents:
            z, other = t[f"{name}_z"][role]
            return Latents(z, other, t[f"{name}_mixing"][role], t[f"{name}_noise"][role])

        return of(DISCRIMINATOR), of(GENERATOR)

    return GANBatch(
        numbers=t["numbers"],
        x=pixels[:, :channels],
        masks=pixels[:, channels:],
        product=t["product"],
        defect_type=t["defect_type"],
        normals=latents("normal"),
        defects=latents("defect"),
        draws=tuple(zip(t["uniforms"], t["gaussians"], strict=True)),
    )
