"""The three stages that a shard goes through: read, generate, write. They know of shards and tables, not of Ray.

A shard travels as a table of one row (see `pack`): its normals, or what was generated of them, and its rejects.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec

import numpy as np
import pyarrow as pa

from raygen import images, storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.data.pool import read_normals
from raygen.errors import UserError
from raygen.generate import shards
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import Run, read_plan
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


class Shard(NamedTuple):
    """A shard between two stages."""

    number: int
    seconds: dict[str, float]
    tables: dict[str, pa.Table]


def pack(shard: int, seconds: dict[str, float], **tables: pa.Table) -> pa.Table:
    """Packs a shard into a table of one row: each of its tables is one list of structs."""
    columns: dict[str, Any] = {
        "shard": pa.array([shard], pa.int64()),
        "seconds": pa.array([list(seconds.items())], pa.map_(pa.string(), pa.float64())),
    }
    for name, table in tables.items():
        structs = table.combine_chunks().to_struct_array().combine_chunks()
        columns[name] = pa.LargeListArray.from_arrays([0, len(structs)], structs)
    return pa.table(columns)


def unpack(batch: pa.Table) -> Shard:
    """The inverse of `pack`; copies no pixels."""
    assert batch.num_rows == 1, "one shard is one row"
    tables = {
        name: pa.Table.from_struct_array(batch[name].chunk(0).flatten())
        for name in batch.column_names
        if name not in ("shard", "seconds")
    }
    return Shard(batch["shard"][0].as_py(), dict(batch["seconds"][0].as_py()), tables)


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
    return pack(
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
        run, shard = self.run, unpack(batch)
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
            **{name: normals[name] for name in ("uri", "product", "sha256")},
            "seeds": seeds,
            "references": [[uris[i] if i >= 0 else None for i in row] for row in made.reference],
            "pixels": [samples.tobytes() for samples in made.pixels],
        }
        return pack(
            shard=shard.number,
            generated=pa.table(generated, GENERATED_SCHEMA),
            rejects=shard.tables["rejects"],
            seconds={**shard.seconds, "generate": time.perf_counter() - started},
        )


@tells
def write_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """A shard's samples -> PNG -> storage; what is left of it is one row, `stats`, a JSON text."""
    started = time.perf_counter()
    shard = unpack(batch)
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
    return pa.table({"stats": [stats.model_dump_json()]})
