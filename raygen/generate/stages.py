"""The three stages that a shard goes through: read, generate, write. They know of shards and tables, not of Ray.

A shard travels as a table of one row (see `pack`): its normals, or what was generated of them, and its rejects.
"""

import functools
import math
import time
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raygen import images, storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.data.pool import drawn_sha256, is_drawn, read_normals, seed_of
from raygen.data.runs import Run, read_shard_stats, stats_uri
from raygen.errors import UserError
from raygen.families import load_generator, load_judge
from raygen.families.family import DefectGenerator
from raygen.generate import shards
from raygen.generate.config import GenerateConfig
from raygen.generate.encode import encode_samples
from raygen.generate.judging import Judged, read_judge
from raygen.generate.plan import read_plan, roi_uri
from raygen.generate.sampling import Windows, sample
from raygen.generate.windows import cut_region, place_window, read_region, window_size
from raygen.images import BadImageError
from raygen.records import REJECT_SCHEMA, sample_seed
from raygen.relay import tells

NORMAL_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("product", pa.string()),
        ("sha256", pa.string()),
        (
            "pixels",
            pa.large_binary(),
        ),  # uint8 (views, H, W, C), row by row: one view for all requests, or one each
        ("allowed", pa.large_binary()),  # bool (views, H, W): where defects may lie; null for anywhere
        # of full-size photographs; else null
        ("photo", pa.large_binary()),  # the file's bytes
        ("windows", pa.list_(pa.int32())),  # y, x and size of each view
    ]
)
"""A normal between reading and generating."""

GENERATED_SCHEMA = pa.schema(
    [
        *(NORMAL_SCHEMA.field(name) for name in ("uri", "product", "sha256", "photo", "windows")),
        # one per request
        ("seeds", pa.list_(pa.int64())),
        ("attempts", pa.list_(pa.int32())),
        ("num_attempts", pa.list_(pa.int32())),
        ("references", pa.list_(pa.string())),  # null when latent-guided
        ("reasons", pa.list_(pa.string())),  # null when accepted
        ("scores", pa.list_(pa.list_(pa.float32()))),  # in the order of SCORES; null where nobody can tell
        ("pixels", pa.large_binary()),  # uint8 (requests, H, W, C)
        (
            "layers",
            pa.large_binary(),
        ),  # float32 (requests, C or C + 1, H, W), of full-size photographs; else null
        ("masks", pa.large_binary()),  # uint8 (requests, H, W)
    ]
)
"""A normal between generating and writing."""


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


@tells
def read_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """shard -> its normals, decoded (NORMAL_SCHEMA), and its rejects (REJECT_SCHEMA); or, of one that another job
    has made meanwhile, its stats as `done`, so that two jobs on one output share the work."""
    started = time.perf_counter()
    shard = batch["shard"][0].as_py()
    if (done := _made_by_another(config, shard)) is not None:
        return done
    normals, rejects = read_planned(read_plan(config.output, run, shard), config, run)
    return pack(
        shard=shard, normals=normals, rejects=rejects, seconds={"read": time.perf_counter() - started}
    )


def _made_by_another(config: GenerateConfig, shard: int) -> pa.Table | None:
    """A shard's stats as a row that is settled, if it is done by now."""
    if not storage.exists(stats_uri(config.output, shard)):
        return None
    return pa.table({"done": [read_shard_stats(config.output, shard).model_dump_json()]})


def read_planned(plan: pa.Table, config: GenerateConfig, run: Run) -> tuple[pa.Table, pa.Table]:
    """Some of a plan's rows -> the normals (NORMAL_SCHEMA), and those that cannot be used (REJECT_SCHEMA)."""
    uris, etags = plan["uri"].to_pylist(), plan["etag"].to_pylist()
    if is_drawn(config.pool):
        rows = zip(uris, plan["product"].to_pylist(), strict=True)
        drawn = [{"uri": uri, "product": of, "sha256": drawn_sha256(uri, of)} for uri, of in rows]
        return pa.Table.from_pylist(drawn, NORMAL_SCHEMA), REJECT_SCHEMA.empty_table()
    normals: list[dict[str, Any]] = []
    rejects: list[dict[str, Any]] = []
    raws = read_normals(uris, etags, config.compute.read_threads)
    for uri, product, raw in zip(uris, plan["product"].to_pylist(), raws, strict=True):
        try:
            if raw.error:
                raise raw.error
            assert raw.data is not None
            views = _views(raw.data, raw.sha256, product, config, run)
        except BadImageError as error:
            rejects.append({"uri": uri, "reason": error.reason, "detail": error.detail})
        else:
            normals.append({"uri": uri, "product": product, "sha256": raw.sha256, **views})
    return pa.Table.from_pylist(normals, NORMAL_SCHEMA), pa.Table.from_pylist(rejects, REJECT_SCHEMA)


def _views(data: bytes, sha256: str, product: str, config: GenerateConfig, run: Run) -> dict[str, Any]:
    """What the model sees of a normal: the whole of it or, of full-size photographs, a window for each request."""
    side, channels = run.image_size, run.channels
    if not config.native:
        pixels = images.decode(
            data,
            side,
            channels,
            resize=config.resize,
            max_pixels=config.max_pixels,
            pixel_range=run.range_of(product),
        )
        return {"pixels": pixels.tobytes()}
    photo = images.decode_photo(data, config.max_pixels, pixel_range=run.range_of(product))
    height, width, _ = photo.shape
    size = window_size(side, config.scale)
    if min(height, width) < size:
        raise BadImageError("too_small", f"{width}×{height}, and a window is {size}×{size}")
    region = read_region(roi_uri(config, product), run.rois[product]) if product in run.rois else None
    pixels, allowed, windows = [], [], []
    for request in run.requests:
        # By the seed of the first attempt: the next ones try another defect at the same place.
        window = place_window(
            sample_seed(sha256, run.checkpoint, request, run.seed), height, width, size, region
        )
        windows += window
        box = (window.x, window.y, window.x + size, window.y + size)
        pixels.append(images.resize_window(photo, box, side, channels).tobytes())
        if region:
            allowed.append(cut_region(region, window, height, width, side).tobytes())
    return {
        "pixels": b"".join(pixels),
        "allowed": b"".join(allowed) if region else None,
        "photo": data,
        "windows": windows,
    }


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
                f"{self.checkpoint_uri} is not the checkpoint of this run any more; put the old one back"
            )
        return checkpoint

    @functools.cached_property
    def generator(self) -> DefectGenerator:
        generator, judge = load_generator(self.checkpoint, self.config), read_judge(self.config)
        if (judge.digest if judge else None) != self.run.judge:
            raise UserError(
                f"gate.judge: {self.config.gate.judge} is not the judge of this run any more; put the old one back"
            )
        return Judged(generator, load_judge(judge, self.config)) if judge else generator

    def __call__(self, batch: pa.Table) -> pa.Table:
        return tells(self.generate)(batch)

    def generate(self, batch: pa.Table) -> pa.Table:
        """The stage itself."""
        started = time.perf_counter()
        shard = unpack(batch)
        # Asked again: reading runs far ahead of a model that takes its time.
        if (done := _made_by_another(self.config, shard.number)) is not None:
            return done
        return pack(
            shard=shard.number,
            generated=self.sample(shard.tables["normals"]),
            rejects=shard.tables["rejects"],
            seconds={**shard.seconds, "generate": time.perf_counter() - started},
        )

    def sample(self, normals: pa.Table) -> pa.Table:
        """Normals (NORMAL_SCHEMA) -> their samples (GENERATED_SCHEMA)."""
        run, num_normals = self.run, normals.num_rows
        sha256s = normals["sha256"].to_pylist()

        def seeds(attempt: int) -> np.ndarray:
            found = [
                [sample_seed(sha256, run.checkpoint, request, run.seed, attempt) for request in run.requests]
                for sha256 in sha256s
            ]
            return np.array(found, np.int64).reshape(num_normals, len(run.requests))

        windows = self._windows(normals)
        samples = sample(self.generator, windows, run.requests, seeds, self.config.gate)
        made, uris = samples.made, [reference.uri for reference in self.checkpoint.references]
        layers = made.layers if self.config.native else None
        generated = {
            **{name: normals[name] for name in ("uri", "product", "sha256", "photo", "windows")},
            "seeds": samples.seeds.tolist(),
            "attempts": samples.attempts.tolist(),
            "num_attempts": samples.num_attempts.tolist(),
            "references": [[uris[i] if i >= 0 else None for i in row] for row in made.references.tolist()],
            "reasons": samples.reasons.tolist(),
            "scores": [[[_known(value) for value in one] for one in row] for row in made.scores.tolist()],
            "pixels": [row.tobytes() for row in made.pixels],
            "layers": [None] * num_normals if layers is None else [row.tobytes() for row in layers],
            "masks": [row.tobytes() for row in made.masks],
        }
        return pa.table(generated, GENERATED_SCHEMA)

    def _windows(self, normals: pa.Table) -> Windows:
        """What the samples of some normals are made on."""
        run, side, products = self.run, self.run.image_size, normals["product"].to_pylist()
        if is_drawn(self.config.pool):
            return Windows(None, products, seeds=[seed_of(uri) for uri in normals["uri"].to_pylist()])
        # In one shard all normals are alike in this: one view each, or one for each request.
        num_views = len(run.requests) if self.config.native else 1
        pixels = [np.frombuffer(value.as_buffer(), np.uint8) for value in normals["pixels"]]
        everywhere = np.ones(num_views * side * side, bool)
        allowed = None
        if self.config.roi:
            allowed = np.array(
                [
                    np.frombuffer(value.as_buffer(), bool) if value.is_valid else everywhere
                    for value in normals["allowed"]
                ],
                bool,
            ).reshape(normals.num_rows, num_views, side, side)
        shape = (normals.num_rows, num_views, side, side, run.channels)
        return Windows(np.array(pixels, np.uint8).reshape(shape), products, allowed)


def _known(score: float) -> float | None:
    return None if math.isnan(score) else score


@tells
def write_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """A shard's samples -> PNG -> storage; what is left of it is one row, `stats`, a JSON text."""
    started = time.perf_counter()
    shard = unpack(batch)
    encoded = encode_samples(shard.tables["generated"], shard.number, config, run)
    seconds = {**shard.seconds, "encode": time.perf_counter() - started}
    generated, rejects = shard.tables["generated"], shard.tables["rejects"]
    stats = shards.write_shard(
        config.output,
        config.layout,
        shard.number,
        num_normals=generated.num_rows + rejects.num_rows,
        encoded=encoded,
        rejects=rejects,
        seconds=seconds,
    )
    return pa.table({"stats": [stats.model_dump_json()]})
