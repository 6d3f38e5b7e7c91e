"""What masks, scores and the gate cost: the job with them ÷ the job without, first shard to last.

    python tests/benchmarks/gate_cost.py [CHECKPOINT] --rounds 3

On procedural surfaces, with the small DT-GAN that comes along and a gate that asks for the wanted type
(`min_type_prob = 0.5`); a sample that is made three times counts once.
"""

import argparse
import os
import statistics
import tempfile

import ray
from end_to_end import NUM_PROCESSES, job_rates, write_pool

from raygen.checkpoint import load_checkpoint
from raygen.demo import CHECKPOINT
from raygen.generate.config import ComputeConfig, GateConfig, GenerateConfig
from raygen.on_ray import KEEP_WORKERS

VARIANTS = {
    "off": {"masks": False},
    "on, reconstruct": {"masks": True},
    "on, residual": {"masks": True, "composition": "residual"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", nargs="?", default=CHECKPOINT)
    parser.add_argument("--normals", type=int, default=1200)
    parser.add_argument("--per-shard", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    sizes = load_checkpoint(args.checkpoint).config
    os.environ.setdefault(*KEEP_WORKERS)
    ray.init(address="local", num_cpus=NUM_PROCESSES, include_dashboard=False, log_to_driver=False)
    rates: dict[str, list[float]] = {name: [] for name in VARIANTS}
    with tempfile.TemporaryDirectory() as folder:
        write_pool(f"{folder}/pool", -(-args.normals // 3), sizes.image_size, sizes.channels)
        for round_ in range(args.rounds):
            for number, (name, changes) in enumerate(VARIANTS.items()):
                config = GenerateConfig(
                    pool=f"{folder}/pool",
                    checkpoint=args.checkpoint,
                    output=f"{folder}/out-{round_}-{number}",
                    normals_per_shard=args.per_shard,
                    gate=GateConfig(min_type_prob=0.5),
                    compute=ComputeConfig(num_actors=NUM_PROCESSES),
                    **changes,
                )
                rates[name].append(job_rates(config)[1])
                print(f"round {round_}: {name} {rates[name][-1]:.1f} images/s", flush=True)
    ray.shutdown()
    off = statistics.median(rates["off"])
    for name, found in rates.items():
        median = statistics.median(found)
        print(f"{name:16} {median:8.1f} images/s   {median / off:.2f} of off")


if __name__ == "__main__":
    main()
