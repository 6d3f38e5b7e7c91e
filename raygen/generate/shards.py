"""Shards written: once, under a deterministic name, marked done by their stats.

The same samples give the same bytes, so that a retried or raced task changes nothing. `raygen.data.runs` describes
the files and reads them back.
"""

import hashlib
import io
import json
import tarfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import (
    IMAGE_COLUMNS,
    MANIFEST,
    CellStats,
    Manifest,
    ShardStats,
    read_shard_stats,
    rejects_uri,
    stats_uri,
    sum_cells,
    with_images,
)
from raygen.records import Layout

_ROWS_PER_GROUP = 128  # a reader that wants a few images need not decode a whole shard


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

    A shard that is done already is left as it is: a late twin of its task, or of another job, may have seen other
    inputs. Of two that finish at once, the stats of one stand, and both return those.

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
    if storage.exists(stats_uri(output_uri, shard)):
        return read_shard_stats(output_uri, shard)
    samples = encoded.samples
    name, data, num_bytes = _WRITERS[layout](output_uri, f"shards/{shard:05d}", samples)
    storage.put(storage.join(output_uri, name), data)
    rejects_data = parquet_bytes(pa.concat_tables([rejects, encoded.dropped]))
    storage.put(rejects_uri(output_uri, shard), rejects_data)
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
    if storage.put_if_absent(stats_uri(output_uri, shard), stats.model_dump_json(indent=1).encode()):
        return stats
    return read_shard_stats(output_uri, shard)


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


# -------------------------------------------------------------------------------- layouts
# A writer puts what stands beside the shard's main file and returns (name, main file's bytes, other bytes).


def _parquet_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    return f"{name}.parquet", parquet_bytes(samples), 0


def _png_shard(output_uri: str, name: str, samples: pa.Table) -> tuple[str, bytes, int]:
    num_bytes, metadata = 0, samples
    for column in IMAGE_COLUMNS:
        files = samples[column].to_pylist()
        with ThreadPoolExecutor(8) as threads:
            uris = [storage.join(output_uri, name, file["path"]) for file in files]
            list(threads.map(storage.put, uris, [file["bytes"] for file in files]))
        metadata = with_images(metadata, column, [None] * len(files))
        num_bytes += sum(len(file["bytes"]) for file in files)
    return f"{name}/metadata.parquet", parquet_bytes(metadata), num_bytes


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


def parquet_bytes(table: pa.Table) -> bytes:
    """A table of samples or rejects as a Parquet file; the same rows, the same bytes."""
    buffer = io.BytesIO()
    # PNG does not compress again, nor repeat: Snappy and dictionaries are for the columns beside it.
    repeated = [
        field.name
        for field in table.schema
        if pa.types.is_string(field.type) and field.name not in ("sample_id", "image_sha256", "mask_sha256")
    ]
    pq.write_table(table, buffer, row_group_size=_ROWS_PER_GROUP, use_dictionary=cast(Any, repeated))
    return buffer.getvalue()
