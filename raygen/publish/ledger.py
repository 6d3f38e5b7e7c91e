"""The ledger of the next version: which normals it holds, made by what, in which files."""

from collections.abc import Collection

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import Manifest, read_rejects, read_run
from raygen.publish.arrow import pc
from raygen.publish.changes import LEDGER_SCHEMA, by_product, read_ledger
from raygen.publish.state import Night

_RETRY = ("missing", "changed", "unreadable")
"""Why a normal was of no use, though its content may be in order: it is left out of the ledger, so that the next
night looks at it again."""


def next_ledger(
    table_uri: str,
    night: Night,
    manifest: Manifest | None,
    files: Collection[str],
    normals: pa.Table,
) -> pa.Table:
    """The ledger after a night: the normals that stay, and those of its run.

    Args:
        table_uri: the table's folder.
        night: what was to be done.
        manifest: of its run; None if nothing was to be generated.
        files: those that the night adds to the table; a file without samples is not among them.
        normals: `uri` and `sha256` of the normals of which it made samples.
    """
    kept = read_ledger(storage.join(table_uri, night.folder, "kept.parquet"))
    if night.rewritten:
        moved = {path: target if target in files else None for path, target in night.rewritten.items()}
        paths = [moved.get(path, path) for path in kept["file"].to_pylist()]
        place = LEDGER_SCHEMA.get_field_index("file")
        kept = kept.set_column(place, LEDGER_SCHEMA.field("file"), pa.array(paths, pa.string()))
    if manifest is None:
        return kept
    return pa.concat_tables(
        [kept, _made(storage.join(table_uri, night.run), night, manifest, files, normals)]
    )


def _made(
    output_uri: str, night: Night, manifest: Manifest, files: Collection[str], normals: pa.Table
) -> pa.Table:
    """Ledger rows of the run's normals."""
    run = read_run(output_uri)
    assert run is not None
    with storage.open_input(storage.join(output_uri, run.plan)) as stream:
        plan = pq.read_table(stream, columns=["uri", "product", "etag", "shard"])
    useless, again = _rejected(output_uri, manifest)
    paths = [f"{night.run}/{stats.file}" for stats in manifest.shards]  # by the shards' numbers
    file = pa.array([path if path in files else None for path in paths], pa.string()).take(plan["shard"])
    file = pc.if_else(pc.is_in(plan["uri"], value_set=useless), pa.scalar(None, pa.string()), file)
    content = normals["sha256"].combine_chunks()
    sha256 = content.take(pc.index_in(plan["uri"], value_set=normals["uri"].combine_chunks()))
    columns = [
        plan["uri"],
        plan["product"],
        plan["etag"],
        by_product(plan["product"], night.keys),
        file,
        sha256,
    ]
    return pa.table(columns, LEDGER_SCHEMA).filter(pc.invert(pc.is_in(plan["uri"], value_set=again)))


def _rejected(output_uri: str, manifest: Manifest) -> tuple[pa.Array, pa.Array]:
    """The normals whose content is of no use, and those to look at again."""
    useless: list[str] = []
    again: list[str] = []
    for stats in manifest.shards:
        for row in read_rejects(output_uri, stats).to_pylist() if stats.rejects else ():
            if row["sample_id"] is None:  # the normal itself, not a sample that the gate dropped
                (again if row["reason"] in _RETRY else useless).append(row["uri"])
    return pa.array(useless, pa.string()), pa.array(again, pa.string())
