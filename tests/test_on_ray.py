"""The whole chain on a real Ray, from S3 to S3 and from folder to folder."""

import io
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from factories import bad_files, image_digests, reject_reasons, write_checkpoint, write_pool, write_shards
from PIL import Image

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.data.runs import done_shards, read_manifest, read_shard, read_stats
from raygen.errors import PromiseError, UserError
from raygen.generate import on_ray
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.job import CONTACT_SHEET, generate
from raygen.generate.plan import open_run
from raygen.generate.shards import write_manifest
from raygen.generate.verify import verify_run
from raygen.on_ray import Stage, chain_stages, map_tasks
from raygen.resources import Resources, plan_resources

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Two actors on two CPUs beside reading and writing; no GPU unless a test says so.
CPU_ONLY = ComputeConfig(gpus_per_actor=0)


def quiet(line: str) -> None:
    pass


def config_of(folder_uri: str, **changes: Any) -> GenerateConfig:
    values = {
        "pool": storage.join(folder_uri, "pool"),
        "output": storage.join(folder_uri, "out"),
        "checkpoint": storage.join(folder_uri, "checkpoint"),
        "normals_per_shard": 7,
        "gate": {"max_attempts": 1},  # random weights draw few defects that pass
        "compute": CPU_ONLY,
        **changes,
    }
    return GenerateConfig(**values)


def prepare(folder_uri: str, num_per_product: int = 8) -> None:
    write_pool(storage.join(folder_uri, "pool"), num_per_product)
    write_checkpoint(storage.join(folder_uri, "checkpoint"))


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "png"])
def test_four_defects_for_every_normal(s3_uri: str, layout: str) -> None:
    prepare(s3_uri)
    lines: list[str] = []
    config = config_of(s3_uri, layout=layout)
    manifest = generate(config, lines.append)
    assert manifest == verify_run(config.output, num_processes=1)
    assert (manifest.num_normals, manifest.num_samples) == (24, 96)
    assert manifest.products == {"brushed_metal": 32, "grained_leather": 32, "woven_fabric": 32}
    assert lines[1].startswith("24 normals (brushed_metal 8, ")
    assert any(line.startswith("96 samples (") for line in lines)
    samples = read_shard(config.output, manifest.shards[0]).to_pylist()
    assert {row["reference_uri"] is None for row in samples if row["mode"] == "latent"} == {True}
    assert {row["reference_uri"][:9] for row in samples if row["mode"] == "reference"} == {"surfaces:"}
    for row in samples:
        pixels = np.asarray(Image.open(io.BytesIO(row["image"]["bytes"])))
        assert (pixels.shape, pixels.dtype) == ((32, 32), np.uint8)
    sheet = Image.open(io.BytesIO(storage.read(storage.join(config.output, CONTACT_SHEET))))
    assert sheet.width > 5 * 128
    assert sheet.height > 9 * 128


def test_the_same_bytes_whatever_the_shards_and_actors(tmp_path: Path) -> None:
    prepare(str(tmp_path), num_per_product=30)
    one = config_of(str(tmp_path), output=str(tmp_path / "one"), normals_per_shard=7)
    two = config_of(
        str(tmp_path),
        output=str(tmp_path / "two"),
        normals_per_shard=64,
        compute=ComputeConfig(gpus_per_actor=0, num_actors=1, cpus_per_actor=1.5, cpus_per_task=0.5),
    )
    generate(one, quiet)
    generate(two, quiet)
    assert len(image_digests(one.output)) == 360
    assert image_digests(one.output) == image_digests(two.output)


def test_a_resumed_run_does_only_what_is_missing(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    config = config_of(str(tmp_path))
    whole = generate(config, quiet)
    before = image_digests(config.output)
    storage.delete(f"{config.output}/manifest.json")
    storage.delete(f"{config.output}/shards/00002.json")  # as a kill leaves it: the file, but not its mark
    storage.put(f"{config.output}/shards/00002.parquet", b"half")
    kept = {
        uri: Path(uri).stat().st_mtime_ns
        for uri in (f"{config.output}/shards/{i:05d}.json" for i in (0, 1, 3))
    }
    again = generate(config, quiet)
    assert {uri: Path(uri).stat().st_mtime_ns for uri in kept} == kept
    assert [shard.sha256 for shard in again.shards] == [shard.sha256 for shard in whole.shards]
    assert image_digests(config.output) == before
    verify_run(config.output, num_processes=1)


def test_a_job_leaves_out_what_another_makes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(str(tmp_path))
    config = config_of(str(tmp_path), normals_per_shard=2)
    checkpoint = load_checkpoint(config.checkpoint)
    run = open_run(config, checkpoint)

    def resources_while_another_works(*wishes: Any) -> Resources:
        write_shards(config, run, range(0, run.num_shards, 2))
        return plan_resources(*wishes)

    monkeypatch.setattr(on_ray, "plan_resources", resources_while_another_works)
    said: list[str] = []
    stats = on_ray.run_shards(config, run, checkpoint, said.append)
    assert said[-1] == f"6 shards were made by another job on {config.output} meanwhile"
    assert [shard.shard for shard in stats] == list(range(run.num_shards))
    write_manifest(config.output, run.run_id, stats)
    assert verify_run(config.output).num_samples == run.num_samples


@pytest.mark.slow
def test_two_jobs_on_one_output_share_its_shards(tmp_path: Path) -> None:
    """Each on a Ray of its own, as users would start them, by an accelerator that takes its time."""
    write_pool(f"{tmp_path}/pool", 20)
    words = [f"pool={tmp_path}/pool", f"output={tmp_path}/out", "checkpoint=null:32x1@100"]
    words += ["normals_per_shard=2", "compute.num_actors=1"]
    command = [sys.executable, "-m", "raygen.cli", "generate", "jobs/generate.toml"]
    command += [word for override in words for word in ("--set", override)]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    jobs = [
        subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(2)
    ]
    said = [job.communicate(timeout=240)[0] for job in jobs]
    assert [job.returncode for job in jobs] == [0, 0], said
    verify_run(f"{tmp_path}/out")
    found = [re.search(r"(\d+) shards were made by another job", text) for text in said]
    made = [30 - int(match[1]) if match else 30 for match in found]
    assert min(made) >= 3
    assert sum(made) <= 42, "few were made twice"


def test_a_run_is_verified_on_the_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where RAY_ADDRESS names one; by the address that jobs are submitted to, on this machine."""
    prepare(str(tmp_path))
    config = config_of(str(tmp_path))
    manifest = generate(config, quiet)
    asked: list[int] = []

    def counted(check: Callable[[Any], Any], shards: Sequence[Any]) -> list[Any]:
        asked.append(len(shards))
        return map_tasks(check, shards)

    monkeypatch.setattr("raygen.on_ray.map_tasks", counted)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    assert verify_run(config.output) == manifest
    assert asked == [len(manifest.shards)]
    storage.put(storage.join(config.output, manifest.shards[0].file), b"damaged")
    with pytest.raises(PromiseError, match="SHA-256"):
        verify_run(config.output)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    with pytest.raises(PromiseError, match="SHA-256"):
        verify_run(config.output)
    assert len(asked) == 2


def test_a_complete_run_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(str(tmp_path), num_per_product=1)
    config = config_of(str(tmp_path))
    generate(config, quiet)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()}
    monkeypatch.setattr(on_ray, "run_shards", None)  # would fail if it were called
    lines: list[str] = []
    generate(config, lines.append)
    assert lines[-1] == f"{config.output} is complete: nothing to do"
    assert before == {
        path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*") if path.is_file()
    }


def test_bad_files_become_rejects(s3_uri: str) -> None:
    prepare(s3_uri)
    bad = {storage.join(s3_uri, "pool/brushed_metal", name): what for name, what in bad_files().items()}
    for uri, (data, _) in bad.items():
        storage.put(uri, data)
    config = config_of(
        s3_uri, max_reject_rate=0.5, normals_per_shard=3
    )  # some shards hold nothing but bad files
    manifest = generate(config, quiet)
    verify_run(config.output, num_processes=1)
    assert (manifest.num_normals, manifest.num_samples) == (34, 96)
    assert reject_reasons(config.output) == {uri: reason for uri, (_, reason) in bad.items()}


def test_too_many_bad_files_break_the_promise_and_lose_nothing(tmp_path: Path) -> None:
    prepare(str(tmp_path))
    for name, (data, _) in bad_files().items():
        storage.put(str(tmp_path / "pool" / "brushed_metal" / name), data)
    config = config_of(str(tmp_path), max_reject_rate=0.1)
    with pytest.raises(
        PromiseError, match=r"of 34 normals are unusable \(.*truncated.*max_reject_rate = 0.1"
    ):
        generate(config, quiet)
    assert read_manifest(config.output) is None
    done = done_shards(config.output)
    assert done
    kept = read_stats(config.output, done)
    manifest = generate(config_of(str(tmp_path), max_reject_rate=0.5), quiet)  # policy may change: it goes on
    assert [stats for stats in manifest.shards if stats.shard in done] == kept


def test_wrong_sizes_are_rejected_when_so_asked(tmp_path: Path) -> None:
    prepare(str(tmp_path), num_per_product=2)
    write_pool(str(tmp_path / "pool"), 1, size=48)  # overwrites one normal of each product
    config = config_of(str(tmp_path), resize=False, max_reject_rate=1)
    assert generate(config, quiet).rejects == {"wrong_size": 3}
    resized = config_of(str(tmp_path), output=str(tmp_path / "resized"))
    assert generate(resized, quiet).rejects == {}


def test_actors_are_placed_on_gpus(tmp_path: Path) -> None:
    """Ray's logical GPUs: both are taken while two actors work, and the readers and writers take none."""
    prepare(str(tmp_path))
    config = config_of(str(tmp_path), compute=ComputeConfig(cpus_per_actor=0.5, cpus_per_task=0.5))
    checkpoint = load_checkpoint(config.checkpoint)
    free: set[float] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.05):
            free.add(ray.available_resources().get("GPU", 0))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said: list[str] = []
    try:
        stats = on_ray.run_shards(config, open_run(config, checkpoint), checkpoint, said.append)
    finally:
        over.set()
        watcher.join()
    assert said == ["4 of 4 shards to do: 2 actors of 1 GPU and 0.5 CPU, on 1 node"]
    assert min(free) == 0
    assert sum(shard.num_samples for shard in stats) == 96


@pytest.mark.parametrize(
    "compute", [CPU_ONLY, ComputeConfig(gpus_per_actor=0, cpus_per_actor=0.5, cpus_per_task=0.5)]
)
def test_reading_and_writing_stay_out_of_the_actor(tmp_path: Path, compute: ComputeConfig) -> None:
    """Ray Data fuses what it can; the plan that it really ran shows three operators."""
    prepare(str(tmp_path), num_per_product=1)
    config = config_of(str(tmp_path), compute=compute)
    checkpoint = load_checkpoint(config.checkpoint)
    resources = on_ray.plan_resources(compute, [{"CPU": 2.0}], 1)
    dataset = on_ray.chain(config, open_run(config, checkpoint), checkpoint, [0], resources).materialize()
    for stage in ("read_shard", "GenerateActor", "write_shard"):
        assert f"MapBatches({stage})" in dataset.stats()
    assert "->MapBatches" not in dataset.stats()


@pytest.mark.parametrize("actors", [{}, {"num_actors": 1, "cpus_per_actor": 1.5}])
def test_shards_are_written_while_others_are_read(actors: dict[str, Any]) -> None:
    """On two CPUs, by default: what is computed does not pile up until all is read."""
    resources = on_ray.plan_resources(ComputeConfig(gpus_per_actor=0, **actors), [{"CPU": 2.0}], 20)
    assert resources.num_actors * resources.cpus_per_actor == 1.5

    def stamp(batch: pa.Table, name: str, seconds: float = 0.0) -> pa.Table:
        time.sleep(seconds)
        return batch.append_column(name, pa.array([time.time()]))

    class Stamper:
        def __call__(self, batch: pa.Table) -> pa.Table:
            return stamp(batch, "computed")

    dataset = chain_stages(
        [{"shard": shard} for shard in range(20)],
        read=Stage(stamp, {"name": "read", "seconds": 0.2}),
        compute=Stage(Stamper, {}),
        write=Stage(stamp, {"name": "written"}),
        resources=resources,
    )
    rows = dataset.take_all()
    assert len(rows) == 20
    last_read = max(row["read"] for row in rows)
    assert sum(row["written"] < last_read for row in rows) >= 10


def test_a_cluster_without_room_is_refused_before_it_hangs(tmp_path: Path) -> None:
    prepare(str(tmp_path), num_per_product=1)
    config = config_of(str(tmp_path), compute=ComputeConfig(gpus_per_actor=0, num_actors=2, cpus_per_actor=1))
    with pytest.raises(UserError, match="2 actors of 1 CPUs, and a task of"):
        generate(config_of(str(tmp_path), compute=config.compute, normals_per_shard=1), quiet)


def test_an_error_amid_the_run_is_one_clear_line(tmp_path: Path) -> None:
    """Storage that says no to a write task: the driver gets its words, not Ray's traceback."""
    prepare(str(tmp_path), num_per_product=2)
    storage.put(str(tmp_path / "pool" / "brushed_metal" / "bad.png"), b"")
    storage.put(str(tmp_path / "out" / "rejects"), b"a file where a folder must be")
    config = config_of(str(tmp_path), max_reject_rate=0.5)
    with pytest.raises(UserError, match=r"rejects/00000.parquet: .*check the path") as caught:
        generate(config, quiet)
    assert "\n" not in str(caught.value)
    storage.delete(str(tmp_path / "out" / "rejects"))
    generate(config, quiet)
    verify_run(config.output, num_processes=1)
