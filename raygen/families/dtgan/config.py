"""The recipe of a DT-GAN training."""

from typing import Annotated, Literal

from pydantic import Field

from raygen.config import Beta, Config, Weight
from raygen.families.recipes import Balance, TrainingConfig


class LossConfig(Config):
    """The weights of equation 8 and how they are used; the defaults are the paper's (all 1 for SDI)."""

    adversarial: Weight = 1.0
    style_content: Weight = 1.0
    diversity: Weight = 1.0
    """At its height; see `diversity_at`."""
    cycle: Weight = 1.0
    content_consistency: Weight = 1.0
    foreground_class: Weight = 1.0
    background_class: Weight = 1.0
    classify_fakes: bool = True
    """Whether D's classifiers learn from fakes, too, under their wanted names, as equations 6 and 7 have it; or
    from real images alone, so that they tell G when what it makes is not that yet."""
    layer: Weight = 0.0
    """Where a photo's mask is known: |B(x) - h| + |F(E(x)) - (x - h)|, h the photo with its defect filled in; and
    the like of the photo with its defect turned over, bright for dark, of which F gets the style alone."""
    codes: Weight = 0.0
    """M against a discriminator that tells its codes from those that E reads off real defects."""
    codes_steps: Annotated[int, Field(ge=1)] = 1
    """Such steps in an iteration after the head start, each on latents of its own; they cost little."""
    codes_r1: Weight = 0.05
    """R1 of that discriminator."""
    detach_codes: bool = False
    """Whether the codes that equations 2 and 5 ask for are given. Otherwise M and E can satisfy both by making
    contents small, which AdaIN hides from the images."""
    r1: Weight = 1.0
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
    betas: tuple[Beta, Beta] = (0.0, 0.99)
    weight_decay: Annotated[float, Field(ge=0)] = 1e-4
    encoder_on_references: bool = False
    """Whether the reference-guided step trains E too, or, as in StarGAN v2, G alone."""
    head_start: Annotated[int, Field(ge=0)] = 0
    """Images over which D learns to classify, and G and E what masks teach them (`layer`): until D knows the
    defects, it has nothing to teach G, and these steps are cheap."""
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
    balance: Balance = "defect_types"
    """What is drawn equally often: the cells (product × defect type), the defect types, or photos. The paper keeps
    StarGAN v2's scheme (Appendix B): its domains, which are the defect types here."""
    augment: bool = True
    """Random resized crops and horizontal flips: StarGAN v2's, likewise."""
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    references_per_cell: Annotated[int, Field(ge=1)] = 64
    """Reference images of each product and defect type in a checkpoint's bank, at most."""
