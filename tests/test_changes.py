"""What changed in a pool, against a plain Python account of it; and a night's cost follows the change."""

import random

import pyarrow as pa
import pytest

from raygen import storage
from raygen.config import load_config
from raygen.errors import UserError
from raygen.publish.changes import LEDGER_SCHEMA, POOL_SCHEMA, Policy, compare
from raygen.publish.config import RefreshConfig

PRODUCTS = ["a", "b", "c"]


def random_case(seed: int) -> tuple[pa.Table, pa.Table, dict[str, str]]:
    """A ledger and the pool of a later night, with everything that may have happened in between."""
    draw = random.Random(seed)
    names = [f"s3://pool/{number}.png" for number in range(60)]

    def normals() -> list[tuple[str, str, str | None]]:
        chosen = draw.sample(names, draw.randrange(1, 50))
        return [(name, draw.choice(PRODUCTS), draw.choice(["x", "y", None])) for name in chosen]

    held = [
        (*normal, draw.choice(["old", "new-a"]), draw.choice(["f1", "f2", None]), b"s" * 32)
        for normal in normals()
    ]
    listed = normals() if draw.random() < 0.5 else [row[:3] for row in held if draw.random() < 0.8]
    keys = {"a": "new-a", "b": "old", "c": "new-c"}
    return table(listed, POOL_SCHEMA), table(held, LEDGER_SCHEMA), keys


def table(rows: list[tuple], schema: pa.Schema) -> pa.Table:
    columns = zip(*rows, strict=True) if rows else [[] for _ in schema]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema
    )


@pytest.mark.parametrize("policy", ["regenerate", "new-only"])
@pytest.mark.parametrize("seed", range(25))
def test_every_normal_is_sorted_as_by_hand(seed: int, policy: Policy) -> None:
    pool, ledger, keys = random_case(seed)
    change = compare(pool, ledger, keys, policy)
    held = {row["uri"]: row for row in ledger.to_pylist()}
    counts = dict.fromkeys(("new", "changed", "outdated", "kept"), 0)
    work, kept = [], set()
    for row in pool.to_pylist():
        before = held.get(row["uri"])
        if before is None:
            fate = "new"
        elif (before["etag"], before["product"]) != (row["etag"], row["product"]):
            fate = "changed"
        elif before["key"] != keys[row["product"]] and policy == "regenerate":
            fate = "outdated"
        else:
            fate = "kept"
        counts[fate] += 1
        if fate == "kept":
            kept.add(row["uri"])
        else:
            work.append(row)
    assert change.work.to_pylist() == work, "in the pool's order"
    assert change.kept.to_pylist() == [row for row in ledger.to_pylist() if row["uri"] in kept]
    assert change.leaving.to_pylist() == [row for row in ledger.to_pylist() if row["uri"] not in kept]
    removed = len(held.keys() - {row["uri"] for row in pool.to_pylist()})
    wanted = {"listed": len(pool), **counts, "removed": removed, "lingering": 0}
    assert change.counts.model_dump() == wanted
    assert change.counts.work == len(work)


@pytest.mark.parametrize("seed", range(25))
def test_what_is_gone_lingers_where_its_file_is_not_worth_writing_anew(seed: int) -> None:
    """As by hand; and all else is sorted as ever."""
    pool, ledger, keys = random_case(seed)
    at_once = compare(pool, ledger, keys, "regenerate")
    listed = set(pool["uri"].to_pylist())
    for max_gone in (0.2, 0.5, 0.99):
        change = compare(pool, ledger, keys, "regenerate", max_gone)
        of_file: dict[str, list[str]] = {}
        for row in ledger.to_pylist():
            of_file.setdefault(row["file"], []).append(row["uri"])
        leaving = set(at_once.leaving["uri"].to_pylist())
        lingering = set()
        for file, uris in of_file.items():
            gone = [uri for uri in uris if uri not in listed]
            if file and not leaving - set(gone) & set(uris) and len(gone) <= max_gone * len(uris):
                lingering |= set(gone)
        assert set(change.leaving["uri"].to_pylist()) == leaving - lingering
        assert change.counts.lingering == len(lingering)
        assert change.counts.removed == at_once.counts.removed - len(lingering)
        assert len(change.kept) == change.counts.held
        assert change.work == at_once.work


def test_one_percent_of_new_normals_is_one_percent_of_work() -> None:
    rows = [(f"/pool/{number:06}.png", "a", f"{number:x}") for number in range(100_000)]
    pool = table(rows, POOL_SCHEMA)
    ledger = table([(*row, "key", "file", None) for row in rows[:99_000]], LEDGER_SCHEMA)
    change = compare(pool, ledger, {"a": "key"}, "regenerate")
    assert change.work.to_pylist() == pool.slice(99_000).to_pylist()
    assert len(change.leaving) == 0


def test_an_empty_ledger_makes_all_new() -> None:
    pool, _, keys = random_case(1)
    change = compare(pool, LEDGER_SCHEMA.empty_table(), keys, "new-only")
    assert change.work.to_pylist() == pool.to_pylist()


@pytest.mark.parametrize(
    ("setting", "line"),
    [
        ("pool=seeds:0-10", "a refresh follows photographs"),
        ("generate.output=x", "generate.output: a refresh sets it itself"),
        ("generate.gatee=1", "unknown key 'generate.gatee'"),
        ("generate.gate.min_mask=1", "unknown key 'generate.gate.min_mask'"),
        ("generate.normals_per_shard=0", "generate.normals_per_shard = 0: wants at least 1"),
        ("table=s3://b/pool/table", "lie in one another"),
        ("pool=s3://b/table/runs", "lie in one another"),
        ("audit.min_accepted=2", "audit.min_accepted = 2"),
        ("policy=all", "policy = 'all'"),
    ],
)
def test_a_wrong_recipe_is_one_line(setting: str, line: str) -> None:
    good = ["pool=s3://b/pool", "table=s3://b/table", "checkpoint=null:32x1"]
    with pytest.raises(UserError, match=line.replace("(", r"\(")) as caught:
        load_config(RefreshConfig, None, [*good, setting])
    assert "\n" not in str(caught.value)


def test_the_recipe_that_is_shipped_holds_the_defaults() -> None:
    good = ["pool=s3://b/pool", "table=s3://b/table", "checkpoint=null:32x1"]
    assert load_config(RefreshConfig, "jobs/refresh.toml", good) == load_config(RefreshConfig, None, good)


def test_places_are_remembered_whole() -> None:
    config = load_config(RefreshConfig, None, ["pool=pool", "table=out/table", "checkpoint=null:32x1"])
    assert config.pool.startswith("/")
    assert config.pool.endswith("/pool")
    assert storage.is_local(config.table)
    assert config.checkpoint == "null:32x1"
