"""What Ray costs: the job with the null generator ÷ two plain processes that do the same work without Ray.

    python tests/benchmarks/null_pipeline.py --normals 10000

Both read PNG files from a folder, decode, hash, encode four PNGs per normal, and write the same Parquet shards
with stats, with the same functions. Both sides in one run, in turn.
"""

import argparse
import multiprocessing
import statistics
import sys
import tempfile
import time
from pathlib import Path

import ray

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_pool

from raygen.checkpoint import load_checkpoint
from raygen.config import ComputeConfig, GenerateConfig
from raygen.generate import on_ray
from raygen.generate.plan import Run, open_run

NUM_PROCESSES = 2


def plain(config: GenerateConfig, run: Run, shards: list[int]) -> None:
    """One plain process: the three stages of each shard, one after the other."""
    import pyarrow as pa

    actor = on_ray.GenerateActor(config, run, config.checkpoint)
    for shard in shards:
        batch = on_ray.read_shard(pa.table({"shard": [shard]}), config, run)
        on_ray.write_shard(actor(batch), config, run)


def plain_seconds(config: GenerateConfig, run: Run) -> float:
    """Two plain processes, imports and start included, as the job's workers' are."""
    shards = list(range(run.num_shards))
    started = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        pool.starmap(plain, [(config, run, shards[i::NUM_PROCESSES]) for i in range(NUM_PROCESSES)])
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--normals", type=int, default=10_000)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    ray.init(address="local", num_cpus=NUM_PROCESSES, include_dashboard=False, log_to_driver=False)
    plains, jobs = [], []
    with tempfile.TemporaryDirectory() as folder:
        some = write_pool(f"{folder}/some", 40, args.size)
        pool = Path(folder, "pool", "mixed")
        pool.mkdir(parents=True)
        for i in range(args.normals):
            (pool / f"{i:06d}.png").hardlink_to(some[i % len(some)])
        for round_ in range(args.rounds):
            rates = {}
            for side in ("plain", "job"):
                config = GenerateConfig(
                    pool=f"{folder}/pool",
                    checkpoint=f"null:{args.size}x1",
                    output=f"{folder}/{side}-{round_}",
                    normals_per_shard=args.per_shard,
                    compute=ComputeConfig(num_actors=1, cpus_per_actor=0.5),
                )
                checkpoint = load_checkpoint(config.checkpoint)
                run = open_run(config, checkpoint)
                if side == "plain":
                    seconds = plain_seconds(config, run)
                else:
                    started = time.perf_counter()
                    on_ray.run_shards(config, run, checkpoint)
                    seconds = time.perf_counter() - started
                rates[side] = run.num_samples / seconds
            plains.append(rates["plain"])
            jobs.append(rates["job"])
            print(f"round {round_}: plain {plains[-1]:.0f}, job {jobs[-1]:.0f} images/s", flush=True)
    ray.shutdown()
    plain_, job = statistics.median(plains), statistics.median(jobs)
    print(f"two plain processes   {plain_:8.0f} images/s")
    print(f"job, null generator   {job:8.0f} images/s   {job / plain_:.2f} of plain")


if __name__ == "__main__":
    main()
