"""What a night is to do: the pool and the table looked at, and the difference frozen."""

import hashlib
import json
from collections.abc import Callable, Mapping

import pyarrow as pa

from raygen import storage
from raygen.checkpoint import Checkpoint
from raygen.data.pixel_ranges import PixelRanges
from raygen.data.pool import Normal
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import choose_requests, refuse_unseen
from raygen.publish.arrow import pc
from raygen.publish.changes import LEDGER_SCHEMA, Change, compare, keys_of, list_pool, read_ledger
from raygen.publish.compaction import files_anew
from raygen.publish.config import RefreshConfig
from raygen.publish.state import Night, put_table
from raygen.publish.table import PublishedTable
from raygen.records import digest


def recipe_of(config: RefreshConfig) -> GenerateConfig:
    """The main job's recipe as it is for the whole pool."""
    return config.generate_config(config.pool, config.table)


def look(
    config: RefreshConfig,
    checkpoint: Checkpoint,
    table: PublishedTable | None,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[dict[str, str], Change]:
    """The pool against the table: each product's key, and what changed."""
    publication = table.publication() if table else None
    ledger = (
        read_ledger(storage.join(config.table, publication.ledger))
        if publication
        else LEDGER_SCHEMA.empty_table()
    )
    recipe = recipe_of(config)
    pool = list_pool(recipe, checkpoint.config.products, say)
    keys = keys_of(recipe, checkpoint, sorted(pc.unique(pool["product"]).to_pylist()))
    change = compare(pool, ledger, keys, config.policy, config.max_gone)
    # Before the night is frozen: a frozen one is gone on with.
    refuse_unseen(recipe, sorted(pc.unique(change.work["product"]).to_pylist()), checkpoint)
    _refuse_unclear_depths(recipe, change.work)
    return keys, change


_LOOKED_AT = 65_536  # normals to work on, at most, of which some are looked into


def _refuse_unclear_depths(recipe: GenerateConfig, work: pa.Table) -> None:
    """Raises UserError if photographs have more than 8 bits, and neither they nor the recipe say how many."""
    if not isinstance(recipe.pixel_range, str):
        return
    ranges = PixelRanges(recipe.max_pixels)
    for row in work.slice(0, _LOOKED_AT).to_pylist():
        ranges.add(Normal(row["uri"], row["product"], -1, row["etag"]))
    if found := ranges.unclear():
        product, (low, high) = found
        raise UserError(
            f"pool {recipe.pool}: {product}: more than 8 bits, and the files do not say how many; set generate."
            f"pixel_range, here probably [{low:g}, {high:g}], so that every night reads them alike"
        )


def freeze_night(
    config: RefreshConfig,
    checkpoint: Checkpoint,
    table: PublishedTable,
    keys: Mapping[str, str],
    change: Change,
) -> Night:
    """Writes down what is to be done about a change. The night's name follows from all that decides it."""
    recipe = recipe_of(config)
    parts = [str(table.version), checkpoint.digest, _digest_of(recipe), *keys.values(), config.policy]
    parts += [_digest_of_rows(rows) for rows in (change.work, change.leaving)]
    night_id = f"{table.version + 1:06d}-{digest(*parts, num_bytes=8)}"
    left = set(pc.unique(change.leaving["file"]).drop_null().to_pylist())
    full = recipe.normals_per_shard * len(choose_requests(recipe, checkpoint))
    groups = files_anew(table.files(), change, full, config.compact_files)
    night = Night(
        id=night_id,
        base_version=table.version,
        checkpoint=checkpoint.digest,
        recipe=_digest_of(recipe),
        keys=dict(keys),
        policy=config.policy,
        counts=change.counts,
        removed=tuple(sorted(left.union(*groups))),
        rewritten={
            path: f"runs/{night_id}/kept/{digest(*group, num_bytes=8)}.parquet"
            for group in groups
            for path in group
        },
    )
    folder = storage.join(config.table, night.folder)
    for name, rows in (("work", change.work), ("kept", change.kept), ("leaving", change.leaving)):
        put_table(storage.join(folder, f"{name}.parquet"), rows)
    storage.put(storage.join(folder, "night.json"), night.model_dump_json(indent=1).encode())
    return night


def is_wanted(night: Night, config: RefreshConfig, checkpoint: Checkpoint, table: PublishedTable) -> bool:
    """Whether a night that was frozen before is what these would freeze, but for what has come since."""
    recipe = recipe_of(config)
    keys = keys_of(recipe, checkpoint, sorted(night.keys))
    wanted = (table.version, checkpoint.digest, _digest_of(recipe), keys, config.policy)
    return wanted == (night.base_version, night.checkpoint, night.recipe, night.keys, night.policy)


def _digest_of(recipe: GenerateConfig) -> str:
    return digest(json.dumps(recipe.identity(), sort_keys=True))


def _digest_of_rows(rows: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()
