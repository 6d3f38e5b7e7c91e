"""Training StyleGAN2 with adaptive augmentation: stage 1 of DFM-GAN, and the steps that stage 2 shares.

An iteration is StyleGAN2-ADA's: a step of G, now and then one of path length regularization, a step of D, now and
then one of R1; then the moving averages and the probability of augmentation. Regularization is lazy: a step of its
own every so many iterations, weighed so much more.
"""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from raygen.families import losses
from raygen.families.blocks import channels_last, frozen, sent
from raygen.families.stylegan2.ada import AugmentConfig, Controller, augment
from raygen.families.stylegan2.batches import DISCRIMINATOR, GENERATOR, GANBatch, Latents
from raygen.families.stylegan2.config import AdaptiveConfig, GANTrainConfig, StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import (
    Backbone,
    Discriminator,
    MappingNetwork,
    StyleGAN2Config,
    build_discriminator,
    mix_styles,
)
from raygen.families.world import Terms, World

REAL, FAKE, OWN = 0, 1, 2
"""The views of augmentation: D's real images, D's fakes, and G's own."""


# ----------------------------------------------------------------------------------------- what stages share


def adam(network: nn.Module, config: GANTrainConfig, every: int) -> torch.optim.Adam:
    """Adam for a network that has a step of regularization every so many iterations: rates and betas are brought
    to what they would be over `every` + 1 steps for `every` (StyleGAN2, appendix B)."""
    share = every / (every + 1)
    betas = (config.betas[0] ** share, config.betas[1] ** share)
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return torch.optim.Adam(parameters, config.lr * share, betas, eps=1e-8, fused=True)


def step(optimizer: torch.optim.Optimizer, total: Tensor, world: World) -> None:
    """One step down `total`, by the mean of all processes' gradients."""
    optimizer.zero_grad(set_to_none=True)
    total.backward()
    world.average_gradients(parameter for group in optimizer.param_groups for parameter in group["params"])
    optimizer.step()


def styles(mapping: MappingNetwork, latents: Latents, label: Tensor, num_ws: int, share: float) -> Tensor:
    """Mixed styles of N images, (N, num_ws, W)."""
    w, other = mapping(latents.z, label), mapping(latents.other, label)
    return mix_styles(w, other, latents.mixing, num_ws, share)


def track_w(mapping: MappingNetwork, average: MappingNetwork, z: Tensor, label: Tensor, world: World) -> None:
    """Moves the averages of w that a mapping network and its moving average hold."""
    with torch.no_grad():
        mapping.track(world.mean(mapping(z, label).mean(dim=0)))
    average.average.copy_(mapping.average)


def seen_by(x: Tensor, batch: GANBatch, view: int, p: float, config: AdaptiveConfig) -> Tensor:
    """Images as D sees them: augmented with probability p."""
    return augment(x, *batch.draws[view], p, AugmentConfig(**config.transforms))


def adjust(controller: Controller, logits: Tensor, config: AdaptiveConfig, world: World, number: int) -> None:
    """Notes what D says of real images, (N,), and from time to time moves the probability of augmentation."""
    mean = world.mean(logits.detach().float().sign().mean())
    controller.observe(mean, len(logits) * world.size)
    if number % config.every == config.every - 1:
        controller.update(config.target, config.full_range)


def r1_weight(config: GANTrainConfig, image_size: int, batch_size: int) -> float:
    """γ: the recipe's, or StyleGAN2-ADA's rule."""
    return 0.0002 * image_size**2 / batch_size if config.r1_gamma is None else config.r1_gamma


def average_keep(config: GANTrainConfig, images_seen: int, batch_size: int) -> float:
    """What the moving average keeps of itself at an iteration."""
    half_life = 312.5 * batch_size if config.average_images is None else config.average_images
    if config.average_ramp:
        half_life = min(half_life, images_seen * config.average_ramp)
    return 0.5 ** (batch_size / max(half_life, 1e-8))


@torch.no_grad()
def move_average(average: nn.Module, network: nn.Module, keep: float) -> None:
    """average = keep · average + (1 - keep) · weights, of what is trained."""
    for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
        if parameter.requires_grad:
            mean.lerp_(parameter, 1 - keep)


def autocast(config: GANTrainConfig, device: torch.device) -> torch.autocast:
    """The precision of the recipe."""
    return torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bfloat16")


class GANTraining:
    """What the trainings of both stages do with their state; see `raygen.families.world.Training`."""

    NAMES: ClassVar[tuple[str, ...]]
    """Of the networks."""

    optimizers: dict[str, torch.optim.Optimizer]
    controller: Controller
    images_seen: int

    def networks(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and network of each."""
        for name in self.NAMES:
            yield name, getattr(self, name)

    def state_dict(self) -> dict[str, Any]:
        return {
            "networks": {name: network.state_dict() for name, network in self.networks()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "controller": self.controller.state_dict(),
            "images_seen": self.images_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, network in self.networks():
            network.load_state_dict(state["networks"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.controller.load_state_dict(state["controller"])
        self.images_seen = state["images_seen"]

    def is_finite(self) -> bool:
        return all(bool(p.isfinite().all()) for _, network in self.networks() for p in network.parameters())


# -------------------------------------------------------------------------------------------------- stage 1


@dataclass
class StyleGAN2Training(GANTraining):
    """All that changes while a training of stage 1 runs."""

    NAMES = ("backbone", "discriminator", "average")

    backbone: Backbone
    discriminator: Discriminator
    average: Backbone  # moving average of the backbone, for generation
    optimizers: dict[str, torch.optim.Optimizer]
    controller: Controller
    path_mean: Tensor  # (): moving mean of path lengths
    images_seen: int = 0

    @classmethod
    def start(
        cls,
        config: StyleGAN2TrainConfig,
        sizes: StyleGAN2Config,
        device: torch.device,
        weights: Sequence[dict[str, Tensor]] = (),
    ) -> "StyleGAN2Training":
        """A training at its first image; `weights`, if given, are those of backbone and discriminator."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone, discriminator = Backbone(sizes), build_discriminator(sizes)
        for network, state in zip((backbone, discriminator), weights, strict=False):
            network.load_state_dict(state)
        for network in (backbone, discriminator):
            channels_last(network)
            network.to(device)
        optimizers: dict[str, torch.optim.Optimizer] = {
            "backbone": adam(backbone, config, config.path_length_every),
            "discriminator": adam(discriminator, config, config.r1_every),
        }
        average = copy.deepcopy(backbone).eval().requires_grad_(False)
        return cls(backbone, discriminator, average, optimizers, Controller(), torch.zeros((), device=device))

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "path_mean": self.path_mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.path_mean = state["path_mean"]


def iterate(
    training: StyleGAN2Training, batch: GANBatch, config: StyleGAN2TrainConfig, world: World
) -> Terms:
    """One iteration on this process's share of a batch; see `raygen.families.family.Trainer.stepper`."""
    backbone, discriminator = training.backbone, training.discriminator
    sizes, label, p = backbone.config, batch.product, training.controller.p
    batch_size = len(batch.x) * world.size
    number = training.images_seen // batch_size
    cast = autocast(config, batch.x.device)
    own = batch.normals[GENERATOR]

    with frozen(discriminator), cast:
        ws = styles(backbone.mapping, own, label, sizes.num_ws, config.style_mixing)
        logits = discriminator(
            seen_by(backbone.synthesis(ws, own.noise), batch, OWN, p, config.adaptive), label
        )
        terms = {"G/adversarial": losses.adversarial(logits, real=True)}
    step(training.optimizers["backbone"], terms["G/adversarial"], world)
    if config.path_length and number % config.path_length_every == 0:
        lengths = path_lengths(backbone, batch, config)
        training.path_mean = training.path_mean.lerp(
            world.mean(lengths.detach().mean()), config.path_length_decay
        )
        terms["G/path_length"] = (lengths - training.path_mean).square().mean()
        weight = config.path_length * config.path_length_every
        step(training.optimizers["backbone"], weight * terms["G/path_length"], world)

    with torch.no_grad(), cast:
        drawn = batch.normals[DISCRIMINATOR]
        ws = styles(backbone.mapping, drawn, label, sizes.num_ws, config.style_mixing)
        fakes = backbone.synthesis(ws, drawn.noise)
    with cast:
        on_real = discriminator(seen_by(batch.x, batch, REAL, p, config.adaptive), label)
        on_fakes = discriminator(seen_by(fakes, batch, FAKE, p, config.adaptive), label)
        terms["D/real"] = losses.adversarial(on_real, real=True)
        terms["D/fake"] = losses.adversarial(on_fakes, real=False)
    step(training.optimizers["discriminator"], terms["D/real"] + terms["D/fake"], world)
    if number % config.r1_every == 0:
        x = batch.x.detach().requires_grad_()
        logits = discriminator(seen_by(x, batch, REAL, p, config.adaptive), label)
        terms["D/r1"] = losses.r1(logits, x)
        weight = r1_weight(config, sizes.image_size, batch_size) * config.r1_every
        step(training.optimizers["discriminator"], weight * terms["D/r1"], world)

    adjust(training.controller, on_real, config.adaptive, world, number)
    terms["augmentation"] = torch.full((), training.controller.p, device=batch.x.device)
    track_w(backbone.mapping, training.average.mapping, own.z, label, world)
    move_average(training.average, backbone, average_keep(config, training.images_seen, batch_size))
    training.images_seen += batch_size
    return {name: term.detach().float() for name, term in terms.items()}


def path_lengths(backbone: Backbone, batch: GANBatch, config: StyleGAN2TrainConfig) -> Tensor:
    """The lengths |Jᵀ y| of every second image (StyleGAN2, section 3.2): how far an image moves with its styles,
    along a random direction y of images; (N / 2,), differentiable."""
    latents, label = batch.normals[GENERATOR].every_second(), batch.product[::2]
    ws = styles(backbone.mapping, latents, label, backbone.config.num_ws, config.style_mixing)
    image = backbone.synthesis(ws, latents.noise)
    y = _directions(config.seed, batch.numbers[::2], image) / np.sqrt(image.shape[2] * image.shape[3])
    (gradient,) = torch.autograd.grad((image * y).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def _directions(seed: int, numbers: Tensor, like: Tensor) -> Tensor:
    """Standard normal, of each image's own stream; a stream beside the one that its batch is drawn from."""
    keys = [np.array([seed, n], np.uint64) for n in numbers.tolist()]
    drawn = [np.random.Generator(np.random.Philox(key=key).jumped()) for key in keys]
    rows = np.stack([random.standard_normal(like.shape[1:], np.float32) for random in drawn])
    return sent(torch.from_numpy(rows).to(like.dtype), like.device)
