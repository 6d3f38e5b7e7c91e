"""Prints how many surfaces a second one core renders, for each product and kind.

    python -m tests.benchmarks.surfaces [--size 128] [--channels 1] [--images 20] [--rounds 7]

The time is the process's own CPU time, so other work on the machine counts little; rendering only, no files.
"""

import argparse
import os
from collections.abc import Callable
from statistics import mean, median
from time import process_time

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[variable] = "1"  # before numpy is imported

from raygen.surfaces import DEFECT_TYPES, PRODUCTS, render_defect, render_normal  # noqa: E402


def seconds_per_image(render: Callable[[int], object], num_images: int, num_rounds: int) -> float:
    """Median over the rounds of the CPU seconds of one image; each round renders the same seeds."""
    render(0)
    rounds = []
    for _ in range(num_rounds):
        start = process_time()
        for seed in range(num_images):
            render(seed)
        rounds.append((process_time() - start) / num_images)
    return median(rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description="Images a second of the surface renderer, on one core.")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--images", type=int, default=20, help="images of a round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    size, channels = options.size, options.channels

    kinds = ("normal", *DEFECT_TYPES)
    print(f"images/s, {size} px, {channels} channel(s), one core")
    print(f"{'':<18}" + "".join(f"{kind:>11}" for kind in kinds))
    every = []
    for product in PRODUCTS:
        renders: list[Callable[[int], object]] = [
            lambda seed, product=product: render_normal(product, seed, size, channels)
        ]
        renders += [
            lambda seed, product=product, kind=kind: render_defect(product, kind, seed, size, channels)
            for kind in DEFECT_TYPES
        ]
        seconds = [seconds_per_image(render, options.images, options.rounds) for render in renders]
        every += seconds
        print(f"{product:<18}" + "".join(f"{1 / second:>11.0f}" for second in seconds))
    print(f"mean of all: {1 / mean(every):.0f} images/s ({1000 * mean(every):.2f} ms an image)")


if __name__ == "__main__":
    main()
