"""Does an evaluation's memory depend on how many images are evaluated? With 10,000 samples and with 100,000:

    python tests/benchmarks/evaluation_memory.py
    python tests/benchmarks/evaluation_memory.py --normals 250 2500 --extractor lite0

The runs are the null generator's, of a pool of surfaces that differ in a few pixels; every sample is looked at.
Peak resident memory, in MB, is what the kernel says (VmHWM) of the driver and of its largest Ray worker.
The driver holds what is known of each sample but its features and pixels; a worker that measures a row of all
samples their features, whose number `samples_per_cell` bounds. (Classifiers, left out here, bring as many
samples' pixels into the driver as they look at.)
"""

import argparse
import itertools
import re
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_split_set

from raygen import images, storage, surfaces
from raygen.evaluate.config import DistanceConfig, DownstreamConfig, EvaluateConfig, FeatureConfig
from raygen.evaluate.job import evaluate
from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate

SIZE = 64


def worker_peaks() -> dict[int, float]:
    """Peak resident memory, MB, of each Ray worker of this machine."""
    peaks = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            name = status.with_name("cmdline").read_bytes()
            peak = re.search(r"VmHWM:\s+(\d+)", status.read_text())
        except OSError:
            continue  # gone
        if name.startswith(b"ray::") and peak:
            peaks[int(status.parent.name)] = int(peak[1]) / 1000
    return peaks


def write_pool(uri: str, num_normals: int) -> None:
    """A few surfaces, each again and again with its number in four of its pixels."""
    some = list(surfaces.pool(20, seed=0, size=SIZE, channels=1))
    for number in range(num_normals):
        name, pixels = some[number % len(some)]
        pixels = pixels.reshape(SIZE, SIZE, 1).copy()
        pixels[0, :4, 0] = np.frombuffer(number.to_bytes(4, "little"), np.uint8)
        storage.put(storage.join(uri, name.split("/")[0], f"{number:07d}.png"), images.encode_png(pixels))


def run(folder: str, num_normals: int, extractor: str) -> None:
    """The driver: evaluates a run; prints its own peak and the largest worker's."""
    largest = 0.0
    is_done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not is_done.wait(0.5):
            largest = max([largest, *worker_peaks().values()])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.monotonic()
    config = EvaluateConfig(
        defects=f"{folder}/set",
        output=f"{folder}/report-{num_normals}",
        runs={"ours": f"{folder}/run-{num_normals}"},
        features=FeatureConfig.model_validate({"extractor": extractor}),
        distances=DistanceConfig(samples_per_cell=num_normals, kid_subsets=10, cluster_samples=50),
        downstream=DownstreamConfig(conditions=()),
    )
    metrics = evaluate(config)
    is_done.set()
    watcher.join()
    print(f"seconds {time.monotonic() - started:.0f}; samples {sum(metrics.runs['ours'].chosen.values())}")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000, largest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--normals", type=int, nargs="+", default=[2500, 25_000], help="four samples of each")
    parser.add_argument("--extractor", default="pixels")
    parser.add_argument("--run", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run[0], int(args.run[1]), args.run[2])
        return
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        write_split_set(f"{folder}/set", {"train": (50, 30), "val": (5, 5), "test": (20, 15)})
        for num_normals in args.normals:
            write_pool(f"{folder}/pool-{num_normals}", num_normals)
            generate(
                GenerateConfig(
                    pool=f"{folder}/pool-{num_normals}",
                    output=f"{folder}/run-{num_normals}",
                    checkpoint=f"null:{SIZE}x1",
                    masks=False,
                ),
                say=lambda line: None,
            )
            command = [sys.executable, __file__, "--run", folder, str(num_normals), args.extractor]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            *_, told, figures = done.stdout.splitlines()
            driver, worker = map(float, figures.split())
            peaks.append((driver, worker))
            print(
                f"{4 * num_normals:8,} samples: driver {driver:.0f} MB, largest worker {worker:.0f} MB; {told}",
                flush=True,
            )
    for (a, b), (c, d) in itertools.pairwise(peaks):
        print(f"growth: driver {c - a:.0f} MB, largest worker {d - b:.0f} MB")


if __name__ == "__main__":
    main()
