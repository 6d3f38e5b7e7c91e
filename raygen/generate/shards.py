"""Shards at rest: written once under a deterministic name, marked done by their stats, read back by anyone.

    shards/00042.parquet   layout "parquet": SAMPLE_SCHEMA, PNG bytes inside
    shards/00042.tar       layout "webdataset": {sample_id}.png, .mask.png and .json side by side
    shards/00042/          layout "png": {sample_id}.png, {sample_id}_mask.png, and metadata.parquet
                           (SAMPLE_SCHEMA, paths for bytes)
    shards/00042.json      ShardStats: written last, it marks the shard done
    rejects/00042.parquet  REJECT_SCHEMA, mostly empty
    manifest.json          Manifest: written when all shards are done; a run with one is complete

The same samples give the same bytes, so that a retried or raced task changes nothing.
"""

import hashlib
import io
import json
import re
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raygen import storage
from raygen.errors import PromiseError
from raygen.generate.config import Layout
from raygen.records import SAMPLE_SCHEMA, Mode, SampleRequest

MANIFEST = "manifest.json"
_IMAGES = ("image", "mask")
_ROWS_PER_GROUP = 128  # a reader that wants a few images need not decode a whole shard


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


class Encoded(NamedTuple):
    """A shard's samples, ready to be written."""

    samples: pa.Table  # SAMPLE_SCHEMA, PNG bytes in `image.bytes` and `mask.bytes`; may be empty
    dropped: pa.Table  # REJECT_SCHEMA: samples that the gate left out; mostly empty
    cells: tuple[CellStats, ...]


def write_shard(
    output_uri: str,
    layout: Layout,
    shard: int,
    num_normals: int,
    encoded: Encoded,
    rejects: pa.Table,
    seconds: dict[str, float],
) -> ShardStats:
    """Writes a shard, then its rejects, then the stats that mark it done.

    A shard that is done already is left as it is: a late twin of its task may have seen other inputs.

    Args:
        output_uri: the run folder.
        layout: the form of the shard.
        shard: its number.
        num_normals: how many the plan gives it.
        encoded: its samples.
        rejects: REJECT_SCHEMA, the normals that could not be used; may be empty.
        seconds: time spent by earlier stages, for the stats.
    """
    started = time.perf_counter()
    if storage.exists(_stats_uri(output_uri, shard)):
        return _read_stats(output_uri, shard)
    samples = encoded.samples
    name, data, num_bytes = _WRITERS[layout](output_uri, f"shards/{shard:05d}", samples)
    storage.put(storage.join(output_uri, name), data)
    rejects_data = _parquet_bytes(pa.concat_tables([rejects, encoded.dropped]))
    storage.put(_rejects_uri(output_uri, shard), rejects_data)
    seconds = {**seconds, "write": time.perf_counter() - started}
    stats = ShardStats(
        shard=shard,
        file=name,
        sha256=hashlib.sha256(data).hexdigest(),
        rejects_sha256=hashlib.sha256(rejects_data).hexdigest(),
        num_bytes=num_bytes + len(data),
        num_normals=num_normals,
        num_samples=samples.num_rows,
        products=dict(sorted(Counter(samples["product"].to_pylist()).items())),
        rejects=dict(sorted(Counter(rejects["reason"].to_pylist()).items())),
        cells=encoded.cells,
        seconds={stage: round(value, 3) for stage, value in seconds.items()},
    )
    storage.put(_stats_uri(output_uri, shard), stats.model_dump_json(indent=1).encode())
    return stats


def done_shards(output_uri: str) -> set[int]:
    """The numbers of the shards that are done, by one listing."""
    listed = storage.list_files(storage.join(output_uri, "shards"), deep=False)
    names = (entry.uri.rpartition("/")[2] for entry in listed)
    return {int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{5,}\.json", name)}


def read_stats(output_uri: str, shards: set[int], num_threads: int = 16) -> list[ShardStats]:
    """The stats of done shards, in order."""
    with ThreadPoolExecutor(num_threads) as threads:
        return list(threads.map(partial(_read_stats, output_uri), sorted(shards)))


def read_shard(output_uri: str, stats: ShardStats) -> pa.Table:
    """A shard's samples in SAMPLE_SCHEMA, with PNG bytes in `image` and `mask`, whatever its layout."""
    data = storage.read(storage.join(output_uri, stats.file))
    if stats.file.endswith(".tar"):
        return _untar(data)
    samples = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
    if stats.file.endswith("/metadata.parquet"):
        folder = storage.join(output_uri, stats.file.removesuffix("/metadata.parquet"))
        for column in _IMAGES:
            paths = [image["path"] for image in samples[column].to_pylist()]
            with ThreadPoolExecutor(8) as threads:
                images = list(threads.map(lambda path: storage.read(storage.join(folder, path)), paths))
            samples = _with_images(samples, column, images)
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
    uri = _rejects_uri(output_uri, stats.shard)
    data = storage.read(uri)
    if hashlib.sha256(data).hexdigest() != stats.rejects_sha256:
        raise PromiseError(f"{uri}: its SHA-256 differs from the one in the stats")
    return pq.read_table(io.BytesIO(data))


def write_manifest(output_uri: str, run_id: str, stats: list[ShardStats]) -> Manifest:
    """Sums the stats of all shards, in order, and declares the run complete."""

    def total(field: str) -> dict[str, int]:
        return dict(sorted(sum((Counter(getattr(shard, field)) for shard in stats), Counter[str]()).items()))

    manifest = Manifest(
        run_id=run_id,
        num_normals=sum(shard.num_normals for shard in stats),
        num_samples=sum(shard.num_samples for shard in stats),
        num_bytes=sum(shard.num_bytes for shard in stats),
        products=total("products"),
        rejects=total("rejects"),
        cells=sum_cells(cell for shard in stats for cell in shard.cells),
        shards=tuple(stats),
    )
    storage.put(storage.join(output_uri, MANIFEST), manifest.model_dump_json(indent=1).encode())
    return manifest


def read_manifest(output_uri: str) -> Manifest | None:
    """The manifest of a complete run; None while it is not complete."""
    uri = storage.join(output_uri, MANIFEST)
    try:
        return _parse(Manifest, uri, storage.read(uri))
    except storage.ObjectMissingError:
        return None


def _read_stats(output_uri: str, shard: int) -> ShardStats:
    uri = _stats_uri(output_uri, shard)
    return _parse(ShardStats, uri, storage.read(uri))


D = TypeVar("D", bound=BaseModel)


def _parse(kind: type[D], uri: str, data: bytes) -> D:
    try:
        return kind.model_validate_json(data)
    except ValidationError:
        raise PromiseError(f"{uri}: damaged; delete it and run the same command again") from None


def _rejects_uri(output_uri: str, shard: int) -> str:
    return storage.join(output_uri, f"rejects/{shard:05d}.parquet")


def _stats_uri(output_uri: str, shard: int) -> str:
    return storage.join(output_uri, f"shards/{shard:05d}.json")


# -------------------------------------------------------------------------------- layouts
# A writer puts what stands beside the shard's main file and returns (name, main file's bytes, other bytes).


def _parquet_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    return f"{name}.parquet", _parquet_bytes(samples), 0


def _png_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    num_bytes, metadata = 0, samples
    for column in _IMAGES:
        files = samples[column].to_pylist()
        with ThreadPoolExecutor(8) as threads:
            uris = [storage.join(output_uri, name, file["path"]) for file in files]
            list(threads.map(storage.put, uris, [file["bytes"] for file in files]))
        metadata = _with_images(metadata, column, [None] * len(files))
        num_bytes += sum(len(file["bytes"]) for file in files)
    return f"{name}/metadata.parquet", _parquet_bytes(metadata), num_bytes


def _webdataset_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in samples.to_pylist():
            image, mask = row.pop("image")["bytes"], row.pop("mask")["bytes"]
            text = json.dumps(row, ensure_ascii=False).encode()
            for suffix, data in ((".png", image), (".mask.png", mask), (".json", text)):
                member = tarfile.TarInfo(row["sample_id"] + suffix)  # its times and owners are all 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f"{name}.tar", buffer.getvalue(), 0


_WRITERS = {"parquet": _parquet_shard, "png": _png_shard, "webdataset": _webdataset_shard}


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


def _with_images(samples: pa.Table, column: str, images: list[bytes] | list[None]) -> pa.Table:
    index = SAMPLE_SCHEMA.get_field_index(column)
    files = zip(images, samples[column].to_pylist(), strict=True)
    values = [{"bytes": image, "path": file["path"]} for image, file in files]
    return samples.set_column(
        index, SAMPLE_SCHEMA.field(index), pa.array(values, SAMPLE_SCHEMA.field(index).type)
    )


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    # PNG does not compress again, nor repeat: Snappy and dictionaries are for the columns beside it.
    repeated = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) and field.name not in ("sample_id", "image_sha256", "mask_sha256")
    ]
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, use_dictionary=cast(Any, repeated))
    return buffer.getvalue()
