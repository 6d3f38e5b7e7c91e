"""How many accelerators these cores keep busy, and what a dry run had said of it.

    python tests/benchmarks/sizing.py --milliseconds 3 --accelerators 1 2 4 8 16

Simulated accelerators (`null:128x1@3`: an actor's thread sleeps for so long over a sample), one an actor: the
job's images a second over the second half of its shards, the share of their time that the accelerators work, and
what the probe of a dry run expects of both. The knee is where all cores are at work: measured, it is the number of
accelerators that the fastest rate of all would keep busy.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

import ray
from null_pipeline import NUM_PROCESSES

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_pool

from raygen.checkpoint import load_checkpoint
from raygen.generate import on_ray
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.plan import draft_run, open_run
from raygen.generate.probe import probe
from raygen.generate.sizing import Sizing
from raygen.on_ray import KEEP_WORKERS


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--milliseconds", type=float, default=3.0, help="of an accelerator, for a sample")
    parser.add_argument("--accelerators", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--per-shard", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=20.0, help="that each run shall take")
    args = parser.parse_args()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    checkpoint = load_checkpoint(f"null:{args.size}x1@{args.milliseconds:g}")
    with tempfile.TemporaryDirectory() as folder:
        some = write_pool(f"{folder}/some", 100, args.size)

        def job(name: str, num_normals: int, compute: ComputeConfig) -> GenerateConfig:
            pool = Path(folder, name, "mixed")
            pool.mkdir(parents=True, exist_ok=True)
            for i in range(num_normals):
                (pool / f"{i:06d}.png").hardlink_to(some[i % len(some)])
            return GenerateConfig(
                pool=str(pool.parent),
                checkpoint=checkpoint.uri,
                output=f"{folder}/out-{name}",
                normals_per_shard=args.per_shard,
                compute=compute,
            )

        config = job("probe", args.per_shard, ComputeConfig())
        found = probe(config, draft_run(config, checkpoint, Path(folder) / "plan.parquet", print), checkpoint)
        assert found is not None
        costs = found.costs
        text = ", ".join(f"{name} {1000 * value:.2f}" for name, value in costs._asdict().items())
        print(f"one normal, by the probe, ms: {text}", flush=True)
        os.environ.setdefault(*KEEP_WORKERS)
        ray.init(address="local", num_cpus=NUM_PROCESSES, include_dashboard=False, log_to_driver=False)
        print(f"{'accelerators':>12} {'images/s':>10} {'busy':>6} {'expected: images/s':>20} {'busy':>6}")
        best, sizing = 0.0, Sizing(costs, NUM_PROCESSES, 1)
        for number in args.accelerators:
            sizing = Sizing(costs, NUM_PROCESSES, number)
            shards = max(4 * number, int(args.seconds * sizing.rate / args.per_shard))
            compute = sizing.compute(ComputeConfig(num_actors=number, gpus_per_actor=0))
            config = job(f"{number}", shards * args.per_shard, compute)
            on_ray.run_shards(config, open_run(config, checkpoint), checkpoint, say=lambda line: None)
            marks = sorted(path.stat().st_mtime for path in Path(config.output, "shards").glob("*.json"))
            later = marks[len(marks) // 2 :]  # by then all actors have started
            rate = args.per_shard * (len(later) - 1) / (later[-1] - later[0])
            best = max(best, rate)
            busy, expected = (value * costs.accelerator / number for value in (rate, sizing.rate))
            print(
                f"{number:12} {4 * rate:10.0f} {busy:6.0%} {4 * sizing.rate:20.0f} {expected:6.0%}",
                flush=True,
            )
        ray.shutdown()
        knee = best * costs.accelerator
        print(f"knee: measured {knee:.1f}, expected {sizing.knee:.1f}: {sizing.knee / knee:.2f} of measured")


if __name__ == "__main__":
    main()
