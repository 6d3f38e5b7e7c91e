"""What a night costs in which nothing has changed, and what publishing costs.

    python tests/benchmarks/refresh_planning.py --normals 100000 1000000

For each number of normals a pool of so many files in a local folder, and the same as a Parquet manifest; a table
whose ledger holds them all; and then, in a process of its own, a whole `refresh` with nothing to do: listing,
ledger, comparison, lease, report. Seconds and peak memory, beside the standard library's bare listing of the
folder. Then the commit of 1,000 shards, and of a version that replaces them all, locally and on SeaweedFS.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import S3Server
from factories import InProcess

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.generate.shards import parquet_bytes
from raygen.publish.changes import LEDGER_SCHEMA, keys_of, list_pool
from raygen.publish.config import RefreshConfig
from raygen.publish.refresh import refresh
from raygen.publish.table import DataFile, Publication, create_table

NULL = "null:32x1"
KINDS = ("folder", "manifest")
PER_FOLDER = 10_000
NORMALS_PER_SHARD = 256


def prepare(num_normals: int, folder: Path) -> None:
    """Makes the two pools, and for each a table that holds it."""
    for number in range(num_normals):
        place = folder / "pool" / f"product-{number // PER_FOLDER:04d}"
        if number % PER_FOLDER == 0:
            place.mkdir(parents=True)
        (place / f"{number:09d}.png").touch()
    listing = None
    for kind in KINDS:
        config = config_of(kind, folder)
        recipe = config.generate_config(config.pool, config.table)
        if listing is None:
            listing = list_pool(recipe, ())
            pq.write_table(listing, f"{folder}/pool.parquet")
        keys = keys_of(recipe, load_checkpoint(NULL), sorted(set(listing["product"].to_pylist())))
        columns = [
            *(listing[name] for name in ("uri", "product", "etag")),
            pa.array([keys[name] for name in listing["product"].to_pylist()]),
            pa.array(
                [f"runs/000001-a/shards/{n // NORMALS_PER_SHARD:05d}.parquet" for n in range(num_normals)]
            ),
            pa.array([n.to_bytes(32) for n in range(num_normals)], pa.binary(32)),
        ]
        ledger = "_refresh/000001-a/ledger.parquet"
        storage.put(f"{config.table}/{ledger}", parquet_bytes(pa.table(columns, LEDGER_SCHEMA)))
        create_table(config.table).commit(Publication(night="000001-a", ledger=ledger, content=1), [], [])


def measure(kind: str, folder: Path) -> None:
    """Prints what a refresh with nothing to do takes."""
    started = time.perf_counter()
    num_files = sum(len(names) for _, _, names in os.walk(folder / "pool"))
    walked = time.perf_counter() - started
    before = peak()
    started = time.perf_counter()
    report = refresh(config_of(kind, folder), lambda line: None, InProcess())
    seconds = time.perf_counter() - started
    assert report.status == "nothing to do"
    assert report.counts.kept == num_files
    print(
        f"{num_files:>9,} normals, {kind:8}: {seconds:6.2f} s (os.walk of the folder: {walked:.2f} s); peak "
        f"memory {peak():,.0f} MB, {before:,.0f} MB of it before the refresh",
        flush=True,
    )


def config_of(kind: str, folder: Path) -> RefreshConfig:
    pool = f"{folder}/pool" if kind == "folder" else f"{folder}/pool.parquet"
    return RefreshConfig(pool=pool, table=f"{folder}/table-{kind}", checkpoint=NULL)


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def publish(uri: str, num_shards: int) -> None:
    """Prints what the commits of so many shards take."""
    table = create_table(uri)
    sides = []
    removed: list[str] = []
    for night in range(3):
        files = [
            DataFile(f"runs/{night}/shards/{n:05d}.parquet", 10**6, 1024, {"product": "a"}, {"product": "b"})
            for n in range(num_shards)
        ]
        started = time.perf_counter()
        table = table.commit(
            Publication(night=str(night), ledger="l", content=table.version + 1), files, removed
        )
        sides.append(time.perf_counter() - started)
        removed = [file.path for file in files]
        assert len(table.files()) == num_shards
    where = "S3" if "://" in uri else "local"
    print(
        f"{where}: commit of {num_shards:,} shards {sides[0]:.2f} s; one that replaces them all {sides[1]:.2f} "
        f"and {sides[2]:.2f} s"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--normals", type=int, nargs="+", default=[100_000])
    parser.add_argument("--shards", type=int, default=1_000)
    parser.add_argument("--step", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.step:
        step, folder = args.step
        prepare(int(step), Path(folder)) if step.isdigit() else measure(step, Path(folder))
        return
    for count in args.normals:
        with tempfile.TemporaryDirectory() as folder:
            for step in (str(count), *KINDS):
                subprocess.run([sys.executable, __file__, "--step", step, folder], check=True)
    with tempfile.TemporaryDirectory() as folder:
        publish(f"{folder}/table", args.shards)
        server = S3Server(Path(folder))
        os.environ.update(server.environment)
        server.start()
        try:
            server.wait()
            publish("s3://raygen/table", args.shards)
        finally:
            server.stop()


if __name__ == "__main__":
    main()
