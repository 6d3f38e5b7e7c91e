"""StyleGAN2's part in a training: sizes, batches, sheets, checkpoints; the steps are beside it."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raygen import images
from raygen.checkpoint import GENERATOR, JUDGE, Checkpoint, load_checkpoint
from raygen.errors import UserError
from raygen.families.family import Contents, Fields, Settled
from raygen.families.photos import DefectSet, loader
from raygen.families.stylegan2.ada import AugmentConfig
from raygen.families.stylegan2.batches import GANBatchMaker, LatentSizes, cells_of, to_gan_batch
from raygen.families.stylegan2.config import AdaptiveConfig, StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.families.stylegan2.step import StyleGAN2Training, iterate
from raygen.families.stylegan2.vital_signs import THRESHOLDS, vital_signs
from raygen.families.vital_signs import Signs
from raygen.families.world import Terms, World
from raygen.show import draw_sheet

_SHEET_ROWS, _SHEET_COLUMNS = 3, 5
_MAX_PRODUCTS = 8


class StyleGAN2Trainer:
    """See raygen.families.family.Trainer."""

    shown = ("D/real", "D/fake", "G/adversarial", "augmentation")
    thresholds = THRESHOLDS

    def __init__(self, config: StyleGAN2TrainConfig, run: Settled) -> None:
        self.config = config
        self.sizes = StyleGAN2Config(**run.model)

    @staticmethod
    def draft(config: StyleGAN2TrainConfig) -> tuple[dict[str, Any], DefectSet]:
        check_transforms(config.adaptive)
        defects = DefectSet.read(config, kinds=[config.learns])
        if len(defects.defect_types) > 1:
            raise UserError(
                f'learns = "defects": one type at a time, not {", ".join(defects.defect_types)}; leave the others '
                'out by `types`, say types = {spots = "-"}'
            )
        if config.begin_with:
            begun = read_stage1(config.begin_with, "begin_with")
            refuse_other_products(begun, defects, "begin_with")
            if config.model:
                raise UserError("model: is that of begin_with; leave it out")
            return begun.config.model, defects
        sizes = make_sizes(StyleGAN2Config, config.model, {"num_products": len(defects.products)})
        return asdict(sizes), defects

    def describe(self) -> str:
        return describe(self.sizes)

    def start(self, on: torch.device) -> StyleGAN2Training:
        weights: list[dict[str, Tensor]] = []
        if self.config.begin_with:
            checkpoint = read_stage1(self.config.begin_with, "begin_with")
            weights = [backbone_weights(checkpoint), checkpoint.tensors(JUDGE)]
        return StyleGAN2Training.start(self.config, self.sizes, on, weights)

    def warm(self, training: StyleGAN2Training) -> None:
        pass

    def stepper(self, training: StyleGAN2Training, world: World) -> Callable[[Fields], Terms]:
        device = training.path_mean.device

        world.share(network for _, network in training.networks())

        def step(fields: Fields) -> Terms:
            batch = to_gan_batch(fields, self.sizes.channels, device)
            return iterate(training, batch, self.config, world)

        return step

    def maker(self, learning: DefectSet, in_memory: bool) -> GANBatchMaker:
        return GANBatchMaker(
            seed=self.config.seed,
            cells=cells_of(learning),
            products=np.array(learning.product_numbers),
            defect_types=np.zeros(len(learning.photos), np.int64),
            load=loader(learning.photos, self.sizes, in_memory=in_memory),
            mirror=self.config.mirror,
            normal=LatentSizes(self.sizes.latent_dim, self.sizes.noise_size),
        )

    def validate(self, training: StyleGAN2Training, judged: DefectSet) -> dict[str, float]:
        return {}  # no loss of a GAN says how good its images are; `evaluate` does

    def vital_signs(self, training: StyleGAN2Training, learning: DefectSet, judged: DefectSet) -> Signs:
        return vital_signs(training, learning, judged, self.config.adaptive, self.config.seed)

    @torch.no_grad()
    def sheet(self, training: StyleGAN2Training, judged: DefectSet, title: str = "") -> bytes:
        """Photos and what the averaged backbone draws, of each product."""
        load = loader(judged.photos, self.sizes, in_memory=False)
        device = training.path_mean.device
        groups: dict[str, list[list[np.ndarray | None]]] = {}
        for number, product in enumerate(judged.products[:_MAX_PRODUCTS]):
            count = _SHEET_ROWS * _SHEET_COLUMNS
            own = np.flatnonzero(np.array(judged.product_numbers) == number)
            chosen = [int(own[i * len(own) // count]) for i in range(count)] if len(own) else []
            photos: list[np.ndarray | None] = [*load(chosen)] if chosen else [None] * count
            z, noise = (
                torch.from_numpy(array).to(device)
                for array in draw_latents(
                    self.config.seed, count, self.sizes.latent_dim, self.sizes.noise_size
                )
            )
            drawn = training.average(z, torch.full((count,), number, device=device), noise)
            made = images.from_model(drawn).cpu().numpy()
            groups[product] = [
                [*photos[start : start + _SHEET_COLUMNS], *made[start : start + _SHEET_COLUMNS]]
                for start in range(0, count, _SHEET_COLUMNS)
            ]
        captions = ["photo"] * _SHEET_COLUMNS + ["drawn"] * _SHEET_COLUMNS
        return draw_sheet(captions, groups, self.sizes.image_size, title)

    def contents(self, training: StyleGAN2Training, learning: DefectSet) -> Contents:
        average = training.average.state_dict()
        return Contents(
            model=asdict(self.sizes),
            image_size=self.sizes.image_size,
            channels=self.sizes.channels,
            tensors={
                GENERATOR: {f"backbone.{name}": value for name, value in average.items()},
                JUDGE: training.discriminator.state_dict(),
            },
        )


# ----------------------------------------------------------------------------- what DFM-GAN's stage 2 needs too


def draw_latents(
    seed: int, count: int, latent_dim: int, noise_size: int, stream: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """The same latents, (count, latent_dim), and noise, (count, noise_size), for every sheet of a training."""
    random = np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64)).jumped(2))
    z = random.standard_normal((count, latent_dim), np.float32)
    return z, random.standard_normal((count, noise_size), np.float32)


def make_sizes(kind: Any, fields: Mapping[str, Any], counted: Mapping[str, Any]) -> Any:
    """Sizes of networks from a recipe's `model`, and from what is counted or read elsewhere.

    Raises:
        UserError: no such field, or a value out of range.
    """
    for name in counted:
        if name in fields:
            raise UserError(f"model.{name}: follows from the defect set and the backbone; leave it out")
    try:
        return kind(**fields, **counted)
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}; see {kind.__module__}.{kind.__name__}") from None


def check_transforms(config: AdaptiveConfig) -> None:
    """Raises UserError unless the recipe's transforms are some."""
    try:
        AugmentConfig(**config.transforms)
    except (TypeError, ValueError) as error:
        raise UserError(
            f"adaptive.transforms: {error}; see raygen.families.stylegan2.ada.AugmentConfig"
        ) from None


def read_stage1(uri: str, key: str) -> Checkpoint:
    """The checkpoint of a StyleGAN2, by the key of the recipe that names it.

    Raises:
        UserError: none there, or one of another family.
    """
    checkpoint = load_checkpoint(uri)
    if checkpoint.config.family != "stylegan2":
        raise UserError(
            f"{key} = {uri}: a checkpoint of {checkpoint.config.family}; name one that a recipe of "
            'family = "stylegan2" trained'
        )
    return checkpoint


def refuse_other_products(checkpoint: Checkpoint, defects: DefectSet, key: str) -> None:
    """Raises UserError unless a checkpoint knows exactly the products of a defect set."""
    if checkpoint.config.products != defects.products:
        raise UserError(
            f"{key} = {checkpoint.uri}: knows {', '.join(checkpoint.config.products)}, and the defect set holds "
            f"{', '.join(defects.products)}; choose the same by `products`"
        )


def backbone_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The averaged weights of a stage-1 checkpoint's generator."""
    prefix = "backbone."
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors(GENERATOR).items()}


def describe(sizes: StyleGAN2Config) -> str:
    """`64 px, 1 channel, at most 128 channels wide, 3 products`"""
    channels = f"{sizes.channels} channel{'s' * (sizes.channels > 1)}"
    products = f"{sizes.num_products} product{'s' * (sizes.num_products > 1)}"
    return f"{sizes.image_size} px, {channels}, {sizes.width(4)} features at 4 × 4, {products}"
