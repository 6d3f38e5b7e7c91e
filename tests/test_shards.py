"""Shards come back as they were written, in each layout; verification finds whatever is wrong with them."""

import hashlib
import io
import json
import tarfile
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import write_pool

from raygen import images, storage
from raygen.checkpoint import load_checkpoint
from raygen.data.runs import (
    MANIFEST,
    CellStats,
    Run,
    ShardStats,
    done_shards,
    read_manifest,
    read_shard,
    read_stats,
    sum_cells,
)
from raygen.errors import PromiseError, UserError
from raygen.families.masks import boxes
from raygen.generate.config import GenerateConfig, Layout
from raygen.generate.plan import open_run, read_plan
from raygen.generate.shards import Encoded, write_manifest, write_shard
from raygen.generate.verify import verify_run
from raygen.records import REJECT_SCHEMA, SAMPLE_SCHEMA, SCORES, SampleRequest, sample_id, sample_seed

LAYOUTS: list[Layout] = ["parquet", "webdataset", "png"]


def samples_of(output_uri: str, run: Run, shard: int, rejected: set[str]) -> pa.Table:
    """What a correct job would put into a shard, with noise for pictures."""
    rng = np.random.default_rng(shard)
    rows: list[dict[str, Any]] = []
    for normal in read_plan(output_uri, run, shard).to_pylist():
        sha256 = hashlib.sha256(normal["uri"].encode()).hexdigest()
        for request in run.requests if normal["uri"] not in rejected else ():
            seed = sample_seed(sha256, run.checkpoint, request, run.seed)
            name = sample_id(normal["uri"], seed)
            png = images.encode_png(rng.integers(0, 256, (32, 32, 1), dtype=np.uint8))
            mask = np.zeros((32, 32), np.uint8)
            mask[5 : 5 + request.k + 3, shard : shard + 4] = 255
            mask_png = images.encode_png(mask[:, :, None])
            row = {
                "sample_id": name,
                "normal_uri": normal["uri"],
                "normal_sha256": sha256,
                "product": normal["product"],
                **request._asdict(),
                "seed": seed,
                "reference_uri": None,
                "checkpoint": run.checkpoint,
                "run_id": run.run_id,
                "shard": shard,
                "height": 32,
                "width": 32,
                "attempt": 0,
                "window_x": 0,
                "window_y": 0,
                "window_size": 32,
                **dict.fromkeys(SCORES),
                "accepted": True,
                "reject_reason": None,
                "boxes": boxes(mask > 0),
                "image_sha256": hashlib.sha256(png).hexdigest(),
                "mask_sha256": hashlib.sha256(mask_png).hexdigest(),
                "image": {"bytes": png, "path": f"{name}.png"},
                "mask": {"bytes": mask_png, "path": f"{name}_mask.png"},
            }
            rows.append(row)
    return pa.Table.from_pylist(rows, SAMPLE_SCHEMA)


def encoded(samples: pa.Table) -> Encoded:
    """With the fates that its rows tell."""
    fates = []
    for row in samples.to_pylist():
        request = SampleRequest(row["defect_type"], row["mode"], row["k"])
        fates.append(CellStats.of_sample(row["product"], request, row["reject_reason"], 1, is_dropped=False))
    return Encoded(samples, REJECT_SCHEMA.empty_table(), sum_cells(fates))


def write_run(folder_uri: str, layout: Layout = "parquet") -> tuple[str, Run]:
    """A complete run of 3 × 4 normals in 3 shards, the first normal of shard 1 rejected."""
    write_pool(storage.join(folder_uri, "pool"), 4)
    config = GenerateConfig(
        pool=storage.join(folder_uri, "pool"),
        output=storage.join(folder_uri, "out"),
        checkpoint="null:32x1",
        normals_per_shard=5,
        layout=layout,
    )
    run = open_run(config, load_checkpoint(config.checkpoint))
    for shard in range(run.num_shards):
        plan = read_plan(config.output, run, shard)
        uris = plan["uri"].to_pylist()[: 1 if shard == 1 else 0]
        rejects = pa.Table.from_pylist(
            [{"uri": uri, "reason": "empty", "detail": "0 bytes"} for uri in uris], REJECT_SCHEMA
        )
        samples = samples_of(config.output, run, shard, set(uris))
        write_shard(config.output, layout, shard, plan.num_rows, encoded(samples), rejects, {"write": 0.1})
    stats = read_stats(config.output, done_shards(config.output))
    write_manifest(config.output, run.run_id, stats)
    return config.output, run


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_comes_back_as_written(folder_uri: str, layout: Layout) -> None:
    output_uri, run = write_run(folder_uri, layout)
    manifest = verify_run(output_uri, num_processes=1)
    assert manifest == read_manifest(output_uri)
    assert (manifest.num_normals, manifest.num_samples, manifest.rejects) == (12, 44, {"empty": 1})
    for stats in manifest.shards:
        found = read_shard(output_uri, stats)
        planned = read_plan(output_uri, run, stats.shard)["uri"].to_pylist()
        expected = samples_of(output_uri, run, stats.shard, set(planned[:1]) if stats.shard == 1 else set())
        assert found.to_pylist() == expected.to_pylist()
        assert found.schema.equals(SAMPLE_SCHEMA)
    stored = [
        entry for entry in storage.list_files(storage.join(output_uri, "shards")) if ".json" not in entry.uri
    ]
    assert manifest.num_bytes == sum(entry.size for entry in stored)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_samples_give_the_same_bytes(tmp_path, layout: Layout) -> None:
    output_uri, _ = write_run(str(tmp_path), layout)
    before = contents(output_uri)
    for shard in range(3):
        storage.delete(f"{output_uri}/shards/{shard:05d}.json")
    write_run(str(tmp_path), layout)
    assert contents(output_uri) == before


def contents(output_uri: str) -> dict[str, bytes]:
    """Every file of a run's shards but the stats, which tell the time."""
    listed = storage.list_files(f"{output_uri}/shards")
    return {entry.uri: storage.read(entry.uri) for entry in listed if not entry.uri.endswith(".json")}


def test_a_late_twin_leaves_a_done_shard_alone(tmp_path) -> None:
    output_uri, _ = write_run(str(tmp_path))
    [stats] = read_stats(output_uri, {0})
    late = write_shard(
        output_uri, "parquet", 0, 5, SAMPLE_SCHEMA.empty_table(), REJECT_SCHEMA.empty_table(), {}
    )
    assert late == stats
    verify_run(output_uri, num_processes=1)


def test_verify_finds_a_stray_png_among_the_samples(tmp_path) -> None:
    output_uri, _ = write_run(str(tmp_path), "png")
    storage.put(f"{output_uri}/shards/00000/other.png", b"x")
    with pytest.raises(PromiseError, match="nobody knows"):
        verify_run(output_uri, num_processes=1)


def test_what_other_tools_find_in_each_layout(tmp_path) -> None:
    output_uri, _ = write_run(str(tmp_path / "a"), "parquet")
    metadata = pq.read_schema(f"{output_uri}/shards/00000.parquet").metadata
    assert json.loads(metadata[b"huggingface"])["info"]["features"]["image"] == {"_type": "Image"}

    output_uri, _ = write_run(str(tmp_path / "b"), "webdataset")
    with tarfile.open(f"{output_uri}/shards/00000.tar") as tar:
        names = tar.getnames()
    name = names[0].removesuffix(".png")
    assert names[1:3] == [f"{name}.mask.png", f"{name}.json"]  # a sample's files stand together

    output_uri, _ = write_run(str(tmp_path / "c"), "png")
    table = pq.read_table(f"{output_uri}/shards/00000/metadata.parquet")
    for image in table["image"].to_pylist() + table["mask"].to_pylist():
        assert image["bytes"] is None
        assert storage.exists(f"{output_uri}/shards/00000/{image['path']}")


def test_an_empty_shard_is_a_shard(tmp_path) -> None:
    for layout in LAYOUTS:
        output_uri = str(tmp_path / layout)
        nothing, no_rejects = encoded(SAMPLE_SCHEMA.empty_table()), REJECT_SCHEMA.empty_table()
        stats = write_shard(output_uri, layout, 0, 0, nothing, no_rejects, {})
        assert done_shards(output_uri) == {0}
        assert read_shard(output_uri, stats).num_rows == 0


def flip(uri: str) -> None:
    data = bytearray(storage.read(uri))
    data[len(data) // 2] ^= 1
    storage.put(uri, bytes(data))


def plan_uri(output_uri: str) -> str:
    return next(entry.uri for entry in storage.list_files(f"{output_uri}/plan"))


def lose_plan(output_uri: str) -> None:
    storage.delete(plan_uri(output_uri))


def change_plan(output_uri: str) -> None:
    flip(plan_uri(output_uri))


def edit_manifest(output_uri: str, **changes) -> None:
    manifest = json.loads(storage.read(storage.join(output_uri, MANIFEST)))
    storage.put(storage.join(output_uri, MANIFEST), json.dumps({**manifest, **changes}).encode())


DAMAGE = {
    "a flipped bit": (lambda uri: flip(f"{uri}/shards/00001.parquet"), "its SHA-256 or its stats differ"),
    "a lost shard": (lambda uri: storage.delete(f"{uri}/shards/00001.parquet"), "missing"),
    "lost stats": (lambda uri: storage.delete(f"{uri}/shards/00001.json"), "shards marked done"),
    "damaged stats": (lambda uri: storage.put(f"{uri}/shards/00001.json", b"{"), "damaged; delete it"),
    "a damaged manifest": (lambda uri: storage.put(f"{uri}/manifest.json", b""), "damaged; delete it"),
    "lost rejects": (lambda uri: storage.delete(f"{uri}/rejects/00001.parquet"), "missing"),
    "changed rejects": (lambda uri: flip(f"{uri}/rejects/00001.parquet"), "SHA-256 differs"),
    "a lost plan": (lambda uri: lose_plan(uri), "plan/.*: missing"),
    "a changed plan": (lambda uri: change_plan(uri), "SHA-256 of the plan"),
    "a stray file": (lambda uri: storage.put(f"{uri}/shards/00009.parquet", b"x"), "nobody knows"),
    "a stray note": (lambda uri: storage.put(f"{uri}/shards/notes.json", b"x"), "nobody knows"),
    "a wrong total": (lambda uri: edit_manifest(uri, num_samples=45), "samples, dropped and rejected ones"),
    "another run's manifest": (lambda uri: edit_manifest(uri, run_id="0"), "run_id"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_verify_finds(tmp_path, what: str) -> None:
    output_uri, _ = write_run(str(tmp_path))
    damage, message = DAMAGE[what]
    damage(output_uri)
    with pytest.raises(PromiseError, match=message):
        verify_run(output_uri, num_processes=1)


def rewrite(output_uri: str, run: Run, samples: pa.Table) -> None:
    """Puts other samples into shard 0, with stats and a manifest that agree with them."""
    storage.delete(f"{output_uri}/shards/00000.json")
    stats: ShardStats = write_shard(
        output_uri, "parquet", 0, 5, encoded(samples), REJECT_SCHEMA.empty_table(), {}
    )
    write_manifest(output_uri, run.run_id, [stats, *read_stats(output_uri, {1, 2})])


def with_column(samples: pa.Table, name: str, values: list[Any]) -> pa.Table:
    index = samples.schema.get_field_index(name)
    return samples.set_column(
        index, samples.schema.field(index), pa.array(values, samples.schema.field(index).type)
    )


def test_verify_finds_wrong_samples_behind_right_digests(tmp_path) -> None:
    output_uri, run = write_run(str(tmp_path))
    right = samples_of(output_uri, run, 0, set())
    num_samples = right.num_rows

    twice = pa.concat_tables([right.slice(0, num_samples - 1), right.slice(0, 1)])
    blank = io.BytesIO(b"no png").getvalue()
    wrong = {
        "not those of the plan": twice,
        "wrong seed": with_column(right, "seed", [1] * num_samples),
        "wrong run_id": with_column(right, "run_id", ["other"] * num_samples),
        "wrong image_sha256": with_column(right, "image_sha256", ["0"] * num_samples),
        "wrong boxes": with_column(right, "boxes", [[]] * num_samples),
        "wrong mask_sha256": with_column(right, "mask_sha256", ["0"] * num_samples),
        "wrong attempt, |wrong seed": with_column(right, "attempt", [1] * num_samples),
        "wrong accepted": with_column(right, "accepted", [False] * num_samples),
        "not an image": with_column(
            with_column(right, "image", [{"bytes": blank, "path": "x"}] * num_samples),
            "image_sha256",
            [hashlib.sha256(blank).hexdigest()] * num_samples,
        ),
    }
    for message, samples in wrong.items():
        rewrite(output_uri, run, samples)
        with pytest.raises(PromiseError, match=message):
            verify_run(output_uri, num_processes=1)
    rewrite(output_uri, run, right)
    verify_run(output_uri, num_processes=1)


def test_verify_says_what_is_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match="no run there"):
        verify_run(str(tmp_path))
    output_uri, _ = write_run(str(tmp_path))
    storage.delete(f"{output_uri}/{MANIFEST}")
    with pytest.raises(PromiseError, match="not complete: 3 of 3 shards done; run the same command again"):
        verify_run(output_uri)
