"""Where a training step's time goes, and what larger batches bring.

    python tests/gpu/step.py jobs/dtgan-128.toml DEFECTS --minutes 5 --batches 4 16 64
    python tests/gpu/step.py jobs/dtgan-64-cpu.toml DEFECTS --device cpu --minutes 0.5 --batches 4

For each batch and precision: images a second of full steps on a batch that is made beforehand, and of the data
thread alone, so that the slower one is seen; then the operations that take most of the device's time in one step.
"""

import itertools

import torch
from common import Clock, begin, parser, seconds_of, told
from torch.profiler import ProfilerActivity, profile

from raygen.families.photos import TRAINING_SPLITS
from raygen.families.recipes import TrainingConfig
from raygen.families.world import World
from raygen.train.config import load_train_config, trainer_of
from raygen.train.job import draft

NUM_OPERATIONS = 12


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("recipe")
    arguments.add_argument("defects")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments.add_argument("--batches", nargs="+", type=int, default=[4, 16, 64])
    args = arguments.parse_args()
    clock, device = Clock(args.minutes), begin(args.device)
    for size, precision in itertools.product(args.batches, ("float32", "bfloat16")):
        what = f"batch {size}, {precision}"
        if not clock.allows(10, what):
            break
        settings = [f"defects={args.defects}", "output=unused", f"batch_per_worker={size}"]
        config = load_train_config(args.recipe, [*settings, f"precision={precision}", *args.set])
        assert isinstance(config, TrainingConfig)
        run, defects = draft(config, *trainer_of(config).draft(config))
        trainer = trainer_of(config)(config, run)
        training = trainer.start(device)
        trainer.warm(training)
        make = trainer.maker(defects.part(TRAINING_SPLITS), in_memory=True)
        step, fields = trainer.stepper(training, World()), make(range(size))
        rate = size / seconds_of(lambda step=step, fields=fields: step(fields), device, repeats=5)
        cpu = torch.device("cpu")
        data = size / seconds_of(lambda make=make, size=size: make(range(size)), cpu, repeats=3)
        told(what, f"{rate:.1f} images/s; data thread {data:.1f}")
        if precision == "bfloat16" and size == args.batches[-1] and clock.allows(10, "profile"):
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] * (device.type == "cuda"))]
            with profile(activities=kinds) as profiled:
                step(fields)
            key = "self_cuda_time_total" if device.type == "cuda" else "self_cpu_time_total"
            print(profiled.key_averages().table(sort_by=key, row_limit=NUM_OPERATIONS), flush=True)
    told("seconds in all", f"{args.minutes * 60 - clock.left:.0f}")


if __name__ == "__main__":
    main()
