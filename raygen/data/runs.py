"""A run folder, read back: what the main job wrote, for whoever comes after it.

run.json               Run: what the run is; written first
shards/00042.parquet   layout "parquet": SAMPLE_SCHEMA, PNG bytes inside
shards/00042.tar       layout "webdataset": {sample_id}.png, .mask.png and .json side by side
shards/00042/          layout "png": {sample_id}.png, {sample_id}_mask.png, and metadata.parquet
                       (SAMPLE_SCHEMA, paths for bytes)
shards/00042.json      ShardStats: written last, it marks the shard done
rejects/00042.parquet  REJECT_SCHEMA, mostly empty
manifest.json          Manifest: written when all shards are done; a run with one is complete
"""

import hashlib
import io
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raygen import storage
from raygen.depth import PixelRange
from raygen.errors import PromiseError, UserError
from raygen.records import SAMPLE_SCHEMA, Layout, Mode, SampleRequest

RUN = "run.json"
MANIFEST = "manifest.json"
IMAGE_COLUMNS = ("image", "mask")


class Run(BaseModel):
    """run.json: all that a task needs to know of its run."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str  # a digest of identity, checkpoint and plan: the same in whatever folder
    config: dict[str, Any]  # as resolved when the run began
    checkpoint: str  # its digest
    judge: str | None = None  # the digest of the one that gate.judge names
    is_judged: bool  # whether samples have scores and go through the gate
    image_size: int  # the model's
    channels: int  # the model's
    requests: tuple[SampleRequest, ...]  # the samples of one normal
    plan: str  # the frozen plan's name in the run folder
    learned: str | None = None  # name of what the checkpoint, and the judge, learned from; None: nobody says
    num_normals: int
    num_shards: int
    products: dict[str, int]  # normals by product
    rois: dict[str, str]  # product -> SHA-256 of its region of interest
    pixel_ranges: dict[str, PixelRange] = Field(default_factory=dict)  # by product; "" is that of all others
    versions: dict[str, str]  # of the packages that decide bytes

    def range_of(self, product: str) -> PixelRange | None:
        """Which levels of a product's photographs of more than 8 bits are black and white; None: as each says."""
        return self.pixel_ranges.get(product, self.pixel_ranges.get(""))

    @property
    def num_samples(self) -> int:
        """Samples of the whole run, if no normal is rejected."""
        return self.num_normals * len(self.requests)

    @property
    def layout(self) -> Layout:
        return self.config["layout"]

    @property
    def seed(self) -> int:
        return self.config["seed"]


def read_run(output_uri: str) -> Run | None:
    """The run that stands in a folder, if one does."""
    try:
        return Run.model_validate_json(storage.read(storage.join(output_uri, RUN)))
    except storage.ObjectMissingError:
        return None
    except ValidationError as error:
        problem = error.errors()[0]
        raise UserError(
            f"{output_uri}/{RUN}: not a run of this version of raygen ({problem['loc']}: {problem['msg']}); "
            "choose another output"
        ) from None


class CellStats(BaseModel):
    """How the samples of a product, defect type and mode fared at the gate. asked = accepted + kept + dropped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    product: str
    defect_type: str
    mode: Mode
    asked: int = 0  # of normals that could be used
    accepted: int = 0
    kept: int = 0  # in the shard, though no attempt passed
    dropped: int = 0  # in rejects/, since no attempt passed
    attempts: int = 0  # made for all of them
    reasons: dict[str, int] = Field(default_factory=dict)  # those kept and dropped, by rule

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.product, self.defect_type, self.mode

    @classmethod
    def of_sample(
        cls, product: str, request: SampleRequest, reason: str | None, attempts: int, *, is_dropped: bool
    ) -> "CellStats":
        """Those of one sample; `reason` is None for an accepted one."""
        return cls(
            product=product,
            defect_type=request.defect_type,
            mode=request.mode,
            asked=1,
            accepted=int(reason is None),
            kept=int(reason is not None and not is_dropped),
            dropped=int(reason is not None and is_dropped),
            attempts=attempts,
            reasons={reason: 1} if reason else {},
        )


def sum_cells(parts: Iterable[CellStats]) -> tuple[CellStats, ...]:
    """One for each product, defect type and mode, in their order."""
    counts: dict[tuple[str, str, str], Counter[str]] = {}
    reasons: dict[tuple[str, str, str], Counter[str]] = {}
    for part in parts:
        numbers = part.model_dump(exclude={"product", "defect_type", "mode", "reasons"})
        counts.setdefault(part.cell, Counter()).update(numbers)
        reasons.setdefault(part.cell, Counter()).update(part.reasons)
    names = ("product", "defect_type", "mode")
    return tuple(
        CellStats.model_validate(
            {
                **dict(zip(names, cell, strict=True)),
                **counts[cell],
                "reasons": dict(sorted(reasons[cell].items())),
            }
        )
        for cell in sorted(counts)
    )


class ShardStats(BaseModel):
    """shards/00042.json: what the shard holds, and what it took."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: int
    file: str  # its name in the run folder; in the png layout its metadata.parquet
    sha256: str  # of that file, which itself holds the SHA-256 of every image
    rejects_sha256: str  # of rejects/00042.parquet
    num_bytes: int  # of all the shard's files
    num_normals: int  # planned
    num_samples: int
    products: dict[str, int]  # samples by product
    rejects: dict[str, int]  # normals by reason
    cells: tuple[CellStats, ...]  # what became of the samples asked for
    seconds: dict[str, float]  # by stage: the only thing here that depends on the clock

    @property
    def num_rejects(self) -> int:
        return sum(self.rejects.values())

    @property
    def num_dropped(self) -> int:
        return sum(cell.dropped for cell in self.cells)


class Manifest(BaseModel):
    """manifest.json: the totals of a complete run, and its shards with their digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    num_normals: int
    num_samples: int
    num_bytes: int
    products: dict[str, int]  # samples by product
    rejects: dict[str, int]  # normals by reason
    cells: tuple[CellStats, ...]  # what became of the samples asked for
    shards: tuple[ShardStats, ...]


def done_shards(output_uri: str) -> set[int]:
    """The numbers of the shards that are done, by one listing."""
    listed = storage.list_files(storage.join(output_uri, "shards"), deep=False)
    names = (entry.uri.rpartition("/")[2] for entry in listed)
    return {int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{5,}\.json", name)}


def read_stats(output_uri: str, shards: set[int], num_threads: int = 16) -> list[ShardStats]:
    """The stats of done shards, in order."""
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(partial(read_shard_stats, output_uri), sorted(shards)))


def read_shard(output_uri: str, stats: ShardStats) -> pa.Table:
    """A shard's samples in SAMPLE_SCHEMA, with PNG bytes in `image` and `mask`, whatever its layout."""
    data = storage.read(storage.join(output_uri, stats.file))
    if stats.file.endswith(".tar"):
        return _untar(data)
    samples = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
    if stats.file.endswith("/metadata.parquet"):
        folder = storage.join(output_uri, stats.file.removesuffix("/metadata.parquet"))
        for column in IMAGE_COLUMNS:
            paths = [image["path"] for image in samples[column].to_pylist()]
            with ThreadPoolExecutor(8) as threads:
                images = list(threads.map(lambda path: storage.read(storage.join(folder, path)), paths))
            samples = with_images(samples, column, images)
    return samples


def read_columns(output_uri: str, stats: ShardStats, columns: Sequence[str]) -> pa.Table:
    """Some columns of a shard, without its images where the layout allows it."""
    if stats.file.endswith(".tar"):
        return _untar(storage.read(storage.join(output_uri, stats.file))).select(columns)
    with storage.open_input(storage.join(output_uri, stats.file)) as stream:
        return pq.read_table(stream, columns=list(columns))


def read_rejects(output_uri: str, stats: ShardStats) -> pa.Table:
    """A shard's rejects in REJECT_SCHEMA.

    Raises:
        PromiseError: the file is not the one that was written.
    """
    uri = rejects_uri(output_uri, stats.shard)
    data = storage.read(uri)
    if hashlib.sha256(data).hexdigest() != stats.rejects_sha256:
        raise PromiseError(f"{uri}: its SHA-256 differs from the one in the stats")
    return pq.read_table(io.BytesIO(data))


def read_manifest(output_uri: str) -> Manifest | None:
    """The manifest of a complete run; None while it is not complete."""
    uri = storage.join(output_uri, MANIFEST)
    try:
        return _parse(Manifest, uri, storage.read(uri))
    except storage.ObjectMissingError:
        return None


def read_shard_stats(output_uri: str, shard: int) -> ShardStats:
    uri = stats_uri(output_uri, shard)
    return _parse(ShardStats, uri, storage.read(uri))


D = TypeVar("D", bound=BaseModel)


def _parse(kind: type[D], uri: str, data: bytes) -> D:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise PromiseError(f"{uri}: damaged; delete it and run the same command again") from None


def rejects_uri(output_uri: str, shard: int) -> str:
    return storage.join(output_uri, f"rejects/{shard:05d}.parquet")


def stats_uri(output_uri: str, shard: int) -> str:
    return storage.join(output_uri, f"shards/{shard:05d}.json")


def _untar(data: bytes) -> pa.Table:
    rows: dict[str, dict[str, Any]] = {}
    for name, content in _members(data):
        stem, _, suffix = name.partition(".")
        row = rows.setdefault(stem, {})
        if suffix == "json":
            row.update(json.loads(content))
        else:
            column, path = ("image", name) if suffix == "png" else ("mask", f"{stem}_mask.png")
            row[column] = {"bytes": content, "path": path}
    return pa.Table.from_pylist(list(rows.values()), SAMPLE_SCHEMA)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, member.name
            yield member.name, file.read()


def with_images(samples: pa.Table, column: str, images: list[bytes] | list[None]) -> pa.Table:
    index = SAMPLE_SCHEMA.get_field_index(column)
    files = zip(images, samples[column].to_pylist(), strict=True)
    values = [{"bytes": image, "path": file["path"]} for image, file in files]
    return samples.set_column(
        index, SAMPLE_SCHEMA.field(index), pa.array(values, SAMPLE_SCHEMA.field(index).type)
    )
