"""What changed: the pool as it is listed now, against the ledger of what the table holds.

A normal's work is keyed by its content, as the listing tells it (etag), by the checkpoint's digest and by what of
the recipe decides a sample. Nothing here reads an image; a night's cost follows the change.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raygen import storage
from raygen.checkpoint import Checkpoint
from raygen.data.pool import index_pool
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.judging import deciding
from raygen.generate.plan import roi_uri
from raygen.publish.arrow import pc
from raygen.records import digest

Policy = Literal["regenerate", "new-only"]

POOL_SCHEMA = pa.schema(
    [
        ("uri", pa.string()),
        ("product", pa.string()),
        ("etag", pa.string()),  # null where the listing does not tell
    ]
)

LEDGER_SCHEMA = pa.schema(
    [
        *POOL_SCHEMA,
        ("key", pa.string()),  # of checkpoint and recipe, see `keys_of`
        ("file", pa.string()),  # of the table, with its samples; null for a normal of no use, which has none
        ("sha256", pa.binary(32)),  # of its bytes; null where it has no samples
    ]
)
"""A normal that was worked on, one row each."""

_BATCH = 65_536  # rows of a listing that are Python's before they are Arrow's


class Counts(BaseModel):
    """Normals. listed = new + changed + outdated + kept."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    listed: int
    new: int
    changed: int  # other bytes, or another product, under the same name
    outdated: int  # made by another checkpoint or recipe
    kept: int
    removed: int  # no more in the pool: their samples leave the table
    lingering: int = 0  # no more in the pool, but not worth writing their file anew yet: their samples stay

    @property
    def held(self) -> int:
        """Normals of the table that stay in it as they are."""
        return self.kept + self.lingering

    @property
    def work(self) -> int:
        """Normals to generate for."""
        return self.new + self.changed + self.outdated


class Change(NamedTuple):
    """A pool against a ledger."""

    counts: Counts
    work: pa.Table  # POOL_SCHEMA: to generate for, in the pool's order
    kept: pa.Table  # LEDGER_SCHEMA: stays in the table as it is, lingering ones among them
    leaving: pa.Table  # LEDGER_SCHEMA: its samples leave the table


def list_pool(
    config: GenerateConfig, products: Sequence[str], say: Callable[[str], None] = lambda _: None
) -> pa.Table:
    """The pool's listing in POOL_SCHEMA.

    Raises:
        UserError: as `raygen.data.pool.index_pool`.
    """
    batches = []
    rows: list[tuple[str, str, str | None]] = []
    for normal in index_pool(config.pool, config.product, products, say):
        rows.append((normal.uri, normal.product, normal.etag))
        if len(rows) == _BATCH:
            batches.append(_batch(rows))
            rows = []
    return pa.Table.from_batches([*batches, _batch(rows)] if rows else batches, POOL_SCHEMA)


def _batch(rows: list[tuple[str, str, str | None]]) -> pa.RecordBatch:
    columns = zip(*rows, strict=True)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, POOL_SCHEMA, strict=True)]
    return pa.record_batch(arrays, schema=POOL_SCHEMA)


def read_ledger(uri: str) -> pa.Table:
    """A ledger, whole, in LEDGER_SCHEMA.

    Raises:
        UserError: it is gone.
    """
    try:
        with storage.open_input(uri) as stream:
            return pq.read_table(stream, schema=LEDGER_SCHEMA)
    except storage.ObjectMissingError:
        raise UserError(
            f"{uri}: the ledger of the table's version is gone; go back to a version with one by `raygen rollback`"
        ) from None


def keys_of(config: GenerateConfig, checkpoint: Checkpoint, products: Sequence[str]) -> dict[str, str]:
    """Product -> what decides the samples of its normals, beside the normals themselves."""
    elsewhere = {"pool", "product", "normals_per_shard", "layout"}  # they decide where a sample stands
    recipe = {name: value for name, value in deciding(config).items() if name not in elsewhere}
    text = json.dumps(recipe, sort_keys=True)
    regions = {product: _region(config, product) for product in products}
    if config.roi is not None and not any(regions.values()):
        raise UserError(
            f"roi {config.roi}: holds none of the pool's products; name the folder, or leave roi out"
        )
    return {product: digest(text, checkpoint.digest, region) for product, region in regions.items()}


def _region(config: GenerateConfig, product: str) -> str:
    if config.roi is not None:
        with suppress(storage.ObjectMissingError):
            return hashlib.sha256(storage.read(roi_uri(config, product))).hexdigest()
    return ""


def compare(
    pool: pa.Table, ledger: pa.Table, keys: Mapping[str, str], policy: Policy, max_gone: float = 0.0
) -> Change:
    """Sorts a pool (POOL_SCHEMA) and a ledger (LEDGER_SCHEMA), both without repeated URIs, into what is new, what
    stays and what leaves.

    With the policy "new-only", samples of another checkpoint or recipe stay. `max_gone`: see `RefreshConfig`.
    """
    place = pc.index_in(pool["uri"], value_set=ledger["uri"].combine_chunks())
    before = ledger.take(place)
    known = pc.is_valid(place)
    same = pc.and_(_equal(pool["etag"], before["etag"]), _equal(pool["product"], before["product"]))
    current = _equal(by_product(pool["product"], keys), before["key"])
    if policy == "new-only":
        current = pc.or_(current, known)
    unchanged = pc.and_(known, same)
    kept = pc.and_(unchanged, current)
    gone = pc.invert(pc.is_in(ledger["uri"], value_set=pool["uri"].combine_chunks()))
    stays = pc.is_in(ledger["uri"], value_set=pool["uri"].filter(kept).combine_chunks())
    lingers = _lingering(ledger["file"], gone, pc.invert(pc.or_(stays, gone)), max_gone)
    stays = pc.or_(stays, lingers)
    counts = Counts(
        listed=len(pool),
        new=_count(pc.invert(known)),
        changed=_count(pc.and_(known, pc.invert(same))),
        outdated=_count(pc.and_(unchanged, pc.invert(current))),
        kept=_count(kept),
        removed=_count(gone) - _count(lingers),
        lingering=_count(lingers),
    )
    return Change(counts, pool.filter(pc.invert(kept)), ledger.filter(stays), ledger.filter(pc.invert(stays)))


def _lingering(
    file: pa.ChunkedArray, gone: pa.ChunkedArray, replaced: pa.ChunkedArray, max_gone: float
) -> pa.ChunkedArray:
    """Which rows of a ledger are gone, but stand in a file of which at most `max_gone` is, and that nothing else
    makes anew."""
    rows = pa.table(
        {"file": file, "gone": pc.cast(gone, pa.int32()), "replaced": pc.cast(replaced, pa.int32())}
    )
    of_file = rows.group_by("file").aggregate([("gone", "mean"), ("replaced", "max")])
    spared = pc.and_(pc.less_equal(of_file["gone_mean"], max_gone), pc.equal(of_file["replaced_max"], 0))
    spared = pc.and_(spared, pc.is_valid(of_file["file"]))  # null: rows without samples cost nothing
    return pc.and_(gone, pc.is_in(file, value_set=of_file["file"].filter(spared).combine_chunks()))


def by_product(products: pa.ChunkedArray, keys: Mapping[str, str]) -> pa.ChunkedArray:
    """Each row's key by its product."""
    names = list(keys)
    return pa.array([keys[name] for name in names], pa.string()).take(
        pc.index_in(products, value_set=pa.array(names, pa.string()))
    )


def _equal(left: pa.ChunkedArray, right: pa.ChunkedArray) -> pa.ChunkedArray:
    """Equal or both null."""
    return pc.equal(pc.fill_null(left, ""), pc.fill_null(right, ""))


def _count(mask: pa.ChunkedArray) -> int:
    return pc.sum(mask).as_py() or 0
