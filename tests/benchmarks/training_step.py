"""What one full step of training costs: seconds an image and peak memory, one process of two threads against two
processes of one.

    python tests/benchmarks/training_step.py [RECIPE] [--set KEY=VALUE] [--steps N] [--rounds N]

A step is the loop's own: D and G, latent-guided and reference-guided, with the moving average, on random photos;
two processes reduce their gradients through DDP (gloo). Rounds alternate; medians are printed.
"""

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from raygen.config import load_config
from raygen.families.dtgan.batches import BatchMaker, Sampler, to_batch
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.dtgan.step import Networks, Training, iterate
from raygen.families.dtgan.training import network_sizes
from raygen.families.world import World


def steps(config: DTGANTrainConfig, sizes: DTGANConfig, world: World, num_steps: int) -> float:
    """Seconds of one step, all processes together, after one to warm up."""
    training = Training.start(config, sizes, torch.device("cpu"))
    wrapped = training.networks
    if world.size > 1:
        wrapped = Networks(*(DistributedDataParallel(network) for _, network in training.networks.items()))
    photos = np.random.default_rng(0).integers(
        0, 256, (9, sizes.image_size, sizes.image_size, sizes.channels), dtype=np.uint8
    )
    sampler = Sampler(np.arange(9) % sizes.num_domains, np.arange(9) // 3, config.seed)
    make = BatchMaker(sampler, photos.__getitem__, sizes, config.augment)
    training.images_seen = config.optimizer.head_start

    def step() -> None:
        batch = to_batch(make(world.numbers(training.images_seen, config)))
        iterate(training, wrapped, batch, config, config.batch_per_worker * world.size)

    step()
    started = time.perf_counter()
    for _ in range(num_steps):
        step()
    return (time.perf_counter() - started) / num_steps


def process(
    config: DTGANTrainConfig, sizes: DTGANConfig, world: World, threads: int, num_steps: int, folder: str
) -> None:
    """One process of a round; leaves its seconds and its peak memory."""
    torch.set_num_threads(threads)
    if world.size > 1:
        meeting = f"file://{folder}/rendezvous"
        dist.init_process_group("gloo", init_method=meeting, rank=world.rank, world_size=world.size)
    seconds = steps(config, sizes, world, num_steps)
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    Path(folder, str(world.rank)).write_text(f"{seconds} {megabytes}")


def measure(
    config: DTGANTrainConfig, sizes: DTGANConfig, num_processes: int, num_steps: int
) -> tuple[float, float]:
    """Seconds an image, and the peak memory of all processes in MB."""
    spawn = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        arguments = [
            (config, sizes, World(rank, num_processes), 2 // num_processes, num_steps, folder)
            for rank in range(num_processes)
        ]
        processes = [spawn.Process(target=process, args=some) for some in arguments]
        for child in processes:
            child.start()
        for child in processes:
            child.join()
        found = [
            tuple(map(float, Path(folder, str(rank)).read_text().split())) for rank in range(num_processes)
        ]
    seconds = max(seconds for seconds, _ in found)
    return seconds / (config.batch_per_worker * num_processes), sum(memory for _, memory in found)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", nargs="?", default="jobs/dtgan-64-cpu.toml")
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args(argv)
    config = load_config(DTGANTrainConfig, args.recipe, ["defects=/none", "output=/none", *args.overrides])
    sizes = network_sizes(config, num_products=3, num_domains=3)
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for num_processes, results in found.items():
            results.append(measure(config, sizes, num_processes, args.steps))
    print(
        f"{args.recipe}: {sizes.image_size} px, width {sizes.width:g}, batch {config.batch_per_worker} a process"
    )
    medians = {}
    for num_processes, results in found.items():
        seconds, memory = (statistics.median(values) for values in zip(*results, strict=True))
        medians[num_processes] = seconds
        threads = 2 // num_processes
        print(
            f"{num_processes} process(es) x {threads} thread(s): {seconds:.3f} s an image, "
            f"{1 / seconds:.2f} images/s, peak memory {memory:,.0f} MB"
        )
    print(f"two processes / one: {medians[1] / medians[2]:.2f} x the images")


if __name__ == "__main__":
    main()
