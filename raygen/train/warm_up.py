"""A supervised warm-up: within a minute on two CPU cores, a small DT-GAN that is good enough for a demo.

This is *not* the paper's training, whose adversarial objective learns nothing in a minute. It leans on what no
factory has: `raygen.surfaces` photographs the same surface with and without its defect, and so tells the defect
layer of x̃ = B(x) + F(s, c) outright.

* B stays as it is initialized: with `background_skip` it is x, exactly.
* E and the foreground decoder learn F(E(x_defect)) ≈ x_defect - x_normal.
* M learns to give E's codes. Regressed on a z without meaning it would give their mean; so z is paired with
  what a single defect looks like (centre, lean, extent, …), each brought to N(0, 1), M's own prior.

What to expect: reference-guided scratches and spots stand where the reference has them, a little blurred.
Latent-guided images have one defect each, blurred more; their scratches lie within 45° of the vertical, because
a line at any angle is more than M learns in the time.
"""

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from math import cos, pi, sqrt
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen import images
from raygen.checkpoint import (
    GENERATOR,
    REFERENCE_CODES,
    Checkpoint,
    CheckpointConfig,
    Reference,
    save_checkpoint,
)
from raygen.models.dtgan import (
    PRESETS,
    DTGANConfig,
    Generator,
    MappingNetwork,
    Noise,
    ResidualUnit,
    StyleContentEncoder,
    leaky,
    upsample,
)
from raygen.models.dtgan_folded import pooled_kernel, upsampled_kernel
from raygen.records import digest
from raygen.surfaces import DEFECT_TYPES, PRODUCTS, render_defect, render_normal

# A content trunk for each defect type: lines and blobs get into each other's way in one.
SIZES = replace(
    PRESETS["small-64"],
    num_products=len(PRODUCTS),
    num_domains=1 + len(DEFECT_TYPES),
    shared_content_trunk=False,
)


def warm_up(
    uri: str,
    *,
    seed: int = 0,
    steps: int = 700,
    pairs_per_cell: int = 200,
    references_per_cell: int = 8,
    say: Callable[[str], None] = print,
) -> Checkpoint:
    """Trains E, F and M on procedural pairs and writes a checkpoint; the same arguments give the same one
    (on one kind of machine, with one number of torch threads).

    Args:
        uri: the checkpoint's folder.
        seed: of the surfaces, the initial weights and the order of the images.
        steps: of E and F, 4 images each; M gets twice as many, 16 codes each.
        pairs_per_cell: training pairs for each product and defect type.
        references_per_cell: held-out reference images for each product and defect type.
        say: told of the progress, a line at a time.
    """
    say(f"warm-up: rendering {pairs_per_cell * len(PRODUCTS) * len(DEFECT_TYPES)} procedural pairs")
    pairs = _render_pairs("train", seed, pairs_per_cell)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        generator, encoder, mapping = Generator(SIZES), StyleContentEncoder(SIZES), MappingNetwork(SIZES)
        for network in (generator, encoder, mapping):
            _compose(network)
        _train_layers(generator, encoder, pairs, steps, say)
        for domain in range(1, SIZES.num_domains):
            _train_mapping(mapping, encoder, pairs, domain, steps, say)

    bank = _render_pairs("reference", seed, references_per_cell)
    style, content = _encode(encoder, bank.defect, bank.domain)
    num_images = 2 * len(pairs.defect)
    config = CheckpointConfig(
        family="dtgan",
        model=asdict(SIZES),
        image_size=SIZES.image_size,
        channels=SIZES.channels,
        products=PRODUCTS,
        defect_types=DEFECT_TYPES,
        images_seen=4 * steps,
        trained_on=f"supervised warm-up on {len(pairs.defect)} procedural pairs, with and without their defect"
        f" ({num_images} images of raygen.surfaces, seed {seed}); not the paper's adversarial objective",
    )
    networks = {"generator": generator, "mapping": mapping, "encoder": encoder}
    weights = {
        f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()
    }
    codes = {"style": style, "content": content}
    return save_checkpoint(uri, config, {GENERATOR: weights, REFERENCE_CODES: codes}, bank.references)


# ------------------------------------------------------------------------------------------------- the pairs


class Pairs(NamedTuple):
    """N surfaces with and without their defect, of size S, as the networks take them."""

    defect: Tensor  # (N, 1, S, S) in [-1, 1]
    normal: Tensor  # (N, 1, S, S) in [-1, 1]
    mask: Tensor  # (N, 1, S, S), 0 or 1
    domain: Tensor  # (N,), 1 or 2
    references: tuple[Reference, ...]  # N, what each is


def _render_pairs(part: str, seed: int, per_cell: int) -> Pairs:
    """Renders pairs of every product and defect type; those of two parts or seeds share no surface."""
    size, rows, references = SIZES.image_size, [], []
    for product in PRODUCTS:
        for domain, defect_type in enumerate(DEFECT_TYPES, start=1):
            for number in range(per_cell):
                name = int(digest("warm-up", part, seed, product, defect_type, number, num_bytes=6), 16)
                defect, mask = render_defect(product, defect_type, name, size)
                rows.append((defect, render_normal(product, name, size), mask[:, :, None], domain))
                uri = f"surfaces:{product}/{defect_type}/{name}"
                references.append(Reference(uri=uri, product=product, defect_type=defect_type))
    defects, normals, masks, domains = (
        torch.from_numpy(np.stack(column)) for column in zip(*rows, strict=True)
    )
    masks = masks.permute(0, 3, 1, 2).float().div(255)
    return Pairs(images.to_model(defects), images.to_model(normals), masks, domains, tuple(references))


# ------------------------------------------------------------------------------------------- E and F: layers


def _train_layers(
    generator: Generator, encoder: StyleContentEncoder, pairs: Pairs, steps: int, say: Callable[[str], None]
) -> None:
    """Trains E, the foreground decoder and its half of the fusion on F(E(x_defect)) ≈ x_defect - x_normal."""
    split = SIZES.scaled(SIZES.background_out)  # B's half of the fusion stays zero
    with torch.no_grad():
        generator.fusion.weight[:, split:].normal_(0, 0.1)
    # Straight from the content to its 4×4 pixels: tells E where the defect is long before F can draw it.
    guide = nn.Sequential(nn.Conv2d(SIZES.content_channels, 2 * 4 * 4, 1), nn.PixelShuffle(4))
    parameters = [*encoder.parameters(), *generator.foreground_decoder.parameters(), *guide.parameters()]
    optimizer, schedule = _adam([*parameters, generator.fusion.weight], 4e-3, steps)
    losses = []
    for step in range(steps):
        rows = torch.randint(len(pairs.defect), (4,))
        x, normal, mask = _turned(torch.cat([pairs.defect[rows], pairs.normal[rows], pairs.mask[rows]], 1))
        style, content = encoder(x, pairs.domain[rows])
        layer = x - normal
        weight = 1 + 20 * F.avg_pool2d(F.max_pool2d(mask, 3, 1, 1), 3, 1, 1)  # a defect is 2 % of its image
        error = ((generator.defect_layer(style, content) - layer).square() + 1e-3).sqrt() - sqrt(1e-3)
        hint = guide(content) - torch.cat([mask, 3 * mask * layer], 1)
        loss = (error * weight).mean() + (hint.square() * weight).mean()
        _descend(optimizer, schedule, loss)
        losses.append(loss.item())
        _report("layers", losses, steps, say)


def _turned(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Flips and transposes N stacks of three images at random, all N alike: three of (N, 1, S, S)."""
    flip_x, flip_y, transpose = torch.rand(3) < 0.5
    x = x.flip(3) if flip_x else x
    x = x.flip(2) if flip_y else x
    x = x.transpose(2, 3) if transpose else x
    first, second, third = x.contiguous().split(1, dim=1)
    return first, second, third


# ------------------------------------------------------------------------------------------------- M: latents


def _train_mapping(
    mapping: MappingNetwork,
    encoder: StyleContentEncoder,
    pairs: Pairs,
    domain: int,
    steps: int,
    say: Callable[[str], None],
) -> None:
    """Trains M's branches of one defect type on M(z) ≈ E(x), where z tells what the defect in x looks like."""
    x, mask, z = _single_defects(pairs, domain, 1000)
    style, content = _encode(encoder, x, torch.full((len(x),), domain))
    style_scale, content_scale = style.std(), content.std()
    near = 1 + 10 * F.max_pool2d(mask, 4)  # (N, 1, 16, 16)
    near /= near.mean()

    # M's coarse maps must find the place before its fine ones can draw: each is asked where the defect is.
    features: list[Tensor] = []
    trunk = [block for block in mapping.content_trunks[domain].children() if isinstance(block, ResidualUnit)]
    hooks = [block.register_forward_hook(lambda _m, _x, out: features.append(out)) for block in trunk]
    guides = nn.ModuleList(nn.Conv2d(block.conv2.out_channels, 1, 1) for block in trunk)
    for noise in mapping.modules():
        if isinstance(noise, Noise):  # a regression can only unlearn it, and first it hides the signal
            nn.init.zeros_(noise.strength)

    optimizer, schedule = _adam([*mapping.parameters(), *guides.parameters()], 1e-2, 2 * steps)
    losses = []
    for _ in range(2 * steps):
        rows = torch.randint(len(x), (16,))
        features.clear()
        made_style, made_content = mapping.for_domain(z[rows], domain)
        loss = ((made_style - style[rows]) / style_scale).square().mean()
        loss = loss + 3 * (((made_content - content[rows]) / content_scale).square() * near[rows]).mean()
        for guide, feature in zip(guides, features, strict=True):
            share = F.adaptive_avg_pool2d(3 * mask[rows], feature.shape[-1])
            touched = F.adaptive_max_pool2d(mask[rows], feature.shape[-1])
            loss = loss + ((guide(leaky(feature)) - share).square() * (1 + 5 * touched)).mean()
        _descend(optimizer, schedule, loss)
        losses.append(loss.item())
        _report(f"latents of {DEFECT_TYPES[domain - 1]}", losses, 2 * steps, say)
    for hook in hooks:
        hook.remove()


def _single_defects(pairs: Pairs, domain: int, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Moves defects that are alone on their image over the normals.

    Returns:
        Images (N, 1, S, S) in [-1, 1], their masks, and each one's z (N, latent_dim): its first numbers are
        what the defect looks like by rank, as quantiles of N(0, 1); the others are random.
    """
    look = _moments(pairs.mask)
    # A shape of one piece fills the ellipse of its second moments, 4π√(λ₁λ₂), more or less.
    alone = (pairs.domain == domain) & (look.area > 3) & (look.ellipse < 2 * look.area)
    rows = alone.nonzero()[:, 0]
    assert len(rows) > 0, "too few pairs: none of them has a single defect"
    rows = rows[torch.randint(len(rows), (count,))]
    reach = 16 if DEFECT_TYPES[domain - 1] == "scratches" else 24  # px from the middle
    layer, mask = pairs.defect - pairs.normal, pairs.mask
    layer = layer * F.max_pool2d(mask, 7, 1, 3)
    moved = []
    for row in rows.tolist():
        both = torch.cat([layer[row], mask[row]])  # (2, S, S)
        if look.height[row] < look.width[row]:
            both = both.transpose(1, 2)
        if torch.rand(()) < 0.5:
            both = both.flip(2)
        moved.append(both)
    both = torch.stack(moved)
    look = _moments(both[:, 1:])
    goal = torch.empty(count, 2).uniform_(-reach, reach)
    steps = (goal - torch.stack([look.y, look.x], 1)).round().int()
    both = torch.stack(
        [torch.roll(item, step, (1, 2)) for item, step in zip(both, steps.tolist(), strict=True)]
    )
    layer, mask = both[:, :1], both[:, 1:]

    moments = _moments(mask)
    whole = (moments.width - look.width).abs() + (moments.height - look.height).abs() < 1  # not cut in two
    strength = (layer * mask).sum((1, 2, 3)) / moments.area
    looks = [moments.x, moments.y, moments.lean, moments.width + moments.height, moments.area, strength]
    z = torch.randn(count, SIZES.latent_dim)
    for column, values in enumerate(looks):
        rank = values[whole].argsort().argsort()
        z[whole, column] = torch.special.ndtri((rank + 0.5) / len(rank))
    x = (pairs.normal[rows] + layer).clamp(-1, 1)
    return x[whole], mask[whole], z[whole]


class Moments(NamedTuple):
    """What N masks look like, (N,) each; lengths in px."""

    area: Tensor
    x: Tensor  # of the centre, from the middle of the image
    y: Tensor
    width: Tensor  # variance along x
    height: Tensor  # variance along y
    lean: Tensor  # covariance over the sum of variances, -1/2 to 1/2: of a line, sin(2 · angle) / 2
    ellipse: Tensor  # area of the ellipse of the same moments


def _moments(mask: Tensor) -> Moments:
    """First and second moments of masks (N, 1, S, S)."""
    grid = torch.arange(mask.shape[-1]) - (mask.shape[-1] - 1) / 2
    along_x, along_y = mask.sum((1, 2)), mask.sum((1, 3))  # (N, S)
    area = along_x.sum(1).clamp_min(1)
    x, y = along_x @ grid / area, along_y @ grid / area
    width = along_x @ grid.square() / area - x * x
    height = along_y @ grid.square() / area - y * y
    both = torch.einsum("nij,i,j->n", mask[:, 0], grid, grid) / area - x * y
    ellipse = 4 * pi * (width * height - both * both).clamp_min(0).sqrt()
    return Moments(area, x, y, width, height, both / (width + height).clamp_min(1e-3), ellipse)


# ---------------------------------------------------------------------------------------------- training tools


@torch.no_grad()
def _encode(encoder: StyleContentEncoder, x: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """Styles (N, style_dim) and contents (N, content_channels, 16, 16), a few images at a time."""
    parts = [encoder(*part) for part in zip(x.split(16), domain.split(16), strict=True)]
    styles, contents = zip(*parts, strict=True)
    return torch.cat(styles), torch.cat(contents)


def _adam(
    parameters: list[nn.Parameter], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, its rate raised over 20 steps and lowered along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, (step + 1) / 20) * (0.51 + 0.49 * cos(pi * step / steps))
    )
    return optimizer, schedule


def _descend(
    optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LRScheduler, loss: Tensor
) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()


def _report(what: str, losses: list[float], steps: int, say: Callable[[str], None]) -> None:
    """Says the mean loss of each fifth of the training when it is over."""
    fifth = max(1, steps // 5)
    if len(losses) % fifth == 0:
        say(f"warm-up: {what}, step {len(losses)} of {steps}, loss {sum(losses[-fifth:]) / fifth:.3f}")


def _compose(network: nn.Module) -> None:
    """Makes resampling units twice as fast: convolution and resampling in one kernel, the skip where it is small.

    The same function of the same weights but for rounding, see `dtgan_folded`.
    """
    for unit in network.modules():
        if isinstance(unit, ResidualUnit) and unit.resample is not None:
            unit.first = partial(_composed_first, unit)
            unit.join = partial(_composed_join, unit)


def _composed_first(unit: ResidualUnit, h: Tensor) -> Tensor:
    resample, kernel = (
        (F.conv_transpose2d, upsampled_kernel) if unit.resample == "up" else (F.conv2d, pooled_kernel)
    )
    return resample(leaky(h), kernel(unit.conv1.weight), unit.conv1.bias, stride=2, padding=1)


def _composed_join(unit: ResidualUnit, x: Tensor, h: Tensor) -> Tensor:
    x = upsample(unit.skip(x)) if unit.resample == "up" else unit.skip(F.avg_pool2d(x, 2))
    return (x + h) / sqrt(2)
