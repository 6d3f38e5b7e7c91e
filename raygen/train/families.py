"""The families by their recipes."""

from typing import Any

from raygen.train.config import RECIPES, DFMGANTrainConfig, StyleGAN2TrainConfig, TrainConfig, TrainingConfig
from raygen.train.dfmgan_family import DFMGANFamily
from raygen.train.dtgan_family import DTGANFamily
from raygen.train.family import Family
from raygen.train.stylegan2_family import StyleGAN2Family

FAMILIES: dict[type[TrainingConfig], type[Family[Any]]] = {
    TrainConfig: DTGANFamily,
    StyleGAN2TrainConfig: StyleGAN2Family,
    DFMGANTrainConfig: DFMGANFamily,
}


def family_of(config: TrainingConfig) -> type[Family[Any]]:
    """The family that a recipe is of."""
    return FAMILIES[type(config)]


def name_of(config: TrainingConfig) -> Any:
    """Its name in recipes and checkpoints."""
    return next(name for name, kind in RECIPES.items() if kind is type(config))
