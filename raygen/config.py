"""Run configs: a TOML recipe plus `--set dotted.key=value`, checked before anything starts."""

import os
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
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


class TrainComputeConfig(Config):
    """How a training is spread over the cluster."""

    num_workers: Annotated[int, Field(ge=1)] | None = None
    """Processes of the data-parallel training. Default: one per GPU of the cluster; one without GPUs."""
    gpus_per_worker: Annotated[float, Field(ge=0)] | None = None
    """Default: 1 on a cluster that has GPUs, else 0."""
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1
    """Logical CPUs a worker reserves; without a GPU also its threads."""
    loading: Literal["memory", "stream"] = "memory"
    """Photos are decoded once and kept by every worker, or read again for every batch, ahead, by Ray Data."""
    max_failures: Annotated[int, Field(ge=0)] = 3
    """How often lost workers are replaced, and the training goes on from its last checkpoint."""


class TrainConfig(Config):
    """Training DT-GAN on a defect set."""

    defects: Place
    """The defect set: `{product}/{defect_type}/{id}.png` and `{product}/normal/{id}.png` with an optional
    metadata.csv, or the MVTec AD layout. Photos of the split "val" validate, those of "test" are not touched."""
    output: Place
    """The training's folder: checkpoints, metrics, sheets. Run the same command again to resume."""
    types: dict[str, str] = {}
    """Folder of defects -> defect type, say {crack = "scratches"}; "-" leaves a folder out."""
    products: tuple[str, ...] = ()
    """Which products to learn. Default: all."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    preset: str = "paper-128"
    """Sizes of the networks: a name in raygen.models.dtgan.PRESETS."""
    ladder: Literal["a", "b", "c", "d", "e", "f", "g"] = "g"
    """Rung of the paper's ablation (Table 15): "a" is StarGAN v2, "g" the whole of DT-GAN; see
    raygen.models.dtgan.LADDER. Without `background_skip` below "e"."""
    model: dict[str, Any] = {}
    """Fields of raygen.models.dtgan.DTGANConfig that differ from the preset's."""
    images: Annotated[int, Field(ge=1)] = 400_000
    """The training's length, in images seen; the paper's 100,000 iterations of 4."""
    batch_per_worker: Annotated[int, Field(ge=1)] = 4
    balance: Literal["cells", "defect_types", "none"] = "cells"
    """What is drawn equally often: the cells (product × defect type), the defect types (the paper), or photos."""
    augment: bool = True
    """The paper's random resized crops and horizontal flips."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: mixed precision, for GPUs."""
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    checkpoint_every: Annotated[int, Field(ge=1)] = 20_000
    """Images between two checkpoints, each with metrics and a sample sheet: what a killed worker costs at most."""
    num_to_keep: Annotated[int, Field(ge=1)] = 2
    """The latest checkpoints that stay; the best one stays besides."""
    references_per_cell: Annotated[int, Field(ge=1)] = 64
    """Reference images of each product and defect type in a checkpoint's bank, at most."""
    compute: TrainComputeConfig = TrainComputeConfig()

    def identity(self) -> dict[str, Any]:
        """What decides the weights: a training is resumed only by a config with the same. (Of two numbers of
        workers with equal batches in all, one can go on for the other.)"""
        policy = {"output", "compute", "num_to_keep", "checkpoint_every", "references_per_cell"}
        return self.model_dump(mode="json", exclude=policy)


def refuse_lost_places(places: Mapping[str, str]) -> None:
    """Raises UserError for a relative folder in a Ray job, which would be looked for, or lost, in a copy.

    Args:
        places: a recipe's key -> its URI.
    """
    for key, uri in places.items():
        relative = storage.is_local(uri) and not uri.startswith(("/", "file://", "null:"))
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
