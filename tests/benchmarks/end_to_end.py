"""What streaming costs: images/s of the whole job ÷ images/s of a bare loop around the same model.

    python tests/benchmarks/end_to_end.py --preset small-128 --normals 2000

Bare: as many processes as the job has actors, one thread each, normals decoded in memory beforehand, samples
thrown away; no reading, no encoding, no writing, no Ray. Job: the real thing from a local folder to Parquet
shards, two ways: over the whole of its time (Ray's start excluded, workers' and actors' start included), and from
the first finished shard to the last, which is what a long run sees. Both sides in one run, in turn.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import ray

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import make_samples, write_checkpoint, write_pool

from raygen import surfaces
from raygen.checkpoint import load_checkpoint
from raygen.families.dtgan.sizes import PRESETS
from raygen.generate import on_ray
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.plan import open_run
from raygen.generate.shards import write_manifest
from raygen.generate.verify import verify_run
from raygen.on_ray import ALLOCATOR, KEEP_WORKERS
from raygen.records import MODES, plan_requests

NUM_PROCESSES = 2


def bare(config: GenerateConfig, num_normals: int, seed: int) -> float:
    """One process of the bare loop; returns its seconds without start-up."""
    from raygen.families import load_generator

    checkpoint = load_checkpoint(config.checkpoint)
    size, channels = checkpoint.config.image_size, checkpoint.config.channels
    some = [pixels for _, pixels in surfaces.pool(8, seed, size, channels)]
    requests = plan_requests(checkpoint.config.defect_types, MODES, 1)
    generator = load_generator(checkpoint, config)
    shard = config.normals_per_shard
    normals = np.stack([some[i % len(some)] for i in range(shard)])
    seeds = np.random.default_rng(seed).integers(0, 2**63, (shard, len(requests)))
    few = config.micro_batch
    make_samples(generator, normals[:few], seeds[:few], requests, config.gate)
    started = time.perf_counter()
    for _ in range(num_normals // shard):
        make_samples(generator, normals, seeds, requests, config.gate)
    return time.perf_counter() - started


def bare_rate(config: GenerateConfig, num_normals: int) -> float:
    """Samples per second of NUM_PROCESSES bare loops side by side."""
    share = num_normals // NUM_PROCESSES // config.normals_per_shard * config.normals_per_shard
    with multiprocessing.get_context("spawn").Pool(NUM_PROCESSES) as pool:
        seconds = pool.starmap(bare, [(config, share, i) for i in range(NUM_PROCESSES)])
    return 4 * share * NUM_PROCESSES / max(seconds)


def job_rates(config: GenerateConfig) -> tuple[float, float]:
    """Samples per second of the job: (over its whole time, from its first shard to its last)."""
    checkpoint = load_checkpoint(config.checkpoint)
    run = open_run(config, checkpoint)
    started = time.perf_counter()
    stats = on_ray.run_shards(config, run, checkpoint, say=lambda line: None)
    whole = time.perf_counter() - started
    write_manifest(config.output, run.run_id, stats)
    verify_run(config.output)
    marks = sorted(path.stat().st_mtime for path in Path(config.output, "shards").glob("*.json"))
    later = run.num_samples * (len(marks) - 1) / len(marks)
    return run.num_samples / whole, later / (marks[-1] - marks[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="small-128", choices=PRESETS)
    parser.add_argument("--normals", type=int, default=2000)
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    os.environ.setdefault(
        "RAY_AUTH_MODE", "disabled"
    )  # as raygen itself does: no token file in the home folder
    os.environ.update(ALLOCATOR)  # for the bare loop, too: without it it would be a third slower
    os.environ.setdefault(*KEEP_WORKERS)
    ray.init(address="local", num_cpus=NUM_PROCESSES, include_dashboard=False, log_to_driver=False)
    bares, wholes, steadies = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        sizes = PRESETS[args.preset]
        write_checkpoint(f"{folder}/checkpoint", sizes)
        write_pool(f"{folder}/pool", -(-args.normals // 3), sizes.image_size, sizes.channels)
        for round_ in range(args.rounds):
            config = GenerateConfig(
                pool=f"{folder}/pool",
                checkpoint=f"{folder}/checkpoint",
                output=f"{folder}/out-{round_}",
                normals_per_shard=args.per_shard,
                masks=False,  # their price is gate_cost.py's
                compute=ComputeConfig(num_actors=NUM_PROCESSES),
            )
            bares.append(bare_rate(config, args.normals))
            whole, steady = job_rates(config)
            wholes.append(whole)
            steadies.append(steady)
            print(
                f"round {round_}: bare {bares[-1]:.1f}, job {whole:.1f}, steady {steady:.1f} images/s",
                flush=True,
            )
    ray.shutdown()
    bare_, whole, steady = map(statistics.median, (bares, wholes, steadies))
    print(f"bare model loop                 {bare_:8.1f} images/s")
    print(f"job, whole time                 {whole:8.1f} images/s   {whole / bare_:.2f} of bare")
    print(f"job, first to last shard        {steady:8.1f} images/s   {steady / bare_:.2f} of bare")


if __name__ == "__main__":
    main()
