"""The nightly refresh: after each night the table is what generating that night's pool from scratch would give."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable
from factories import InProcess, bad_files, write_checkpoint, write_pool, write_run

from raygen import storage, surfaces
from raygen.cli import main
from raygen.config import load_config
from raygen.data.runs import Manifest, read_shard
from raygen.errors import LeaseError, PromiseError, UserError
from raygen.generate.config import GenerateConfig
from raygen.images import encode_png
from raygen.publish.config import RefreshConfig
from raygen.publish.lease import Lease
from raygen.publish.refresh import refresh
from raygen.publish.report import RefreshReport
from raygen.publish.state import LEASE, PENDING, REPORT, put_table
from raygen.publish.table import create_table, open_table
from raygen.publish.versions import rollback, vacuum

PROVENANCE = ["run_id", "shard"]  # in which run and shard a sample was made: the one thing that may differ
GENERATE = {"normals_per_shard": 5}


def config_of(base: str, **changes: Any) -> RefreshConfig:
    return RefreshConfig.model_validate(
        {
            "pool": f"{base}/pool",
            "table": f"{base}/table",
            "checkpoint": f"{base}/checkpoint",
            "generate": GENERATE,
            "audit": {"min_accepted": 0.0},  # the weights are random
            "lease_seconds": 5,
            **changes,
        }
    )


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    return table.drop_columns(PROVENANCE).sort_by("sample_id").to_pylist()


def published(config: RefreshConfig, version: int | None = None) -> list[dict[str, Any]]:
    """The table's rows as a reader has them."""
    delta = DeltaTable(config.table, version=version, storage_options=storage.delta_options(config.table))
    return rows_of(delta.to_pyarrow_table())


def from_scratch(config: RefreshConfig, output: str) -> list[dict[str, Any]]:
    """The rows of a run over the whole pool as it is now."""
    run = GenerateConfig(pool=config.pool, output=output, checkpoint=config.checkpoint, normals_per_shard=7)
    manifest = write_run(run)
    return rows_of(pa.concat_tables([read_shard(output, stats) for stats in manifest.shards]))


def last_report(config: RefreshConfig) -> RefreshReport:
    return RefreshReport.model_validate_json(storage.read(storage.join(config.table, REPORT)))


def say_nothing(line: str) -> None:
    pass


@pytest.mark.parametrize("where", ["local", "s3"])
def test_seven_nights(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = str(tmp_path) if where == "local" else request.getfixturevalue("s3_uri")
    uris = write_pool(f"{base}/pool", 3)  # nine
    others = dict(surfaces.pool(3, seed=7, size=32, channels=1))
    write_checkpoint(f"{base}/checkpoint", references_at=f"{base}/references/")
    executor = InProcess()
    storage.put(f"{base}/blocked.txt", b"# images to test on\n")
    config = config_of(base, audit={"min_accepted": 0.0, "blocklist": None})

    def night(config: RefreshConfig = config) -> RefreshReport:
        return refresh(config, say_nothing, executor)

    def expect(night: int, generated: int, version: int) -> None:
        """The table is what the pool is, and so many normals were generated for, in all."""
        assert executor.normals == generated
        assert published(config) == from_scratch(config, f"{base}/night-{night}")
        table = open_table(config.table)
        assert table is not None
        assert table.version == version

    # 1: all is new.
    report = night()
    assert (report.status, report.version, report.counts.new, report.samples) == ("published", 1, 9, 36)
    expect(1, generated=9, version=1)

    # 2: the pool has grown.
    write_pool(f"{base}/pool/late", 1, seed=3)
    for product in surfaces.PRODUCTS:
        data = storage.read(f"{base}/pool/late/{product}/000000.png")
        storage.put(f"{base}/pool/{product}/late.png", data)
        storage.delete(f"{base}/pool/late/{product}/000000.png")
    report = night()
    assert (report.counts.new, report.counts.kept, report.files_removed) == (3, 9, 0)
    expect(2, generated=12, version=2)

    # 3: two have gone, and one has other bytes under its old name.
    for uri in uris[:2]:
        storage.delete(uri)
    storage.put(uris[2], encode_png(next(iter(others.values()))))
    report = night()
    assert (report.counts.removed, report.counts.changed, report.counts.new, report.counts.kept) == (
        2,
        1,
        0,
        9,
    )
    assert report.since is not None
    assert report.since.work == 1 - 3
    expect(3, generated=13, version=3)

    # 4: nothing has changed: no image is read, no version is written.
    with monkeypatch.context() as patch:
        reads: list[str] = []
        for name in ("read", "open_input"):
            original = getattr(storage, name)
            patch.setattr(
                storage, name, lambda uri, *rest, do=original: [reads.append(uri), do(uri, *rest)][1]
            )
        report = night()
    assert (report.status, report.version) == ("nothing to do", 3)
    assert reads
    assert not [uri for uri in reads if uri.startswith(config.pool)]
    expect(4, generated=13, version=3)

    # 5: another checkpoint, and so all anew.
    write_checkpoint(f"{base}/checkpoint", seed=1, references_at=f"{base}/references/")
    report = night()
    assert (report.counts.outdated, report.counts.kept) == (10, 0)
    expect(5, generated=23, version=4)
    after_five = published(config)

    # 6: an image to test on has come among the normals. The audit says so, and the table stays as it was.
    poison = f"{base}/pool/{surfaces.PRODUCTS[0]}/poison.png"
    storage.put(poison, encode_png(list(others.values())[1]))
    sha256 = hashlib.sha256(storage.read(poison)).hexdigest()
    storage.put(f"{base}/blocked.txt", f"{sha256}  test/poison.png\n".encode())
    checked = config_of(base, audit={"min_accepted": 0.0, "blocklist": f"{base}/blocked.txt"})
    with pytest.raises(PromiseError, match=r"audit: blocklist: normal .*poison\.png") as caught:
        night(checked)
    assert caught.value.exit_code == 3
    assert published(config) == after_five
    failed = last_report(config)
    assert (failed.status, failed.version, failed.samples) == ("audit failed", 4, len(after_five))

    # 7: it has gone again; and one more has come.
    storage.delete(poison)
    storage.put(poison.replace("poison", "late2"), encode_png(list(others.values())[2]))
    report = night()
    assert (report.counts.new, report.counts.removed, report.version) == (1, 0, 5)
    expect(7, generated=25, version=5)
    left = f"{config.table}/runs/{failed.night}"
    assert list(storage.list_files(left)), "the failed night can be looked at still"

    # Back to last night's data, and forth again.
    assert rollback(config.table, say=say_nothing) == 6
    assert published(config) == after_five
    assert published(config, version=5) != after_five
    report = night()
    assert (report.counts.new, report.version) == (1, 7)
    expect(8, generated=26, version=7)
    after_seven = published(config)
    vacuum(config.table, keep=100, say=say_nothing)
    assert not list(storage.list_files(left)), "until a vacuum"
    assert published(config) == after_seven


def test_a_table_without_versions_says_so(tmp_path: Path) -> None:
    table = create_table(str(tmp_path / "table"))
    with pytest.raises(UserError, match="no earlier version to go back to; none is published yet"):
        rollback(table.uri, say=say_nothing)
    said: list[str] = []
    assert vacuum(table.uri, say=said.append) == 0
    assert said == [f"{table.uri}: 0 files were deleted; no version is published yet"]


def test_a_product_that_the_checkpoint_has_not_seen_stops_the_night(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 1)
    write_checkpoint(f"{tmp_path}/checkpoint", references_at=f"{tmp_path}/references/")
    config = config_of(str(tmp_path))
    refresh(config, say_nothing, InProcess())
    stray = f"{tmp_path}/pool/woven_fabrik/1.png"
    storage.put(stray, storage.read(uris[1]))
    with pytest.raises(UserError, match=r"pool .*/pool: woven_fabrik \(did you mean 'woven_fabric'\?\)"):
        refresh(config, say_nothing, InProcess())
    storage.delete(stray)
    assert refresh(config, say_nothing, InProcess()).status == "nothing to do"


def test_a_bad_normal_is_told_once(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 3)
    config = config_of(str(tmp_path), checkpoint="null:32x1", generate={**GENERATE, "max_reject_rate": 0.1})
    executor = InProcess()
    refresh(config, say_nothing, executor)
    name, (data, _) = next(iter(bad_files().items()))
    storage.put(f"{tmp_path}/pool/bad/{name}", data)
    lines: list[str] = []
    report = refresh(config, lines.append, executor)
    assert (report.counts.new, report.made, report.rejected) == (1, 0, {"empty": 1})
    assert "1 normals of no use (1 empty)" in lines
    assert refresh(config, lines.append, executor).status == "nothing to do"
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")

    # With other bytes it is another matter; and when it has gone, nothing has to leave.
    storage.put(f"{tmp_path}/pool/bad/{name}", storage.read(f"{config.pool}/brushed_metal/000000.png"))
    report = refresh(config, lines.append, executor)
    assert (report.counts.changed, report.made, report.files_removed) == (1, 4, 0)
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch-2")


def test_the_blocklist_is_asked_of_what_is_published_too(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 2)
    config = config_of(
        str(tmp_path),
        checkpoint="null:32x1",
        generate={"normals_per_shard": 2},
        audit={"blocklist": f"{tmp_path}/list.txt"},
    )
    storage.put(f"{tmp_path}/list.txt", b"")
    refresh(config, say_nothing, InProcess())
    storage.put(f"{tmp_path}/list.txt", hashlib.sha256(storage.read(uris[0])).hexdigest().encode())
    with pytest.raises(PromiseError, match=rf"audit: blocklist: normal {uris[0]} \(1 in all\)"):
        refresh(config, say_nothing, InProcess())
    report = last_report(config)
    assert (report.status, report.night, report.version) == ("audit failed", None, 1)
    assert [finding.rule for finding in report.audit] == ["blocklist"]
    storage.delete(uris[1])
    with pytest.raises(PromiseError, match=f"audit: blocklist: normal {uris[0]}"):
        refresh(config, say_nothing, InProcess())
    storage.delete(uris[0])
    assert refresh(config, say_nothing, InProcess()).status == "published"
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")


def test_what_cannot_be_read_is_looked_at_again(tmp_path: Path) -> None:
    """A link that points nowhere is no reason for a version; and when it points somewhere, it is a normal."""
    uris = write_pool(f"{tmp_path}/pool", 2)
    config = config_of(str(tmp_path), checkpoint="null:32x1", generate={**GENERATE, "max_reject_rate": 0.5})
    refresh(config, say_nothing, InProcess())
    link = Path(uris[0]).with_name("link.png")
    link.symlink_to(tmp_path / "later.png")
    executor = InProcess()
    for _ in range(2):
        report = refresh(config, say_nothing, executor)
        assert (report.status, report.version, report.counts.new) == ("nothing to do", 1, 1)
    assert executor.normals == 2
    storage.put(f"{tmp_path}/later.png", storage.read(uris[0]))
    assert refresh(config, say_nothing, executor).made == 4
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")


def test_a_small_night_does_not_blind_the_next_one_s_audit(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 8)
    write_checkpoint(f"{tmp_path}/checkpoint")
    audit = {"min_accepted": 0.0, "min_samples": 8, "max_score_shift": 0.9}
    config = config_of(str(tmp_path), audit=audit)
    refresh(config, say_nothing, InProcess())
    storage.put(
        f"{tmp_path}/pool/brushed_metal/one.png", storage.read(f"{tmp_path}/pool/brushed_metal/000000.png")
    )
    refresh(config, say_nothing, InProcess())
    white = encode_png(np.full((32, 32, 1), 255, np.uint8))
    for entry in list(storage.list_files(config.pool)):
        storage.put(entry.uri, white)
    with pytest.raises(PromiseError, match=r"audit: max_score_shift: .* from the night before"):
        refresh(config, say_nothing, InProcess())


def test_a_region_of_interest_of_another_product(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 1)
    write_checkpoint(f"{tmp_path}/checkpoint")
    storage.put(f"{tmp_path}/roi/{surfaces.PRODUCTS[0]}.png", encode_png(np.full((32, 32, 1), 255, np.uint8)))
    native = {"composition": "residual", "native": True, "roi": f"{tmp_path}/roi", "max_pixels": 4096}
    config = config_of(str(tmp_path), generate={**GENERATE, **native})
    refresh(config, say_nothing, InProcess())
    storage.put(f"{tmp_path}/pool/{surfaces.PRODUCTS[1]}/more.png", storage.read(uris[1]))
    assert refresh(config, say_nothing, InProcess()).counts.new == 1
    storage.delete(f"{tmp_path}/roi/{surfaces.PRODUCTS[0]}.png")
    with pytest.raises(UserError, match="holds none of the pool's products"):
        refresh(config, say_nothing, InProcess())


def test_a_damaged_shard_is_made_again_by_the_next_refresh(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 3)
    config = config_of(str(tmp_path), checkpoint="null:32x1")

    class Damaging(InProcess):
        def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
            manifest = super().generate(config, say)
            storage.put(f"{config.output}/{manifest.shards[0].file}", b"damaged")
            return manifest

    with pytest.raises(PromiseError, match=r"audit: whole: .*not as it was written"):
        refresh(config, say_nothing, Damaging())
    assert refresh(config, say_nothing, InProcess()).status == "published"
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")


def test_a_relative_table_of_a_ray_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    with pytest.raises(UserError, match=r"table = 'out/table': .*a Ray job works in a copy"):
        load_config(RefreshConfig, None, ["pool=s3://b/pool", "table=out/table", "checkpoint=null:32x1"])


def test_what_the_gate_drops_is_not_asked_for_again(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 2)
    write_checkpoint(f"{tmp_path}/checkpoint")
    gate = {"min_mask_area": 0.9, "on_shortfall": "drop", "max_attempts": 1}  # nothing passes
    config = config_of(str(tmp_path), generate={**GENERATE, "gate": gate})
    report = refresh(config, say_nothing, InProcess())
    assert (report.asked, report.made, report.refused, report.files_added) == (
        24,
        0,
        {"min_mask_area": 24},
        0,
    )
    assert refresh(config, say_nothing, InProcess()).status == "nothing to do"
    storage.delete(uris[0])
    report = refresh(config, say_nothing, InProcess())
    assert (report.counts.removed, report.files_removed, report.samples) == (1, 0, 0)


def test_a_pool_of_images_inside_parquet(tmp_path: Path) -> None:
    """A file is its rows: with one image more, or other bytes, all of its rows are new; others are left alone."""
    photos = [(name.split("/")[0], encode_png(pixels)) for name, pixels in surfaces.pool(3, 0, 32, 1)]

    def write(name: str, rows: Sequence[tuple[str, bytes]]) -> None:
        products, images = zip(*rows, strict=True)
        put_table(f"{tmp_path}/pool/{name}.parquet", pa.table({"image": images, "product": products}))

    config = config_of(str(tmp_path), checkpoint="null:32x1")
    executor = InProcess()
    write("a", photos[:3])
    write("b", photos[3:7])
    refresh(config, say_nothing, executor)
    assert refresh(config, say_nothing, executor).status == "nothing to do"
    write("b", photos[3:9])
    report = refresh(config, say_nothing, executor)
    assert (report.counts.kept, report.counts.changed, report.counts.new) == (3, 4, 2)
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")
    write("b", photos[5:7])
    report = refresh(config, say_nothing, executor)
    assert (report.counts.kept, report.counts.changed, report.counts.removed) == (3, 2, 4)
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch-2")


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_pool_by_a_manifest(kind: str, tmp_path: Path) -> None:
    """Its etags say what has changed; a row without one counts as it was, whatever its bytes are by now."""
    uris = write_pool(f"{tmp_path}/photos", 2)
    manifest = f"{tmp_path}/pool.{kind}"

    def write(uris: Sequence[str], with_etag: Callable[[int], bool]) -> None:
        etags = [storage.stat(uri).etag if with_etag(i) else None for i, uri in enumerate(uris)]
        products = [uri.split("/")[-2] for uri in uris]
        table = pa.table({"uri": uris, "product": products, "etag": etags})
        if kind == "parquet":
            put_table(manifest, table)
        else:
            pyarrow.csv.write_csv(table, manifest)

    config = config_of(str(tmp_path), pool=manifest, checkpoint="null:32x1")
    write(uris[:5], bool)  # the first has none
    refresh(config, say_nothing, InProcess())
    assert refresh(config, say_nothing, InProcess()).status == "nothing to do"
    data = [storage.read(uri) for uri in uris[:2]]
    storage.put(uris[1], data[0])
    write(uris[:5], bool)
    report = refresh(config, say_nothing, InProcess())
    assert (report.counts.changed, report.counts.kept) == (1, 4)
    storage.put(uris[0], data[1])
    write(uris[:5], bool)
    assert refresh(config, say_nothing, InProcess()).status == "nothing to do"
    storage.put(uris[0], data[0])
    write(uris[1:], lambda i: True)
    report = refresh(config, say_nothing, InProcess())
    assert (report.counts.new, report.counts.removed, report.counts.kept) == (1, 1, 4)
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")


def test_a_training_that_goes_on_while_a_night_is_under_way(tmp_path: Path) -> None:
    """The best checkpoint when a night began is the one it is made with; one that is written over is noticed."""
    write_pool(f"{tmp_path}/pool", 1)
    checkpoints = [write_checkpoint(f"{tmp_path}/training/{seed}", seed=seed) for seed in range(2)]

    def is_best(seed: int) -> None:
        storage.put(f"{tmp_path}/training/best.json", json.dumps({"checkpoint": str(seed)}).encode())

    class Training(InProcess):
        def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
            is_best(1)
            return super().generate(config, say)

    is_best(0)
    config = config_of(str(tmp_path), checkpoint=f"{tmp_path}/training")
    report = refresh(config, say_nothing, Training())
    assert report.checkpoint == checkpoints[0].digest
    assert {row["checkpoint"] for row in published(config)} == {checkpoints[0].digest}
    report = refresh(config, say_nothing, InProcess())
    assert (report.counts.outdated, report.checkpoint) == (3, checkpoints[1].digest)

    class Overwriting(InProcess):
        def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
            write_checkpoint(f"{tmp_path}/training/1", seed=2)
            return super().generate(config, say)

    write_pool(f"{tmp_path}/pool", 2)
    with pytest.raises(UserError, match="was written anew while the night was under way"):
        refresh(config, say_nothing, Overwriting())
    assert refresh(config, say_nothing, InProcess()).version == 3
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")


def test_who_loses_the_lease_stops_at_the_next_step(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 1)
    config = config_of(str(tmp_path), checkpoint="null:32x1")
    steps: list[str] = []

    def reached(step: str) -> None:
        steps.append(step)
        if step == "generated":  # slept, and another holds it by now
            lease = json.loads(storage.read(f"{config.table}/{LEASE}"))
            storage.put(f"{config.table}/{LEASE}", json.dumps({**lease, "nonce": "another's"}).encode())

    with pytest.raises(LeaseError, match="another refresh took it over; nothing was published"):
        refresh(config, say_nothing, InProcess(), reached)
    assert steps == ["leased", "frozen", "generated"]
    assert storage.exists(f"{config.table}/{PENDING}"), "the other's to go on with"
    assert published(config) == []


@pytest.mark.parametrize(("data", "found"), [(None, "is gone"), (b"no Parquet", r"cannot be read \(")])
def test_a_published_file_that_is_gone_or_damaged_is_one_line(
    data: bytes | None, found: str, tmp_path: Path
) -> None:
    uris = write_pool(f"{tmp_path}/pool", 2)
    config = config_of(str(tmp_path), checkpoint="null:32x1")
    refresh(config, say_nothing, InProcess())
    for uri in DeltaTable(config.table).file_uris():
        storage.delete(uri)
        if data is not None:
            storage.put(uri, data)
    storage.delete(uris[0])
    with pytest.raises(
        PromiseError, match=rf"{found}.*, and the table's log says 20 samples; go back"
    ) as caught:
        refresh(config, say_nothing, InProcess())
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cuts_other_shards_makes_nothing_anew(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 2)
    config = config_of(str(tmp_path), checkpoint="null:32x1")
    refresh(config, say_nothing, InProcess())
    other = config_of(str(tmp_path), checkpoint="null:32x1", generate={"normals_per_shard": 2})
    assert refresh(other, say_nothing, InProcess()).status == "nothing to do"
    storage.delete(uris[0])
    assert refresh(other, say_nothing, InProcess()).files_rewritten == 1
    changed = config_of(str(tmp_path), checkpoint="null:32x1", generate={"seed": 3}, policy="new-only")
    assert refresh(changed, say_nothing, InProcess()).status == "nothing to do"
    changed = config_of(str(tmp_path), checkpoint="null:32x1", generate={"seed": 3})
    report = refresh(changed, say_nothing, InProcess())
    assert (report.counts.outdated, report.counts.kept, report.samples) == (5, 0, 20)


def test_small_nights_make_no_small_files_for_long(tmp_path: Path) -> None:
    """Forty nights of one normal each: never more than a few small files, each sample once, no row other than from
    scratch; older versions stay readable."""
    write_pool(f"{tmp_path}/all", 15)
    uris = [entry.uri for entry in storage.list_files(f"{tmp_path}/all")][:40]
    config = config_of(str(tmp_path), checkpoint="null:32x1", compact_files=4)
    full, before, written = 5 * 4, [], 0
    for number, uri in enumerate(uris, 1):
        storage.put(uri.replace("/all/", "/pool/"), storage.read(uri))
        report = refresh(config, say_nothing, InProcess())
        table = open_table(config.table)
        assert table is not None
        assert sum(table.files().values()) == report.samples == 4 * number
        assert sum(count < full / 2 for count in table.files().values()) <= 4
        assert max(table.files().values()) <= full
        written += report.files_rewritten
        before.append(published(config))
    assert before[-1] == from_scratch(config, f"{tmp_path}/scratch")
    assert written <= 2 * len(uris), "files are written anew a few times in their lives"
    assert published(config, version=20) == before[19]


def test_strewn_removals_write_nothing_until_they_are_worth_it(tmp_path: Path) -> None:
    uris = write_pool(f"{tmp_path}/pool", 5)  # fifteen, in three files
    config = config_of(str(tmp_path), checkpoint="null:32x1", max_gone=0.2)
    refresh(config, say_nothing, InProcess())
    by_file = {path: set(published_normals(config, path)) for path in files_of(config)}
    first, second, third = by_file.values()
    gone = [sorted(normals)[0] for normals in (first, second, third)]
    for uri in gone:  # a fifth of each file
        storage.delete(uri)
    lines: list[str] = []
    report = refresh(config, lines.append, InProcess())
    assert (report.status, report.counts.lingering, report.samples) == ("nothing to do", 3, 60)
    assert "0 gone, and of 3 more samples stay (max_gone)" in "\n".join(lines)
    assert files_of(config).keys() == by_file.keys()
    storage.delete(sorted(first)[1])  # two fifths of one
    report = refresh(config, say_nothing, InProcess())
    assert (report.counts.removed, report.counts.lingering, report.files_rewritten) == (2, 2, 1)
    assert report.samples == 60 - 2 * 4
    refresh(config.model_copy(update={"max_gone": 0.0}), say_nothing, InProcess())
    assert published(config) == from_scratch(config, f"{tmp_path}/scratch")
    assert len(uris) == 15


def files_of(config: RefreshConfig) -> dict[str, int]:
    table = open_table(config.table)
    assert table is not None
    return table.files()


def published_normals(config: RefreshConfig, path: str) -> list[str]:
    return pq.read_table(f"{config.table}/{path}", columns=["normal_uri"])["normal_uri"].to_pylist()


@pytest.mark.slow
def test_nights_on_ray(s3_uri: str, ray_cluster: None, capsys: pytest.CaptureFixture[str]) -> None:
    """Three nights by the command, S3 to S3: generated, rewritten and inspected by a cluster."""
    uris = write_pool(f"{s3_uri}/pool", 3)
    write_checkpoint(f"{s3_uri}/checkpoint", references_at=f"{s3_uri}/references/")
    config = config_of(s3_uri)
    settings = [
        f"pool={config.pool}", f"table={config.table}", f"checkpoint={config.checkpoint}",
        "generate.normals_per_shard=5", "generate.max_reject_rate=0.2", "audit.min_accepted=0",
        "generate.compute.gpus_per_actor=0",
    ]  # fmt: skip
    command = ["refresh", *(part for setting in settings for part in ("--set", setting))]
    assert main(command) == 0
    storage.delete(uris[0])
    storage.put(uris[0].replace("000000", "new"), storage.read(uris[1]))
    storage.put(
        uris[0].replace("000000", "bad"), b"no image"
    )  # one of two is more than a fifth, of ten it is not
    assert main([*command, "--policy", "new-only"]) == 0
    assert published(config) == from_scratch(config, f"{s3_uri}/scratch")
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "9 normals listed: 9 new" in printed
    assert (
        "10 normals listed: 2 new, 0 changed, 0 of another checkpoint or recipe, 8 as they were; 1 gone"
        in printed
    )
    assert f"nothing to do: {config.table} stays at version 2 (36 samples)" in printed

    # Too many that are of no use: nothing is published, and the report says so.
    bad = [uris[0].replace("000000", f"bad-{number}") for number in range(3)]
    for uri in bad:
        storage.put(uri, b"no image")
    assert main(command) == 3
    assert "audit: work: 3 of 3 normals are unusable (3 not_an_image)" in capsys.readouterr().err
    report = last_report(config)
    assert (report.status, report.version, report.counts.new) == ("audit failed", 2, 3)
    assert [finding.rule for finding in report.audit if not finding.passed] == ["work"]
    for uri in bad:
        storage.delete(uri)
    assert main(command) == 0
    capsys.readouterr()

    # What a scheduler sees when the audit fails, and when another refresh is at work.
    storage.put(f"{s3_uri}/blocked.txt", hashlib.sha256(storage.read(uris[1])).hexdigest().encode())
    storage.put(uris[0].replace("000000", "newer"), storage.read(uris[1]))
    assert main([*command, "--set", f"audit.blocklist={s3_uri}/blocked.txt"]) == 3
    with Lease(f"{config.table}/{LEASE}", seconds=4):
        assert main([*command, "--set", "lease_seconds=4"]) == 4
    assert main([*command, "--set", "generate.colour=red"]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("raygen: ")]
    assert ["audit: blocklist: normal" in lines[0], "refreshes this table now" in lines[1]] == [True, True]
    assert "unknown key 'generate.colour'" in lines[2]
    assert main(["rollback", config.table]) == 0
    assert main(["vacuum", config.table, "--keep", "2", "--dry-run"]) == 0
    assert "version 3 is version 1 again" in capsys.readouterr().out
