"""The recipe of a DT-GAN training."""

from typing import Annotated, Literal

from pydantic import Field

from raygen.config import Config
from raygen.families.recipes import Balance, TrainingConfig


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


class DTGANTrainConfig(TrainingConfig):
    """Training DT-GAN on a defect set; its `model` holds fields of raygen.families.dtgan.sizes.DTGANConfig."""

    family: Literal["dtgan"] = "dtgan"
    preset: str = "paper-128"
    """Sizes of the networks: a name in raygen.families.dtgan.sizes.PRESETS."""
    ladder: Literal["a", "b", "c", "d", "e", "f", "g"] = "g"
    """Rung of the paper's ablation (Table 15): "a" is StarGAN v2, "g" the whole of DT-GAN; see
    raygen.families.dtgan.sizes.LADDER. Without `background_skip` below "e"."""
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
