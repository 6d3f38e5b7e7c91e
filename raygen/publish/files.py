"""What is done to one data file, anywhere on the cluster: it is inspected, or written anew without some rows."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import ShardStats
from raygen.generate.shards import parquet_bytes
from raygen.publish.arrow import pc
from raygen.publish.table import DataFile
from raygen.records import SAMPLE_SCHEMA, SCORES

SCORE_SAMPLES = 2_000
"""Rows of a cell by which the scores of two nights are compared: those of the smallest sample ids. Ids are hashes,
so that it is a random choice, and the same whoever makes it."""

CELL = ["product", "defect_type", "mode"]
_STATISTICS = (
    "normal_uri",
    "product",
    "defect_type",
    "mode",
    "run_id",
    "checkpoint",
)  # readers filter by them


class Inspected(NamedTuple):
    """What the audit needs to know of a file of tonight's run."""

    file: DataFile
    normals: int  # with samples in it
    cells: dict[tuple[str, str, str], int]  # product, defect type, mode -> samples
    scores: pa.Table  # sample_id, product, defect_type, mode and the scores, at most SCORE_SAMPLES of a cell
    blocked: list[str]  # normals whose bytes are on the blocklist
    problem: str | None  # it is not the file that was written


def inspect_file(table_uri: str, path: str, stats: ShardStats, blocklist: frozenset[str]) -> Inspected:
    """Reads a file of the run, checks it against its stats, and measures what the audit and the table want."""
    data = storage.read(storage.join(table_uri, path))
    if hashlib.sha256(data).hexdigest() != stats.sha256:
        nothing = SAMPLE_SCHEMA.empty_table().select(["sample_id", *CELL, *SCORES])
        return Inspected(
            DataFile(path, len(data), 0, {}, {}), 0, {}, nothing, [], f"{path}: not as it was written"
        )
    columns = ["sample_id", "normal_sha256", *SCORES, *_STATISTICS]
    rows = pq.read_table(io.BytesIO(data), columns=columns)
    hashes = pc.is_in(rows["normal_sha256"], value_set=pa.array(sorted(blocklist), pa.string()))
    blocked = sorted(set(rows["normal_uri"].filter(hashes).to_pylist()))
    cells = Counter(zip(*(rows[name].to_pylist() for name in CELL), strict=True))
    scores = lowest_ids([rows.select(["sample_id", *CELL, *SCORES])])
    file = _data_file(path, len(data), rows)
    return Inspected(file, pc.count_distinct(rows["normal_uri"]).as_py(), dict(cells), scores, blocked, None)


def cell_of(row: Mapping[str, str]) -> tuple[str, ...]:
    return tuple(row[name] for name in CELL)


def lowest_ids(tables: Iterable[pa.Table]) -> pa.Table:
    """Of each product, defect type and mode the SCORE_SAMPLES rows of the smallest sample ids."""
    rows = pa.concat_tables(tables).sort_by("sample_id")
    taken: Counter[tuple[str, ...]] = Counter()
    keep = []
    for cell in zip(*(rows[name].to_pylist() for name in CELL), strict=True):
        taken[cell] += 1
        keep.append(taken[cell] <= SCORE_SAMPLES)
    return rows.filter(pa.array(keep, pa.bool_()))


class Rewrite(NamedTuple):
    """A published file that some of its normals leave."""

    path: str
    target: str
    leaving: list[str]  # the normals' URIs


def rewrite_file(table_uri: str, rewrite: Rewrite) -> DataFile:
    """Writes the samples that stay into a file of their own; the rows are as they were."""
    data = storage.read(storage.join(table_uri, rewrite.path))
    rows = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
    leaves = pc.is_in(rows["normal_uri"], value_set=pa.array(rewrite.leaving, pa.string()))
    rows = rows.filter(pc.invert(leaves))
    data = parquet_bytes(rows)
    storage.put(storage.join(table_uri, rewrite.target), data)
    return _data_file(rewrite.target, len(data), rows)


def _data_file(path: str, num_bytes: int, rows: pa.Table) -> DataFile:
    bounds = {name: pc.min_max(rows[name]).as_py() for name in _STATISTICS if len(rows)}
    least = {name: bound["min"] for name, bound in bounds.items()}
    greatest = {name: bound["max"] for name, bound in bounds.items()}
    return DataFile(path, num_bytes, len(rows), least, greatest)
