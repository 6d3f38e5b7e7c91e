"""DT-GAN's training: its networks, one step of D and one of G, M and E, and their moving average.

An iteration is the paper's (and StarGAN v2's): D steps on a latent-guided and on a reference-guided translation,
then G, M and E on a latent-guided and G on a reference-guided one. All weights are in `LossConfig`.

The translations of one image share its background, see `compose` beside it. So the diversity term's four
images cost one B and four of the light F.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from raygen.families.blocks import channels_last, compose_resampling, frozen
from raygen.families.dtgan import losses
from raygen.families.dtgan.batches import Batch, turned_over
from raygen.families.dtgan.config import DTGANTrainConfig, LossConfig, OptimizerConfig
from raygen.families.dtgan.joint import JointGenerator, build_generator
from raygen.families.dtgan.networks import (
    CodeDiscriminator,
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

    def forward(self, x: Tensor, styles: Tensor, contents: Tensor) -> "Translation":
        """Translates every image to V styles and contents.

        Args:
            x: (N, C, H, W) in [-1, 1].
            styles: (V, N, style_dim).
            contents: (V, N, content_channels, 16, 16).

        Returns:
            See `Translation`.
        """
        generator, shape = self.generator, styles.shape[:2]
        features, popped = generator.encode(x)
        if isinstance(generator, Generator):
            background = generator.decode_background(features, x)  # (N, C, H, W)
            layers = generator.defect_layer(styles.flatten(0, 1), contents.flatten(0, 1))  # (V N, C, H, W)
            layers = layers.unflatten(0, shape)
            return Translation(compose(background, layers), popped, background, layers)
        features = features.expand(len(styles), *features.shape).flatten(0, 1)
        translated = generator.decode(features, styles.flatten(0, 1), contents.flatten(0, 1))
        return Translation(translated.unflatten(0, shape), popped)


class Translation(NamedTuple):
    """N images translated to V styles and contents."""

    images: Tensor  # (V, N, C, H, W), unclamped
    popped: Tensor  # (N, content_channels, 16, 16): FG_G(x)
    background: Tensor | None = None  # (N, C, H, W): B(x); None with joint decoders, as the next
    layers: Tensor | None = None  # (V, N, C or C + 1, H, W): F(s, c)


@dataclass(frozen=True)
class Networks:
    """G, M, E and D; each as it is, or wrapped for DDP."""

    translator: nn.Module
    mapping: nn.Module
    encoder: nn.Module
    discriminator: nn.Module
    codes: nn.Module | None = None  # the code discriminator, where there is one

    def items(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and network of each."""
        for name in (part.name for part in fields(self)):
            if getattr(self, name) is not None:
                yield name, getattr(self, name)


def build_networks(sizes: DTGANConfig, seed: int, with_codes: bool = False) -> Networks:
    """The four networks, and the code discriminator if wanted, initialized from a seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        networks = Networks(
            translator=Translator(build_generator(sizes)),
            mapping=MappingNetwork(sizes),
            encoder=StyleContentEncoder(sizes),
            discriminator=Discriminator(sizes),
            codes=CodeDiscriminator(sizes) if with_codes else None,
        )
    for _, network in networks.items():
        compose_resampling(network)
        channels_last(network)
    return networks


# ---------------------------------------------------------------------------------------------------- losses


def discriminator_terms(
    networks: Networks, batch: Batch, mode: Mode, with_r1: bool, classify_fakes: bool = True
) -> Terms:
    """D's terms of equations 1, 6 and 7 on real images and the translations of one mode, and R1.

    Only D gets gradients. See `LossConfig` for `classify_fakes`.
    """
    with torch.no_grad():
        styles, contents = _codes(networks, batch, mode, num=1)
        fakes = networks.translator(batch.x, styles, contents).images  # (1, N, C, H, W)
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
    judged = networks.discriminator(fakes[0])
    terms["fake"] = adversarial(_pick(judged.adversarial, batch.target), real=False)
    if classify_fakes and judged.foreground is not None:
        terms["fake_foreground_class"] = losses.classification(judged.foreground, batch.target)
    if classify_fakes and judged.background is not None:
        terms["fake_background_class"] = losses.classification(judged.background, batch.product)
    return terms


def head_start_terms(networks: Networks, batch: Batch) -> Terms:
    """D's terms while it has its head start: its classifiers on all real images of the batch."""
    x = torch.cat([batch.x, batch.references.flatten(0, 1)])
    out = networks.discriminator(x)
    domain = torch.cat([batch.domain, batch.target, batch.target])
    # Weighs nothing, but DDP wants every weight to take part. (`iterate` leaves the head as it is.)
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
    # (Indexing by a list would wait for the device.)
    there = networks.translator(
        batch.x, torch.stack([styles[k] for k in i]), torch.stack([contents[k] for k in j])
    )
    fake, target_style, target_content = there.images[0], styles[0], contents[0]

    out = networks.discriminator(fake)
    taught = [turned_over(batch)] if config.layer else []
    domains = [batch.domain, batch.target] + [batch.domain] * len(taught)
    own, recovered, *others = _read(networks, [batch.x, fake, *taught], domains)
    # In x's own style, and in that of x turned over.
    own_styles = torch.stack([own[0], *[style for style, _ in others]])
    back = networks.translator(fake, own_styles, own[1].expand(len(own_styles), *own[1].shape))
    own_content = own[1]
    if config.detach_codes:
        target_style, target_content, own_content = (
            code.detach() for code in (target_style, target_content, own_content)
        )

    terms = {
        "adversarial": adversarial(_pick(out.adversarial, batch.target), real=True),
        "style_content": losses.style_content(target_style, target_content, *recovered),
        "cycle": losses.cycle(batch.x, back.images[0]),
        "content_consistency": losses.content_consistency(
            there.popped, own_content, back.popped, target_content
        ),
    }
    if config.layer and there.background is not None and back.layers is not None:
        terms["layer"] = _layer_term(batch, there.background, back.layers, torch.stack([batch.x, *taught]))
    if with_diversity:
        spread = there.images.clamp(-1, 1) if config.diversity_clamp else there.images
        terms["diversity"] = losses.diversity(list(spread), config.diversity_reduction)
    if out.foreground is not None:
        terms["foreground_class"] = losses.classification(out.foreground, batch.target)
    if out.background is not None:
        terms["background_class"] = losses.classification(out.background, batch.product)
    return terms


def taught_terms(networks: Networks, batch: Batch) -> Terms:
    """What masks teach G and E without D: the background, and the layer that E reads."""
    other = turned_over(batch)
    styles, contents = networks.encoder(torch.cat([batch.x, other]), batch.domain.repeat(2))
    styles, contents = styles.unflatten(0, (2, -1)), contents.unflatten(0, (2, -1))
    # Half of the rows get the other's content, by a coin of their own: if all did, content could say it, the wrong
    # way round.
    swap = batch.z[0, :, 0] < 0
    contents = torch.where(swap[None, :, None, None, None], contents.flip(0), contents)
    made = networks.translator(batch.x, styles, contents)
    return {"layer": _layer_term(batch, made.background, made.layers, torch.stack([batch.x, other]))}


def _layer_term(batch: Batch, background: Tensor, layers: Tensor, wanted: Tensor) -> Tensor:
    """|B(x) - h|, and |F(E^s(w), E^c(v)) - (w - h)|, w and v being x or x turned over: style says whether a defect
    is bright or dark, content all else. Otherwise the content would say that, too, and style nothing.

    Args:
        background: (N, C, H, W): B(x).
        layers: (V, N, C or C + 1, H, W): F.
        wanted: (V, N, C, H, W): w.
    """
    where = batch.mask, batch.taught
    of_layers = [
        losses.at_defect(layer[:, : batch.x.shape[1]], w - batch.healed, *where)
        for layer, w in zip(layers, wanted, strict=True)
    ]
    return losses.at_defect(background, batch.healed, *where) + torch.stack(of_layers).mean()


def code_discriminator_terms(
    networks: Networks, real: Tensor, drawn: Tensor, domain: Tensor, product: Tensor, with_r1: bool
) -> Terms:
    """The code discriminator's terms on M's codes and those read off real defects, (N, style_dim + content_size)
    each, of the same domains and products. Only it gets gradients."""
    assert networks.codes is not None
    real = real.detach().requires_grad_(with_r1)
    logits = networks.codes(real, domain, product)
    terms = {"real": adversarial(logits, real=True)}
    if with_r1:
        terms["r1"] = r1(logits, real)
    return terms | {"fake": adversarial(networks.codes(drawn.detach(), domain, product), real=False)}


def _flat(styles: Tensor, contents: Tensor) -> Tensor:
    """Codes as the code discriminator takes them: (V, N, ...) each to (V N, style_dim + content_size)."""
    return torch.cat([styles.flatten(0, 1), contents.flatten(2).flatten(0, 1)], dim=1)


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
        "fake_foreground_class": config.foreground_class,
        "fake_background_class": config.background_class,
    }
    return _weighted(terms, weights)


def generator_objective(terms: Terms, config: LossConfig, progress: float) -> Tensor:
    """G's side of equation 8, at a share of the training in [0, 1], on which the weight of diversity depends."""
    weights = {name: getattr(config, name) for name in terms}
    if "diversity" in terms:
        weights["diversity"] = -config.diversity_at(progress) * config.diversity_every
    return _weighted(terms, weights)


def _weighted(terms: Terms, weights: Mapping[str, float]) -> Tensor:
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum()


def _codes(networks: Networks, batch: Batch, mode: Mode, num: int) -> tuple[Tensor, Tensor]:
    """`num` (1 or 2) styles, (num, N, style_dim), and contents, (num, N, channels, 16, 16), of the targets."""
    target = batch.target.repeat(num)
    if mode == "latent":
        z, noise = batch.z[:num].flatten(0, 1), batch.noise[:num].flatten(0, 1)
        codes = networks.mapping(z, target, noise, batch.product.repeat(num))
    else:
        codes = networks.encoder(batch.references[:num].flatten(0, 1), target)
    style, content = codes
    return style.unflatten(0, (num, -1)), content.unflatten(0, (num, -1))


def _read(networks: Networks, photos: list[Tensor], domains: list[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """What E reads off each of some batches, in one pass."""
    styles, contents = networks.encoder(torch.cat(photos), torch.cat(domains))
    return list(zip(styles.split(len(photos[0])), contents.split(len(photos[0])), strict=True))


def _pick(logits: Tensor, domain: Tensor) -> Tensor:
    """Each row's logit of its own domain: (N, K) to (N,)."""
    return logits.gather(1, domain[:, None])[:, 0]


# ---------------------------------------------------------------------------------------------------- state


class CodeBank:
    """The latest codes that E read off real defects, the newest first."""

    def __init__(self) -> None:
        self.codes = torch.empty(0)  # (rows, style_dim + content_size)
        self.domain = torch.empty(0, dtype=torch.long)  # (rows,)
        self.product = torch.empty(0, dtype=torch.long)  # (rows,)

    def add(self, codes: Tensor, domain: Tensor, product: Tensor, room: int) -> None:
        """Takes in codes, (N, ...), and lets the oldest go."""
        newer = {"codes": codes, "domain": domain, "product": product}
        for name, some in newer.items():
            older = getattr(self, name).to(some)
            setattr(self, name, torch.cat([some, older])[:room] if len(older) else some[:room])

    def part(self, number: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Part `number` of so many codes, domains and products; from the start again where there are no more."""
        rows = (number * size + torch.arange(size, device=self.codes.device)) % len(self.codes)
        return self.codes[rows], self.domain[rows], self.product[rows]

    def state_dict(self) -> dict[str, Tensor]:
        """What it holds."""
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Goes on from a `state_dict`; from an older build's, which knew no products, it fills anew."""
        if set(state) == set(vars(self)):
            vars(self).update(state)


@dataclass
class Training:
    """All that changes while a training runs."""

    networks: Networks
    average: Networks  # moving average of the weights, for generation
    optimizers: dict[str, torch.optim.Optimizer]  # one a network
    images_seen: int = 0
    bank: CodeBank = field(default_factory=CodeBank)

    @classmethod
    def start(cls, config: DTGANTrainConfig, sizes: DTGANConfig, device: torch.device) -> "Training":
        """A training at its first image."""
        networks = build_networks(sizes, config.seed, with_codes=config.loss.codes > 0)
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
            "bank": self.bank.state_dict(),
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
        self.bank.load_state_dict(state["bank"])

    def is_finite(self) -> bool:
        """Whether all weights are."""
        return all(p.isfinite().all() for _, network in self.networks.items() for p in network.parameters())


def _optimizers(networks: Networks, config: OptimizerConfig) -> dict[str, torch.optim.Optimizer]:
    rates = {
        "translator": config.generator_lr,
        "mapping": config.mapping_lr,
        "encoder": config.encoder_lr,
        "discriminator": config.discriminator_lr,
        "codes": config.discriminator_lr,
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
    with_diversity = config.loss.diversity > 0 and number % config.loss.diversity_every == 0
    is_head_start = training.images_seen < config.optimizer.head_start
    report: Terms = {}
    autocast = torch.autocast(batch.x.device.type, torch.bfloat16, enabled=config.precision == "bfloat16")
    if config.loss.codes:
        steps = 1 if is_head_start else config.loss.codes_steps
        report |= _step_codes(training, wrapped, batch, config, number, steps)
    if is_head_start:
        report |= _head_start(training, wrapped, batch, config, autocast)
        _move_average(training, config.optimizer.average_at(number))
        training.images_seen += batch_size
        return report
    for mode in MODES:
        with autocast:
            terms = discriminator_terms(wrapped, batch, mode, with_r1, config.loss.classify_fakes)
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


def _head_start(
    training: Training,
    wrapped: Networks,
    batch: Batch,
    config: DTGANTrainConfig,
    autocast: AbstractContextManager[Any],
) -> Terms:
    """D learns to classify, G and E what masks teach."""
    with autocast:
        terms = head_start_terms(wrapped, batch)
        total = discriminator_objective(terms, config.loss.model_copy(update={"adversarial": 0.0}))
    _step(
        training, total, ["discriminator"], but=training.networks.discriminator.get_submodule("adversarial")
    )
    report = {f"head start/D/{name}": term.detach() for name, term in terms.items()}
    if config.loss.layer:
        with autocast:
            terms = taught_terms(wrapped, batch)
        _step(training, config.loss.layer * terms["layer"], ["translator", "encoder"])
        report |= {f"head start/G/{name}": term.detach() for name, term in terms.items()}
    return report


def _step_codes(
    training: Training, wrapped: Networks, batch: Batch, config: DTGANTrainConfig, number: int, steps: int
) -> Terms:
    """Steps of the code discriminator, and of M against it, in iteration `number`; the last one's terms."""
    assert wrapped.codes is not None
    with torch.no_grad():
        real = _flat(*_codes(wrapped, batch, "reference", num=2))
    room = len(real) * config.loss.codes_steps
    training.bank.add(real, batch.target.repeat(2), batch.reference_products.flatten(), room)
    report: Terms = {}
    for step in range(steps):
        real, domain, product = training.bank.part(step, len(real))
        z, noise = (drawn[2 * step : 2 * step + 2].flatten(0, 1) for drawn in (batch.z, batch.noise))
        style, content = wrapped.mapping(z, domain, noise, product)
        drawn = _flat(style[None], content[None])
        with_r1 = (number * steps + step) % config.loss.r1_every == 0
        terms = code_discriminator_terms(wrapped, real, drawn, domain, product, with_r1)
        weights = {"real": 1.0, "r1": config.loss.codes_r1 * config.loss.r1_every, "fake": 1.0}
        _step(training, _weighted(terms, weights), ["codes"])
        report |= {f"codes/D/{name}": term.detach() for name, term in terms.items()}
        with frozen(wrapped.codes):
            loss = adversarial(wrapped.codes(drawn, domain, product), real=True)
        _step(training, config.loss.codes * loss, ["mapping"])
        report["codes/M/adversarial"] = loss.detach()
    return report


def _step(training: Training, total: Tensor, learners: list[str], but: nn.Module | None = None) -> None:
    """One step of some networks; `but` is a part of theirs that stays as it is, which Adam would not let it at a
    gradient of zero: there it makes a full step of the weight decay."""
    for name in learners:
        training.optimizers[name].zero_grad(set_to_none=True)
    total.backward()
    if but is not None:
        but.zero_grad(set_to_none=True)
    for name in learners:
        training.optimizers[name].step()


@torch.no_grad()
def _move_average(training: Training, keep: float) -> None:
    """average = keep · average + (1 - keep) · weights, of G, M and E (of D, too, which judges samples later)."""
    for (_, average), (_, network) in zip(training.average.items(), training.networks.items(), strict=True):
        for mean, parameter in zip(average.parameters(), network.parameters(), strict=True):
            mean.lerp_(parameter, 1 - keep)
