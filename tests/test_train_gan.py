"""Training StyleGAN2 and DFM-GAN: who learns what and when; resumed as uninterrupted; two processes as one."""

import io
import math
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from factories import write_checkpoint
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from training import write_defect_set

from raygen import images, surfaces
from raygen.checkpoint import GENERATOR as WEIGHTS
from raygen.checkpoint import CheckpointConfig, save_checkpoint
from raygen.data.defects import Photo
from raygen.errors import UserError
from raygen.models.ada import NUM_DRAWS, AugmentConfig
from raygen.models.dfmgan import DFMGANConfig, DFMGANGenerator
from raygen.models.stylegan2 import Backbone, MappingNetwork, StyleGAN2Config, repeat_w, upsample
from raygen.train import dfmgan, losses, stylegan2
from raygen.train.config import (
    AdaptiveConfig,
    DFMGANTrainConfig,
    StyleGAN2TrainConfig,
    TrainConfig,
    TrainingConfig,
    load_train_config,
    parse_train_config,
)
from raygen.train.dfmgan import DFMGANTraining
from raygen.train.dfmgan_family import DFMGANFamily
from raygen.train.families import family_of, name_of
from raygen.train.family import Fields
from raygen.train.folder import TrainingRun
from raygen.train.gan_batches import (
    DISCRIMINATOR,
    GENERATOR,
    GANBatch,
    GANBatchMaker,
    Latents,
    LatentSizes,
    cells_of,
    to_gan_batch,
)
from raygen.train.loop import DivergedError, Terms, World, train
from raygen.train.photos import TRAINING_SPLITS, DefectSet
from raygen.train.stylegan2 import StyleGAN2Training
from raygen.train.stylegan2_family import StyleGAN2Family

CPU = torch.device("cpu")
SIZES = StyleGAN2Config(
    image_size=32, channels=1, num_products=2, latent_dim=8, w_dim=8, channel_base=256, channel_max=16
)
DEFECTS = DFMGANConfig(backbone=SIZES, num_types=2, match_channel_base=128, match_channel_max=8)
COMMON: dict[str, Any] = {
    "defects": "/defects",
    "output": "/output",
    "images": 24,
    "batch_per_worker": 4,
    "r1_every": 3,
}

AnyTraining = StyleGAN2Training | DFMGANTraining
AnyConfig = StyleGAN2TrainConfig | DFMGANTrainConfig
ALONE = World()


# --------------------------------------------------------------------------------------------- what it takes


def recipe1(**changes: Any) -> StyleGAN2TrainConfig:
    """A tiny recipe of stage 1, with some changes."""
    return StyleGAN2TrainConfig.model_validate({**COMMON, "path_length_every": 2, **changes})


def recipe2(**changes: Any) -> DFMGANTrainConfig:
    """A tiny recipe of stage 2, with some changes."""
    return DFMGANTrainConfig.model_validate({**COMMON, "backbone": "/backbone", **changes})


MAKE: dict[str, Callable[..., AnyConfig]] = {"stylegan2": recipe1, "dfmgan": recipe2}


def maker(config: AnyConfig, noisy_sizes: DFMGANConfig = DEFECTS) -> GANBatchMaker:
    """Draws from a few photos in memory: normals of two products, or defects of two products and two types."""
    with_defects = isinstance(config, DFMGANTrainConfig)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 2), dtype=np.uint8)
    pixels[..., 1] = (pixels[..., 1] > 200) * np.uint8(255)
    products, kinds = np.arange(12) % 2, np.arange(12) // 2 % 2 * with_defects
    keys = 2 * products + kinds
    sizes = noisy_sizes.backbone
    shapes = {"normal": LatentSizes(sizes.latent_dim, sizes.noise_size)}
    if with_defects:
        shapes["defect"] = LatentSizes(sizes.latent_dim, noisy_sizes.noise_size)
    return GANBatchMaker(
        seed=config.seed,
        cells=[np.flatnonzero(keys == key) for key in np.unique(keys)],
        products=products,
        defect_types=kinds,
        load=(pixels if with_defects else pixels[..., :1]).__getitem__,
        mirror=config.mirror,
        **shapes,
    )


def batch(config: AnyConfig, numbers: Sequence[int] = range(4)) -> GANBatch:
    return to_gan_batch(maker(config)(numbers), SIZES.channels, CPU)


def start1(config: StyleGAN2TrainConfig) -> StyleGAN2Training:
    return StyleGAN2Training.start(config, SIZES, CPU)


def start2(config: DFMGANTrainConfig, sizes: DFMGANConfig = DEFECTS) -> DFMGANTraining:
    """On a backbone and a discriminator as if trained, with noise."""
    stage1 = start1(recipe1(seed=17))
    for network in (stage1.backbone, stage1.discriminator):
        shake(network)
    return DFMGANTraining.start(
        config, sizes, CPU, stage1.backbone.state_dict(), stage1.discriminator.state_dict()
    )


def shake(network: nn.Module) -> None:
    """Moves every bias and every strength of noise off its initial value, the same way each time."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim < 2:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=random))


def start(config: AnyConfig) -> AnyTraining:
    return start1(config) if isinstance(config, StyleGAN2TrainConfig) else start2(config)


def iterated(training: AnyTraining, some: GANBatch, config: AnyConfig, world: World = ALONE) -> Terms:
    """One iteration of either family."""
    if isinstance(training, StyleGAN2Training):
        return stylegan2.iterate(training, some, cast(StyleGAN2TrainConfig, config), world)
    return dfmgan.iterate(training, some, cast(DFMGANTrainConfig, config), world)


def run(training: AnyTraining, config: AnyConfig, iterations: int) -> list[dict[str, float]]:
    """The terms of so many iterations."""
    found = []
    for _ in range(iterations):
        some = batch(config, ALONE.numbers(training.images_seen, config))
        terms = iterated(training, some, config)
        found.append({name: term.item() for name, term in terms.items()})
    return found


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def changed(network: nn.Module, before: dict[str, Tensor]) -> bool:
    return any(not torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# ------------------------------------------------------------------------------------------------ the pieces


def test_regularization_brings_adam_to_what_it_would_be_without() -> None:
    """Over every + 1 steps for `every`, the rates add up and the betas multiply to those of `every` steps."""
    config = recipe1(lr=0.01, betas=(0.5, 0.99))
    network = nn.Linear(3, 3)
    network.bias.requires_grad_(False)
    for every in (4, 16):
        (group,) = stylegan2.adam(network, config, every).param_groups
        assert group["lr"] * (every + 1) == pytest.approx(0.01 * every)
        for beta, wanted in zip(group["betas"], (0.5, 0.99), strict=True):
            assert beta ** (every + 1) == pytest.approx(wanted**every)
        assert group["params"] == [network.weight]


def test_the_optimizers_are_corrected_for_their_own_regularization() -> None:
    """That of the residual blocks has none."""
    config1, config2 = recipe1(lr=0.01), recipe2(lr=0.01)
    rates1 = {name: o.param_groups[0]["lr"] for name, o in start1(config1).optimizers.items()}
    assert rates1 == pytest.approx({"backbone": 0.01 * 2 / 3, "discriminator": 0.01 * 3 / 4})
    rates2 = {name: o.param_groups[0]["lr"] for name, o in start2(config2).optimizers.items()}
    assert rates2 == pytest.approx({"generator": 0.01, "discriminator": 0.0075, "matcher": 0.0075})


def test_r1_weighs_what_the_recipe_says_or_the_rule() -> None:
    assert stylegan2.r1_weight(recipe1(), 256, 32) == pytest.approx(0.0002 * 65536 / 32)
    assert stylegan2.r1_weight(recipe1(), 512, 32) == pytest.approx(4 * 0.0002 * 65536 / 32)
    assert stylegan2.r1_weight(recipe2(r1_gamma=10), 256, 32) == 10
    assert stylegan2.r1_weight(recipe2(r1_gamma=0), 256, 32) == 0


def test_the_average_forgets_half_in_its_half_life() -> None:
    """10 / 32 kimg for every image of a batch, unless the recipe says another."""
    late = 10**9
    for config, half_life in ((recipe1(), 312.5 * 8), (recipe1(average_images=800.0), 800)):
        keep = stylegan2.average_keep(config, late, batch_size=8)
        assert keep ** (half_life / 8) == pytest.approx(0.5)


def test_the_average_forgets_faster_at_first() -> None:
    """Half of itself in 5 % of the images so far; nothing stays of the very beginning."""
    config = recipe1(average_images=1000.0)
    assert stylegan2.average_keep(config, 0, 8) == 0
    assert stylegan2.average_keep(config, 3200, 8) == pytest.approx(0.5 ** (8 / 160))
    assert stylegan2.average_keep(config, 20_000, 8) == pytest.approx(0.5 ** (8 / 1000))
    assert stylegan2.average_keep(config, 40_000, 8) == stylegan2.average_keep(config, 20_000, 8)
    assert recipe2().average_ramp == 0  # stage 2 goes on from what is trained
    assert stylegan2.average_keep(recipe2(average_images=1000.0), 0, 8) == pytest.approx(0.5 ** (8 / 1000))


class LinearSynthesis(nn.Module):
    """ws to an image by one matrix, so that its Jacobian is known."""

    def __init__(self, num_ws: int, w_dim: int, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(num_ws * w_dim, math.prod(shape), dtype=torch.float64))
        self.shape = shape

    def forward(self, ws: Tensor, noise: Tensor) -> Tensor:
        return (ws.flatten(1).double() @ self.matrix).unflatten(1, self.shape)


def test_path_lengths_are_the_norms_of_jacobians_times_directions() -> None:
    """|Jᵀ y|, the mean square over layers, of every second image; y standard normal over the root of the number
    of pixels, of each image's own stream."""
    config = recipe1(seed=5)
    backbone = Backbone(SIZES)
    linear = LinearSynthesis(SIZES.num_ws, SIZES.w_dim, (3, 4, 4))
    cast(Any, backbone).synthesis = linear
    lengths = stylegan2.path_lengths(backbone, batch(config, [7, 8, 9, 11]), config)
    assert lengths.shape == (2,)
    for length, number in zip(lengths, (7, 9), strict=True):
        random = np.random.Generator(np.random.Philox(key=np.array([5, number], np.uint64)).jumped())
        y = random.standard_normal((3, 4, 4), np.float32).ravel().astype(np.float64) / 4
        by_layer = (linear.matrix.detach().numpy() @ y).reshape(SIZES.num_ws, SIZES.w_dim)
        assert length.item() == pytest.approx(np.sqrt(np.square(by_layer).sum(axis=1).mean()), rel=1e-6)
    lengths.sum().backward()
    assert linear.matrix.grad is not None
    # Lengths grow with the matrix as it does: Euler's theorem.
    assert (linear.matrix.grad * linear.matrix).sum().item() == pytest.approx(lengths.sum().item(), rel=1e-6)


# --------------------------------------------------------------------------------------------------- stage 1


def test_an_iteration_of_stage_1_trains_backbone_and_discriminator() -> None:
    config = recipe1()
    training = start1(config)
    before = {name: state_of(network) for name, network in training.networks()}
    assert not changed(training.average, before["backbone"])
    for terms in run(training, config, 4):
        assert all(math.isfinite(value) for value in terms.values()), terms
    for name, network in training.networks():
        assert changed(network, before[name]), name
        for key, value in network.named_parameters():
            assert not torch.equal(value, before[name][key]), f"{name}.{key}"
    assert training.images_seen == 16
    assert training.path_mean > 0
    assert all(not p.requires_grad for p in training.average.parameters())
    assert all(p.requires_grad for _, network in list(training.networks())[:2] for p in network.parameters())


def test_regularization_comes_every_so_many_iterations() -> None:
    config = recipe1()
    training = start1(config)
    means, found = [training.path_mean.item()], []
    for _ in range(7):
        found += run(training, config, 1)
        means.append(training.path_mean.item())
    assert ["D/r1" in terms for terms in found] == [n % 3 == 0 for n in range(7)]
    assert ["G/path_length" in terms for terms in found] == [n % 2 == 0 for n in range(7)]
    assert [new != old for old, new in pairwise(means)] == [n % 2 == 0 for n in range(7)]
    always = {"G/adversarial", "D/real", "D/fake", "augmentation"}
    assert all(set(terms) - {"D/r1", "G/path_length"} == always for terms in found)
    assert "G/path_length" not in run(start1(config), recipe1(path_length=0), 1)[0]


def gradients(loss: Tensor, network: nn.Module) -> dict[str, Tensor]:
    """Of what the loss reaches, by name."""
    names, parameters = zip(*network.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {name: gradient for name, gradient in zip(names, found, strict=True) if gradient is not None}


def same_gradients(network: nn.Module, wanted: dict[str, Tensor], weight: float) -> None:
    """The last step's are those, so much heavier."""
    there = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
    assert set(there) == set(wanted)
    scale = max(gradient.abs().max().item() for gradient in wanted.values())
    for name, gradient in wanted.items():
        torch.testing.assert_close(there[name], weight * gradient, rtol=1e-3, atol=1e-4 * weight * scale)


def test_lazy_steps_weigh_so_much_more() -> None:
    """They are the last of an iteration; with rates that change nothing, their gradients can be had again."""
    config = recipe1(lr=1e-12, r1_gamma=5.0, path_length=3.0)
    training, some = start1(config), batch(config)
    iterated(training, some, config)
    x = some.x.clone().requires_grad_()
    penalty = losses.r1(training.discriminator(x, some.product), x)
    same_gradients(training.discriminator, gradients(penalty, training.discriminator), 5 * config.r1_every)
    lengths = stylegan2.path_lengths(training.backbone, some, config)
    spread = (lengths - training.path_mean).square().mean()
    same_gradients(training.backbone, gradients(spread, training.backbone), 3 * config.path_length_every)


def test_lazy_steps_of_stage_2_weigh_so_much_more() -> None:
    """R1 of D by the label of product and type; of D_match by that of the type, over image and mask."""
    config = recipe2(lr=1e-12, r1_gamma=5.0)
    training, some = start2(config), batch(config)
    iterated(training, some, config)
    x = some.x.clone().requires_grad_()
    penalty = losses.r1(training.discriminator(x, 2 * some.product + some.defect_type), x)
    same_gradients(training.discriminator, gradients(penalty, training.discriminator), 5 * config.r1_every)
    pairs = torch.cat([some.x, some.masks], dim=1).requires_grad_()
    penalty = losses.r1(training.matcher(pairs, some.defect_type), pairs)
    same_gradients(training.matcher, gradients(penalty, training.matcher), 5 * config.r1_every)


def test_the_mean_of_path_lengths_moves_by_its_decay() -> None:
    """With rates that change nothing: first from 0, then from there."""
    config = recipe1(lr=1e-12, path_length_decay=0.25, path_length_every=1)
    training = start1(config)
    wanted = 0.0
    for number in range(2):
        some = batch(config, range(4 * number, 4 * number + 4))
        lengths = stylegan2.path_lengths(training.backbone, some, config).detach()
        wanted += 0.25 * (lengths.mean().item() - wanted)
        term = iterated(training, some, config)["G/path_length"]
        assert training.path_mean.item() == pytest.approx(wanted, rel=1e-4)
        assert term.item() == pytest.approx((lengths - wanted).square().mean().item(), rel=1e-3)


def learned(training: AnyTraining) -> tuple[nn.Module, nn.Module]:
    """What G's step trains, and its moving average."""
    if isinstance(training, StyleGAN2Training):
        return training.backbone, training.average
    return training.generator.manipulation, training.average.manipulation


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_the_average_is_that_of_the_weights(family: str) -> None:
    config = MAKE[family](average_images=4.0, average_ramp=0)  # keeps half at every iteration
    training = start(config)
    network, average = learned(training)
    wanted = [p.detach().clone() for p in network.parameters()]
    for _ in range(3):
        run(training, config, 1)
        wanted = [(mean + p.detach()) / 2 for mean, p in zip(wanted, network.parameters(), strict=True)]
    for mean, parameter in zip(wanted, average.parameters(), strict=True):
        torch.testing.assert_close(parameter, mean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_the_average_of_w_is_kept_with_both_networks(family: str) -> None:
    """A 500th of the way at each iteration, to the mean of w as the mapping network then is; of stage 2, the
    defects' w."""
    config = MAKE[family]()
    training = start(config)
    mapping, kept = (cast(MappingNetwork, network.get_submodule("mapping")) for network in learned(training))
    wanted = torch.zeros(8)
    for number in range(2):
        some = batch(config, range(4 * number, 4 * number + 4))
        iterated(training, some, config)
        latents, label = (
            (some.normals, some.product) if family == "stylegan2" else (some.defects, some.defect_type)
        )
        wanted = 0.998 * wanted + 0.002 * mapping(latents[GENERATOR].z, label).detach().mean(dim=0)
    torch.testing.assert_close(mapping.average, wanted)
    assert torch.equal(kept.average, mapping.average)


def test_weights_may_be_those_of_another_training() -> None:
    other = start1(recipe1(seed=9))
    weights = [other.backbone.state_dict(), other.discriminator.state_dict()]
    training = StyleGAN2Training.start(recipe1(seed=1), SIZES, CPU, weights)
    assert not changed(training.backbone, weights[0])
    assert not changed(training.discriminator, weights[1])
    assert not changed(training.average, weights[0])


def test_augmentation_is_adjusted_every_so_many_iterations() -> None:
    """Up by the images since the last time over those of the full range, as D is too sure of real images."""
    sure = AdaptiveConfig(target=-1, full_range=160, every=3)
    config = recipe1(adaptive=sure)
    training = start1(config)
    nn.init.constant_(training.discriminator.out.bias, 100.0)
    assert [terms["augmentation"] for terms in run(training, config, 7)] == pytest.approx(
        [0, 0, 12 / 160, 12 / 160, 12 / 160, 24 / 160, 24 / 160]
    )


def test_an_augmented_training_sees_other_images() -> None:
    """Real ones, fakes and G's own, each; nothing changes at p = 0."""
    config = recipe1(path_length=0, lr=1e-12)
    plain, augmented, again = (start1(config) for _ in range(3))
    augmented.controller.p = 1.0
    (a,), (b,), (c,) = (run(training, config, 1) for training in (plain, augmented, again))
    assert a == c
    assert all(a[name] != b[name] for name in ("D/real", "D/fake", "G/adversarial", "D/r1"))


# --------------------------------------------------------------------------------------------------- stage 2

AUGMENTED = {"target": -1, "full_range": 1000, "every": 1}


def test_stage_2_trains_all_but_the_backbone() -> None:
    """Not a bit of it changes, parameters and buffers, nor of its copy in the average."""
    config = recipe2(adaptive=AUGMENTED, mirror=True)
    training = start2(config)
    training.controller.p = 0.6
    generators = {"generator": training.generator, "average": training.average}
    frozen = {name: state_of(generator.backbone) for name, generator in generators.items()}
    trained_networks: dict[str, nn.Module] = {
        f"{name}.manipulation": generator.manipulation for name, generator in generators.items()
    }
    trained_networks |= {"discriminator": training.discriminator, "matcher": training.matcher}
    before = {name: state_of(network) for name, network in trained_networks.items()}
    for terms in run(training, config, 5):
        assert all(math.isfinite(value) for value in terms.values()), terms
    assert training.controller.p != 0.6
    for name, generator in generators.items():
        assert not changed(generator.backbone, frozen[name]), name
        assert all(p.grad is None for p in generator.backbone.parameters())
    for name, network in trained_networks.items():
        for key, value in network.state_dict().items():
            assert not torch.equal(value, before[name][key]), f"{name}.{key}"


def test_the_terms_of_stage_2_come_when_they_are_due() -> None:
    config = recipe2()
    found = run(start2(config), config, 4)
    always = {"G/adversarial", "G/match", "G/mode_seeking", "D/real", "D/fake"}
    always |= {"D_match/real", "D_match/fake", "mask_area", "augmentation"}
    for number, terms in enumerate(found):
        assert set(terms) == always | ({"D/r1", "D_match/r1"} if number % 3 == 0 else set())
        assert 0 <= terms["mask_area"] <= 1


def test_terms_of_stage_1_are_what_d_says_of_images() -> None:
    """Of the product they are drawn for; G's and D's images are drawn from latents of their own."""
    config = recipe1(lr=1e-12, style_mixing=0)
    training, some = start1(config), batch(config)
    judge, label = training.discriminator, some.product
    with torch.no_grad():
        own, fakes = (
            training.backbone(some.normals[role].z, label, some.normals[role].noise)
            for role in (GENERATOR, DISCRIMINATOR)
        )
        wanted = {
            "G/adversarial": F.softplus(-judge(own, label)).mean().item(),
            "D/real": F.softplus(-judge(some.x, label)).mean().item(),
            "D/fake": F.softplus(judge(fakes, label)).mean().item(),
        }
    found = iterated(training, some, config)
    assert {name: found[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_terms_of_stage_2_are_what_both_say_of_images_and_masks() -> None:
    """D of the image alone, by product and type; D_match of image and tanh(10 · mask), by the type."""
    config = recipe2(lr=1e-12, style_mixing=0)
    training, some = start2(config), batch(config)
    generator, judge, matcher = training.generator, training.discriminator, training.matcher
    cell, kind = 2 * some.product + some.defect_type, some.defect_type

    def drawn(role: int) -> tuple[Tensor, Tensor]:
        normal, defect = some.normals[role], some.defects[role]
        ws = repeat_w(generator.backbone.mapping(normal.z, some.product), SIZES.num_ws)
        made = generator(ws, normal.noise, generator.defect_ws(defect.z, kind), defect.noise)
        mask = upsample(upsample(made.mask))  # from 8 × 8
        return made.image, torch.cat([made.image, torch.tanh(10 * mask)], dim=1)

    with torch.no_grad():
        (own, own_pair), (fakes, fake_pairs) = drawn(GENERATOR), drawn(DISCRIMINATOR)
        wanted = {
            "G/adversarial": F.softplus(-judge(own, cell)).mean().item(),
            "G/match": F.softplus(-matcher(own_pair, kind)).mean().item(),
            "mask_area": (own_pair[:, 1] >= 0).float().mean().item(),
            "D/real": F.softplus(-judge(some.x, cell)).mean().item(),
            "D/fake": F.softplus(judge(fakes, cell)).mean().item(),
            "D_match/real": F.softplus(-matcher(torch.cat([some.x, some.masks], dim=1), kind)).mean().item(),
            "D_match/fake": F.softplus(matcher(fake_pairs, kind)).mean().item(),
        }
    found = iterated(training, some, config)
    assert {name: found[name].item() for name in wanted} == pytest.approx(wanted, rel=1e-4)


def test_without_matching_the_matcher_is_left_out() -> None:
    config = recipe2(match=0)
    training = start2(config)
    before, mask = state_of(training.matcher), state_of(training.generator.manipulation.to_mask)
    (terms,) = run(training, config, 1)
    assert not any("match" in name for name in terms)
    assert not changed(training.matcher, before)
    assert changed(training.generator.manipulation.to_mask, mask)  # by mode seeking


def test_without_mode_seeking_the_mask_learns_from_matching_alone() -> None:
    config = recipe2(mode_seeking=0)
    training = start2(config)
    mask = state_of(training.generator.manipulation.to_mask)
    (terms,) = run(training, config, 1)
    assert "G/mode_seeking" not in terms
    assert changed(training.generator.manipulation.to_mask, mask)
    config = recipe2(mode_seeking=0, match=0)
    training = start2(config)
    run(training, config, 1)
    assert not changed(training.generator.manipulation.to_mask, mask)


def test_terms_weigh_what_the_recipe_says() -> None:
    """The mask's gradient is the weighted sum of two terms'; their values are before weighting."""
    found = {}
    for name, changes in {"plain": {}, "match": {"match": 10}, "seeking": {"mode_seeking": 10}}.items():
        config = recipe2(**changes)
        training = start2(config)
        (terms,) = run(training, config, 1)
        gradient = training.generator.manipulation.to_mask.weight.grad
        assert gradient is not None
        found[name] = (terms["G/match"], terms["G/mode_seeking"], gradient)
    for name in ("match", "seeking"):
        assert found[name][:2] == found["plain"][:2]
        assert not torch.allclose(found[name][2], found["plain"][2])
    by_match = (found["match"][2] - found["plain"][2]) / 9
    by_seeking = (found["seeking"][2] - found["plain"][2]) / 9.9
    torch.testing.assert_close(found["plain"][2], by_match + 0.1 * by_seeking, rtol=1e-3, atol=1e-6)


def mode_seeking(generator: DFMGANGenerator, some: GANBatch) -> float:
    """|w - w'| over |m - m'|, of each second image and the same with its neighbour's style, by whole passes."""
    normal, defect = some.normals[GENERATOR], some.defects[GENERATOR]
    ws = repeat_w(generator.backbone.mapping(normal.z, some.product), generator.config.backbone.num_ws)
    styles = generator.defect_ws(defect.z, some.defect_type)
    apart, masks = 0.0, 0.0
    for one in range(0, len(ws), 2):
        rows = slice(one, one + 1)
        shared = (ws[rows], normal.noise[rows])
        mine = generator(*shared, styles[rows], defect.noise[rows]).mask
        other = generator(*shared, styles[one + 1 : one + 2], defect.noise[rows]).mask
        apart += (styles[one] - styles[one + 1]).abs().mean().item()
        masks += (torch.tanh(10 * mine) - torch.tanh(10 * other)).abs().mean().item()
    pairs = len(ws) // 2
    return (apart / pairs) / (masks / pairs + 1e-5)


def test_mode_seeking_compares_neighbours_styles_on_the_same_normal() -> None:
    config = recipe2(style_mixing=0)
    training, some = start2(config), batch(config)
    with torch.no_grad():
        wanted = mode_seeking(training.generator, some)
    assert iterated(training, some, config)["G/mode_seeking"].item() == pytest.approx(wanted, rel=1e-4)


def test_one_image_has_no_neighbour_to_seek() -> None:
    config = recipe2()
    terms = iterated(start2(config), batch(config, [0]), config)
    assert terms["G/mode_seeking"] == 0


def test_the_discriminator_goes_on_as_it_was_for_the_product() -> None:
    """One output for each product × type, that of the product at first; products stand in the same order."""
    stage1, sizes = start1(recipe1(seed=17)), replace(DEFECTS, num_types=3)
    shake(stage1.discriminator)
    training = start2(recipe2(), sizes)
    x = batch(recipe2()).x
    for product in range(2):
        wanted = stage1.discriminator(x, torch.full((4,), product))
        for kind in range(3):
            found = training.discriminator(x, torch.full((4,), product * 3 + kind))
            torch.testing.assert_close(found, wanted)
    assert training.matcher.out.weight.shape[0] == 3


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_a_training_depends_on_its_seed_and_not_on_global_randomness(family: str) -> None:
    make = MAKE[family]
    torch.manual_seed(1)
    one, drawn = start(make(seed=4)), torch.rand(1)
    torch.manual_seed(2)
    again = start(make(seed=4))
    other = start(make(seed=5))
    for (_, network), (_, same) in zip(one.networks(), again.networks(), strict=True):
        assert not changed(network, state_of(same))
    assert run(one, make(seed=4), 1) == run(again, make(seed=4), 1) != run(other, make(seed=5), 1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # nor is that touched


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_mixed_precision_steps_are_close_to_full_ones(family: str) -> None:
    make = MAKE[family]
    terms = {}
    for precision in ("float32", "bfloat16"):
        config = make(precision=precision, lr=1e-6)
        (terms[precision],) = run(start(config), config, 1)
    for name in set(terms["float32"]) - {"G/mode_seeking"}:  # a few pixels at the mask's edge make that one
        assert terms["bfloat16"][name] == pytest.approx(terms["float32"][name], rel=0.1, abs=0.05), name


# ---------------------------------------------------------------------------------------------------- resume


class Told:
    """A watcher that keeps the losses, and may do something after every iteration."""

    def __init__(self, then: Callable[[AnyTraining], None] = lambda _: None) -> None:
        self.then = then
        self.losses: list[tuple[int, dict[str, float]]] = []

    def note(self, training: AnyTraining, losses: dict[str, float]) -> None:
        self.losses.append((training.images_seen, losses))
        self.then(training)

    def checkpoint(self, training: AnyTraining) -> None:
        pass


def fields(training: AnyTraining, config: AnyConfig, world: World = ALONE) -> Iterator[Fields]:
    make = maker(config)
    for seen in range(training.images_seen, config.images, config.batch_per_worker * world.size):
        yield make(world.numbers(seen, config))


def trained(
    training: AnyTraining, config: AnyConfig, then: Callable[[AnyTraining], None] = lambda _: None
) -> list[tuple[int, dict[str, float]]]:
    """Trains to the end of the recipe; returns its losses."""
    told = Told(then)

    def step(some: Fields) -> Terms:
        return iterated(training, to_gan_batch(some, SIZES.channels, CPU), config)

    train(training, step, fields(training, config), config, ALONE, told)
    return told.losses


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_a_resumed_training_has_the_losses_of_an_uninterrupted_one_bit_for_bit(family: str) -> None:
    """Also between two updates of the augmentation, whose probability moves before and after."""
    adaptive = {"target": -1, "full_range": 100, "every": 2}
    config = MAKE[family](adaptive=adaptive, mirror=True)
    begun, states = start(config), []
    begun.controller.p = 0.3

    def stop_at_12(now: AnyTraining) -> None:
        if now.images_seen == 12:
            torch.save(now.state_dict(), buffer := io.BytesIO())
            states.append(buffer.getvalue())

    whole = trained(begun, config, stop_at_12)
    resumed = start(config.model_copy(update={"seed": 5}))  # other weights, all of which must go
    for _, network in resumed.networks():
        shake(network)
    resumed.load_state_dict(torch.load(io.BytesIO(states[0]), weights_only=True))
    assert resumed.images_seen == 12
    assert resumed.controller.num_images == 4
    assert trained(resumed, config) == whole[3:]
    assert [seen for seen, _ in whole] == [4, 8, 12, 16, 20, 24]
    assert len({terms["augmentation"] for _, terms in whole}) == 4
    for (name, network), (_, other) in zip(begun.networks(), resumed.networks(), strict=True):
        assert not changed(network, state_of(other)), name
    if isinstance(begun, StyleGAN2Training) and isinstance(resumed, StyleGAN2Training):
        assert torch.equal(begun.path_mean, resumed.path_mean)


@pytest.mark.parametrize(
    ("family", "network", "weight", "term"),
    [
        ("stylegan2", "backbone", "synthesis.constant", "G/adversarial"),
        ("stylegan2", "discriminator", "out.bias", "G/adversarial"),
        ("dfmgan", "generator", "manipulation.blocks.2.conv1.bias", "G/adversarial"),
        ("dfmgan", "generator", "manipulation.to_mask.bias", "G/match"),
        ("dfmgan", "matcher", "out.bias", "G/match"),
    ],
)
def test_a_weight_that_is_not_finite_stops_the_training_and_a_term_is_named(
    family: str, network: str, weight: str, term: str
) -> None:
    config = MAKE[family]()
    seen = []

    def poison(now: AnyTraining) -> None:
        seen.append(now.images_seen)
        if now.images_seen == 8:
            with torch.no_grad():
                dict(now.networks())[network].get_parameter(weight).fill_(float("nan"))

    with pytest.raises(DivergedError, match=rf"^the loss {term} is nan at image 8$"):
        trained(start(config), config, poison)
    assert seen == [4, 8]


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_every_network_s_weights_are_looked_at_before_a_checkpoint(family: str) -> None:
    training = start(MAKE[family]())
    assert training.is_finite()
    for name, network in training.networks():
        parameter = next(iter(network.parameters()))
        kept = parameter.detach().clone()
        with torch.no_grad():
            parameter.fill_(float("inf"))
            assert not training.is_finite(), name
            parameter.copy_(kept)
    assert training.is_finite()


# ------------------------------------------------------------------------------------- two processes as one


class Outcome(NamedTuple):
    """What two iterations lead to."""

    losses: list[dict[str, float]]
    weights: dict[str, Tensor]  # and the averages of w
    scalars: dict[str, float]


CASES: dict[str, AnyConfig] = {
    "stylegan2": recipe1(adaptive=AUGMENTED, images=16),
    "dfmgan": recipe2(adaptive=AUGMENTED, images=16, mode_seeking=0),
    "mode seeking": recipe2(adaptive=AUGMENTED, images=16),
}


def doubled(some: GANBatch) -> GANBatch:
    """In double precision, but for the numbers of augmentation."""

    def twice(latents: Latents) -> Latents:
        return Latents(*(tensor.double() for tensor in latents))

    return some._replace(
        x=some.x.double(),
        masks=some.masks.double(),
        normals=(twice(some.normals[0]), twice(some.normals[1])),
        defects=(twice(some.defects[0]), twice(some.defects[1])),
    )


def two_iterations(config: AnyConfig, world: World) -> Outcome:
    """On batches of 8 in all."""
    config = config.model_copy(update={"batch_per_worker": 8 // world.size})
    training = start(config)
    training.controller.p = 0.5
    for _, network in training.networks():
        network.double()
    if isinstance(training, StyleGAN2Training):
        training.path_mean = training.path_mean.double()
    found = []
    for some in fields(training, config, world):
        terms = iterated(training, doubled(to_gan_batch(some, SIZES.channels, CPU)), config, world)
        means = world.mean(torch.stack(list(terms.values()))).tolist()
        found.append(dict(zip(terms, means, strict=True)))
    weights = {
        f"{name}.{key}": value.detach().clone()
        for name, network in training.networks()
        for key, value in network.state_dict().items()
    }
    scalars = {"p": training.controller.p, "seen": float(training.images_seen)}
    if isinstance(training, StyleGAN2Training):
        scalars["path_mean"] = training.path_mean.item()
    return Outcome(found, weights, scalars)


def one_of_two(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    for name, config in CASES.items():
        outcome = two_iterations(config, World(rank, 2))
        torch.save(tuple(outcome), f"{folder}/{name}-{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def of_two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Outcome]]:
    """What both processes come to, in every case."""
    folder = tmp_path_factory.mktemp("two")
    start_processes(one_of_two, (str(folder),), nprocs=2)
    return {name: [Outcome(*torch.load(folder / f"{name}-{rank}.pt")) for rank in range(2)] for name in CASES}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_train_as_one_with_both_batches(case: str, of_two: dict[str, list[Outcome]]) -> None:
    """Losses, weights, averages and the augmentation's probability; in double precision, for Adam's first steps
    have the size of the rate however small a gradient is, and would make much of its rounding."""
    wanted, (first, second) = two_iterations(CASES[case], ALONE), of_two[case]
    assert first.scalars == second.scalars
    for name, value in first.weights.items():
        assert torch.equal(value, second.weights[name]), name
    assert first.scalars == pytest.approx(wanted.scalars, rel=1e-5)
    assert first.scalars["seen"] == 16
    assert first.scalars["p"] != 0.5
    for found, terms in zip(first.losses, wanted.losses, strict=True):
        assert found == pytest.approx(terms, rel=1e-5)
    assert set(first.weights) == set(wanted.weights)
    for name, value in wanted.weights.items():
        scale = value.abs().max().clamp_min(1e-3)
        assert (first.weights[name] - value).abs().max() <= 1e-5 * scale, name


# -------------------------------------------------------------------------------------------------- batches


@pytest.mark.parametrize("config", [recipe1(mirror=True), recipe2(mirror=True)], ids=lambda c: c.family)
def test_an_image_does_not_depend_on_its_batch(config: AnyConfig) -> None:
    make = maker(config)
    whole = make(range(8))
    for numbers in ([0, 1, 2], [2], [5, 0]):
        for name, values in make(numbers).items():
            by_image = name in ("numbers", "x", "product", "defect_type")
            axis = 0 if by_image else whole[name].ndim - 2
            np.testing.assert_array_equal(values, np.take(whole[name], numbers, axis), err_msg=name)


def test_seed_and_number_decide() -> None:
    one, again, other = (maker(recipe2(seed=seed))([7]) for seed in (1, 1, 2))
    assert all((one[name] == again[name]).all() for name in one)
    next_one = maker(recipe2(seed=1))([8])
    for name in ("normal_z", "normal_mixing", "normal_noise", "defect_z", "uniforms", "gaussians"):
        assert (one[name] != other[name]).all()
        assert (one[name] != next_one[name]).all()


def test_all_of_an_iteration_s_randomness_is_drawn_apart() -> None:
    """Roles, latents of a mixture, normals and defects, views of augmentation: none repeats another."""
    some = batch(recipe2())
    drawn = [*some.normals, *some.defects]
    flat = [tensor.flatten() for latents in drawn for tensor in (latents.z, latents.other, latents.noise)]
    flat += [tensor.flatten() for pair in some.draws for tensor in pair]
    flat += [latents.mixing.flatten() for latents in drawn]
    assert len({tuple(tensor[:8].tolist()) for tensor in flat}) == len(flat) == 4 * 3 + 3 * 2 + 4


def test_a_mirrored_photo_has_a_mirrored_mask() -> None:
    config = recipe2()
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 1), dtype=np.uint8)
    pixels = np.concatenate([pixels, (pixels > 127) * np.uint8(255)], axis=3)
    plain = replace(maker(config), load=pixels.__getitem__)
    kept, turned = Counter[bool](), Counter[bool]()
    for make, found in ((plain, kept), (replace(plain, mirror=True), turned)):
        for image in make(range(300))["x"]:
            np.testing.assert_array_equal(image[..., 1], (image[..., 0] > 127) * 255)
            as_is, flipped = ((pixels == view).all(axis=(1, 2, 3)).any() for view in (image, image[:, ::-1]))
            assert as_is != flipped
            found[bool(flipped)] += 1
    assert kept == {False: 300}
    assert turned[True] == pytest.approx(150, abs=5 * 75**0.5)  # 5 sigma


def test_cells_are_drawn_equally_often_and_their_photos_too() -> None:
    sizes, num = (50, 5, 1, 10), 4000
    ends = np.cumsum(sizes)
    cells = [np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True)]
    products = np.arange(66)
    nothing = LatentSizes(0, 0)
    make = GANBatchMaker(
        0, cells, products, 0 * products, np.zeros((66, 1, 1, 1), np.uint8).__getitem__, False, nothing
    )
    photos = Counter(make(range(num))["product"].tolist())
    for cell in cells:
        assert sum(photos[row] for row in cell) == pytest.approx(num / 4, abs=5 * (num / 4) ** 0.5)
    assert all(photos[row] == pytest.approx(200, abs=5 * 200**0.5) for row in cells[1])


def test_cells_are_products_and_types_that_there_are() -> None:
    kinds = [("a", "normal"), ("a", "spots"), ("b", "spots"), ("a", "spots"), ("b", "scratches")]
    photos = [Photo(f"/{i}.png", product, kind, None, "", None) for i, (product, kind) in enumerate(kinds)]
    found = cells_of(DefectSet(photos, ("a", "b"), ("scratches", "spots")))
    assert [cell.tolist() for cell in found] == [[0], [1, 3], [4], [2]]


def test_tensors_are_as_the_networks_want_them() -> None:
    some = batch(recipe2())
    assert some.x.shape == some.masks.shape == (4, 1, 32, 32)
    assert -1 <= some.x.min() < -0.9
    assert 0.9 < some.x.max() <= 1
    assert set(some.masks.unique().tolist()) == {-1, 1}
    assert some.product.dtype == some.defect_type.dtype == some.numbers.dtype == torch.long
    for latents, noise_size in ((some.normals, SIZES.noise_size), (some.defects, DEFECTS.noise_size)):
        for role in (DISCRIMINATOR, GENERATOR):
            assert latents[role].z.shape == latents[role].other.shape == (4, 8)
            assert latents[role].mixing.shape == (4, 2)
            assert latents[role].noise.shape == (4, noise_size)
    assert [[tuple(tensor.shape) for tensor in view] for view in some.draws] == [[(4, NUM_DRAWS)] * 2] * 3
    normals = batch(recipe1())
    assert normals.masks.shape == (4, 0, 32, 32)
    assert (normals.defect_type == 0).all()


def test_every_second_image_is_the_same_one_however_a_batch_is_spread() -> None:
    whole = batch(recipe1(), range(8)).normals[GENERATOR].every_second()
    halves = [batch(recipe1(), range(i, i + 4)).normals[GENERATOR].every_second() for i in (0, 4)]
    for tensor, one, other in zip(whole, *halves, strict=True):
        assert torch.equal(tensor, torch.cat([one, other]))


def test_a_maker_can_be_pickled() -> None:
    make = maker(recipe2())
    for name, values in pickle.loads(pickle.dumps(make))(range(4)).items():
        np.testing.assert_array_equal(values, make(range(4))[name])


# -------------------------------------------------------------------------------------------------- recipes

PLACES = ("defects=/d", "output=/o", "backbone=/b")


@pytest.mark.parametrize(
    ("overrides", "kind", "family"),
    [
        (PLACES[:2], TrainConfig, "dtgan"),
        (("family=dtgan", *PLACES[:2]), TrainConfig, "dtgan"),
        (("family=stylegan2", *PLACES[:2]), StyleGAN2TrainConfig, "stylegan2"),
        (("family=dfmgan", *PLACES), DFMGANTrainConfig, "dfmgan"),
    ],
)
def test_a_recipe_s_family_says_what_it_is(
    overrides: Sequence[str], kind: type[TrainingConfig], family: str
) -> None:
    config = load_train_config(None, overrides)
    assert type(config) is kind
    assert name_of(config) == family
    assert parse_train_config(config.model_dump(mode="json")) == config
    assert config.identity()["family"] == family


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("family=cyclegan",), "family = 'cyclegan': choose from dtgan, stylegan2, dfmgan"),
        (("family=3",), "family = 3: choose from"),
        (('family=["dtgan"]',), r"family = \['dtgan'\]: choose from"),
        (("family=stylegan2", "match=1"), "unknown key 'match'; the keys are .*path_length"),
        (("family=stylegan2", "ladder=g"), "unknown key 'ladder'"),
        (("family=dfmgan",), "'backbone' is missing"),
        (("family=dfmgan", "backbone=/b", "path_length=1"), "unknown key 'path_length'"),
        (
            ("family=dfmgan", "backbone=/b", "adaptive.rotate=false"),
            "unknown key 'adaptive.rotate'; .*transforms",
        ),
        (("family=stylegan2", "r1_every=0"), "r1_every = 0: "),
        (("family=stylegan2", "learns=photos"), "learns = 'photos': "),
    ],
)
def test_a_wrong_recipe_is_one_line(overrides: Sequence[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_train_config(None, [*PLACES[:2], *overrides])
    assert "\n" not in str(caught.value)


def test_transforms_are_switched_in_the_recipe() -> None:
    """And decide whether x is moved, or only its colours are."""
    config = load_train_config(
        None, [*PLACES[:2], "family=stylegan2", "adaptive.transforms.luma_flip=false", "adaptive.target=0.5"]
    )
    assert isinstance(config, StyleGAN2TrainConfig)
    assert config.adaptive.transforms == {"luma_flip": False}
    blits = {"flip", "rotate90", "translate"}
    names = [field.name for field in dataclass_fields(AugmentConfig) if field.default is True]
    switches = {name: name in blits for name in names}
    some = batch(recipe1())
    seen = stylegan2.seen_by(some.x, some, stylegan2.REAL, 1.0, AdaptiveConfig(transforms=switches))
    assert not torch.equal(seen, some.x)
    assert set(seen.unique().tolist()) <= set(some.x.unique().tolist())


# ----------------------------------------------------------------------------------------- families at work


class Stage1(NamedTuple):
    """A defect set, and what stage 1 made of its normals."""

    defects: str
    checkpoint: str
    training: StyleGAN2Training
    root: Path


MODEL = ["latent_dim=8", "w_dim=8", "channel_base=256", "channel_max=16", "image_size=32", "channels=1"]


def load(family: str, *overrides: str) -> Any:
    """A recipe that lacks nothing but what is given."""
    return load_train_config(None, [f"family={family}", "output=/output", "batch_per_worker=4", *overrides])


def open_family(config: AnyConfig) -> tuple[Any, DefectSet]:
    """The family as a new training has it, and all of its photos."""
    model, photos = family_of(config).draft(config)
    run = TrainingRun(
        config=config.model_dump(mode="json"),
        photos="",
        products=photos.products,
        defect_types=photos.defect_types,
        model=model,
        command="",
    )
    return family_of(config)(config, run), photos


@pytest.fixture(scope="module")
def stage1(tmp_path_factory: pytest.TempPathFactory) -> Stage1:
    """After two iterations, so that the average is not the weights."""
    root = tmp_path_factory.mktemp("stage1")
    write_defect_set(str(root / "defects"), num_normals=3, num_defects=2)
    sizes = [f"model.{size}" for size in MODEL]
    config = load("stylegan2", f"defects={root / 'defects'}", "average_ramp=1000", *sizes)
    family, photos = open_family(config)
    training = family.start(CPU)
    learning = photos.part(TRAINING_SPLITS)
    step, make = family.stepper(training, ALONE), family.maker(learning, in_memory=True)
    for first in (0, 4):
        step(make(range(first, first + 4)))
    contents = family.contents(training, learning)
    about = CheckpointConfig(
        family="stylegan2",
        model=contents.model,
        image_size=contents.image_size,
        channels=contents.channels,
        products=photos.products,
        defect_types=photos.defect_types,
        images_seen=8,
        trained_on="",
    )
    save_checkpoint(str(root / "checkpoint"), about, contents.tensors)
    return Stage1(str(root / "defects"), str(root / "checkpoint"), training, root)


def test_stage_1_learns_normals_and_counts_products(stage1: Stage1) -> None:
    config = load("stylegan2", f"defects={stage1.defects}", *(f"model.{size}" for size in MODEL))
    model, photos = StyleGAN2Family.draft(config)
    assert StyleGAN2Config(**model) == replace(SIZES, num_products=3)
    assert {photo.defect_type for photo in photos.photos} == {"normal"}
    assert photos.products == tuple(sorted(surfaces.PRODUCTS))
    assert len(photos.part(TRAINING_SPLITS).photos) == 6


def test_stage_1_may_learn_one_type_of_defects_from_where_normals_are_known(stage1: Stage1) -> None:
    """The baseline of DFM-GAN's paper: the networks go on from the averaged weights."""
    config = load(
        "stylegan2",
        f"defects={stage1.defects}",
        f"begin_with={stage1.checkpoint}",
        "learns=defects",
        "types.spots=-",
    )
    family, photos = open_family(config)
    assert {photo.defect_type for photo in photos.photos} == {"scratches"}
    training = family.start(CPU)
    assert not changed(training.backbone, state_of(stage1.training.average))
    assert not changed(training.discriminator, state_of(stage1.training.discriminator))
    terms = family.stepper(training, ALONE)(family.maker(photos, in_memory=False)(range(4)))
    assert all(term.isfinite() for term in terms.values())


def test_stage_2_stands_on_what_stage_1_left(stage1: Stage1) -> None:
    """Its sizes, its averaged weights, its discriminator; and learns defects with their masks."""
    config = load("dfmgan", f"defects={stage1.defects}", f"backbone={stage1.checkpoint}", "model.start=16")
    family, photos = open_family(config)
    assert isinstance(family, DFMGANFamily)
    assert family.sizes == DFMGANConfig(replace(SIZES, num_products=3), num_types=2, start=16)
    assert {photo.defect_type for photo in photos.photos} == set(surfaces.DEFECT_TYPES)
    training = family.start(CPU)
    assert changed(stage1.training.backbone, state_of(stage1.training.average))
    assert not changed(training.generator.backbone, state_of(stage1.training.average))
    trunk = {name: value for name, value in training.discriminator.state_dict().items() if "out." not in name}
    theirs = stage1.training.discriminator.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in trunk.items())
    made = family.maker(photos.part(TRAINING_SPLITS), in_memory=True)(range(30))
    assert set(zip(made["product"].tolist(), made["defect_type"].tolist(), strict=True)) == {
        (product, kind) for product in range(3) for kind in range(2)
    }
    assert set(np.unique(made["x"][..., 1])) == {0, 255}
    terms = family.stepper(training, ALONE)(family.maker(photos, in_memory=False)(range(4)))
    assert all(term.isfinite() for term in terms.values())
    contents = family.contents(training, photos)
    again = DFMGANGenerator(DFMGANConfig.of(contents.model))
    saved = {name.removeprefix("generator."): value for name, value in contents.tensors[WEIGHTS].items()}
    again.load_state_dict(saved)
    assert not changed(again, state_of(training.average))


@pytest.mark.parametrize("family", ["stylegan2", "dfmgan"])
def test_a_sheet_is_a_picture_of_the_averaged_weights_alone(family: str, stage1: Stage1) -> None:
    """Drawn from the same latents each time."""
    more = [f"backbone={stage1.checkpoint}"] if family == "dfmgan" else [f"model.{size}" for size in MODEL]
    at_work, photos = open_family(load(family, f"defects={stage1.defects}", *more))
    training = at_work.start(CPU)
    sheet = at_work.sheet(training, photos)
    pixels = images.decode(sheet, 64, 3, resize=True, max_pixels=10**8)
    assert pixels.std() > 10
    shake(training.discriminator)
    assert at_work.sheet(training, photos) == sheet
    shake(training.average)
    assert at_work.sheet(training, photos) != sheet


@pytest.mark.parametrize(
    ("family", "overrides", "message"),
    [
        (
            "stylegan2",
            ["adaptive.transforms.rotat=false"],
            "adaptive.transforms: .*'rotat'; see .*AugmentConfig$",
        ),
        (
            "dfmgan",
            ["adaptive.transforms.rotat=false"],
            "adaptive.transforms: .*'rotat'; see .*AugmentConfig$",
        ),
        (
            "stylegan2",
            ["adaptive.transforms.scale_std=-1"],
            "adaptive.transforms: scale_std must be at least 0",
        ),
        (
            "stylegan2",
            ["adaptive.transforms.scale_std=much"],
            "adaptive.transforms: .*; see .*AugmentConfig$",
        ),
        ("stylegan2", ["model.depth=3"], "model: .*'depth'; see .*StyleGAN2Config$"),
        (
            "stylegan2",
            ["model.image_size=100"],
            "model: image_size must be a power of two in 32..512, not 100",
        ),
        ("stylegan2", ["model.num_products=2"], "model.num_products: follows from the defect set"),
        ("dfmgan", ["model.num_types=3"], "model.num_types: follows from the defect set"),
        ("dfmgan", ["model.depth=3"], "model: .*'depth'; see .*DFMGANConfig$"),
        ("dfmgan", ["model.start=12"], "model: start must be one of 8, 16, 32, or 0"),
        ("dfmgan", ["backbone={dtgan}"], 'backbone = .*: a checkpoint of dtgan; .* family = "stylegan2"'),
        ("stylegan2", ["begin_with={dtgan}"], "begin_with = .*: a checkpoint of dtgan"),
        ("dfmgan", ["backbone={root}/nothing"], "nothing: no checkpoint there"),
        (
            "dfmgan",
            ['products=["grained_leather"]'],
            "backbone = .*: knows .*, and the defect set holds grained_leather; ",
        ),
        (
            "stylegan2",
            ["begin_with={stage1}", 'products=["grained_leather"]'],
            "begin_with = .*: knows .* holds grained_leather;",
        ),
        ("stylegan2", ["begin_with={stage1}", "model.w_dim=8"], "model: is that of begin_with; leave it out"),
        ("stylegan2", ["learns=defects"], "one type at a time, not scratches, spots; "),
        ("dfmgan", ["defects={unmasked}"], "defect set: .*000001.png: has no mask; put one beside it"),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    family: str, overrides: Sequence[str], message: str, stage1: Stage1, tmp_path: Path
) -> None:
    places = {"dtgan": tmp_path / "dtgan", "unmasked": tmp_path / "unmasked"}
    if any("{dtgan}" in override for override in overrides):
        write_checkpoint(str(places["dtgan"]))
    if any("{unmasked}" in override for override in overrides):
        shutil.copytree(stage1.defects, places["unmasked"])
        next(iter(places["unmasked"].glob("*/spots/000001_mask.png"))).unlink()
    given = [override.format(**places, root=tmp_path, stage1=stage1.checkpoint) for override in overrides]
    backbone = [f"backbone={stage1.checkpoint}"] if family == "dfmgan" else []
    config = load(family, f"defects={stage1.defects}", *backbone, *given)
    with pytest.raises(UserError, match=message) as caught:
        family_of(config).draft(config)
    assert "\n" not in str(caught.value)
