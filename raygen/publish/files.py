"""What is done to one data file, anywhere on the cluster: it is inspected, or written anew without some rows."""

import hashlib
import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import ShardStats
from raygen.errors import PromiseError
from raygen.generate.shards import parquet_bytes
from raygen.publish.arrow import pc
from raygen.publish.table import DataFile
from raygen.records import SAMPLE_SCHEMA, SCORES

SCORE_SAMPLES = 2_000
"""Rows of a cell by which the scores of two nights are compared: those of the smallest sample ids. Ids are hashes,
so that it is a random choice, and the same whoever makes it."""

CELL = ["product", "defect_type", "mode"]
_STATISTICS = ("normal_uri", *CELL, "run_id", "checkpoint")  # readers leave out files by them


class Inspected(NamedTuple):
    """What the audit needs to know of a file of tonight's run."""

    file: DataFile
    scores: pa.Table  # sample_id, product, defect_type, mode and the scores, of some of its samples
    blocked: list[str]  # normals whose bytes are on the blocklist
    problem: str | None  # it is not the file that was written


def inspect_file(
    table_uri: str, path: str, stats: ShardStats, blocklist: frozenset[str], share: float
) -> Inspected:
    """Reads a file of the run, checks it against its stats, and measures what the audit and the table want.

    Args:
        table_uri: the table's folder.
        path: of the file, in it.
        stats: what the file should be.
        blocklist: SHA-256 of images that must not be among the normals.
        share: of the samples, those of the lowest ids, whose scores are wanted.
    """
    data = storage.read(storage.join(table_uri, path))
    rows = SAMPLE_SCHEMA.empty_table()
    problem = None
    if hashlib.sha256(data).hexdigest() == stats.sha256:
        rows = pq.read_table(io.BytesIO(data), columns=["sample_id", "normal_sha256", *SCORES, *_STATISTICS])
    else:
        problem = f"{path}: not as it was written"
    scores = rows.select(["sample_id", *CELL, *SCORES])
    if share < 1:
        scores = scores.filter(pc.less(scores["sample_id"], f"{int(share * 2**32):08x}"))
    return Inspected(
        _data_file(path, len(data), rows), lowest_ids([scores]), _blocked(rows, blocklist), problem
    )


def blocked_normals(table_uri: str, blocklist: frozenset[str], path: str) -> list[str]:
    """The normals of a published file whose bytes are on the blocklist."""
    with storage.open_input(storage.join(table_uri, path)) as stream:
        return _blocked(pq.read_table(stream, columns=["normal_uri", "normal_sha256"]), blocklist)


def _blocked(rows: pa.Table, blocklist: frozenset[str]) -> list[str]:
    found = pc.is_in(rows["normal_sha256"], value_set=pa.array(sorted(blocklist), pa.string()))
    return sorted(set(rows["normal_uri"].filter(found).to_pylist()))


def cell_of(row: Mapping[str, str]) -> tuple[str, ...]:
    """Product, defect type and mode of a row."""
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


def merge_scores(
    inspected: Sequence[Inspected], before: pa.Table | None, min_samples: int
) -> pa.Table | None:
    """Tonight's scores; and of cells of which too little was made tonight to compare by, the night before's."""
    if not inspected:
        return before
    tonight = lowest_ids([item.scores for item in inspected])
    if before is None:
        return tonight
    counts = Counter(map(cell_of, tonight.select(CELL).to_pylist()))
    old = set(map(cell_of, before.select(CELL).to_pylist()))

    def rows(scores: pa.Table, are_wanted: Callable[[tuple[str, ...]], bool]) -> pa.Table:
        wanted = [are_wanted(cell_of(row)) for row in scores.select(CELL).to_pylist()]
        return scores.filter(pa.array(wanted, pa.bool_()))

    return pa.concat_tables(
        [
            rows(tonight, lambda cell: counts[cell] >= min_samples or cell not in old),
            rows(before, lambda cell: counts[cell] < min_samples),
        ]
    )


class Rewrite(NamedTuple):
    """A published file that some of its normals leave."""

    path: str
    target: str
    num_samples: int  # of it, by the table's log
    leaving: list[str]  # the normals' URIs


def rewrite_file(table_uri: str, rewrite: Rewrite) -> DataFile:
    """Writes the samples that stay into a file of their own; the rows are as they were.

    Raises:
        PromiseError: the file is not what the table's log says.
    """
    data = storage.read(storage.join(table_uri, rewrite.path))
    rows = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
    if len(rows) != rewrite.num_samples:
        raise PromiseError(
            f"{table_uri}/{rewrite.path}: holds {len(rows):,} samples, and the table's log says "
            f"{rewrite.num_samples:,}; go back to a version without it: `raygen rollback {table_uri}`"
        )
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
