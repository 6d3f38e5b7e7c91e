"""DFM-GAN's vital signs: do defects obey their z, do masks lie where the change is, does D learn?

Defects are those of the averaged weights, which samples will be made by; D is met as in stage 1.
"""

import math

import torch
from torch import Tensor

from raygen.families.dfmgan.networks import DFMGANGenerator, full_mask
from raygen.families.dfmgan.step import DFMGANTraining
from raygen.families.photos import DefectSet, loader
from raygen.families.stylegan2.config import AdaptiveConfig
from raygen.families.stylegan2.networks import repeat_w
from raygen.families.stylegan2.vital_signs import OF_DISCRIMINATOR, Labelled, game_signs
from raygen.families.vital_signs import (
    Latents,
    Signs,
    Threshold,
    in_parts,
    load,
    mean_distance,
    means,
    ratio,
    share_of_variance,
    some,
)

_LATENTS, _NOISES = 6, 3  # of the layout that tells z's share
_MAX_TYPES = 4
_NUM_DRAWN = 16

THRESHOLDS = (
    Threshold(
        "defect/z_share",
        "defects ignore their z: noise alone tells them apart",
        "set model.place_map = true and model.noise = false, or raise mode_seeking",
        below=0.1,
        since=0.1,
        deadly=True,
    ),
    Threshold(
        "diversity/of_change",
        "all latents draw nearly the same defect on a normal",
        "raise mode_seeking, or bring more defects",
        below=0.1,
        since=0.2,
        deadly=True,
    ),
    Threshold(
        "mask_area/of_real",
        "masks are blank, and no defects are drawn",
        "lower match (0.2), or raise mode_seeking",
        below=0.02,
        since=0.2,
        deadly=True,
    ),
    Threshold(
        "mask_area/of_real",
        "masks are far larger than real ones",
        "raise match, or lower mode_seeking",
        above=5,
        since=0.2,
    ),
    Threshold(
        "mask/on_change",
        "masks do not lie where the image changes",
        "raise match, or model.start, so that masks are finer",
        below=0.5,
        since=0.3,
    ),
    *OF_DISCRIMINATOR,
)


@torch.no_grad()
def vital_signs(
    training: DFMGANTraining, learning: DefectSet, judged: DefectSet, config: AdaptiveConfig, seed: int
) -> Signs:
    """Arguments as in `raygen.families.family.Trainer.vital_signs`."""
    generator, device = training.average, next(training.average.parameters()).device
    sizes, backbone = generator.config, generator.config.backbone

    of_types: list[Signs] = []
    for kind in range(0, sizes.num_types, -(-sizes.num_types // _MAX_TYPES)):
        latents = Latents(seed, kind, device)
        products = torch.arange(_NUM_DRAWN, device=device) % backbone.num_products
        _, change, mask = _drawn(generator, latents, products, kind)
        covered = (change.abs() * mask).sum().item()
        real = loader(learning.photos, backbone, in_memory=False, masks="all")(some(learning, kind + 1))
        area, of_real = mask.mean().item(), float((real[..., -1] > 127).mean())
        of_types.append(
            {
                "mask_area": area,
                "mask_area/of_real": ratio(area, of_real),
                "mask/on_change": ratio(covered, change.abs().sum().item()),
                **_obedience(generator, latents, kind),
            }
        )

    def photos(which: DefectSet) -> Labelled:
        """Their labels are D's: product × type."""
        rows = some(which)
        labels = [which.product_numbers[i] * sizes.num_types + which.domains[i] - 1 for i in rows]
        return Labelled(load(which, rows, backbone, device), torch.tensor(labels, device=device))

    latents = Latents(seed, sizes.num_types, device)
    real = photos(judged)
    images, _, _ = _drawn(
        training.generator, latents, real.label // sizes.num_types, real.label % sizes.num_types
    )
    learned = None if judged is learning else photos(learning)
    p = training.controller.p
    fakes = Labelled(images, real.label)
    game = game_signs(training.discriminator, real, fakes, learned, config, p, latents)
    return {**means(of_types), **means([game]), "augmentation": p}


def _obedience(generator: DFMGANGenerator, latents: Latents, kind: int) -> Signs:
    """How far defects on one and the same normal are their z's."""
    n = _LATENTS * _NOISES
    product = torch.zeros(n, dtype=torch.long, device=latents.device)
    change = _drawn(generator, latents, product, kind, num_normals=1, num_latents=_LATENTS)[1]
    change = change.unflatten(0, (_LATENTS, _NOISES))
    strength = change[:, 0].abs().mean().item()
    return {
        # Without noise there is nothing that z could lose to.
        "defect/z_share": share_of_variance(change) if generator.config.noise else math.nan,
        "diversity/of_change": ratio(mean_distance(change[:, 0]), strength),
    }


def _drawn(
    generator: DFMGANGenerator,
    latents: Latents,
    product: Tensor,
    kind: Tensor | int,
    num_normals: int | None = None,
    num_latents: int | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """N defects: images, what the defect changes of them, (N, C, H, W), and masks, (N, 1, H, W), 1 on the defect.

    Args:
        generator: G.
        latents: what they are drawn from.
        product: (N,).
        kind: defect types, (N,), or one of all.
        num_normals: of different ones, each for as many defects in turn; default: N.
        num_latents: of different z of defects, likewise; each defect has a noise of its own.
    """
    n, sizes = len(product), generator.config
    channels = sizes.backbone.channels

    def spread(count: int | None, size: int) -> Tensor:
        return latents.normal(count or n, size).repeat_interleave(n // (count or n), dim=0)

    def draw(z: Tensor, noise: Tensor, defect_z: Tensor, defect_noise: Tensor, *labels: Tensor) -> Tensor:
        ws = repeat_w(generator.backbone.mapping(z, labels[0]), sizes.backbone.num_ws)
        normals = generator.begin(ws, noise)
        made = generator.finish(normals, ws, noise, generator.defect_ws(defect_z, labels[1]), defect_noise)
        mask = full_mask(made.mask, sizes.backbone.image_size) >= 0
        change = made.image - generator.plain(normals, ws, noise)
        return torch.cat([made.image, change, mask.to(change)], dim=1)

    drawn = in_parts(
        draw,
        spread(num_normals, sizes.backbone.latent_dim),
        spread(num_normals, sizes.backbone.noise_size),
        spread(num_latents, sizes.backbone.latent_dim),
        latents.normal(n, sizes.noise_size),
        product,
        product * 0 + kind,
    )
    image, change, mask = drawn.split([channels, channels, 1], dim=1)
    return image, change, mask
