"""Does the driver's memory depend on the number of images? Peak memory with 10,000 and with 100,000 normals.

    python tests/benchmarks/driver_memory.py

Each run is a process of its own with the null generator at 32 px; its driver's peak resident memory is what the
kernel says of that process alone (its Ray workers are others).
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_pool

from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate


def run(folder: str, num_normals: int) -> None:
    """The driver: indexes, plans, streams, sums up; prints its peak memory in MB."""
    config = GenerateConfig(
        pool=f"{folder}/pool-{num_normals}", output=f"{folder}/out-{num_normals}", checkpoint="null:32x1"
    )
    manifest = generate(config, say=lambda line: None)
    assert manifest.num_samples == 4 * num_normals
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--normals", type=int, nargs=2, default=[10_000, 100_000])
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        run(args.run[0], int(args.run[1]))
        return
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        some = write_pool(f"{folder}/some", 100)
        for num_normals in args.normals:
            for i in range(num_normals):
                file = Path(folder, f"pool-{num_normals}", "mixed", f"{i // 1000:04d}", f"{i:07d}.png")
                file.parent.mkdir(parents=True, exist_ok=True)
                file.hardlink_to(some[i % len(some)])
            command = [sys.executable, __file__, "--run", folder, str(num_normals)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            peaks.append(float(done.stdout.split()[-1]))
            print(f"{num_normals:8,} normals: driver peak {peaks[-1]:.0f} MB", flush=True)
    print(f"growth: {peaks[1] - peaks[0]:.0f} MB")


if __name__ == "__main__":
    main()
