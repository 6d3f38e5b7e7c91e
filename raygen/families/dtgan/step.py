"""DT-GAN's training: its networks, one step of D and one of G, M and E, and their moving average.

An iteration is the paper's (and StarGAN v2's): D steps on a latent-guided and on a reference-guided translation,
then G, M and E on a latent-guided and G on a reference-guided one. All weights are in `LossConfig`.

The translations of one image share its background, see `compose` beside it. So the diversity term's four
images cost one B and four of the light F.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from raygen.families.blocks import channels_last, compose_resampling, frozen
from raygen.families.dtgan import losses
from raygen.families.dtgan.batches import Batch
from raygen.families.dtgan.config import DTGANTrainConfig, LossConfig, OptimizerConfig
from raygen.families.dtgan.joint import JointGenerator, build_generator
from raygen.families.dtgan.networks import (
    Discriminator,
    Generator,
    MappingNetwork,
    StyleContentEncoder,
    compose,
)
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.losses import adversarial, r1
from raygen.families.world import Terms
from raygen.records import MODES, Mode


class Translator(nn.Module):
    """G as training uses it: several translations of the same images at the price of one background."""

    def __init__(self, generator: Generator | JointGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, x: Tensor, styles: Tensor, contents: Tensor) -> tuple[Tensor, Tensor]:
        """Translates every image to V styles and contents.

        Args:
            x: (N, C, H, W) in [-1, 1].
            styles: (V, N, style_dim).
            contents: (V, N, content_channels, 16, 16).

        Returns:
            Translations, unclamped, (V, N, C, H, W); the popped-out content FG_G(x), (N, content_channels,
            16, 16).
        """
        generator, shape = self.generator, styles.shape[:2]
        features, popped = generator.encode(x)
        if isinstance(generator, Generator):
            background = generator.decode_background(features, x)  # (N, C, H, W)
            layers = generator.defect_layer(styles.flatten(0, 1), contents.flatten(0, 1))  # (V N, C, H, W)
            return compose(background, layers.unflatten(0, shape)), popped
        features = features.expand(len(styles), *features.shape).flatten(0, 1)
        translated = generator.decode(features, styles.flatten(0, 1), contents.flatten(0, 1))
        return translated.unflatten(0, shape), popped


@dataclass(frozen=True)
class Networks:
    """G, M, E and D; each as it is, or wrapped for DDP."""

    translator: nn.Module
    mapping: nn.Module
    encoder: nn.Module
    discriminator: nn.Module

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and network of each."""
        for field in fields(self):
            yield field.name, getattr(self, field.name)


def build_networks(sizes: DTGANConfig, seed: int) -> Networks:
    """The four networks, initialized from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(
            translator=Translator(build_generator(sizes)),
            mapping=MappingNetwork(sizes),
            encoder=StyleContentEncoder(sizes),
            discriminator=Discriminator(sizes),
        )
    for _, network in networks.items():
        compose_resampling(network)
        channels_last(network)
    return networks


# ---------------------------------------------------------------------------------------------------- losses


def discriminator_terms(networks: Networks, batch: Batch, mode: Mode, with_r1: bool) -> Terms:
    """D's terms of equations 1, 6 and 7 on real images and the translations of one mode, and R1.

    Only D gets gradients.
    """
    with torch.no_grad():
        styles, contents = _codes(networks, batch, mode, num=1)
        fakes, _ = networks.translator(batch.x, styles, contents)  # (1, N, C, H, W)
    x = batch.x.detach().requires_grad_(with_r1)
    out = networks.discriminator(x)
    logits = _pick(out.adversarial, batch.domain)
    terms = {"real": adversarial(logits, real=True)}
    if with_r1:
        terms["r1"] = r1(logits, x)
    if out.foreground is not None:
        terms["foreground_class"] = losses.classification(out.foreground, batch.domain)
    if out.background is not None:
        terms["background_class"] = losses.classification(out.background, batch.product)
    judged = networks.discriminator(fakes[0]).adversarial
    terms["fake"] = adversarial(_pick(judged, batch.target), real=False)
    return terms


def head_start_terms(networks: Networks, batch: Batch) -> Terms:
    """D's terms while it has its head start: its classifiers on all real images of the batch."""
    x = torch.cat([batch.x, batch.references.flatten(0, 1)])
    out = networks.discriminator(x)
    domain = torch.cat([batch.domain, batch.target, batch.target])
    # Weighs nothing, but DDP wants every weight to take part.
    terms = {"real": adversarial(_pick(out.adversarial, domain), real=True)}
    if out.foreground is not None:
        terms["foreground_class"] = losses.classification(out.foreground, domain)
    if out.background is not None:
        terms["background_class"] = losses.classification(out.background[: len(batch.x)], batch.product)
    return terms


def generator_terms(
    networks: Networks,
    batch: Batch,
    mode: Mode,
    config: LossConfig,
    with_diversity: bool = True,
    train_encoder: bool = True,
) -> Terms:
    """G's terms of equations 1 to 7 on the translations of one mode.

    With `train_encoder` off, the references' codes are given, as in StarGAN v2's reference-guided step.
    """
    with torch.set_grad_enabled(torch.is_grad_enabled() and (mode == "latent" or train_encoder)):
        styles, contents = _codes(networks, batch, mode, num=1 + with_diversity)  # (1 or 2, N, ...) each
    i, j = _variants(with_diversity, has_content=contents.shape[2] > 0)
    translations, popped = networks.translator(batch.x, styles[i], contents[j])
    fake, target_style, target_content = translations[0], styles[0], contents[0]

    out = networks.discriminator(fake)
    own, recovered = _halves(
        networks.encoder(torch.cat([batch.x, fake]), torch.cat([batch.domain, batch.target]))
    )
    back, popped_fake = networks.translator(fake, own[0][None], own[1][None])

    terms = {
        "adversarial": adversarial(_pick(out.adversarial, batch.target), real=True),
        "style_content": losses.style_content(target_style, target_content, *recovered),
        "cycle": losses.cycle(batch.x, back[0]),
        "content_consistency": losses.content_consistency(popped, own[1], popped_fake, target_content),
    }
    if with_diversity:
        spread = translations.clamp(-1, 1) if config.diversity_clamp else translations
        terms["diversity"] = losses.diversity(list(spread), config.diversity_reduction)
    if out.foreground is not None:
        terms["foreground_class"] = losses.classification(out.foreground, batch.target)
    if out.background is not None:
        terms["background_class"] = losses.classification(out.background, batch.product)
    return terms


def _variants(with_diversity: bool, has_content: bool) -> tuple[list[int], list[int]]:
    """Which styles and which contents the translations of an image are made of; the first is the one judged."""
    if not with_diversity:
        return [0], [0]
    return ([0, 0, 1, 1], [0, 1, 0, 1]) if has_content else ([0, 1], [0, 1])


def discriminator_objective(terms: Terms, config: LossConfig) -> Tensor:
    """D's side of equation 8. R1's weight makes up for the iterations without it."""
    weights = {
        "real": config.adversarial,
        "fake": config.adversarial,
        "r1": config.r1 * config.r1_every,
        "foreground_class": config.foreground_class,
        "background_class": config.background_class,
    }
    return _weighted(terms, weights)


def generator_objective(terms: Terms, config: LossConfig, progress: float) -> Tensor:
    """G's side of equation 8, at a share of the training in [0, 1], on which the weight of diversity depends."""
    weights = {name: getattr(config, name) for name in terms}
    weights["diversity"] = -config.diversity_at(progress) * config.diversity_every
    return _weighted(terms, weights)


def _weighted(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _codes(networks: Networks, batch: Batch, mode: Mode, num: int) -> tuple[Tensor, Tensor]:
    """`num` (1 or 2) styles, (num, N, style_dim), and contents, (num, N, channels, 16, 16), of the targets."""
    target = batch.target.repeat(num)
    if mode == "latent":
        codes = networks.mapping(batch.z[:num].flatten(0, 1), target, batch.noise[:num].flatten(0, 1))
    else:
        codes = networks.encoder(batch.references[:num].flatten(0, 1), target)
    style, content = codes
    return style.unflatten(0, (num, -1)), content.unflatten(0, (num, -1))


def _halves(codes: tuple[Tensor, Tensor]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Codes of 2 N images as those of the first N and those of the others."""
    (style1, style2), (content1, content2) = (code.chunk(2) for code in codes)
    return (style1, content1), (style2, content2)


def _pick(logits: Tensor, domain: Tensor) -> Tensor:
    """Each row's logit of its own domain: (N, K) to (N,)."""
    return logits.gather(1, domain[:, None])[:, 0]


# ---------------------------------------------------------------------------------------------------- state


@dataclass
class Training:
    """All that changes while a training runs."""

    networks: Networks
    average: Networks  # moving average of the weights, for generation
    optimizers: dict[str, torch.optim.Optimizer]  # one a network
    images_seen: int = 0

    @classmethod
    def start(cls, config: DTGANTrainConfig, sizes: DTGANConfig, device: torch.device) -> "Training":
        """A training at its first image."""
        networks = build_networks(sizes, config.seed)
        for _, network in networks.items():
            network.to(device)
        return cls(networks, copy.deepcopy(networks), _optimizers(networks, config.optimizer))

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values; `load_state_dict` takes it."""
        return {
            "networks": {name: network.state_dict() for name, network in self.networks.items()},
            "average": {name: network.state_dict() for name, network in self.average.items()},
            "optimizers": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "images_seen": self.images_seen,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        for name, network in self.networks.items():
            network.load_state_dict(state["networks"][name])
        for name, network in self.average.items():
            network.load_state_dict(state["average"][name])
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(state["optimizers"][name])
        self.images_seen = state["images_seen"]

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(p.isfinite().all() for _, network in self.networks.items() for p in network.parameters())


def _optimizers(networks: Networks, config: OptimizerConfig) -> dict[str, torch.optim.Optimizer]:
    rates = {
        "translator": config.generator_lr,
        "mapping": config.mapping_lr,
        "encoder": config.encoder_lr,
        "discriminator": config.discriminator_lr,
    }
    return {
        name: torch.optim.Adam(
            network.parameters(), rates[name], config.betas, weight_decay=config.weight_decay, fused=True
        )
        for name, network in networks.items()
    }


# ---------------------------------------------------------------------------------------------- one iteration


def iterate(
    training: Training, wrapped: Networks, batch: Batch, config: DTGANTrainConfig, batch_size: int
) -> Terms:
    """One iteration: four steps and the moving average.

    Args:
        training: is moved on by `batch_size` images.
        wrapped: `training.networks`, wrapped for DDP where there are several processes.
        batch: this process's share.
        config: of the training.
        batch_size: of all processes together.

    Returns:
        This process's terms, by `{latent, reference, head start}/{D, G}/{name}`, without
        gradients. They may be non-finite.
    """
    progress = training.images_seen / config.images
    number = training.images_seen // batch_size
    with_r1 = number % config.loss.r1_every == 0
    with_diversity = number % config.loss.diversity_every == 0
    report: Terms = {}
    autocast = torch.autocast(batch.x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    if training.images_seen < config.optimizer.head_start:
        with autocast:
            terms = head_start_terms(wrapped, batch)
            total = discriminator_objective(terms, config.loss.model_copy(update={"adversarial": 0.0}))
        _step(training, total, ["discriminator"])
        _move_average(training, config.optimizer.average_at(number))
        training.images_seen += batch_size
        return {f"head start/D/{name}": term.detach() for name, term in terms.items()}
    for mode in MODES:
        with autocast:
            terms = discriminator_terms(wrapped, batch, mode, with_r1)
            total = discriminator_objective(terms, config.loss)
        _step(training, total, ["discriminator"])
        report |= {f"{mode}/D/{name}": term.detach() for name, term in terms.items()}
    with frozen(wrapped.discriminator):
        for mode in MODES:
            learners = ["translator"]
            if mode == "latent":
                learners += ["mapping", "encoder"]
            elif config.optimizer.encoder_on_references:
                learners += ["encoder"]
            with frozen(*[n for name, n in wrapped.items() if name not in learners]), autocast:
                terms = generator_terms(
                    wrapped, batch, mode, config.loss, with_diversity, "encoder" in learners
                )
                total = generator_objective(terms, config.loss, progress)
            _step(training, total, learners)
            report |= {f"{mode}/G/{name}": term.detach() for name, term in terms.items()}
    _move_average(training, config.optimizer.average_at(number))
    training.images_seen += batch_size
    return report


def _step(training: Training, total: Tensor, learners: list[str]) -> None:
    for name in learners:
        training.optimizers[name].zero_grad(set_to_none=True)
    total.backward()
    for name in learners:
        training.optimizers[name].step()


@torch.no_grad()
def _move_average(training: Training, keep: float) -> None:
    """average = keep · average + (1 - keep) · weights, of G, M and E (of D, too, which judges samples later)."""
    for (_, average), (_, network) in zip(training.average.items(), training.networks.items(), strict=True):
        for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(parameter, 1 - keep)
