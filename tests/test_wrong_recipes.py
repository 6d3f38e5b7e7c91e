"""Every key of every recipe with values that it may not have: taken, or refused in one line that names it."""

import dataclasses
import json
import math
import typing
from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError

from raygen.config import Config, check_fields
from raygen.errors import did_you_mean
from raygen.evaluate.config import EvaluateConfig
from raygen.explain import explain
from raygen.families import RECIPES
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.stylegan2.ada import AugmentConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.generate.config import GenerateConfig
from raygen.inspection.config import InspectConfig
from raygen.publish.config import RefreshConfig

KINDS = [GenerateConfig, EvaluateConfig, RefreshConfig, InspectConfig, *RECIPES.values()]
PLACES = {"pool": "/p", "output": "/o", "checkpoint": "/c", "defects": "/d", "table": "/t", "backbone": "/b"}
WRONG: list[Any] = [
    *(math.nan, math.inf, -math.inf, True, False, -1, 0, 10**30, 0.5, -0.0, "", "x", "\n", [], [1], [[]], {}),
    *({"x": 1}, {"": {}}, {"a\nb": math.nan}, [math.nan, 1.0], [True], {"x": True}),
]


def keys(kind: type[Config]) -> Iterator[tuple[str, ...]]:
    """All of a recipe, of its sections, too."""
    for name, field in kind.model_fields.items():
        yield (name,)
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            yield from ((name, *inner) for inner in keys(field.annotation))


def recipe(kind: type[Config], key: tuple[str, ...], value: Any) -> dict[str, Any]:
    """One whose only fault may be this key."""
    values: dict[str, Any] = {name: uri for name, uri in PLACES.items() if name in kind.model_fields}
    table = values
    for section in key[:-1]:
        table = table.setdefault(section, {})
    table[key[-1]] = value
    return values


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_wrong_values_are_one_line(kind: type[Config]) -> None:
    taken = tried = 0
    for key in keys(kind):
        for value in WRONG:
            values = recipe(kind, key, value)
            tried += 1
            try:
                config = kind.model_validate(values)
            except ValidationError as error:
                said = explain(kind, values, error)
                assert "\n" not in said
                assert key[0] in said or "in one another" in said or "wants" in said, (key, value, said)
            else:
                taken += 1
                json.dumps(
                    config.model_dump(mode="json"), allow_nan=False
                )  # what is taken can be written down
    assert 0.02 < taken / tried < 0.5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_numbers_that_are_none_are_refused_wherever_numbers_stand(kind: type[Config]) -> None:
    def annotation_of(kind: type[Config], key: tuple[str, ...]) -> Any:
        annotation = kind.model_fields[key[0]].annotation
        return annotation if len(key) == 1 else annotation_of(typing.cast(type[Config], annotation), key[1:])

    numbers = [
        key for key in keys(kind) if annotation_of(kind, key) in (int, float, int | None, float | None)
    ]
    assert len(numbers) >= 2
    for key in numbers:
        for value in (math.nan, math.inf, -math.inf, True, False):
            with pytest.raises(ValidationError):
                kind.model_validate(recipe(kind, key, value))


@pytest.mark.parametrize("kind", [DTGANConfig, StyleGAN2Config, AugmentConfig])
def test_sizes_of_networks_are_of_their_kinds(kind: Any) -> None:
    assert kind()
    for field in dataclasses.fields(kind):
        for value in (
            math.nan,
            math.inf,
            "x",
            [],
            {},
            None,
            *((True,) if field.default.__class__ is not bool else ()),
        ):
            with pytest.raises(ValueError, match=f"{field.name} must be"):
                kind(**{field.name: value})


def test_a_switch_is_no_text() -> None:
    @dataclasses.dataclass
    class Fields:
        on: bool = False
        size: int = 3
        share: float = 0.5

    check_fields(Fields(True, 5, 1))
    for wrong in (Fields("False"), Fields(size=3.0), Fields(share=math.nan), Fields(share=True)):  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="must be"):
            check_fields(wrong)


def test_the_nearest_name_is_asked_for() -> None:
    assert did_you_mean("leathr", ["fabric", "Leather"]) == " (did you mean 'Leather'?)"
    assert did_you_mean("glass", ["fabric", "leather"]) == ""
