"""Run configs: a TOML recipe plus `--set dotted.key=value`, checked before anything starts."""

import dataclasses
import os
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from raygen import storage
from raygen.errors import UserError

Place = Annotated[str, AfterValidator(storage.normalize)]
"""A URI in its one spelling."""

T = TypeVar("T")


def distinct(items: tuple[T, ...]) -> tuple[T, ...]:
    """For a field that may name nothing twice."""
    if len(set(items)) < len(items):
        raise ValueError("names something twice")
    return items


class Config(BaseModel):
    """Frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


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
        raise UserError(f"output: {error}") from None
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
        problem = error.errors()[0]
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            raise UserError(
                f"{where}: unknown key {key!r}; the keys are {_keys(kind, problem['loc'])}"
            ) from None
        if problem["type"] == "missing":
            raise UserError(f"{where}: {key!r} is missing; add it, or --set {key}=…") from None
        what = f"{key} = {problem['input']!r}: " if key else ""
        raise UserError(f"{where}: {what}{problem['msg']}") from None


def check_switches(fields: Any) -> None:
    """Raises ValueError unless those of a dataclass's fields that are switches by default are true or false: on a
    command line "False" is a text, which counts as true."""
    for field in dataclasses.fields(fields):
        value = getattr(fields, field.name)
        if isinstance(field.default, bool) and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be true or false, not {value!r}")


def _parse(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _keys(kind: type[Config], location: tuple[int | str, ...]) -> str:
    """The keys that may stand where an unknown one stood."""
    for part in location[:-1]:
        annotation = kind.model_fields[str(part)].annotation
        if isinstance(annotation, type) and issubclass(annotation, Config):
            kind = annotation
    return ", ".join(kind.model_fields)
