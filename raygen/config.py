"""Run configs: a TOML recipe plus `--set dotted.key=value`, checked before anything starts."""

import dataclasses
import math
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from raygen import storage
from raygen.errors import UserError
from raygen.explain import explain


def _place(uri: str) -> str:
    if not uri.strip():
        raise ValueError("names no place; give a folder or s3://bucket/prefix/")
    return storage.normalize(uri)


Place = Annotated[str, AfterValidator(_place)]
"""A URI in its one spelling."""

Weight = Annotated[float, Field(ge=0)]
"""Of a loss: 0 leaves it out."""

Beta = Annotated[float, Field(ge=0, lt=1)]
"""Of Adam."""

T = TypeVar("T")


def distinct(items: tuple[T, ...]) -> tuple[T, ...]:
    """For a field that may name nothing twice."""
    if len(set(items)) < len(items):
        raise ValueError("names something twice")
    return items


class Config(BaseModel):
    """Frozen; a key it does not know is an error, and so is a number that is none: nan, inf, true."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_switches_as_numbers(cls, value: Any, info: ValidationInfo) -> Any:
        # The validator takes true for 1.
        field = cls.model_fields[str(info.field_name)]
        if any(isinstance(part, bool) for part in _parts(value)) and not _takes_switches(field.annotation):
            raise ValueError("wants another value than true or false")
        return value


class AutoscalingConfig(Config):
    """The nodes that an autoscaler may bring a cluster to."""

    nodes: Annotated[int, Field(ge=1)]
    """At most so many of the kind below, those that are there already among them."""
    cpus: Annotated[float, Field(gt=0)]
    gpus: Annotated[float, Field(ge=0)] = 0.0


class ActorPoolConfig(Config):
    """How work is spread over actors and the tasks around them. Nothing here decides a result."""

    num_actors: Annotated[int, Field(ge=1)] | None = None
    """Model replicas. Default: one per GPU where `gpus_per_actor` > 0, else one per CPU."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_actor: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs an actor reserves; without a GPU it computes on one thread. Default: 1 beside a GPU, else 0.75,
    so that reading and writing find a share of each CPU."""
    cpus_per_task: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs a read or a write task reserves. Default: 1 beside GPUs, else 0.25."""
    autoscaling: AutoscalingConfig | None = None
    """Actors are planned for the nodes that may come, too; each begins when its node is there. Default: for those
    that are there when the run starts."""


def refuse_lost_places(places: Mapping[str, str]) -> None:
    """Raises UserError for a relative folder in a Ray job, which would be looked for, or lost, in a copy.

    Args:
        places: a recipe's key -> its URI.
    """
    for key, uri in places.items():
        relative = storage.is_local(uri) and not uri.startswith(("/", "file://", "null:", "seeds:"))
        if relative and "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ:
            raise UserError(
                f"{key} = {uri}: a Ray job works in a copy of this folder; give an absolute path or s3://"
            )


def check_writable(output_uri: str) -> None:
    """Raises UserError for an output where nothing can be written."""
    probe = storage.join(output_uri, ".raygen-may-write")
    try:
        storage.put(probe, b"")
    except UserError as error:
        raise type(error)(f"output: {error}".replace(probe, output_uri)) from None
    with suppress(UserError):  # who may write need not be allowed to delete, and the probe is hidden
        storage.delete(probe)


C = TypeVar("C", bound=Config)


def read_values(recipe: str | Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a TOML recipe and applies `dotted.key=value` overrides.

    A value is read as TOML where it is TOML (`3`, `true`, `["a"]`), else as a string.

    Raises:
        UserError: no such file, or not TOML.
    """
    values: dict[str, Any] = {}
    if recipe:
        try:
            values = tomllib.loads(Path(recipe).read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise UserError(f"{recipe}: no such recipe; the examples are jobs/*.toml") from None
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise UserError(f"{recipe}: not a TOML file ({error})") from None
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key:
            raise UserError(f"--set {override}: write --set key=value")
        *sections, leaf = key.strip().split(".")
        table: Any = values
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise UserError(f"--set {override}: {section} is a value, not a section")
        table[leaf] = _parse(text)
    return values


def load_config(kind: type[C], recipe: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Reads a recipe, see `read_values`, and checks the whole.

    Raises:
        UserError: no such file, not TOML, an unknown key, a wrong value; one line that names the key.
    """
    where = str(recipe) if recipe else "the command line"
    values = read_values(recipe, overrides)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: {explain(kind, values, error)}") from None


def _parts(value: Any) -> Iterator[Any]:
    """A value, and what lies in it."""
    yield value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in inner:
        yield from _parts(part)


def _takes_switches(annotation: Any) -> bool:
    """Whether true may stand somewhere in values of a type; sections look after themselves."""
    if annotation in (bool, Any) or (isinstance(annotation, type) and issubclass(annotation, Config)):
        return True
    return any(_takes_switches(part) for part in get_args(annotation))


def check_fields(fields: Any) -> None:
    """Raises ValueError unless a dataclass's fields are of their defaults' kinds: switches true or false (in a
    command line "False" is a text, which counts as true), whole numbers whole, others finite, texts text."""
    for field in dataclasses.fields(fields):
        value, default = getattr(fields, field.name), field.default
        if isinstance(default, bool):
            wanted, held = "true or false", isinstance(value, bool)
        elif isinstance(default, int):
            wanted, held = "a whole number", isinstance(value, int) and not isinstance(value, bool)
        elif isinstance(default, float):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            wanted, held = "a finite number", is_number and math.isfinite(value)
        else:
            wanted, held = "a text", isinstance(value, str) or not isinstance(default, str)
        if not held:
            raise ValueError(f"{field.name} must be {wanted}, not {value!r}")


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
