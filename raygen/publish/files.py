"""What is done to data files, anywhere on the cluster: inspected; written anew, without some rows or joined."""

import hashlib
import io
from collections import Counter
from collections.abc import Iterable
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
_NO_SCORES = SAMPLE_SCHEMA.empty_table().select(["sample_id", *CELL, *SCORES])
_STATISTICS = ("normal_uri", *CELL, "run_id", "checkpoint")  # readers leave out files by them


class Inspected(NamedTuple):
    """What the audit needs to know of a file of tonight's run."""

    file: DataFile
    scores: pa.Table  # sample_id, product, defect_type, mode and the scores, of some of its samples
    normals: pa.Table  # NORMALS_SCHEMA: those that it holds samples of
    problem: str | None  # it is not the file that was written


NORMALS_SCHEMA = pa.schema([("uri", pa.string()), ("sha256", pa.binary(32))])
"""What a normal's bytes are, as the task that read them found."""


def inspect_file(table_uri: str, path: str, stats: ShardStats, share: float) -> Inspected:
    """Reads a file of the run, checks it against its stats, and measures what the audit and the table want.

    Args:
        table_uri: the table's folder.
        path: of the file, in it.
        stats: what the file should be.
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
    return Inspected(_data_file(path, len(data), rows), lowest_ids([scores]), _normals(rows), problem)


def _normals(rows: pa.Table) -> pa.Table:
    found = rows.group_by(["normal_uri", "normal_sha256"]).aggregate([])
    digests = [bytes.fromhex(digest) for digest in found["normal_sha256"].to_pylist()]
    return pa.table([found["normal_uri"], pa.array(digests, pa.binary(32))], NORMALS_SCHEMA)


def lowest_ids(tables: Iterable[pa.Table]) -> pa.Table:
    """Of each product, defect type and mode the SCORE_SAMPLES rows of the smallest sample ids."""
    rows = pa.concat_tables([_NO_SCORES, *tables]).sort_by("sample_id")
    taken: Counter[tuple[str, ...]] = Counter()
    keep = []
    for cell in zip(*(rows[name].to_pylist() for name in CELL), strict=True):
        taken[cell] += 1
        keep.append(taken[cell] <= SCORE_SAMPLES)
    return rows.filter(pa.array(keep, pa.bool_()))


def merge_scores(tonight: pa.Table, before: pa.Table | None, min_samples: int) -> pa.Table:
    """Of each cell tonight's choice of scores; the one before where tonight made none of that cell, or, by the
    same key, too few to compare by. Both tables have, beside the columns of `Inspected.scores`, the `key` of what
    made a sample; of a cell each has one."""
    if before is None:
        return tonight
    counts, now, old = Counter(_cells(tonight)), _keys(tonight), _keys(before)
    stay = {
        cell
        for cell, key in old.items()
        if cell not in now or (now[cell] == key and counts[cell] < min_samples)
    }
    return pa.concat_tables(
        [
            tonight.filter(pa.array([cell not in stay for cell in _cells(tonight)], pa.bool_())),
            before.filter(pa.array([cell in stay for cell in _cells(before)], pa.bool_())),
        ]
    )


def _cells(scores: pa.Table) -> list[tuple[str, ...]]:
    """Each row's cell."""
    return list(zip(*(scores[name].to_pylist() for name in CELL), strict=True))


def _keys(scores: pa.Table) -> dict[tuple[str, ...], str]:
    return dict(zip(_cells(scores), scores["key"].to_pylist(), strict=True))


class Rewrite(NamedTuple):
    """Published files that become one, without the normals that leave them."""

    paths: dict[str, int]  # and their samples, by the table's log
    target: str
    leaving: list[str]  # the normals' URIs


def rewrite_files(table_uri: str, rewrite: Rewrite) -> DataFile:
    """Writes the samples that stay into a file of their own; the rows are as they were.

    Raises:
        PromiseError: a file is not what the table's log says.
    """
    leaving = pa.array(rewrite.leaving, pa.string())
    parts = []
    for path, num_samples in rewrite.paths.items():
        rows = _published(table_uri, path, num_samples)
        parts.append(rows.filter(pc.invert(pc.is_in(rows["normal_uri"], value_set=leaving))))
    rows = pa.concat_tables(parts)
    data = parquet_bytes(rows)
    storage.put(storage.join(table_uri, rewrite.target), data)
    return _data_file(rewrite.target, len(data), rows)


def _published(table_uri: str, path: str, num_samples: int) -> pa.Table:
    """A published file's rows (SAMPLE_SCHEMA)."""
    try:
        data = storage.read(storage.join(table_uri, path))
        rows = pq.read_table(io.BytesIO(data), schema=SAMPLE_SCHEMA)
        found = f"holds {len(rows):,} samples"
    except storage.ObjectMissingError:
        rows, found = None, "is gone"
    except pa.ArrowException as error:
        rows, found = None, f"cannot be read ({error})"
    if rows is None or len(rows) != num_samples:
        raise PromiseError(
            f"{table_uri}/{path}: {found}, and the table's log says {num_samples:,} samples; go back to a version "
            f"without it: `raygen rollback {table_uri}`"
        )
    return rows


def _data_file(path: str, num_bytes: int, rows: pa.Table) -> DataFile:
    bounds = {name: pc.min_max(rows[name]).as_py() for name in _STATISTICS if len(rows)}
    least = {name: bound["min"] for name, bound in bounds.items()}
    greatest = {name: bound["max"] for name, bound in bounds.items()}
    return DataFile(path, num_bytes, len(rows), least, greatest)
