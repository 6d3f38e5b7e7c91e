"""StyleGAN2's vital signs: do images obey z, are they as unlike each other as photos, does D learn?

Images are those of the averaged weights, which samples will be made by; D is met as it is now by fakes of the
backbone as it is now, through the augmentation of now, since that is the game that teaches it.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from raygen.families.photos import DefectSet
from raygen.families.stylegan2.ada import NUM_DRAWS, AugmentConfig, augment
from raygen.families.stylegan2.config import AdaptiveConfig
from raygen.families.stylegan2.networks import Discriminator
from raygen.families.stylegan2.step import StyleGAN2Training
from raygen.families.vital_signs import (
    NUM_PHOTOS,
    Latents,
    Signs,
    Threshold,
    in_parts,
    load,
    mean_distance,
    means,
    of_discriminator,
    ratio,
    share_of_variance,
    some,
    thresholds_of_discriminator,
)

_LATENTS, _NOISES = 6, 3  # of the layout that tells z's share
_MAX_PRODUCTS = 4  # that images are drawn of
_PER_PRODUCT = 16

OF_DISCRIMINATOR = (
    *thresholds_of_discriminator(
        teach="lower r1_gamma or adaptive.target, or raise lr",
        restrain="raise r1_gamma, or lower adaptive.full_range, so that augmentation follows sooner",
        widen="bring more photos, or lower adaptive.full_range, so that augmentation follows sooner",
    ),
    Threshold(
        "augmentation",
        "augmentation is so likely that it shows in the images",
        "bring more photos, set mirror = true if that is right, or raise r1_gamma",
        above=0.85,
        since=0.1,
    ),
)

THRESHOLDS = (
    Threshold(
        "image/z_share",
        "images ignore z: noise alone tells them apart",
        "lower lr, or raise style_mixing",
        below=0.05,
        since=0.05,
        deadly=True,
    ),
    Threshold(
        "diversity/of_real",
        "all latents draw nearly the same image",
        "raise r1_gamma, bring more photos, or begin_with a training that went well",
        below=0.2,
        since=0.1,
        deadly=True,
    ),
    *OF_DISCRIMINATOR,
)


@torch.no_grad()
def vital_signs(
    training: StyleGAN2Training, learning: DefectSet, judged: DefectSet, config: AdaptiveConfig, seed: int
) -> Signs:
    """Arguments as in `raygen.families.family.Trainer.vital_signs`."""
    sizes, device = training.average.config, training.path_mean.device
    of_products: list[Signs] = []
    step = -(-sizes.num_products // _MAX_PRODUCTS)
    for product in range(0, sizes.num_products, step):
        latents = Latents(seed, product, device)
        z = latents.normal(_LATENTS, sizes.latent_dim).repeat_interleave(_NOISES, dim=0)
        label = torch.full((len(z),), product, device=device)
        drawn = in_parts(training.average, z, label, latents.normal(len(z), sizes.noise_size))
        drawn = drawn.unflatten(0, (_LATENTS, _NOISES))
        rows = [i for i, number in enumerate(learning.product_numbers) if number == product]
        rows = rows[:: max(1, len(rows) // _PER_PRODUCT)][:_PER_PRODUCT]
        of_real = ratio(mean_distance(drawn[:, 0]), mean_distance(load(learning, rows, sizes, device)))
        of_products.append({"image/z_share": share_of_variance(drawn), "diversity/of_real": of_real})

    def photos(which: DefectSet) -> Labelled:
        rows = some(which)
        label = torch.tensor([which.product_numbers[i] for i in rows], device=device)
        return Labelled(load(which, rows, sizes, device), label)

    latents = Latents(seed, sizes.num_products, device)
    real = photos(judged)
    z, noise = (latents.normal(len(real.label), size) for size in (sizes.latent_dim, sizes.noise_size))
    fakes = Labelled(in_parts(training.backbone, z, real.label, noise), real.label)
    learned = None if judged is learning else photos(learning)
    p = training.controller.p
    game = game_signs(training.discriminator, real, fakes, learned, config, p, latents)
    return {**means(of_products), **means([game]), "augmentation": p}


class Labelled(NamedTuple):
    """Images and what D is told of them."""

    images: Tensor  # (N, C, H, W)
    label: Tensor  # (N,), long


def game_signs(
    discriminator: Discriminator,
    real: Labelled,
    fakes: Labelled,
    learned: Labelled | None,
    config: AdaptiveConfig,
    p: float,
    latents: Latents,
) -> Signs:
    """D's signs, see `of_discriminator`, of at most NUM_PHOTOS images of a kind, as D sees them: augmented with
    probability p."""
    normals = latents.normal(NUM_PHOTOS, NUM_DRAWS)
    uniforms = torch.special.ndtr(latents.normal(NUM_PHOTOS, NUM_DRAWS)).clamp(max=1 - 1e-7)
    transforms = AugmentConfig(**config.transforms)

    def logits(some: Labelled) -> Tensor:
        draws = uniforms[: len(some.label)], normals[: len(some.label)]
        return in_parts(discriminator, augment(some.images, *draws, p, transforms), some.label)

    return of_discriminator(logits(real), logits(fakes), None if learned is None else logits(learned))
