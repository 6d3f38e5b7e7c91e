"""The recipes of a training, one for each family."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from raygen.config import Config, Place, load_config, read_values
from raygen.errors import UserError

Balance = Literal["cells", "defect_types", "none"]


class LossConfig(Config):
    """The weights of equation 8 and how they are used; the defaults are the paper's (all 1 for SDI)."""

    adversarial: float = 1.0
    style_content: float = 1.0
    diversity: float = 1.0
    """At its height; see `diversity_at`."""
    cycle: float = 1.0
    content_consistency: float = 1.0
    foreground_class: float = 1.0
    background_class: float = 1.0
    r1: float = 1.0
    r1_every: Annotated[int, Field(ge=1)] = 1
    """R1 is computed every so many iterations, and weighs so much more then."""
    diversity_reduction: Literal["sum", "mean"] = "sum"
    """Over the six pairs. Their sum is unbounded: it can blow short trainings up before D has learnt anything."""
    diversity_clamp: bool = False
    """Whether diversity is measured on images clamped to [-1, 1], so that there is no gain in saturating them."""
    diversity_every: Annotated[int, Field(ge=1)] = 1
    """Diversity is computed every so many iterations, and weighs so much more then: it costs three more passes of
    the foreground decoder."""
    diversity_ramp: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the training over which the weight rises to its height."""
    diversity_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the training after which the weight has gone down to 0."""

    def diversity_at(self, progress: float) -> float:
        """The weight of diversity at a share of the training in [0, 1]: a pure function, so that a training that
        resumes goes on where it was."""
        rise = min(1.0, progress / self.diversity_ramp) if self.diversity_ramp else 1.0
        return self.diversity * rise * max(0.0, 1 - progress / self.diversity_decay)


class OptimizerConfig(Config):
    """Adam, one for each network; the defaults are the paper's."""

    generator_lr: Annotated[float, Field(gt=0)] = 1e-4
    mapping_lr: Annotated[float, Field(gt=0)] = 1e-6
    """Meant for 100,000 iterations; short trainings want 1e-5 to 1e-4."""
    encoder_lr: Annotated[float, Field(gt=0)] = 1e-4
    discriminator_lr: Annotated[float, Field(gt=0)] = 1e-4
    betas: tuple[float, float] = (0.0, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    encoder_on_references: bool = False
    """Whether the reference-guided step trains E too, or, as in StarGAN v2, G alone."""
    head_start: Annotated[int, Field(ge=0)] = 0
    """Images over which D alone learns, to classify: until it knows the defects, it has nothing to teach G, and
    its steps are cheap."""
    average: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Share of itself that the moving average keeps at every iteration."""
    average_ramp: bool = False
    """Whether it keeps less at first, so that the average of a short training is not mostly its beginning."""

    def average_at(self, iteration: int) -> float:
        """What the moving average keeps at an iteration, from 0."""
        return min(self.average, iteration / (iteration + 10)) if self.average_ramp else self.average


class TrainComputeConfig(Config):
    """How a training is spread over the cluster."""

    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes of the data-parallel training. Default: one per GPU of the cluster; one without GPUs."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs a worker reserves; without a GPU also its threads."""
    loading: Literal["memory", "stream"] = "memory"
    """Photos are decoded once and kept by every worker, or read again for every batch, ahead, by Ray Data."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced, and the training goes on from its last checkpoint."""


class TrainingConfig(Config):
    """What the recipes of all families have in common."""

    defects: Place
    """The defect set: `{product}/{defect_type}/{id}.png` and `{product}/normal/{id}.png` with an optional
    metadata.csv, or the MVTec AD layout. Photos of the split "val" validate, those of "test" are not touched."""
    more_defects: Place | None = None
    """Another defect set, whose defects are learned from, too: say synthetic ones, as `raygen defects` writes them
    of a run."""
    output: Place
    """The training's folder: checkpoints, metrics, sheets. Run the same command again to resume."""
    types: dict[str, str] = Field(default_factory=dict)
    """Folder of defects -> defect type, say {crack = "scratches"}; "-" leaves a folder out."""
    products: tuple[str, ...] = ()
    """Which products to learn. Default: all."""
    keep_defects: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)
    """Product -> how many defects of each type to learn from, say {A = 20} for the paper's 20A. Default: all."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    model: dict[str, Any] = Field(default_factory=dict)
    """Fields of the networks' sizes that differ from their defaults, or the preset's."""
    images: Annotated[int, Field(ge=1)]
    """The training's length, in images seen."""
    batch_per_worker: Annotated[int, Field(ge=1)]
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision, for GPUs."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 20_000
    """Images between two checkpoints, each with metrics and a sample sheet: what a killed worker costs at most."""
    num_to_keep: Annotated[int, Field(ge=1)] = 2
    """The latest checkpoints that stay; the best one stays besides."""
    compute: TrainComputeConfig = TrainComputeConfig()

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a training is resumed only by a config with the same. (Of two numbers of
        workers with equal batches in all, one can go on for the other.)"""
        policy = {"output", "compute", "num_to_keep", "checkpoint_every", "references_per_cell"}
        return self.model_dump(mode="json", exclude=policy)


class TrainConfig(TrainingConfig):
    """Training DT-GAN on a defect set; its `model` holds fields of raygen.models.dtgan.DTGANConfig."""

    family: Literal["dtgan"] = "dtgan"
    preset: str = "paper-128"
    """Sizes of the networks: a name in raygen.models.dtgan.PRESETS."""
    ladder: Literal["a", "b", "c", "d", "e", "f", "g"] = "g"
    """Rung of the paper's ablation (Table 15): "a" is StarGAN v2, "g" the whole of DT-GAN; see
    raygen.models.dtgan.LADDER. Without `background_skip` below "e"."""
    images: Annotated[int, Field(ge=1)] = 400_000
    """The paper's 100,000 iterations of 4."""
    batch_per_worker: Annotated[int, Field(ge=1)] = 4
    balance: Balance = "cells"
    """What is drawn equally often: the cells (product × defect type), the defect types (the paper), or photos."""
    augment: bool = True
    """The paper's random resized crops and horizontal flips."""
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    references_per_cell: Annotated[int, Field(ge=1)] = 64
    """Reference images of each product and defect type in a checkpoint's bank, at most."""


class AdaptiveConfig(Config):
    """Adaptive discriminator augmentation (StyleGAN2-ADA): which transforms, and how their probability is found.
    On inspected surfaces some may be wrong: rotations where the texture has a direction, the luma flip where
    defects are darker, or brighter, than what is around."""

    target: Annotated[float, Field(ge=-1, le=1)] = 0.6
    """The mean sign of D's logits of real images that the probability is steered to."""
    full_range: Annotated[int, Field(ge=1)] = 500_000
    """Images over which the probability could go from 0 to 1."""
    every: Annotated[int, Field(ge=1)] = 4
    """Iterations between two adjustments."""
    transforms: dict[str, Any] = Field(default_factory=dict)
    """Fields of raygen.models.ada.AugmentConfig, say {rotate = false, luma_flip = false}."""


class TransferAdaptiveConfig(AdaptiveConfig):
    """The same for stage 2, which begins from a trained discriminator."""

    full_range: Annotated[int, Field(ge=1)] = 100_000


class GANTrainConfig(TrainingConfig):
    """What the two stages of DFM-GAN have in common; the defaults are StyleGAN2-ADA's at 256 px."""

    batch_per_worker: Annotated[int, Field(ge=1)] = 16
    mirror: bool = False
    """Whether photos, and masks with them, are flipped horizontally every other time: for surfaces without a
    handedness."""
    lr: Annotated[float, Field(gt=0)] = 2.5e-3
    """Of Adam, for all networks."""
    betas: tuple[float, float] = (0.0, 0.99)
    r1_gamma: Annotated[float, Field(ge=0)] | None = None
    """Weight of R1, for all discriminators. Default: 0.0002 · image_size² / batch."""
    r1_every: Annotated[int, Field(ge=1)] = 16
    """R1 is a step of its own every so many iterations, and weighs so much more then."""
    style_mixing: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Share of images whose styles are two latents'; in stage 2 of normals and of defects, apart."""
    average_images: Annotated[float, Field(gt=0)] | None = None
    """Images over which the moving average forgets half. Default: 312.5 · batch, that is batch · 10 / 32 kimg."""
    average_ramp: Annotated[float, Field(ge=0)] = 0.05
    """It forgets faster at first: at most this share of the images seen so far. 0: from the start as later, as a
    training wants it that goes on from another."""


class StyleGAN2TrainConfig(GANTrainConfig):
    """Training a StyleGAN2 with adaptive augmentation, on the normals of a defect set (DFM-GAN's stage 1); its
    `model` holds fields of raygen.models.stylegan2.StyleGAN2Config."""

    family: Literal["stylegan2"] = "stylegan2"
    images: Annotated[int, Field(ge=1)] = 3_000_000
    path_length: Annotated[float, Field(ge=0)] = 2.0
    """Weight of path length regularization."""
    path_length_every: Annotated[int, Field(ge=1)] = 4
    """It is a step of its own, as R1."""
    path_length_decay: Annotated[float, Field(gt=0, le=1)] = 0.01
    """How fast the mean that lengths are held to follows them."""
    adaptive: AdaptiveConfig = AdaptiveConfig()
    learns: Literal["normals", "defects"] = "normals"
    """"defects": the baseline of DFM-GAN's paper, a whole GAN tuned on the few defects of one type."""
    begin_with: Place | None = None
    """A checkpoint of this family whose networks it goes on from (transfer)."""


class DFMGANTrainConfig(GANTrainConfig):
    """Training DFM-GAN's residual blocks on the defects of a set that have masks (stage 2); its `model` holds
    fields of raygen.models.dfmgan.DFMGANConfig, without the backbone. The defaults are the original's."""

    family: Literal["dfmgan"] = "dfmgan"
    backbone: Place
    """What stage 1 left: a training's folder, or one of its checkpoints."""
    images: Annotated[int, Field(ge=1)] = 400_000
    average_ramp: Annotated[float, Field(ge=0)] = 0.0
    """None, since it begins from a trained backbone."""
    match: Annotated[float, Field(ge=0)] = 1.0
    """Weight of D_match, which sees image and mask together; 0: without it. Watch the area of the masks; where
    they come out blank or hug the border, less may be better (0.2)."""
    mode_seeking: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the mode-seeking loss on masks."""
    adaptive: TransferAdaptiveConfig = TransferAdaptiveConfig()


RECIPES: dict[str, type[TrainingConfig]] = {
    "dtgan": TrainConfig,
    "stylegan2": StyleGAN2TrainConfig,
    "dfmgan": DFMGANTrainConfig,
}
"""The recipe of each family."""


def load_train_config(recipe: str | None, overrides: Sequence[str] = ()) -> TrainingConfig:
    """Reads a training's recipe; its `family` (default "dtgan") says which keys it has.

    Raises:
        UserError: as `load_config` does, or no such family.
    """
    return load_config(_kind(read_values(recipe, overrides)), recipe, overrides)


def parse_train_config(values: Mapping[str, Any]) -> TrainingConfig:
    """The inverse of `model_dump`, of any family's."""
    return _kind(values).model_validate(values)


def _kind(values: Mapping[str, Any]) -> type[TrainingConfig]:
    family = values.get("family", "dtgan")
    if family not in tuple(RECIPES):  # it may be anything, also what has no hash
        raise UserError(f"family = {family!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[family]
