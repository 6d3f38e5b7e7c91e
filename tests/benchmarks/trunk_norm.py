"""How soon the discriminator sees a small defect: its foreground classifier on real surfaces, with and without
instance norm in its trunk, and nothing else learned (the head start of `jobs/dtgan-64-cpu.toml`).

    python tests/benchmarks/trunk_norm.py [--images N]

Prints the share of the last tenth of the images whose class (normal, scratches, spots; chance is 1/3) it got right
before it learned from them, for both, after every tenth.
"""

import argparse

import numpy as np
import torch

from raygen import surfaces
from raygen.config import load_config
from raygen.families.dtgan.batches import BatchMaker, Sampler, to_batch
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.networks import Discriminator
from raygen.families.dtgan.step import Training, discriminator_objective, head_start_terms
from raygen.families.dtgan.training import network_sizes
from raygen.records import NORMAL

PLACES = ["defects=/none", "output=/none"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=9600)
    args = parser.parse_args()
    torch.set_num_threads(1)
    kinds = (NORMAL, *surfaces.DEFECT_TYPES)
    found = [
        (pixels, kinds.index(kind), surfaces.PRODUCTS.index(product))
        for name, pixels in surfaces.defect_set(200, 100, seed=0, size=64)
        for product, kind, file in [name.split("/")]
        if not file.endswith("_mask.png")
    ]
    photos, domains, products = (np.array(column) for column in zip(*found, strict=True))
    for norm in ("none", "instance"):
        config = load_config(
            DTGANTrainConfig, "jobs/dtgan-64-cpu.toml", [*PLACES, f"model.trunk_norm={norm}"]
        )
        sizes = network_sizes(config, len(surfaces.PRODUCTS), len(kinds))
        sampler = Sampler(domains, products, config.seed)
        make = BatchMaker(sampler, photos.__getitem__, sizes, augment=True)
        training = Training.start(config, sizes, torch.device("cpu"))
        discriminator = training.networks.discriminator
        assert isinstance(discriminator, Discriminator)
        right: list[float] = []
        print(f'trunk_norm = "{norm}":', end="", flush=True)
        seen = 0
        while seen < args.images:
            batch = to_batch(make(range(seen // 3, seen // 3 + 4)))  # of an image and its two references each
            x = torch.cat([batch.x, batch.references.flatten(0, 1)])
            wanted = torch.cat([batch.domain, batch.target, batch.target])
            with torch.no_grad():
                guessed = discriminator(x).foreground
            assert guessed is not None
            right.append((guessed.argmax(1) == wanted).float().mean().item())
            training.optimizers["discriminator"].zero_grad()
            terms = head_start_terms(training.networks, batch)
            discriminator_objective(terms, config.loss.model_copy(update={"adversarial": 0.0})).backward()
            training.optimizers["discriminator"].step()
            seen += len(x)
            if seen // (args.images // 10) > (seen - len(x)) // (args.images // 10):
                print(f" {np.mean(right[-args.images // 10 // len(x) :]):.2f}", end="", flush=True)
        print()


if __name__ == "__main__":
    main()
