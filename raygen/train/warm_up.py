"""A supervised warm-up: within a minute on two CPU cores, a small DT-GAN that is good enough for a demo.

This is *not* the paper's training, whose adversarial objective learns nothing in a minute. It leans on what no
factory has: `raygen.surfaces` photographs the same surface with and without its defect, and so tells the defect
layer of x̃ = B(x) + F(s, c) outright.

* B stays as it is initialized: with `background_skip` it is x, exactly.
* E and the foreground decoder learn F(E(x_defect)) ≈ x_defect - x_normal.
* M learns to give E's codes. From a z without meaning it would learn their mean; so z is paired with what a
  single defect looks like (centre, lean, extent, …), each number brought to N(0, 1), M's own prior.

What to expect: reference-guided scratches and spots stand where the reference has them, a little soft, faint ones
fainter. Latent-guided images have one defect each; their scratches lie within 45° of the vertical, because a
line at any angle is more than M learns in the time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
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
from raygen.models.blocks import Noise, ResidualUnit, compose_resampling, leaky
from raygen.models.dtgan import PRESETS, Generator, MappingNetwork, StyleContentEncoder
from raygen.records import digest
from raygen.surfaces import DEFECT_TYPES, PRODUCTS, render_defect, render_normal

# A content trunk for each defect type: lines and blobs get into each other's way in one.
SIZES = replace(
    PRESETS["small-64"],
    num_products=len(PRODUCTS),
    num_domains=1 + len(DEFECT_TYPES),
    shared_content_trunk=False,
)
NUM_SINGLES = 800
"""Images of each defect type from which M learns."""


def warm_up(
    uri: str,
    *,
    seed: int = 0,
    steps: int = 500,
    pairs_per_cell: int = 200,
    references_per_cell: int = 8,
    say: Callable[[str], None] = print,
) -> Checkpoint:
    """Trains E, F and M on procedural pairs and writes a checkpoint; the same arguments give the same one,
    on one kind of machine.

    One thread computes: at these sizes a second one saves next to nothing, and loses much where others use the
    cores too; and the result does not depend on how many there are.

    Args:
        uri: the checkpoint's folder.
        seed: of the surfaces, the initial weights and the order of the images.
        steps: of E and F, 4 images each; M gets four times as many, 16 codes each.
        pairs_per_cell: training pairs for each product and defect type.
        references_per_cell: held-out reference images for each product and defect type.
        say: told of the progress, a line at a time.
    """
    say(f"warm-up: rendering {pairs_per_cell * len(PRODUCTS) * len(DEFECT_TYPES)} procedural pairs")
    pairs = _render_pairs("train", seed, pairs_per_cell)
    with torch.random.fork_rng(devices=[]), _one_thread():
        torch.manual_seed(seed)
        generator, encoder, mapping = Generator(SIZES), StyleContentEncoder(SIZES), MappingNetwork(SIZES)
        for network in (generator, encoder):
            compose_resampling(network)
        _train_layers(generator, encoder, pairs, steps, say)
        _train_mapping(mapping, encoder, pairs, 4 * steps, say)
        bank = _render_pairs("reference", seed, references_per_cell)
        style, content = _encode(encoder, bank.defect, bank.domain)
    config = CheckpointConfig(
        family="dtgan",
        model=asdict(SIZES),
        image_size=SIZES.image_size,
        channels=SIZES.channels,
        products=PRODUCTS,
        defect_types=DEFECT_TYPES,
        images_seen=4 * steps,
        trained_on=f"supervised warm-up on {len(pairs.defect)} procedural pairs, with and without their defect"
        f" (raygen.surfaces, seed {seed}); not the paper's adversarial objective",
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
    for _ in range(steps):
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


def _keep_in(features: list[Tensor]) -> Callable[[nn.Module, object, Tensor], None]:
    """A forward hook that appends a unit's output."""
    return lambda _unit, _input, output: features.append(output)


class Singles(NamedTuple):
    """N images with one defect each, and E's codes of them."""

    mask: Tensor  # (N, 1, S, S), 0 or 1
    z: Tensor  # (N, latent_dim): what the defect looks like
    style: Tensor  # (N, style_dim)
    content: Tensor  # (N, content_channels, 16, 16)
    style_scale: Tensor  # standard deviations of all their numbers, ()
    content_scale: Tensor


def _train_mapping(
    mapping: MappingNetwork,
    encoder: StyleContentEncoder,
    pairs: Pairs,
    steps: int,
    say: Callable[[str], None],
) -> None:
    """Trains M(z) ≈ E(x), where z tells what the defect in x looks like."""
    singles = {domain: _single_defects(encoder, pairs, domain) for domain in range(1, SIZES.num_domains)}
    # M's coarse maps must find the place before its fine ones can draw: each is asked where the defect is and
    # how it leans. Without this, many a latent scratch stays an X.
    features: list[Tensor] = []
    units = [unit for unit in mapping.content_trunks.modules() if isinstance(unit, ResidualUnit)]
    hooks = [unit.register_forward_hook(_keep_in(features)) for unit in units]
    guides = nn.ModuleList(nn.Conv2d(unit.conv2.out_channels, 2, 1) for unit in units[:4])
    for noise in mapping.modules():
        if isinstance(noise, Noise):  # a regression can only unlearn it, and first it hides the signal
            nn.init.zeros_(noise.strength)

    optimizer, schedule = _adam([*mapping.parameters(), *guides.parameters()], 1e-2, steps)
    losses = []
    for step in range(steps):
        domain = (1, 2, 1)[step % 3]  # scratches take more steps than spots
        mask, z, style, content, style_scale, content_scale = singles[domain]
        rows = torch.randint(len(z), (16,))
        mask, lean = mask[rows], z[rows, 2, None, None, None]
        features.clear()
        made_style, made_content = mapping.for_domain(z[rows], domain)
        near = 1 + 10 * F.max_pool2d(mask, 4)  # (16, 1, 16, 16)
        content_error = ((made_content - content[rows]) / content_scale).square() * (near / near.mean())
        loss = ((made_style - style[rows]) / style_scale).square().mean() + 3 * content_error.mean()
        for guide, feature in zip(guides, features, strict=True):
            share = F.adaptive_avg_pool2d(3 * mask, feature.shape[-1])
            share = torch.cat([share, share * lean], dim=1)
            touched = F.adaptive_max_pool2d(mask, feature.shape[-1])
            loss = loss + ((guide(leaky(feature)) - share).square() * (1 + 5 * touched)).mean()
        _descend(optimizer, schedule, loss)
        losses.append(loss.item())
        _report("latents", losses, steps, say)
    for hook in hooks:
        hook.remove()


def _single_defects(encoder: StyleContentEncoder, pairs: Pairs, domain: int) -> Singles:
    """Moves defects that are alone on their image, and easy to see, over the normals.

    The first numbers of z are what the defect looks like by rank, as quantiles of N(0, 1); the others are random.
    """
    layer, look = pairs.defect - pairs.normal, _moments(pairs.mask)
    clear = look.alone & (look.area > 8) & (_strength(layer, pairs.mask).abs() > 0.15)
    rows = (clear & (pairs.domain == domain)).nonzero()[:, 0]
    assert len(rows) > 0, "too few pairs: none has a single defect"
    rows = rows[torch.randint(len(rows), (NUM_SINGLES,))]

    layer = layer * F.max_pool2d(pairs.mask, 7, 1, 3)  # without the grain of what is far from the defect
    both = torch.cat([layer, pairs.mask], dim=1)[rows]  # (N, 2, S, S)
    flat = look.height[rows] < look.width[rows]
    both = torch.where(flat[:, None, None, None], both.transpose(2, 3), both)
    both = torch.where(torch.rand(len(rows), 1, 1, 1) < 0.5, both.flip(3), both)
    look = _moments(both[:, 1:])
    reach = 16 if DEFECT_TYPES[domain - 1] == "scratches" else 24  # of a centre from the middle, px
    way = torch.empty(len(rows), 2).uniform_(-reach, reach) - torch.stack([look.y, look.x], dim=1)
    moved = [item.roll(steps, (1, 2)) for item, steps in zip(both, way.round().int().tolist(), strict=True)]
    layer, mask = torch.stack(moved).split(1, dim=1)

    whole = _moments(mask).alone  # not cut in two by the border
    x, mask, layer = (pairs.normal[rows] + layer).clamp(-1, 1)[whole], mask[whole], layer[whole]
    look = _moments(mask)
    looks = [look.x, look.y, look.lean, look.width + look.height, look.area, _strength(layer, mask)]
    z = torch.randn(len(mask), SIZES.latent_dim)
    for column, values in enumerate(looks):
        z[:, column] = torch.special.ndtri((values.argsort().argsort() + 0.5) / len(values))
    style, content = _encode(encoder, x, torch.full((len(x),), domain))
    return Singles(mask, z, style, content, style.std(), content.std())


def _strength(layer: Tensor, mask: Tensor) -> Tensor:
    """How much brighter N defects are than their surfaces, in the mean: (N,)."""
    return (layer * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3)).clamp_min(1)


class Moments(NamedTuple):
    """What N masks look like, (N,) each; lengths in px."""

    area: Tensor
    x: Tensor  # of the centre, from the middle of the image
    y: Tensor
    width: Tensor  # variance along x
    height: Tensor  # variance along y
    lean: Tensor  # covariance over the sum of variances, -1/2 to 1/2: of a line, sin(2 · angle) / 2
    alone: Tensor  # bool: one piece


def _moments(mask: Tensor) -> Moments:
    """First and second moments of masks (N, 1, S, S)."""
    grid = torch.arange(mask.shape[-1]) - (mask.shape[-1] - 1) / 2
    along_x, along_y = mask.sum((1, 2)), mask.sum((1, 3))  # (N, S)
    area = along_x.sum(1).clamp_min(1)
    x, y = along_x @ grid / area, along_y @ grid / area
    width = along_x @ grid.square() / area - x * x
    height = along_y @ grid.square() / area - y * y
    both = torch.einsum("nij,i,j->n", mask[:, 0], grid, grid) / area - x * y
    # A shape of one piece fills the ellipse of its second moments, more or less.
    alone = 4 * pi * (width * height - both * both).clamp_min(0).sqrt() < 2 * area
    return Moments(area, x, y, width, height, both / (width + height).clamp_min(1e-3), alone)


# ---------------------------------------------------------------------------------------------- training tools


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@torch.no_grad()
def _encode(encoder: StyleContentEncoder, x: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
    """Styles (N, style_dim) and contents (N, content_channels, 16, 16), a few images at a time."""
    parts = [encoder(*part) for part in zip(x.split(16), domain.split(16), strict=True)]
    styles, contents = zip(*parts, strict=True)
    return torch.cat(styles), torch.cat(contents)


def _adam(
    parameters: list[Tensor], rate: float, steps: int
) -> tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LRScheduler]:
    """Adam, its rate raised over 20 steps and lowered along a cosine."""
    optimizer = torch.optim.Adam(parameters, lr=rate, betas=(0.9, 0.99), fused=True)
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
