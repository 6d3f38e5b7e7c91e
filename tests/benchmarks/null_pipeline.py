"""What Ray costs: the job with the null generator ÷ two plain processes that do the same work without Ray.

    python tests/benchmarks/null_pipeline.py --normals 10000

Both read PNG files from a folder, hash and decode them, encode and hash four PNGs per normal, and write Parquet
files of as many rows; the plain side with Pillow and pyarrow alone, as one would by hand, the job by OpenCV, and
masks besides. Both sides in one run, in turn, start-up of processes and workers included, Ray's own excluded.
"""

import argparse
import hashlib
import io
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_pool

from raygen.checkpoint import load_checkpoint
from raygen.generate import on_ray
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.plan import open_run
from raygen.on_ray import KEEP_WORKERS

NUM_PROCESSES = 2


def plain(files: list[str], folder: str, per_shard: int) -> float:
    """One plain process: read, hash, decode, encode four times, a Parquet file every `per_shard` normals; returns
    its seconds without start-up."""
    started = time.perf_counter()
    rows: list[dict[str, object]] = []
    for number, file in enumerate(files, start=1):
        data = Path(file).read_bytes()
        sha256 = hashlib.sha256(data).hexdigest()
        pixels = np.asarray(Image.open(io.BytesIO(data)))
        for k in range(4):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            png = buffer.getvalue()
            rows.append(
                {
                    "uri": file,
                    "sha256": sha256,
                    "k": k,
                    "image_sha256": hashlib.sha256(png).hexdigest(),
                    "image": png,
                }
            )
        if number % per_shard == 0 or number == len(files):
            pq.write_table(pa.Table.from_pylist(rows), f"{folder}/{os.getpid()}-{number}.parquet")
            rows = []
    return time.perf_counter() - started


def plain_rates(files: list[str], folder: str, per_shard: int) -> tuple[float, float]:
    """Samples per second of two plain processes: (with their start, without)."""
    Path(folder).mkdir()
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        parts = [(files[i::NUM_PROCESSES], folder, per_shard) for i in range(NUM_PROCESSES)]
        seconds = pool.starmap(plain, parts)
    return 4 * len(files) / (time.perf_counter() - started), 4 * len(files) / max(seconds)


def job_rates(config: GenerateConfig) -> tuple[float, float]:
    """Samples per second of the job: (over its whole time, from its first shard to its last)."""
    checkpoint = load_checkpoint(config.checkpoint)
    run = open_run(config, checkpoint)
    started = time.perf_counter()
    on_ray.run_shards(config, run, checkpoint, say=lambda line: None)
    whole = time.perf_counter() - started
    marks = sorted(path.stat().st_mtime for path in Path(config.output, "shards").glob("*.json"))
    later = run.num_samples * (len(marks) - 1) / len(marks)
    return run.num_samples / whole, later / (marks[-1] - marks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--normals", type=int, default=10_000)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    os.environ.setdefault(
        "RAY_AUTH_MODE", "disabled"
    )  # as raygen itself does: no token file in the home folder
    os.environ.setdefault(*KEEP_WORKERS)
    ray.init(address="local", num_cpus=NUM_PROCESSES, include_dashboard=False, log_to_driver=False)
    plains, jobs = [], []
    with tempfile.TemporaryDirectory() as folder:
        some = write_pool(f"{folder}/some", 40, args.size)
        pool = Path(folder, "pool", "mixed")
        pool.mkdir(parents=True)
        for i in range(args.normals):
            (pool / f"{i:06d}.png").hardlink_to(some[i % len(some)])
        for round_ in range(args.rounds):
            files = sorted(map(str, pool.iterdir()))
            plains.append(plain_rates(files, f"{folder}/plain-{round_}", args.per_shard))
            config = GenerateConfig(
                pool=f"{folder}/pool",
                checkpoint=f"null:{args.size}x1",
                output=f"{folder}/job-{round_}",
                normals_per_shard=args.per_shard,
                # As `compute = "auto"` chooses here: tasks for as many cores as there are.
                compute=ComputeConfig(num_actors=1, cpus_per_actor=0.3, cpus_per_task=0.85),
            )
            jobs.append(job_rates(config))
            print(f"round {round_}: images/s (whole, steady): plain {plains[-1]}, job {jobs[-1]}", flush=True)
    ray.shutdown()
    for what, column in (("with start-up", 0), ("without", 1)):
        plain_ = statistics.median(rates[column] for rates in plains)
        job = statistics.median(rates[column] for rates in jobs)
        print(
            f"{what:14} two plain processes {plain_:6.0f} images/s, job {job:6.0f}: {job / plain_:.2f} of plain"
        )


if __name__ == "__main__":
    main()
