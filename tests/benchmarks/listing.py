"""Listing 100,000 files, by this checkout and another: `python tests/benchmarks/listing.py --against CHECKOUT`.

Both list the same folder of empty files in turn, in fresh processes: as a defect set (normals, and defects with a
mask each; with and without a metadata.csv of splits) and as a pool. Prints medians and the ratio other ÷ this:
above 1, this one is faster.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]

LIST = """
import sys, time
from raygen.data.defects import list_defect_set
from raygen.data.pool import index_pool
what, uri = sys.argv[1:]
started = time.perf_counter()
count = len(list_defect_set(uri)) if what == "set" else sum(1 for _ in index_pool(uri))
print(time.perf_counter() - started, count)
"""


def build(folder: Path, num_files: int) -> None:
    """A set with and one without metadata.csv, and a pool; masks are half of a set's defect files."""
    cells = [(f"product-{p}", kind) for p in range(5) for kind in ("normal", "scratches", "spots")]
    each = num_files // (5 * 5)  # a photo of a normal, two files of each defect
    rows = ["id,product,domain,split"]
    for name in ("plain", "split"):
        for product, kind in cells:
            of_cell = folder / name / product / kind
            of_cell.mkdir(parents=True)
            for number in range(each):
                (of_cell / f"{number:06}.png").touch()
                if kind != "normal":
                    (of_cell / f"{number:06}_mask.png").touch()
                if name == "split":
                    rows.append(f"{number:06},{product},{kind},{'train' if number % 4 else 'test'}")
    (folder / "split" / "metadata.csv").write_text("\n".join(rows))
    for number in range(num_files):
        file = folder / "pool" / f"product-{number % 5}" / f"{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def seconds(checkout: Path, what: str, uri: Path) -> tuple[float, int]:
    run = [sys.executable, "-c", LIST, what, str(uri)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    answer = subprocess.run(
        run, env=environment, cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    duration, count = answer.split()
    return float(duration), int(count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of raygen")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), args.files)
        for name, what in (("plain", "set"), ("split", "set"), ("pool", "pool")):
            times: dict[Path, list[float]] = {ROOT: [], args.against: []}
            counts = set()
            for _ in range(args.rounds):
                for checkout, of in times.items():
                    duration, count = seconds(checkout, what, Path(folder) / name)
                    of.append(duration)
                    counts.add(count)
            this, other = (statistics.median(of) for of in times.values())
            print(
                f"{name}: {other:.2f} s, this one {this:.2f} s: {other / this:.2f} times as fast ({counts} listed)"
            )


if __name__ == "__main__":
    main()
