"""What the vital signs of a training cost, as a share of the time from one checkpoint to the next.

    python tests/benchmarks/vital_signs_cost.py [RECIPE] [--set KEY=VALUE] [--steps N] [--rounds N]

On procedural surfaces, one process of one thread; steps and signs by turns, so that a busy machine slows both.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence

import torch

from raygen import images, storage, surfaces
from raygen.families.photos import TRAINING_SPLITS, VALIDATION_SPLITS
from raygen.families.world import World
from raygen.train.config import load_train_config, trainer_of
from raygen.train.job import draft

NUM_NORMALS, NUM_DEFECTS = 60, 40  # of each product, and of each of its types; a tenth is held back


def write_set(folder: str, size: int) -> None:
    """Surfaces with a metadata.csv."""
    rows = ["id,product,domain,split"]
    for number, (name, pixels) in enumerate(surfaces.defect_set(NUM_NORMALS, NUM_DEFECTS, 0, size=size)):
        storage.put(storage.join(folder, name), images.encode_png(pixels.reshape(size, size, 1)))
        if not name.endswith("_mask.png"):
            product, domain, file = name.split("/")
            split = "train" if number % 10 else "val"
            rows.append(f"{file.removesuffix('.png')},{product},{domain},{split}")
    storage.put(storage.join(folder, "metadata.csv"), "\n".join(rows).encode())


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="jobs/dtgan-64-cpu.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        config = load_train_config(args.recipe, [f"defects={folder}", "output=/none", *args.overrides])
        write_set(folder, size=64)
        run, defects = draft(config, *trainer_of(config).draft(config))
        trainer = trainer_of(config)(config, run)
        learning, judged = defects.part(TRAINING_SPLITS), defects.part(VALIDATION_SPLITS)
        training = trainer.start(torch.device("cpu"))
        trainer.warm(training)
        step, make = trainer.stepper(training, World()), trainer.maker(learning, in_memory=True)

        def steps() -> None:
            for _ in range(args.steps):
                step(make(World().numbers(training.images_seen, config)))

        steps()
        rounds = [
            (seconds(steps), seconds(lambda: trainer.vital_signs(training, learning, judged)))
            for _ in range(args.rounds)
        ]
    of_steps, of_signs = (statistics.median(values) for values in zip(*rounds, strict=True))
    image = of_steps / (args.steps * config.batch_per_worker)
    between = image * config.checkpoint_every
    print(f"{args.recipe}: {image:.3f} s an image, {between:.0f} s from one checkpoint to the next")
    print(f"vital signs: {of_signs:.2f} s, {of_signs / between:.2%} of that")


if __name__ == "__main__":
    main()
