"""`ray job submit`, as a platform team runs it, and what is left when something is killed meanwhile.

RAYGEN_TEST_POOL may name a folder of real photographs, `{product}/*.png`, to use instead of surfaces.
"""

import json
import os
import random
import signal
import subprocess
import time
import urllib.request
from collections.abc import Callable

import pytest
from conftest import Head, S3Server
from factories import bad_files, image_digests, reject_reasons, write_checkpoint, write_pool

from raygen import storage
from raygen.data.runs import done_shards
from raygen.families.dtgan.sizes import PRESETS
from raygen.generate.verify import verify_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def source(s3_server: None) -> tuple[str, str, int]:
    """A pool and a checkpoint on S3: (pool URI, checkpoint URI, number of normals)."""
    base = "s3://raygen/jobs"
    photographs = os.environ.get("RAYGEN_TEST_POOL")
    if photographs:
        uris = []
        for entry in storage.list_files(photographs):
            uris.append(storage.join(base, "pool", entry.uri.removeprefix(photographs.rstrip("/") + "/")))
            storage.put(uris[-1], storage.read(entry.uri))
    else:
        uris = write_pool(storage.join(base, "pool"), 80, size=128)
    write_checkpoint(storage.join(base, "checkpoint"), PRESETS["small-128"])
    return storage.join(base, "pool"), storage.join(base, "checkpoint"), len(uris)


def arguments(source: tuple[str, str, int], output_uri: str, *more: str) -> list[str]:
    settings = [
        f"pool={source[0]}",
        f"checkpoint={source[1]}",
        f"output={output_uri}",
        f"normals_per_shard={max(8, source[2] // 30)}",
        "gate.max_attempts=1",  # random weights draw few defects that pass
        "strict_products=false",  # photographs are of others than the checkpoint's, and so are damaged ones
        *more,
    ]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    return ["jobs/generate.py", "jobs/generate.toml", *flags]


def finish(job: subprocess.Popen[str]) -> str:
    output, _ = job.communicate(timeout=1500)
    assert job.returncode == 0, output
    return output


@pytest.fixture(scope="module")
def undisturbed(ray_head: Head, source: tuple[str, str, int]) -> dict[tuple[str, str, str, int], str]:
    """The digests of every image of a run that nothing happened to."""
    output_uri = "s3://raygen/jobs/undisturbed"
    log = finish(ray_head.submit(*arguments(source, output_uri)))
    assert f"{4 * source[2]:,} samples" in log
    assert verify_run(output_uri, num_processes=2).num_samples == 4 * source[2]
    return image_digests(output_uri)


def test_a_job_from_s3_to_s3(ray_head: Head, source, undisturbed, s3_uri: str) -> None:
    """In the layout of the most files; test_on_ray.py has all three."""
    finish(ray_head.submit(*arguments(source, s3_uri, "layout=png")))
    manifest = verify_run(s3_uri, num_processes=2)
    assert (manifest.num_normals, manifest.num_samples) == (source[2], 4 * source[2])
    assert image_digests(s3_uri) == undisturbed


VICTIMS: dict[str, Callable[[list[str]], bool]] = {
    # The driver itself, not the client that submitted it nor the shell that started it.
    "driver": lambda words: words[1:2] == ["jobs/generate.py"],
    "actor": lambda words: words[0].startswith("ray::MapWorker(MapBatches(GenerateActor))"),
    "writer": lambda words: words[0].startswith("ray::MapBatches(write_shard)"),
}


@pytest.mark.parametrize("victim", VICTIMS)
def test_kill_9_and_the_same_command_again(
    ray_head: Head, source, undisturbed, s3_uri: str, victim: str
) -> None:
    seed = random.randrange(10**6)
    print(f"seed {seed}")  # shown when the test fails
    num_done = random.Random(seed).randrange(1, 12)
    job = ray_head.submit(*arguments(source, s3_uri))
    deadline = time.monotonic() + 600
    pids: list[int] = []
    while not pids:
        assert time.monotonic() < deadline, f"no {victim} to kill"
        if len(done_shards(s3_uri)) < num_done:
            time.sleep(0.2)
        else:
            time.sleep(0.002)  # a writer lives for a blink
            pids = ray_head.pids(VICTIMS[victim])
    os.kill(pids[0], signal.SIGKILL)
    done = marks(s3_uri)
    job.communicate(timeout=1500)
    assert (job.returncode != 0) == (victim == "driver")  # Ray replaces an actor or a worker by itself
    assert pids[0] not in ray_head.pids(VICTIMS[victim])
    if victim == "driver":
        with pytest.raises(Exception, match="not complete"):
            verify_run(s3_uri)

    log = finish(ray_head.submit(*arguments(source, s3_uri)))
    assert ("nothing to do" in log) == (victim != "driver")
    manifest = verify_run(s3_uri, num_processes=2)
    assert manifest.num_samples == 4 * source[2]
    assert image_digests(s3_uri) == undisturbed
    after = marks(s3_uri)
    assert {shard: after[shard] for shard in done} == done  # what was done is not done again


def test_a_job_that_is_stopped_says_that_the_same_command_goes_on(
    ray_head: Head, source, undisturbed, s3_uri: str
) -> None:
    job = ray_head.submit(*arguments(source, s3_uri))
    while not done_shards(s3_uri):
        assert job.poll() is None
        time.sleep(0.2)
    (driver,) = ray_head.pids(VICTIMS["driver"])
    os.kill(driver, signal.SIGTERM)  # as `ray job stop` does, to the shell around it, too
    log, _ = job.communicate(timeout=120)
    assert "raygen: stopped; the same command goes on from here" in log
    assert "exit code 143" in log
    assert "Traceback" not in log
    assert "***" not in log  # the title of Ray's own trace
    finish(ray_head.submit(*arguments(source, s3_uri)))
    assert image_digests(s3_uri) == undisturbed


def marks(output_uri: str) -> dict[str, str]:
    """The stats file of every done shard -> its etag, which holds the seconds it took: a redone one differs."""
    listed = storage.list_files(storage.join(output_uri, "shards"))
    return {entry.uri: entry.etag for entry in listed if entry.uri.endswith(".json")}


def test_damaged_files_among_the_photographs(ray_head: Head, source, undisturbed, s3_uri: str) -> None:
    pool = storage.join(s3_uri, "pool")
    for entry in storage.list_files(source[0]):
        storage.put(entry.uri.replace(source[0], pool), storage.read(entry.uri))
    reasons = {storage.join(pool, "damaged", name): reason for name, (_, reason) in bad_files().items()}
    for name, (data, _) in bad_files().items():
        storage.put(storage.join(pool, "damaged", name), data)
    output_uri = storage.join(s3_uri, "out")
    log = finish(ray_head.submit(*arguments((pool, *source[1:]), output_uri, "max_reject_rate=0.1")))
    assert "4 normals rejected: truncated" in log
    manifest = verify_run(output_uri, num_processes=2)
    assert (manifest.num_samples, sum(manifest.rejects.values())) == (4 * source[2], 10)
    assert reject_reasons(output_uri) == reasons
    assert sorted(image_digests(output_uri).values()) == sorted(undisturbed.values())


def test_storage_that_goes_away_for_a_while(
    ray_head: Head, source, undisturbed, s3_server: S3Server, s3_uri: str
) -> None:
    """Killed, and back after ten seconds: the job waits and goes on, and loses nothing."""
    job = ray_head.submit(*arguments(source, s3_uri))
    while len(done_shards(s3_uri)) < 3:
        assert job.poll() is None
        time.sleep(0.2)
    s3_server.stop(signal.SIGKILL)
    time.sleep(10)
    s3_server.start()
    s3_server.wait()
    finish(job)
    assert verify_run(s3_uri, num_processes=2).num_samples == 4 * source[2]
    assert image_digests(s3_uri) == undisturbed


def test_a_job_refuses_a_place_that_would_be_lost(ray_head: Head, source) -> None:
    job = ray_head.submit(*arguments(source, "relative/folder"))
    output, _ = job.communicate(timeout=120)
    assert job.returncode == 1  # `ray job submit` has no other; the job's own code, 2, is in its status
    assert "output = relative/folder: a Ray job works in a copy of this folder" in output
    assert "Traceback" not in output.split("raygen: ")[0].rpartition("samples each")[2]


def test_the_dashboard_counts(ray_head: Head, source, undisturbed) -> None:
    """The counters that Prometheus scrapes and the dashboard shows."""
    targets = ray_head.session / "prom_metrics_service_discovery.json"
    text = ""
    for _ in range(20):
        for group in json.loads(targets.read_text()):
            for target in group["targets"]:
                with urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                    text += answer.read().decode()
        if "ray_raygen_samples_total" in text:
            break
        time.sleep(1)
    for name in ("raygen_samples", "raygen_shards", "raygen_rejects", "raygen_bytes"):
        assert f"ray_{name}_total" in text
