"""Vital signs of a training: figures that tell early that it does not learn, and why.

Families measure them at every checkpoint on the same photos and latents. NaN stands for what cannot be told.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raygen import images
from raygen.families.photos import DefectSet, Sizes, loader

NUM_PHOTOS = 32
"""Photos, and drawn images, of a kind that a sign is measured on, at most."""

Signs = dict[str, float]
"""Name of a sign -> its value."""


@dataclass(frozen=True)
class Threshold:
    """Where a sign says that a training is sick."""

    sign: str
    cause: str  # what is wrong then
    mend: str  # what to do about it
    below: float = -math.inf  # sick below
    above: float = math.inf  # or above
    since: float = 0.0  # the shares of the training between which it counts
    until: float = 1.0
    deadly: bool = False  # whether such a training will come to nothing

    def is_crossed(self, signs: Mapping[str, float], progress: float) -> bool:
        """Whether the signs at a share of the training in [0, 1] cross it; not where it cannot be told."""
        value = signs.get(self.sign, math.nan)
        return self.since <= progress <= self.until and (value < self.below or value > self.above)

    def describe(self, signs: Mapping[str, float]) -> str:
        """`content ignores z (content/z_share is 0.01, healthy above 0.2): lower optimizer.mapping_lr …`"""
        value = signs[self.sign]
        healthy = f"above {self.below:g}" if value < self.below else f"below {self.above:g}"
        return f"{self.cause} ({self.sign} is {value:.2g}, healthy {healthy}): {self.mend}"


# ------------------------------------------------------------------------------------------------- the measures


def share_of_variance(values: Tensor) -> float:
    """The share of the variance between rows that the first axis decides, say z, in [0, 1]; 0 if nothing varies.

    Of a one-way layout, without bias: values that noise alone decides give 0 but for chance, however few they are.

    Args:
        values: (Z, N, ...), of Z latents under N noises each; Z and N at least 2.
    """
    if not values.numel():
        return math.nan
    rows = values.double().flatten(2)
    of_noise = rows.var(dim=1).mean(dim=0).sum().item()
    of_z = rows.mean(dim=1).var(dim=0).sum().item() - of_noise / rows.shape[1]
    return of_z / (of_z + of_noise) if of_z > 0 else 0.0


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson's, of what varies between rows: each coordinate is centred first; 0 if nothing varies.

    Args:
        a, b: (N, ...), N at least 2.
    """
    if not a.numel() or len(a) < 2:
        return math.nan
    a, b = (rows.double() - rows.double().mean(dim=0) for rows in (a, b))
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return (a * b).sum().item() / scale if scale > 0 else 0.0


def auc(above: Tensor, below: Tensor) -> float:
    """How often one of `above`, (N,), is larger than one of `below`, (M,); ties count half."""
    if not len(above) or not len(below):
        return math.nan
    apart = above[:, None] - below[None]
    return ((apart > 0).double() + (apart == 0).double() / 2).mean().item()


def overfitting(learned: Tensor, held_back: Tensor, fake: Tensor) -> float:
    """ADA's first heuristic: 0 if D takes photos held back for as real as those learned from, 1 if for fakes.

    NaN where D tells those learned from, (N,), from fakes by less than they spread: then it is a ratio of noises.
    """
    gap = (learned.mean() - fake.mean()).item()
    spread = (torch.cat([learned - learned.mean(), fake - fake.mean()]).square().mean().sqrt()).item()
    return (learned.mean() - held_back.mean()).item() / gap if gap > spread else math.nan


def mean_distance(rows: Tensor) -> float:
    """The mean absolute difference of two different rows of (N, ...)."""
    n, flat = len(rows), rows.float().flatten(1)
    return torch.cdist(flat, flat, p=1).sum().item() / (n * (n - 1) * flat.shape[1]) if n > 1 else math.nan


def ratio(above: float, below: float) -> float:
    """NaN by nothing."""
    return above / below if below else math.nan


def means(of_parts: Sequence[Signs]) -> Signs:
    """Each sign's mean over the parts (types, products) that can tell it; without those that none can."""
    names = dict.fromkeys(name for signs in of_parts for name in signs)
    known = {name: [s[name] for s in of_parts if math.isfinite(s.get(name, math.nan))] for name in names}
    return {name: sum(values) / len(values) for name, values in known.items() if values}


# ------------------------------------------------------------------------------------------ D, in every family


def of_discriminator(real: Tensor, fake: Tensor, learned: Tensor | None) -> Signs:
    """D's signs, from its logits.

    Args:
        real: of photos, held back where there are some.
        fake: of fresh images, without a gradient to learn from.
        learned: of photos that it learns from; None if `real` is of such.
    """
    signs = {"d/gap": (real.mean() - fake.mean()).item(), "d/auc": auc(real, fake)}
    return signs if learned is None else {**signs, "d/overfitting": overfitting(learned, real, fake)}


def thresholds_of_discriminator(teach: str, restrain: str, widen: str) -> tuple[Threshold, ...]:
    """Of D's signs, with a family's own mends: for a D that does not learn, that wins, that overfits.

    An AUC of 0.5 is sick only early: later it may be G's success.
    """
    return (
        Threshold("d/auc", "D does not learn", teach, below=0.55, since=0.15, until=0.5, deadly=True),
        Threshold("d/auc", "D wins, and G has nothing to go by", restrain, above=0.99, since=0.5),
        Threshold("d/overfitting", "D knows its photos by heart", widen, above=0.7, since=0.1),
    )


# ---------------------------------------------------------------------------------------- what they look at


def some(photos: DefectSet, domain: int | None = None, most: int = NUM_PHOTOS) -> list[int]:
    """Indices of photos, of a domain, at even distances, so that every product takes part."""
    rows = [i for i, other in enumerate(photos.domains) if domain in (None, other)]
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else rows


def load(photos: DefectSet, rows: Sequence[int], sizes: Sizes, device: torch.device) -> Tensor:
    """Photos by index, (N, C, H, W) in [-1, 1]."""
    if not rows:
        return torch.empty(0, sizes.channels, sizes.image_size, sizes.image_size, device=device)
    pixels = loader([photos.photos[i] for i in rows], sizes, in_memory=False)([*range(len(rows))])
    return images.to_model(torch.from_numpy(pixels)).to(device)


class Latents:
    """Standard normal numbers, the same at every checkpoint."""

    def __init__(self, seed: int, number: int, device: torch.device) -> None:
        self.device = device
        self.random = np.random.Generator(np.random.Philox(key=np.array([seed, number], np.uint64)).jumped(4))

    def normal(self, *shape: int) -> Tensor:
        """The next ones."""
        return torch.from_numpy(self.random.standard_normal(shape, np.float32)).to(self.device)


def in_parts(function: Callable[..., Tensor], *rows: Tensor, size: int = 8) -> Tensor:
    """A function of rows, some at a time, so that memory does not grow with them; (N, ...)."""
    return torch.cat([function(*part) for part in zip(*(tensor.split(size) for tensor in rows), strict=True)])
