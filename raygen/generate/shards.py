"""Shards at rest: written once under a deterministic name, marked done by their stats, read back by anyone.

    shards/00042.parquet   layout "parquet": SAMPLE_SCHEMA, PNG bytes inside
    shards/00042.tar       layout "webdataset": {sample_id}.png and {sample_id}.json side by side
    shards/00042/          layout "png": {sample_id}.png, and metadata.parquet (SAMPLE_SCHEMA, paths for bytes)
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
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from raygen import storage
from raygen.errors import PromiseError
from raygen.generate.config import Layout
from raygen.records import SAMPLE_SCHEMA

MANIFEST = "manifest.json"
_ROWS_PER_GROUP = 128  # a reader that wants a few images need not decode a whole shard


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
    seconds: dict[str, float]  # by stage: the only thing here that depends on the clock

    @property
    def num_rejects(self) -> int:
        return sum(self.rejects.values())


class Manifest(BaseModel):
    """manifest.json: the totals of a complete run, and its shards with their digests."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    num_normals: int
    num_samples: int
    num_bytes: int
    products: dict[str, int]  # samples by product
    rejects: dict[str, int]  # normals by reason
    shards: tuple[ShardStats, ...]


def write_shard(
    output_uri: str,
    layout: Layout,
    shard: int,
    num_normals: int,
    samples: pa.Table,
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
        samples: SAMPLE_SCHEMA, PNG bytes in `image.bytes`; may be empty.
        rejects: REJECT_SCHEMA; may be empty.
        seconds: time spent by earlier stages, for the stats.
    """
    started = time.perf_counter()
    if storage.exists(_stats_uri(output_uri, shard)):
        return _read_stats(output_uri, shard)
    name, data, num_bytes = _WRITERS[layout](output_uri, f"shards/{shard:05d}", samples)
    storage.put(storage.join(output_uri, name), data)
    rejects_data = _parquet_bytes(rejects)
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
    """A shard's samples in SAMPLE_SCHEMA, with PNG bytes in `image.bytes`, whatever its layout."""
    data = storage.read(storage.join(output_uri, stats.file))
    if stats.file.endswith(".tar"):
        return _untar(data)
    samples = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
    if stats.file.endswith("/metadata.parquet"):
        folder = storage.join(output_uri, stats.file.removesuffix("/metadata.parquet"))
        paths = [image["path"] for image in samples["image"].to_pylist()]
        with ThreadPoolExecutor(8) as threads:
            images = list(threads.map(lambda path: storage.read(storage.join(folder, path)), paths))
        samples = _with_images(samples, images, paths)
    return samples


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
    images = [image["bytes"] for image in samples["image"].to_pylist()]
    paths = [f"{sample_id}.png" for sample_id in samples["sample_id"].to_pylist()]
    with ThreadPoolExecutor(8) as threads:
        uris = [storage.join(output_uri, name, path) for path in paths]
        list(threads.map(storage.put, uris, images))
    metadata = _with_images(samples, [None] * len(images), paths)
    return f"{name}/metadata.parquet", _parquet_bytes(metadata), sum(map(len, images))


def _webdataset_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in samples.to_pylist():
            image = row.pop("image")["bytes"]
            for suffix, data in ((".png", image), (".json", json.dumps(row, ensure_ascii=False).encode())):
                member = tarfile.TarInfo(row["sample_id"] + suffix)  # its times and owners are all 0
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return f"{name}.tar", buffer.getvalue(), 0


_WRITERS = {"parquet": _parquet_shard, "png": _png_shard, "webdataset": _webdataset_shard}


def _untar(data: bytes) -> pa.Table:
    rows: dict[str, dict[str, Any]] = {}
    for name, content in _members(data):
        stem, _, suffix = name.rpartition(".")
        row = rows.setdefault(stem, {})
        row.update({"image": {"bytes": content, "path": name}} if suffix == "png" else json.loads(content))
    return pa.Table.from_pylist(list(rows.values()), SAMPLE_SCHEMA)


def _members(data: bytes) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None, member.name
            yield member.name, file.read()


def _with_images(samples: pa.Table, images: list[bytes] | list[None], paths: list[str]) -> pa.Table:
    index = SAMPLE_SCHEMA.get_field_index("image")
    column = [{"bytes": image, "path": path} for image, path in zip(images, paths, strict=True)]
    return samples.set_column(
        index, SAMPLE_SCHEMA.field(index), pa.array(column, SAMPLE_SCHEMA.field(index).type)
    )


def _parquet_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    # PNG does not compress again, nor repeat: Snappy and dictionaries are for the columns beside it.
    repeated = [
        name for name in table.column_names if name not in ("image", "sample_id", "image_sha256", "seed")
    ]
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, use_dictionary=cast(Any, repeated))
    return buffer.getvalue()
