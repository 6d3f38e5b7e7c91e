"""Listing 100,000 files, by this checkout and another: `python tests/benchmarks/listing.py --against CHECKOUT`.

Both list the same folder of empty files in turn, in fresh processes: as a defect set (normals, and defects with a
mask each; with and without a metadata.csv of splits) and as a pool; and a Parquet manifest of `--rows`. Prints
medians and the ratio other ÷ this (above 1, this one is faster), and the peak memory of both.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

ROOT = Path(__file__).parents[2]

LIST = r"""
import re, sys, time
from raygen.data.defects import list_defect_set
from raygen.data.pool import index_pool
what, uri = sys.argv[1:]
started = time.perf_counter()
count = len(list_defect_set(uri)) if what == "set" else sum(1 for _ in index_pool(uri))
peak = re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())
print(time.perf_counter() - started, count, int(peak[1]) // 1000)
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


def write_manifest(file: Path, num_rows: int) -> None:
    """Rows of a long manifest, a million at a time."""
    schema = pa.schema([("uri", pa.string()), ("product", pa.string())])
    with pq.ParquetWriter(file, schema) as writer:
        for first in range(0, num_rows, 1_000_000):
            numbers = range(first, min(first + 1_000_000, num_rows))
            uris = [f"s3://factory/line-{n % 7}/{n // 10_000:05}/{n:09}.png" for n in numbers]
            writer.write_table(pa.table([uris, ["tile"] * len(uris)], schema=schema))


def seconds(checkout: Path, what: str, uri: Path) -> tuple[float, int, int]:
    """Seconds, what was listed, and the process's peak memory in MB."""
    run = [sys.executable, "-c", LIST, what, str(uri)]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    answer = subprocess.run(
        run, env=environment, cwd=checkout, capture_output=True, text=True, check=True
    ).stdout
    duration, count, memory = answer.split()
    return float(duration), int(count), int(memory)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--against", type=Path, required=True, help="another checkout of raygen")
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build(Path(folder), args.files)
        write_manifest(Path(folder, "manifest.parquet"), args.rows)
        places = (("plain", "set"), ("split", "set"), ("pool", "pool"), ("manifest.parquet", "pool"))
        for name, what in places:
            peaks: dict[Path, int] = {}
            times: dict[Path, list[float]] = {ROOT: [], args.against: []}
            counts = set()
            for _ in range(args.rounds):
                for checkout, of in times.items():
                    duration, count, peaks[checkout] = seconds(checkout, what, Path(folder) / name)
                    of.append(duration)
                    counts.add(count)
            this, other = (statistics.median(of) for of in times.values())
            print(
                f"{name}: {other:.2f} s, this one {this:.2f} s: {other / this:.2f} times as fast, "
                f"{counts} listed, {peaks[args.against]} and {peaks[ROOT]} MB"
            )


if __name__ == "__main__":
    main()
