"""Trains a recipe for so many minutes on one GPU, puts what it learned on the set's normals, and judges it.

    python tests/gpu/train_and_judge.py jobs/dtgan-64-cpu.toml DEFECTS OUT --minutes 8 --set preset=small-128
    python tests/gpu/train_and_judge.py jobs/dfmgan-256.toml DEFECTS OUT --minutes 4 --set backbone=STAGE_1

The number of images is chosen by the speed of the first steps, so that training ends in its share of the minutes;
OUT/training is an ordinary training's folder, whose checkpoints, metrics and sheets come home. Then samples of
--normals normals, and their unbiased kernel distance × 1000 (EfficientNet-Lite0) from real defects of their cell,
beside that of untouched normals. The same command goes on where it was interrupted.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import Clock, begin, parser, told

from raygen.checkpoint import load_checkpoint
from raygen.data.defects import list_defect_set, load_photos
from raygen.data.photo import Photo
from raygen.families import family_of, load_generator
from raygen.families.photos import TRAINING_SPLITS
from raygen.families.recipes import TrainingConfig
from raygen.families.world import World
from raygen.generate.config import GenerateConfig
from raygen.generate.sampling import Windows, sample
from raygen.metrics import kernel_distance
from raygen.pretrained import Lite0Features
from raygen.records import NORMAL, SampleRequest
from raygen.train.config import load_train_config, trainer_of
from raygen.train.job import draft, train
from raygen.train.process import prefetched

SHARE = 0.8  # of the minutes, for the training itself


def speed(config: TrainingConfig, device: torch.device, seconds: float) -> float:
    """Images a second of full steps, batches made in a thread beside them as in a training."""
    run, defects = draft(config, *trainer_of(config).draft(config))
    trainer = trainer_of(config)(config, run)
    training = trainer.start(device)
    trainer.warm(training)
    make = trainer.maker(defects.part(TRAINING_SPLITS), in_memory=True)
    step, size = trainer.stepper(training, World()), config.batch_per_worker
    batches = prefetched(make, [range(i * size, (i + 1) * size) for i in range(10_000)])
    for _ in range(3):
        step(next(batches))
    if device.type == "cuda":
        torch.cuda.synchronize()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < seconds:
        float(next(iter(step(next(batches)).values())))  # waits for the device, as the loop does
        count += size
    return count / (time.perf_counter() - started)


def learn(args: Any, clock: Clock, device: torch.device) -> TrainingConfig:
    """Trains as long as there is time; a folder that holds a training already keeps its number of images."""
    places = [f"defects={args.defects}", f"output={args.out}/training"]
    config = load_train_config(args.recipe, [*places, *args.set])
    assert isinstance(config, TrainingConfig)
    noted = Path(args.out, "images.txt")
    if not noted.exists():
        rate = speed(config, device, min(20.0, clock.left / 20))
        told("images a second, full steps", f"{rate:.1f}")
        size = config.batch_per_worker
        num_images = max(size, int(rate * SHARE * clock.left) // size * size)
        noted.parent.mkdir(parents=True, exist_ok=True)
        noted.write_text(str(num_images))
    num_images = int(noted.read_text())
    every = max(config.batch_per_worker, num_images // 8)
    config = config.model_copy(update={"images": num_images, "checkpoint_every": every})
    started = time.monotonic()
    train(config, alone=True)
    told(f"{num_images:,} images, seconds", f"{time.monotonic() - started:.0f}")
    return config


def judge(config: TrainingConfig, most: int, device: torch.device) -> None:
    """Distances of each cell's samples, and of normals."""
    checkpoint = load_checkpoint(config.output)
    sizes, family = checkpoint.config, family_of(checkpoint)
    photos = [photo for photo in list_defect_set(config.defects) if photo.split in TRAINING_SPLITS]
    features = Lite0Features(None, device)
    settings = GenerateConfig(
        pool="seeds:0-1" if family.draws_normals else "pool",
        output="out",
        checkpoint=checkpoint.uri,
        micro_batch=min(64, most),
        precision=config.precision,
    )
    generator = load_generator(checkpoint, settings)

    def load(some: Sequence[Photo]) -> np.ndarray:
        some = some[:: max(1, len(some) // most)][:most]
        return load_photos(some, sizes.image_size, sizes.channels)

    for product in sizes.products:
        normals = load([p for p in photos if (p.product, p.defect_type) == (product, NORMAL)])
        for kind in sizes.defect_types:
            real = load([p for p in photos if (p.product, p.defect_type) == (product, kind)])
            if len(real) < 2 or len(normals) < 2:
                continue
            modes = ("latent", "reference") if checkpoint.references else ("latent",)
            requests = [SampleRequest(kind, mode, 0) for mode in modes]
            names, seeds = [product] * len(normals), np.arange(len(normals))[:, None] + np.arange(len(modes))
            drawn = [*range(len(normals))] if family.draws_normals else None
            windows = Windows(None if family.draws_normals else normals[:, None], names, seeds=drawn)
            made = sample(
                generator, windows, requests, lambda n, s=seeds: s + 10**6 * (n + 1), settings.gate
            ).made
            own = features(real)
            found = {"normals": normals} | {mode: made.pixels[:, i] for i, mode in enumerate(modes)}
            values = {
                name: 1000 * kernel_distance(own, features(pixels), num_subsets=20).mean
                for name, pixels in found.items()
            }
            told(f"{product}/{kind}", ", ".join(f"{name} {value:.1f}" for name, value in values.items()))


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("recipe")
    arguments.add_argument("defects")
    arguments.add_argument("out")
    arguments.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    arguments.add_argument("--normals", type=int, default=200, help="of a product, to judge")
    args = arguments.parse_args()
    clock, device = Clock(args.minutes), begin(args.device)
    config = learn(args, clock, device)
    judge(config, args.normals, device)
    told("seconds in all", f"{args.minutes * 60 - clock.left:.0f}")


if __name__ == "__main__":
    main()
