"""Copy-paste samples a second on one core, without reading and encoding, beside the floor: what any family pays
that copies the normal, draws from a seed and scores its pixels.

    OMP_NUM_THREADS=1 python tests/benchmarks/copy_paste_speed.py [--sizes 64 128] [--rounds 5]

Normals and defects are procedural surfaces; batches of 8, as the main job's default. Medians over the rounds.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_bank, write_split_set

from raygen import surfaces
from raygen.families import load_generator
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.family import Views, stream
from raygen.families.recipes import SamplingConfig
from raygen.families.scores import pixel_scores
from raygen.records import MODES, Mode, SampleRequest

BATCH, NUM_BATCHES = 8, 50


def rate(make: Callable[[int], object]) -> float:
    """Samples a second of a maker of batches by number."""
    started = time.perf_counter()
    for number in range(NUM_BATCHES):
        make(number)
    return BATCH * NUM_BATCHES / (time.perf_counter() - started)


def makers(size: int) -> dict[str, Callable[[int], object]]:
    """What makes the n-th batch: of each mode, and the floor."""
    with tempfile.TemporaryDirectory() as folder:
        write_split_set(f"{folder}/set", {"train": (2, 20)}, size)
        places = {"defects": f"{folder}/set", "output": f"{folder}/bank"}
        config = CopyPasteConfig.model_validate({**places, "image_size": size, "channels": 1})
        bank = write_bank(config, lambda line: None)
    generator = load_generator(bank, SamplingConfig(pool="p"))
    pool = list(surfaces.pool(BATCH, 3, size, 1))
    names = [name.split("/")[0] for name, _ in pool]
    normals = np.stack([pixels for _, pixels in pool])
    masks = np.zeros((BATCH, size, size), bool)
    masks[:, size // 2 :, size // 2 :] = True

    def make(mode: Mode, number: int) -> object:
        rows = (np.arange(BATCH) * 7 + number) % len(names)
        views = Views(normals[rows], [names[row] for row in rows], None, None)
        kind, seeds = ("scratches", "spots")[number % 2], np.arange(BATCH) + BATCH * number
        return generator.make(views, SampleRequest(kind, mode, 0), seeds)

    def floor(number: int) -> object:
        some = normals[(np.arange(BATCH) * 7 + number) % len(names)]
        drawn = [stream(BATCH * number + row).random(8) for row in range(BATCH)]
        return drawn, pixel_scores(np.rint(some.astype(np.float32)).astype(np.uint8), some, masks)

    return {**{mode: partial(make, mode) for mode in MODES}, "floor": floor}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    for size in args.sizes:
        found: dict[str, list[float]] = {}
        for _ in range(args.rounds):
            for name, make in makers(size).items():
                found.setdefault(name, []).append(rate(make))
        medians = {name: statistics.median(rates) for name, rates in found.items()}
        both = 2 / sum(1 / medians[mode] for mode in MODES)
        print(
            f"{size} px: {', '.join(f'{name} {value:,.0f}/s' for name, value in medians.items())}; "
            f"both modes alike {both:,.0f}/s, {both / medians['floor']:.2f} of the floor"
        )


if __name__ == "__main__":
    main()
