"""The recipe of a training, of whichever family it names."""

from collections.abc import Mapping, Sequence
from typing import Any

from raygen.config import load_config, read_values
from raygen.errors import UserError
from raygen.families import DEFAULT, FAMILIES, RECIPES
from raygen.families.family import Collector, Trainer
from raygen.families.recipes import FamilyConfig


def load_train_config(recipe: str | None, overrides: Sequence[str] = ()) -> Any:
    """Reads a training's recipe; its `family` says which keys it has.

    Raises:
        UserError: as `load_config` does, or no such family.
    """
    return load_config(_kind(read_values(recipe, overrides)), recipe, overrides)


def parse_train_config(values: Mapping[str, Any]) -> Any:
    """The inverse of `model_dump`, of any family's."""
    return _kind(values).model_validate(values)


def name_of(config: FamilyConfig) -> str:
    """The family of a recipe, as recipes and checkpoints name it."""
    return next(name for name, kind in RECIPES.items() if kind is type(config))


def trainer_of(config: FamilyConfig) -> type[Trainer[Any]]:
    """What carries out the training that a recipe asks for."""
    return FAMILIES[name_of(config)].trainer()


def collector_of(config: FamilyConfig) -> type[Collector]:
    """What collects the bank that a recipe asks for."""
    return FAMILIES[name_of(config)].collector()


def _kind(values: Mapping[str, Any]) -> type[FamilyConfig]:
    family = values.get("family", DEFAULT)
    if family not in tuple(RECIPES):  # it may be anything, also what has no hash
        raise UserError(f"family = {family!r}: choose from {', '.join(RECIPES)}")
    return RECIPES[family]
