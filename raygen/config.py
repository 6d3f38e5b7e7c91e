"""Run configs: a TOML recipe plus `--set dotted.key=value`, checked before anything starts."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from raygen import storage
from raygen.errors import UserError
from raygen.records import Mode

Layout = Literal["parquet", "webdataset", "png"]


Place = Annotated[str, AfterValidator(storage.normalize)]
"""A URI in its one spelling."""

T = TypeVar("T")


def _distinct(items: tuple[T, ...]) -> tuple[T, ...]:
    if len(set(items)) < len(items):
        raise ValueError("names something twice")
    return items


class Config(BaseModel):
    """Frozen, and a key it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ComputeConfig(Config):
    """How a run is spread over the cluster. Nothing here decides a sample: it may differ when a run resumes."""

    num_actors: Annotated[int, Field(ge=1)] | None = None
    """Model replicas. Default: one per GPU where `gpus_per_actor` > 0, else one per CPU."""
    gpus_per_actor: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_actor: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs an actor reserves; without a GPU it computes on one thread. Default: 1 beside a GPU, else 0.75,
    so that reading and writing find a share of each CPU."""
    cpus_per_task: Annotated[float, Field(gt=0)] | None = None
    """Logical CPUs a read or a write task reserves. Default: 1 beside GPUs, else 0.25."""
    read_threads: Annotated[int, Field(ge=1)] = 8
    """Simultaneous requests of one read task."""


class GenerateConfig(Config):
    """The main job: four defects for every normal of a pool."""

    pool: Place
    """Where the normals are: `s3://bucket/prefix/` or a folder, `{product}/**/*.png` (jpg, bmp, tif, webp); a
    Parquet or CSV manifest with `uri, product`; or Parquet with an `image` column and `product`."""
    output: Place
    """The run folder: `s3://bucket/prefix/` or a folder. One run, one folder."""
    checkpoint: Place
    """A folder that `train` wrote; or `null:SIZExCHANNELS` (say `null:128x1`), which copies the normal, to
    measure all but the model."""
    product: str | None = None
    """The product of every normal, for a pool without a folder per product."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Another seed, other defects."""
    defect_types: Annotated[tuple[str, ...], AfterValidator(_distinct)] = ()
    """Which of the checkpoint's defect types to make. Default: all."""
    modes: Annotated[tuple[Mode, ...], Field(min_length=1), AfterValidator(_distinct)] = (
        "latent",
        "reference",
    )
    samples_per_cell: Annotated[int, Field(ge=1)] = 1
    """Samples per normal, defect type and mode."""
    normals_per_shard: Annotated[int, Field(ge=1)] = 256
    """Normals of one shard: the unit of work, of retry and of commit."""
    layout: Layout = "parquet"
    resize: bool = True
    """Bring normals of another size to the model's (scaled, cropped about the centre); else reject them."""
    max_pixels: Annotated[int, Field(ge=1)] = 64_000_000
    """A normal with more pixels is rejected before it is decoded."""
    micro_batch: Annotated[int, Field(ge=1)] = 8
    """Normals in one forward pass, padded to this number: part of what decides a sample's last bit."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 is faster on GPUs, and about 2 % (rms) off."""
    strict_products: bool = False
    """Whether a product that the checkpoint has not seen is an error, or a warning."""
    max_reject_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails (exit code 3) when more than this share of the pool cannot be used."""
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _keep_pool_and_output_apart(self) -> Self:
        inner, outer = sorted((f"{self.pool}/", f"{self.output}/"), key=len, reverse=True)
        if inner.startswith(outer):
            raise ValueError("pool and output lie in one another: the samples would be read as normals")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides the samples and the shards, beside the checkpoint's digest: a run folder is resumed only
        by a config with the same."""
        policy = {"output", "checkpoint", "compute", "max_reject_rate", "strict_products"}
        return self.model_dump(mode="json", exclude=policy)


C = TypeVar("C", bound=Config)


def load_config(kind: type[C], recipe: str | Path | None, overrides: Sequence[str] = ()) -> C:
    """Reads a TOML recipe, applies `dotted.key=value` overrides, and checks the whole.

    A value is read as TOML where it is TOML (`3`, `true`, `["a"]`), else as a string.

    Raises:
        UserError: no such file, not TOML, an unknown key, a wrong value; one line that names the key.
    """
    where = str(recipe) if recipe else "the command line"
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
