"""What DFM-GAN costs: four defects of one normal, the backbone's lower half done once, against four full passes,
one after the other and as one batch; and an iteration of each stage.

    python tests/benchmarks/dfmgan_work.py [--sizes 64 128 256] [--rounds N]

Random weights of the original's widths (64 px: those of jobs/…-64-cpu.toml besides), float32, one thread.
Rounds alternate; medians are printed.
"""

import argparse
import statistics
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from raygen.families.blocks import channels_last
from raygen.families.dfmgan import step as dfmgan
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dfmgan.networks import DFMGANConfig, DFMGANGenerator, Normals
from raygen.families.dfmgan.step import DFMGANTraining
from raygen.families.stylegan2 import step as stylegan2
from raygen.families.stylegan2.batches import GANBatch, GANBatchMaker, LatentSizes, to_gan_batch
from raygen.families.stylegan2.config import StyleGAN2TrainConfig
from raygen.families.stylegan2.networks import Backbone, State, StyleGAN2Config, build_discriminator
from raygen.families.stylegan2.step import StyleGAN2Training
from raygen.families.world import World

CPU = torch.device("cpu")
NUM_DEFECTS = 4
JOBS = Path(__file__).parents[2] / "jobs"


def small_sizes() -> DFMGANConfig:
    """Those of the recipes for CPUs."""
    one, two = (
        tomllib.loads((JOBS / f"{family}-64-cpu.toml").read_text(encoding="utf-8"))["model"]
        for family in ("stylegan2", "dfmgan")
    )
    return DFMGANConfig(backbone=StyleGAN2Config(**one), **two)


def medians(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each, taking turns, after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            if number:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(found) for name, found in seconds.items()}


@torch.inference_mode()
def sharing(config: DFMGANConfig, rounds: int) -> tuple[dict[str, float], float]:
    """Seconds of four defects of one normal, three ways, and the largest difference over the range of images."""
    sizes = config.backbone
    network = DFMGANGenerator(config).eval()
    torch.nn.init.constant_(network.manipulation.to_mask.bias, 0.3)  # else fresh weights draw blank masks
    channels_last(network)
    ws = torch.randn(1, sizes.num_ws, sizes.w_dim)
    noise = torch.randn(1, sizes.noise_size)
    defect_ws = torch.randn(NUM_DEFECTS, config.num_ws, sizes.w_dim)
    defect_noise = torch.randn(NUM_DEFECTS, config.noise_size)

    def full() -> torch.Tensor:
        made = [network(ws, noise, defect_ws[i : i + 1], defect_noise[i : i + 1]) for i in range(NUM_DEFECTS)]
        assert all((one.mask >= 0).any() for one in made)
        return torch.cat([one.image for one in made])

    rows = ws.expand(NUM_DEFECTS, -1, -1), noise.expand(NUM_DEFECTS, -1)

    def batch() -> torch.Tensor:
        return network(*rows, defect_ws, defect_noise).image

    def shared() -> torch.Tensor:
        below, features = network.begin(ws, noise)
        assert below.image is not None
        x, image, features = (
            part.expand(NUM_DEFECTS, -1, -1, -1) for part in (below.x, below.image, features)
        )
        normals = Normals(State(x, image), features)
        return network.finish(normals, *rows, defect_ws, defect_noise).image

    wanted, found = full(), shared()
    difference = ((found - wanted).abs().max() / (wanted.max() - wanted.min())).item()
    return medians({"full": full, "batch": batch, "shared": shared}, rounds), difference


def steps(defects: DFMGANConfig, rounds: int, batch: int = 8) -> dict[str, float]:
    """Seconds an image of an iteration of each stage, lazy terms included in their share."""
    sizes = defects.backbone
    one = StyleGAN2TrainConfig(defects="-", output="-", batch_per_worker=batch)
    two = DFMGANTrainConfig(defects="-", output="-", backbone="-", batch_per_worker=batch)
    stage1 = StyleGAN2Training.start(one, sizes, CPU)
    stage2 = DFMGANTraining.start(
        two, defects, CPU, Backbone(sizes).state_dict(), build_discriminator(sizes).state_dict()
    )
    stage1.controller.p = stage2.controller.p = 0.3
    shape = (8, sizes.image_size, sizes.image_size, sizes.channels + 1)
    photos = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

    def batch_of(with_masks: bool, seen: int) -> GANBatch:
        make = GANBatchMaker(
            seed=0,
            cells=[np.arange(8)],
            products=np.zeros(8, np.int64),
            defect_types=np.arange(8) % 2 * with_masks,
            load=lambda rows: photos[rows] if with_masks else photos[rows][..., :-1],
            mirror=True,
            normal=LatentSizes(sizes.latent_dim, sizes.noise_size),
            defect=LatentSizes(sizes.latent_dim, defects.noise_size),
        )
        return to_gan_batch(make(range(seen, seen + batch)), sizes.channels, CPU)

    every = one.r1_every  # a whole cycle of lazy terms

    def cycle1() -> None:
        for _ in range(every):
            stylegan2.iterate(stage1, batch_of(False, stage1.images_seen), one, World())

    def cycle2() -> None:
        for _ in range(every):
            dfmgan.iterate(stage2, batch_of(True, stage2.images_seen), two, World())

    seconds = medians({"stage 1": cycle1, "stage 2": cycle2}, rounds)
    return {name: value / every / batch for name, value in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {"64 px, small": small_sizes()}
    wanted |= {
        f"{size} px": DFMGANConfig(backbone=StyleGAN2Config(image_size=size, channels=3))
        for size in args.sizes
    }
    for name, sizes in wanted.items():
        seconds, difference = sharing(sizes, args.rounds)
        print(
            f"{name}: four full passes {seconds['full']:.3f} s, one batch of four {seconds['batch']:.3f} s, "
            f"shared {seconds['shared']:.3f} s: {seconds['full'] / seconds['shared']:.2f}x and "
            f"{seconds['batch'] / seconds['shared']:.2f}x; difference / range {difference:.0e}"
        )
    for name, value in steps(replace(small_sizes(), num_types=2), max(1, args.rounds // 2)).items():
        print(f"64 px, small, {name}: {1000 * value:.0f} ms an image, {1 / value:.1f} images/s")


if __name__ == "__main__":
    main()
