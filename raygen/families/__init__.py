"""The families by name: a room each, and the only list of them anywhere. None needs torch before it is at work."""

from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.copy_paste import CopyPaste
from raygen.families.dfmgan import DFMGAN
from raygen.families.dtgan import DTGAN
from raygen.families.family import DefectGenerator, Family, Judge
from raygen.families.judge import FittedJudge
from raygen.families.null import Null
from raygen.families.perlin import Perlin
from raygen.families.recipes import FamilyConfig, SamplingConfig
from raygen.families.stylegan2 import StyleGAN2

FAMILIES: dict[str, Family] = {
    "copy-paste": CopyPaste(),
    "dtgan": DTGAN(),
    "stylegan2": StyleGAN2(),
    "dfmgan": DFMGAN(),
    "perlin": Perlin(),
    "judge": FittedJudge(),
    "null": Null(),
}

DEFAULT = "dtgan"
"""What a recipe of a training is of that names no family, and what trainings were of before there were several."""

RECIPES: dict[str, type[FamilyConfig]] = {
    name: family.recipe for name, family in FAMILIES.items() if family.recipe
}
"""The recipes of those that `train` makes checkpoints of."""


def family_of(checkpoint: Checkpoint) -> Family:
    """The family of a checkpoint.

    Raises:
        UserError: this version of raygen knows no such family.
    """
    name = checkpoint.config.family
    if name not in FAMILIES:
        raise UserError(
            f"{checkpoint.uri}: of the family {name!r}, which this version of raygen does not know; "
            f"it knows {', '.join(RECIPES)}"
        )
    return FAMILIES[name]


def load_generator(checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
    """Builds the generator of a checkpoint, of whatever family, where `Family.generator` says."""
    return family_of(checkpoint).generator(checkpoint, config)


def load_judge(checkpoint: Checkpoint, config: SamplingConfig) -> Judge:
    """Builds the judge that a checkpoint is, where `Family.judge` says."""
    return family_of(checkpoint).judge(checkpoint, config)
