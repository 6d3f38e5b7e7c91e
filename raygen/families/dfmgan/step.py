"""Training DFM-GAN's stage 2: residual blocks learn a few defects with masks, the backbone stays as it is.

G's terms are D's judgement of the image, D_match's of image and mask together, and mode seeking, which keeps masks
apart: softplus(-D) + λ_match · softplus(-D_match) + λ_ms · |w - w'| / |m - m'|.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from raygen.families import losses
from raygen.families.blocks import channels_last, frozen
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dfmgan.networks import SHARPNESS, DFMGANConfig, DFMGANGenerator, build_matcher, full_mask
from raygen.families.stylegan2.ada import Controller
from raygen.families.stylegan2.batches import DISCRIMINATOR, GENERATOR, GANBatch
from raygen.families.stylegan2.networks import Discriminator, build_discriminator
from raygen.families.stylegan2.step import (
    FAKE,
    OWN,
    REAL,
    GANTraining,
    adam,
    adjust,
    autocast,
    average_keep,
    move_average,
    r1_weight,
    seen_by,
    step,
    styles,
    track_w,
)
from raygen.families.world import Terms, World

_EPSILON = 1e-5  # of |m - m'|: two masks may be the same; the original has none, and drops what is not finite


@dataclass
class DFMGANTraining(GANTraining):
    """All that changes while a training of stage 2 runs."""

    NAMES = ("generator", "discriminator", "matcher", "average")

    generator: DFMGANGenerator
    discriminator: Discriminator
    matcher: Discriminator
    average: DFMGANGenerator  # moving average of the generator, for generation
    optimizers: dict[str, torch.optim.Optimizer]
    controller: Controller
    images_seen: int = 0

    @classmethod
    def start(
        cls,
        config: DFMGANTrainConfig,
        sizes: DFMGANConfig,
        device: torch.device,
        backbone: Mapping[str, Tensor],
        discriminator: Mapping[str, Tensor],
    ) -> "DFMGANTraining":
        """A training at its first image, on the weights of stage 1."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            generator, judge, matcher = (
                DFMGANGenerator(sizes),
                build_discriminator(sizes.backbone),
                build_matcher(sizes),
            )
        generator.backbone.load_state_dict(backbone)
        judge.load_state_dict(discriminator)
        # A label for every product × type; each begins as its product.
        judge.widen(
            [cell // sizes.num_types for cell in range(sizes.backbone.num_products * sizes.num_types)]
        )
        for network in (generator, judge, matcher):
            channels_last(network)
            network.to(device)
        optimizers: dict[str, torch.optim.Optimizer] = {
            "generator": torch.optim.Adam(
                generator.manipulation.parameters(), config.lr, config.betas, eps=1e-8, fused=True
            ),
            "discriminator": adam(judge, config, config.r1_every),
            "matcher": adam(matcher, config, config.r1_every),
        }
        average = copy.deepcopy(generator).eval().requires_grad_(False)
        return cls(generator, judge, matcher, average, optimizers, Controller())


@dataclass(frozen=True)
class _Drawn:
    """Generated defects, and what they were made of."""

    image: Tensor  # (N, C, H, W)
    mask: Tensor  # (N, 1, H, W), as D_match sees it: tanh(10 · raw)
    seeking: Tensor  # (): the mode-seeking term


def iterate(training: DFMGANTraining, batch: GANBatch, config: DFMGANTrainConfig, world: World) -> Terms:
    """One iteration on this process's share of a batch; see `raygen.families.family.Trainer.stepper`."""
    generator, discriminator, matcher = training.generator, training.discriminator, training.matcher
    sizes, p = generator.config, training.controller.p
    batch_size = len(batch.x) * world.size
    number = training.images_seen // batch_size
    cell = batch.product * sizes.num_types + batch.defect_type
    cast = autocast(config, batch.x.device)
    terms: Terms = {}

    with frozen(discriminator, matcher), cast:
        drawn = _draw(generator, batch, GENERATOR, config, world)
        logits = discriminator(seen_by(drawn.image, batch, OWN, p, config.adaptive), cell)
        terms["G/adversarial"] = losses.adversarial(logits, real=True)
        total = terms["G/adversarial"]
        if config.match:
            judged = matcher(torch.cat([drawn.image, drawn.mask], dim=1), batch.defect_type)
            terms["G/match"] = losses.adversarial(judged, real=True)
            total = total + config.match * terms["G/match"]
        if config.mode_seeking:
            terms["G/mode_seeking"] = drawn.seeking
            total = total + config.mode_seeking * drawn.seeking
    terms["mask_area"] = (drawn.mask >= 0).float().mean()
    step(training.optimizers["generator"], total, world)

    with torch.no_grad(), cast:
        fakes = _draw(generator, batch, DISCRIMINATOR, config, world)
    with cast:
        on_real = discriminator(seen_by(batch.x, batch, REAL, p, config.adaptive), cell)
        on_fakes = discriminator(seen_by(fakes.image, batch, FAKE, p, config.adaptive), cell)
        terms["D/real"] = losses.adversarial(on_real, real=True)
        terms["D/fake"] = losses.adversarial(on_fakes, real=False)
    step(training.optimizers["discriminator"], terms["D/real"] + terms["D/fake"], world)
    with_match = torch.cat([batch.x, batch.masks], dim=1)
    if config.match:
        with cast:
            on_pairs = matcher(with_match, batch.defect_type)
            on_fake_pairs = matcher(torch.cat([fakes.image, fakes.mask], dim=1), batch.defect_type)
            terms["D_match/real"] = losses.adversarial(on_pairs, real=True)
            terms["D_match/fake"] = losses.adversarial(on_fake_pairs, real=False)
        step(training.optimizers["matcher"], terms["D_match/real"] + terms["D_match/fake"], world)
    if number % config.r1_every == 0:
        weight = r1_weight(config, sizes.backbone.image_size, batch_size) * config.r1_every
        x = batch.x.detach().requires_grad_()
        terms["D/r1"] = losses.r1(discriminator(seen_by(x, batch, REAL, p, config.adaptive), cell), x)
        step(training.optimizers["discriminator"], weight * terms["D/r1"], world)
        if config.match:
            pairs = with_match.detach().requires_grad_()
            terms["D_match/r1"] = losses.r1(matcher(pairs, batch.defect_type), pairs)
            step(training.optimizers["matcher"], weight * terms["D_match/r1"], world)

    adjust(training.controller, on_real, config.adaptive, world, number)
    terms["augmentation"] = torch.full((), training.controller.p, device=batch.x.device)
    track_w(
        generator.manipulation.mapping,
        training.average.manipulation.mapping,
        batch.defects[GENERATOR].z,
        batch.defect_type,
        world,
    )
    keep = average_keep(config, training.images_seen, batch_size)
    move_average(training.average.manipulation, generator.manipulation, keep)
    training.images_seen += batch_size
    return {name: term.detach().float() for name, term in terms.items()}


def _draw(
    generator: DFMGANGenerator, batch: GANBatch, role: int, config: DFMGANTrainConfig, world: World
) -> _Drawn:
    """Defects of the photos' products and types, from one role's latents."""
    normal, defect = batch.normals[role], batch.defects[role]
    sizes, share = generator.config, config.style_mixing
    with torch.no_grad():
        ws = styles(generator.backbone.mapping, normal, batch.product, sizes.backbone.num_ws, share)
    defect_ws = styles(generator.manipulation.mapping, defect, batch.defect_type, sizes.num_ws, share)
    normals = generator.begin(ws, normal.noise)
    made = generator.finish(normals, ws, normal.noise, defect_ws, defect.noise)
    seeking = made.mask.new_zeros(())
    if role == GENERATOR and config.mode_seeking and len(ws) > 1:
        seeking = _mode_seeking(generator, normals.below.x, made.mask, defect_ws, defect.noise, world)
    mask = torch.tanh(SHARPNESS * full_mask(made.mask, sizes.backbone.image_size))
    return _Drawn(made.image, mask, seeking)


def _mode_seeking(
    generator: DFMGANGenerator, below: Tensor, raw: Tensor, defect_ws: Tensor, noise: Tensor, world: World
) -> Tensor:
    """How little masks differ for how much styles do, on the same normal: every second image's, and the one that
    it would have with its neighbour's style. Neighbours, so that it does not depend on how a batch is spread over
    processes."""
    pairs = len(defect_ws) // 2 * 2
    mine, neighbours = defect_ws[0:pairs:2], defect_ws[1:pairs:2]
    other = generator.raw_mask(below[0:pairs:2], neighbours, noise[0:pairs:2])
    apart = (torch.tanh(SHARPNESS * raw[0:pairs:2]) - torch.tanh(SHARPNESS * other)).abs().mean()
    return _ratio_of_means((mine - neighbours).abs().mean(), apart + _EPSILON, world)


def _ratio_of_means(above: Tensor, below: Tensor, world: World) -> Tensor:
    """The mean of `above` over all processes through that of `below`, (): the same on each, with a gradient whose
    mean over the processes is the ratio's. (The mean of their own ratios would be another loss.)"""
    a, b = world.mean(torch.stack([above.detach(), below.detach()]).float())
    return a / b + (above - above.detach()) / b - (below - below.detach()) * a / b**2
