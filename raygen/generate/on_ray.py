"""The Ray Data chain: read on CPUs -> generate on an actor pool -> encode and write on CPUs.

One shard is one row of the dataset from end to end: one read task, one actor call, one write task. A row cannot
be split or merged with another, whatever Ray does with blocks; and a shard of which every normal is bad is still
a row. The driver sees the stats of finished shards, never an image.
"""

import functools
import hashlib
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec

import numpy as np
import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayTaskError
from ray.util import metrics

from raygen import images, storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.config import GenerateConfig
from raygen.data.pool import read_normals
from raygen.errors import PromiseError, UserError
from raygen.generate import shards
from raygen.generate.plan import Run, read_plan
from raygen.generate.progress import Progress
from raygen.generate.resources import Resources, plan_resources
from raygen.images import BadImageError
from raygen.records import REJECT_SCHEMA, SAMPLE_SCHEMA, sample_id, sample_seed

if TYPE_CHECKING:
    from raygen.generate.generators import DefectGenerator

P = ParamSpec("P")

NORMAL_SCHEMA = pa.schema(
    [("uri", pa.string()), ("product", pa.string()), ("sha256", pa.string()), ("pixels", pa.large_binary())]
)
"""A normal between reading and generating: `pixels` is uint8 (H, W, C), row by row."""

GENERATED_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("product", pa.string()),
        ("sha256", pa.string()),
        ("seeds", pa.list_(pa.int64())),  # one per request
        ("references", pa.list_(pa.string())),  # one per request; null when latent-guided
        ("pixels", pa.large_binary()),
    ]
)
"""A normal between generating and writing: `pixels` is uint8 (requests, H, W, C)."""


@contextmanager
def connected() -> Iterator[None]:
    """A Ray to work on: the one this process already has, the cluster that RAY_ADDRESS names (as it does in a
    job), or one of this machine alone, for the time being."""
    if ray.is_initialized():
        yield
        return
    if "RAY_ADDRESS" in os.environ:
        ray.init(address="auto", log_to_driver=True)
    else:
        # A cluster of one machine and one process needs no token; asking for one would leave a file in the
        # home folder that turns authentication on for every cluster started here later.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        ray.init(
            address="local",
            include_dashboard=False,
            logging_level=logging.WARNING,
        )
    try:
        yield
    finally:
        ray.shutdown()


def run_shards(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, say: Callable[[str], None] = print
) -> list[shards.ShardStats]:
    """Makes the shards of a run that are not done yet; returns the stats of all.

    Needs a running Ray. Whatever ends it, the shards that are done stay, and another call makes the rest.

    Raises:
        UserError: the cluster has no room for the chain.
        PromiseError: more normals are bad than `max_reject_rate` allows; nothing written is lost.
    """
    done = shards.done_shards(config.output)
    stats = shards.read_stats(config.output, done)
    pending = [shard for shard in range(run.num_shards) if shard not in done]
    rejects = sum((Counter(shard.rejects) for shard in stats), Counter[str]())
    _check_rejects(rejects, config, run)
    if not pending:
        return stats
    done_before = sum(shard.num_samples for shard in stats)
    progress = Progress(run.num_samples, done_before, rejects.total() * len(run.requests))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    resources = plan_resources(config.compute, nodes, len(pending))
    say(f"{len(pending):,} of {run.num_shards:,} shards to do: {resources.describe(len(nodes))}")
    try:
        for finished in _stream(config, run, checkpoint, pending, resources):
            stats.append(finished)
            rejects.update(finished.rejects)
            progress.add(finished.num_samples, finished.num_rejects * len(run.requests))
            _check_rejects(rejects, config, run)
    except RayTaskError as error:
        if isinstance(error.cause, storage.StorageUnavailableError):  # still, after all retries
            raise UserError(str(error.cause).splitlines()[0]) from None
        raise
    finally:
        progress.close()
    return sorted(stats, key=lambda shard: shard.shard)


def _stream(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, pending: list[int], resources: Resources
) -> Iterator[shards.ShardStats]:
    """The chain; yields the stats of each shard as it is done, in no order."""
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts samples
    context.raise_original_map_exception = True
    context.retried_map_errors = [storage.StorageUnavailableError.__name__]
    context.max_map_retries = 8  # with pauses that grow to half a minute: some two minutes in all
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setLevel(logging.WARNING)  # the rest stands in the session's own log files
            handler.addFilter(lambda record: not record.getMessage().startswith("Progress bars disabled"))
    for row in chain(config, run, checkpoint, pending, resources).iter_rows():
        if row.get("error"):
            raise UserError(row["error"])
        yield shards.ShardStats.model_validate_json(row["stats"])


def chain(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, pending: list[int], resources: Resources
) -> ray.data.Dataset:
    """The dataset of the pending shards, lazily: shard numbers in, `stats` (or `error`) out."""
    return (
        ray.data.from_items([{"shard": shard} for shard in pending], override_num_blocks=len(pending))
        .map_batches(
            read_shard,  # pyright: ignore[reportArgumentType] it does not know of fn_kwargs
            fn_kwargs={"config": config, "run": run},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_task,
        )
        .map_batches(
            GenerateActor,
            fn_constructor_kwargs={"config": config, "run": run, "checkpoint_uri": checkpoint.uri},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=resources.num_actors),
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor,
        )
        .map_batches(
            write_shard,  # pyright: ignore[reportArgumentType]
            fn_kwargs={"config": config, "run": run},
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_task,
        )
    )


def _check_rejects(rejects: Counter[str], config: GenerateConfig, run: Run) -> None:
    """Raises PromiseError as soon as it is certain that too many normals are bad."""
    if rejects.total() > config.max_reject_rate * run.num_normals:
        by_reason = ", ".join(f"{count} {reason}" for reason, count in rejects.most_common())
        raise PromiseError(
            f"{rejects.total()} of {run.num_normals} normals are unusable ({by_reason}), more than "
            f"max_reject_rate = {config.max_reject_rate:g}; see {storage.join(config.output, 'rejects/')}; mend "
            "the pool and begin a new output, or allow more and run the same command again"
        )


# -------------------------------------------------------------------------------- the three stages


Stage = Callable[Concatenate[pa.Table, P], pa.Table]


def tells(stage: Stage[P]) -> Stage[P]:
    """Lets a stage's UserError travel down the chain as a row of its own, to be raised by the driver: raised in a
    task, it would reach the user as pages of Ray's tracebacks."""

    @functools.wraps(stage)
    def wrapped(batch: pa.Table, *args: P.args, **kwargs: P.kwargs) -> pa.Table:
        if "error" in batch.column_names:
            return batch
        try:
            return stage(batch, *args, **kwargs)
        except storage.StorageUnavailableError:
            raise  # for Ray Data to try again
        except UserError as error:
            return pa.table({"error": [str(error)]})

    return wrapped


@tells
def read_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """shard -> its normals, decoded (NORMAL_SCHEMA), and its rejects (REJECT_SCHEMA)."""
    started = time.perf_counter()
    shard = batch["shard"][0].as_py()
    plan = read_plan(config.output, run, shard)
    uris, etags = plan["uri"].to_pylist(), plan["etag"].to_pylist()
    normals: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    raws = read_normals(uris, etags, config.compute.read_threads)
    for uri, product, raw in zip(uris, plan["product"].to_pylist(), raws, strict=True):
        try:
            if raw.error:
                raise raw.error
            assert raw.data is not None
            pixels = images.decode(
                raw.data, run.image_size, run.channels, resize=config.resize, max_pixels=config.max_pixels
            )
        except BadImageError as error:
            rejects.append({"uri": uri, "reason": error.reason, "detail": error.detail})
        else:
            normals.append({"uri": uri, "product": product, "sha256": raw.sha256, "pixels": pixels.tobytes()})
    return _row(
        shard=shard,
        normals=pa.Table.from_pylist(normals, NORMAL_SCHEMA),
        rejects=pa.Table.from_pylist(rejects, REJECT_SCHEMA),
        seconds={"read": time.perf_counter() - started},
    )


class GenerateActor:
    """Holds a generator; turns a shard's normals into samples (GENERATED_SCHEMA)."""

    def __init__(self, config: GenerateConfig, run: Run, checkpoint_uri: str) -> None:
        self.config = config
        self.run = run
        self.checkpoint_uri = checkpoint_uri

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        checkpoint = load_checkpoint(self.checkpoint_uri)
        if checkpoint.digest != self.run.checkpoint:
            raise UserError(
                f"{self.checkpoint_uri} changed while the run was on; put the old checkpoint back"
            )
        return checkpoint

    @functools.cached_property
    def generator(self) -> "DefectGenerator":
        from raygen.generate.generators import load_generator  # torch: not for the readers and writers

        return load_generator(self.checkpoint, self.config)

    def __call__(self, batch: pa.Table) -> pa.Table:
        return tells(self.generate)(batch)

    def generate(self, batch: pa.Table) -> pa.Table:
        """The stage itself."""
        started = time.perf_counter()
        run, shard = self.run, _unpack(batch)
        normals = shard.tables["normals"]
        size = (run.image_size, run.image_size, run.channels)
        pixels = [np.frombuffer(value.as_buffer(), np.uint8) for value in normals["pixels"]]
        seeds = [
            [sample_seed(sha256, run.checkpoint, request, self.config.seed) for request in run.requests]
            for sha256 in normals["sha256"].to_pylist()
        ]
        made = self.generator.generate(
            np.array(pixels, np.uint8).reshape(len(pixels), *size),
            np.array(seeds, np.int64).reshape(len(pixels), len(run.requests)),
            run.requests,
        )
        uris = [reference.uri for reference in self.checkpoint.references]
        generated = {
            "seeds": seeds,
            "references": [[uris[i] if i >= 0 else None for i in row] for row in made.reference],
            "pixels": [images_of_normal.tobytes() for images_of_normal in made.pixels],
        }
        return _row(
            shard=shard.number,
            generated=pa.table(
                {name: generated.get(name) or normals[name] for name in GENERATED_SCHEMA.names}
                if pixels
                else {name: [] for name in GENERATED_SCHEMA.names},
                GENERATED_SCHEMA,
            ),
            rejects=shard.tables["rejects"],
            seconds={**shard.seconds, "generate": time.perf_counter() - started},
        )


@tells
def write_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """A shard's samples -> PNG -> storage; leaves the stats, one JSON text."""
    started = time.perf_counter()
    shard = _unpack(batch)
    rows: list[dict[str, Any]] = []
    generated = shard.tables["generated"]
    shape = (len(run.requests), run.image_size, run.image_size, run.channels)
    for normal, buffer in zip(generated.drop("pixels").to_pylist(), generated["pixels"], strict=True):
        pixels = np.frombuffer(buffer.as_buffer(), np.uint8).reshape(shape)
        for request, seed, reference, image in zip(
            run.requests, normal["seeds"], normal["references"], pixels, strict=True
        ):
            name = sample_id(normal["uri"], seed)
            png = images.encode_png(image)
            rows.append(
                {
                    "sample_id": name,
                    "normal_uri": normal["uri"],
                    "normal_sha256": normal["sha256"],
                    "product": normal["product"],
                    **request._asdict(),
                    "seed": seed,
                    "reference_uri": reference,
                    "checkpoint": run.checkpoint,
                    "run_id": run.run_id,
                    "shard": shard.number,
                    "height": run.image_size,
                    "width": run.image_size,
                    "image_sha256": hashlib.sha256(png).hexdigest(),
                    "image": {"bytes": png, "path": f"{name}.png"},
                }
            )
    stats = shards.write_shard(
        config.output,
        config.layout,
        shard.number,
        num_normals=shard.tables["generated"].num_rows + shard.tables["rejects"].num_rows,
        samples=pa.Table.from_pylist(rows, SAMPLE_SCHEMA),
        rejects=shard.tables["rejects"],
        seconds={**shard.seconds, "encode": time.perf_counter() - started},
    )
    _count(stats)
    return pa.table({"stats": [stats.model_dump_json()]})


def _count(stats: shards.ShardStats) -> None:
    """Adds to the counters on the Ray dashboard (as ray_raygen_…_total in Prometheus)."""
    for name, value in (
        ("raygen_shards", 1),
        ("raygen_samples", stats.num_samples),
        ("raygen_rejects", stats.num_rejects),
        ("raygen_bytes", stats.num_bytes),
    ):
        if value:
            _counter(name).inc(value)


@functools.cache
def _counter(name: str) -> metrics.Counter:
    return metrics.Counter(name, f"{name.removeprefix('raygen_')} written by this run")


# -------------------------------------------------------------------------------- one shard as one row of a table


class _Shard(NamedTuple):
    number: int
    seconds: dict[str, float]
    tables: dict[str, pa.Table]


def _row(shard: int, seconds: dict[str, float], **tables: pa.Table) -> pa.Table:
    """Packs a shard into a table of one row: each of its tables is one list of structs."""
    columns: dict[str, Any] = {
        "shard": pa.array([shard], pa.int64()),
        "seconds": pa.array([list(seconds.items())], pa.map_(pa.string(), pa.float64())),
    }
    for name, table in tables.items():
        structs = table.combine_chunks().to_struct_array().combine_chunks()
        columns[name] = pa.LargeListArray.from_arrays([0, len(structs)], structs)
    return pa.table(columns)


def _unpack(batch: pa.Table) -> _Shard:
    """The inverse of _row; copies no pixels."""
    assert batch.num_rows == 1, "one shard is one row"
    tables = {
        name: pa.Table.from_struct_array(batch[name].chunk(0).flatten())
        for name in batch.column_names
        if name not in ("shard", "seconds")
    }
    return _Shard(batch["shard"][0].as_py(), dict(batch["seconds"][0].as_py()), tables)
