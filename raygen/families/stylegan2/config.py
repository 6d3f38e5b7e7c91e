"""The recipe of a StyleGAN2 training, DFM-GAN's stage 1; stage 2 shares its keys."""

from typing import Annotated, Any, Literal

from pydantic import Field

from raygen.config import Beta, Config, Place
from raygen.families.recipes import TrainingConfig, named


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
    """Fields of raygen.families.stylegan2.ada.AugmentConfig, say {rotate = false, luma_flip = false}."""


class GANTrainConfig(TrainingConfig):
    """What the two stages of DFM-GAN have in common; the defaults are StyleGAN2-ADA's at 256 px."""

    batch_per_worker: Annotated[int, Field(ge=1)] = 16
    mirror: bool = False
    """Whether photos, and masks with them, are flipped horizontally every other time: for surfaces without a
    handedness."""
    lr: Annotated[float, Field(gt=0)] = 2.5e-3
    """Of Adam, for all networks."""
    betas: tuple[Beta, Beta] = (0.0, 0.99)
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
    `model` holds fields of raygen.families.stylegan2.networks.StyleGAN2Config."""

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

    def places(self) -> dict[str, str]:
        return super().places() | named(begin_with=self.begin_with)

    def checkpoints(self) -> tuple[str, ...]:
        return (self.begin_with,) if self.begin_with else ()
