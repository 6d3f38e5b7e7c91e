"""Makes what the tests of StyleGAN2's and DFM-GAN's training need: tiny recipes, trainings, batches of them."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from raygen.families.dfmgan import step as dfmgan
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dfmgan.networks import DFMGANConfig
from raygen.families.dfmgan.step import DFMGANTraining
from raygen.families.stylegan2 import step as stylegan2
from raygen.families.stylegan2.batches import GANBatch, GANBatchMaker, LatentSizes, to_gan_batch
from raygen.families.stylegan2.config import StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.families.stylegan2.step import StyleGAN2Training
from raygen.families.world import Terms, World

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
AUGMENTED = {"target": -1, "full_range": 1000, "every": 1}


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
