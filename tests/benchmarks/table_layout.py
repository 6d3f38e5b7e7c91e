"""Which layout of the table serves readers better: shards as the main job wrote them, or partitions?

    python tests/benchmarks/table_layout.py --normals 1200 --rounds 5

Writes a run of procedural surfaces (null model, 64 px) as a table by nights, as `refresh` publishes it, and the
same rows partitioned by product and defect type by the Delta Lake library. Then, in turn, reads of both by Polars
and PyArrow: all images; those of one product and defect type; the labels alone. Medians, and the second layout's
over the first's.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import polars as pl
from deltalake import DeltaTable, write_deltalake

sys.path.insert(0, str(Path(__file__).parent.parent))

from factories import InProcess, write_pool

from raygen.publish.arrow import pc
from raygen.publish.config import RefreshConfig
from raygen.publish.refresh import refresh
from raygen.surfaces import DEFECT_TYPES, PRODUCTS

ONE = {"product": PRODUCTS[0], "defect_type": DEFECT_TYPES[0]}


def readers(uri: str) -> dict[str, Callable[[], int]]:
    """What is read: name -> rows."""
    frame, dataset = pl.scan_delta(uri), DeltaTable(uri).to_pyarrow_dataset()
    one = pl.all_horizontal(pl.col(name) == value for name, value in ONE.items())
    where = (pc.field("product") == ONE["product"]) & (pc.field("defect_type") == ONE["defect_type"])
    images = ["image", "mask", "defect_type"]
    return {
        "polars, all images": lambda: len(frame.select(images).collect()),
        "polars, one cell's images": lambda: len(frame.filter(one).select(images).collect()),
        "polars, labels": lambda: len(frame.select("product", "defect_type", "accepted").collect()),
        "pyarrow, all images": lambda: len(dataset.to_table(columns=images)),
        "pyarrow, one cell's images": lambda: len(dataset.to_table(columns=images, filter=where)),
        "pyarrow, labels": lambda: len(dataset.to_table(columns=["product", "defect_type", "accepted"])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--normals", type=int, default=1_200)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        write_pool(f"{folder}/pool", args.normals // 3, size=64)
        config = RefreshConfig(pool=f"{folder}/pool", table=f"{folder}/nights", checkpoint="null:64x1")
        refresh(config, lambda line: None, InProcess())
        rows = DeltaTable(config.table).to_pyarrow_table()
        started = time.perf_counter()
        write_deltalake(f"{folder}/cells", rows, partition_by=list(ONE))
        again = time.perf_counter() - started
        print(f"{len(rows):,} samples; writing them a second time, partitioned: {again:.1f} s")
        tables = {"nights": readers(config.table), "cells": readers(f"{folder}/cells")}
        for what in tables["nights"]:
            seconds: dict[str, list[float]] = {layout: [] for layout in tables}
            for _ in range(args.rounds + 1):
                for layout, reads in tables.items():
                    started = time.perf_counter()
                    count = reads[what]()
                    seconds[layout].append(time.perf_counter() - started)
                    assert count == len(rows) // (6 if "one cell" in what else 1)
            nights, cells = (1000 * statistics.median(seconds[layout][1:]) for layout in tables)
            print(f"{what:28} nights {nights:7.1f} ms, cells {cells:7.1f} ms: {cells / nights:.2f}")


if __name__ == "__main__":
    main()
