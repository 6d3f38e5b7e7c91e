"""What a small object of S3 costs to read and to list, by boto3 and by obstore: milliseconds of CPU.

    python tests/benchmarks/small_objects.py [--objects 4000] [--rounds 5]

Both as raygen asks them, against a SeaweedFS on this machine, in turn; medians. Reads by eight threads.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
from conftest import BUCKET, S3Server

from raygen import s3, s3_reads, storage


def by_boto3(client: Any, key: str) -> bytes:
    return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def list_by_boto3(client: Any) -> int:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix="pool/")
    return sum(1 for page in pages for item in page["Contents"] if item["ETag"])


def cpu_of(work: Callable[[], object], count: int) -> float:
    """Milliseconds of CPU for one of so many."""
    started = time.process_time()
    work()
    return 1000 * (time.process_time() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=int, default=4_000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    keys = [f"pool/{number:05}.png" for number in range(args.objects)]
    found: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(8) as threads:
        server = S3Server(Path(folder))
        os.environ.update(server.environment)
        server.start()
        server.wait()
        client = s3.client()
        list(threads.map(lambda key: storage.put(f"s3://{BUCKET}/{key}", os.urandom(900)), keys))
        ways: dict[str, Callable[[], object]] = {
            "read, boto3": lambda: list(threads.map(lambda key: by_boto3(client, key), keys)),
            "read, obstore": lambda: list(
                threads.map(lambda key: s3_reads.read(client, BUCKET, key, None), keys)
            ),
            "list, boto3": lambda: list_by_boto3(client),
            "list, obstore": lambda: sum(1 for _ in s3_reads.list_objects(client, BUCKET, "pool/")),
        }
        for _ in range(args.rounds):
            for name, work in ways.items():
                found.setdefault(name, []).append(cpu_of(work, len(keys)))
        server.stop()
    medians = {name: statistics.median(values) for name, values in found.items()}
    for name, median in medians.items():
        print(f"{name:15} {median:.4f} ms")
    for what in ("read", "list"):
        print(
            f"{what}: {medians[f'{what}, boto3'] / medians[f'{what}, obstore']:.1f} times as cheap by obstore"
        )


if __name__ == "__main__":
    main()
