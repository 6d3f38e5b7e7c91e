"""A million normals from S3 to a published table on S3, killed twice, then nights: what it takes.

    python tests/benchmarks/million.py FOLDER pool [--normals 1000000]  # SeaweedFS in FOLDER, and the normals
    python tests/benchmarks/million.py FOLDER run [--kill-at 0.2 0.6]   # `raygen refresh`, killed and begun again
    python tests/benchmarks/million.py FOLDER check                     # `raygen verify`; an independent count,
    python tests/benchmarks/million.py FOLDER count                     # that alone
    python tests/benchmarks/million.py FOLDER nights [--light]          # 1 % new, 1 % gone, 1 % changed
    python tests/benchmarks/million.py FOLDER plot FILE                 # memory and samples/s over the time

Normals are procedural surfaces of 32 px, each of its own seed; the defects are copy-paste's. Each step can be run
again. What is measured goes to FOLDER/*.json and is printed; requests are counted in SeaweedFS's own metrics.
"""

import argparse
import functools
import http.client
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs as fs
from conftest import BUCKET, S3Server, served
from deltalake import DeltaTable

from raygen import images, storage, surfaces

ROOT = Path(__file__).parents[2]
SIZE = 32
POOL, TABLE = f"s3://{BUCKET}/pool", f"s3://{BUCKET}/table"


def normal(number: int, seed: int = 0) -> tuple[str, bytes]:
    """Name in the pool and PNG of a normal; another seed is another photograph of the same name."""
    product = surfaces.PRODUCTS[number % len(surfaces.PRODUCTS)]
    pixels = surfaces.render_normal(product, number + 10_000_000 * seed, SIZE)
    return f"{product}/{number // 30_000:03d}/{number:07d}.png", images.encode_png(pixels)


def _fill(filer: int, numbers: range) -> None:
    """By SeaweedFS's own door, whose objects are S3's: its S3 door takes ten times as long for a small put."""
    connection = http.client.HTTPConnection("127.0.0.1", filer)
    for number in numbers:
        name, data = normal(number)
        connection.request("PUT", f"/buckets/{BUCKET}/pool/{name}", data, {"Content-Type": "image/png"})
        answer = connection.getresponse()
        answer.read()
        if answer.status != 201:
            raise RuntimeError(f"{name}: the filer answers {answer.status}")


def make_pool(num_normals: int, filer: int) -> None:
    started = time.monotonic()
    batches = [range(first, min(first + 2_000, num_normals)) for first in range(0, num_normals, 2_000)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as workers:
        for done, _ in enumerate(workers.imap_unordered(functools.partial(_fill, filer), batches), 1):
            if done % 25 == 0 or done == len(batches):
                print(f"{done * 2_000:,} normals, {time.monotonic() - started:,.0f} s", flush=True)


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def _raygen(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "raygen.cli", *arguments]


def make_bank(folder: Path) -> str:
    """A few procedural defects, cut out."""
    bank = folder / "bank"
    if not bank.exists():
        size = [f"--size={SIZE}", "--normals=20", "--defects=40"]
        subprocess.run(_raygen("surfaces", str(folder / "defects"), *size), check=True, env=_environment())
        recipe = [str(ROOT / "jobs/copy-paste.toml"), "--set", f"image_size={SIZE}", "--set", "channels=1"]
        places = ["--set", f"defects={folder / 'defects'}", "--set", f"output={bank}"]
        subprocess.run(_raygen("train", *recipe, *places), check=True, env=_environment())
    return str(bank)


class Watch:
    """A refresh under way: what its processes hold of memory, and how far it is, every five seconds."""

    def __init__(self, folder: Path, server: S3Server, overrides: list[str]) -> None:
        recipe = [
            "--set",
            f"pool={POOL}",
            "--set",
            f"table={TABLE}",
            "--set",
            f"checkpoint={make_bank(folder)}",
        ]
        more = [word for override in overrides for word in ("--set", override)]
        self.server = server
        self.log = folder / "refresh.log"
        self.started = time.time()
        self.said = 0  # bytes of the log that are an earlier attempt's
        if self.log.exists():
            self.said = self.log.stat().st_size
        with self.log.open("ab") as log:
            command = _raygen("refresh", str(ROOT / "jobs/refresh.toml"), *recipe, *more)
            self.process = subprocess.Popen(command, env=_environment(), stdout=log, stderr=log)

    def look(self) -> dict[str, float]:
        """Seconds; samples done; anonymous memory in MB of driver, all workers, the largest, Ray's own, SeaweedFS;
        what the object store holds."""
        held = {"driver": 0.0, "workers": 0.0, "largest worker": 0.0, "ray": 0.0, "seaweedfs": 0.0}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                status = (entry / "status").read_text()
            except OSError:
                continue  # gone
            anonymous = re.search(r"RssAnon:\s+(\d+)", status)
            megabytes = int(anonymous[1]) / 1000 if anonymous else 0.0
            if int(entry.name) == self.process.pid:
                held["driver"] = megabytes
            elif words[0].startswith(b"ray::"):
                held["workers"] += megabytes
                held["largest worker"] = max(held["largest worker"], megabytes)
            elif words[0].endswith((b"raylet", b"gcs_server")):
                held["ray"] += megabytes
            elif int(entry.name) == self.server.process.pid:
                held["seaweedfs"] = megabytes
        shm = os.statvfs("/dev/shm")
        held["object store"] = (shm.f_blocks - shm.f_bfree) * shm.f_frsize / 1e6
        return {"seconds": time.time() - self.started, "done": self.done(), **held}

    def done(self) -> int:
        with self.log.open("rb") as log:
            log.seek(self.said)
            found = re.findall(rb"([\d,]+) of [\d,]+ samples \(", log.read())
        return int(found[-1].replace(b",", b"")) if found else 0


def run(folder: Path, num_samples: int, kill_at: list[float], overrides: list[str]) -> None:
    """The first night, to its end, killed where `kill_at` says."""
    rows: list[dict[str, Any]] = []
    with served(folder / "weed") as server:
        for attempt, share in enumerate([*kill_at, 2.0]):
            watch = Watch(folder, server, overrides)
            while watch.process.poll() is None:
                rows.append({"attempt": attempt, **watch.look(), **server.requests(settled=False)})
                (folder / "run.json").write_text(json.dumps(rows))
                if rows[-1]["done"] >= share * num_samples:
                    watch.process.send_signal(signal.SIGKILL)
                    watch.process.wait()
                    print(f"killed at {rows[-1]['done']:,} samples", flush=True)
                    time.sleep(20)  # Ray's processes follow their driver
                    break
                time.sleep(5)
            else:
                print(f"attempt {attempt} ended with {watch.process.returncode}", flush=True)
                return


def check(folder: Path) -> None:
    """`raygen verify` of the table's runs; and every sample counted, by a reader that knows nothing of raygen."""
    with served(folder / "weed"):
        table = DeltaTable(TABLE, storage_options={"allow_http": "true"})
        for run_uri in sorted({"/".join(uri.split("/")[:6]) for uri in table.file_uris()}):
            started = time.monotonic()
            subprocess.run(_raygen("verify", run_uri), check=True, env=_environment())
            print(f"verified in {time.monotonic() - started:,.0f} s", flush=True)
        count(table)


def count(table: DeltaTable) -> None:
    """Every row of the table, by pyarrow alone."""
    started = time.monotonic()
    files = [uri.removeprefix("s3://") for uri in table.file_uris()]
    endpoint = os.environ["AWS_ENDPOINT_URL"].removeprefix("http://")
    dataset = ds.dataset(files, filesystem=fs.S3FileSystem(endpoint_override=endpoint, scheme="http"))
    rows = dataset.to_table(columns=["sample_id", "normal_uri"])
    samples, normals = (len(rows[name].unique()) for name in rows.column_names)
    seconds = time.monotonic() - started
    print(
        f"{len(rows):,} rows, {samples:,} samples, {normals:,} normals, counted in {seconds:,.0f} s",
        flush=True,
    )


def nights(folder: Path, num_normals: int, light: bool) -> None:
    """What the nights after the first cost; if light without those that write most of the table anew."""
    percent = num_normals // 100
    changes: dict[str, tuple[Callable[[], None], list[str]]] = {
        "nothing": (lambda: None, []),
        "1 % new": (lambda: _put_normals(range(num_normals, num_normals + percent)), []),
        "1 % gone, max_gone = 0.2": (lambda: _delete_normals(range(50, num_normals, 100)), ["max_gone=0.2"]),
        "the same, max_gone = 0": (lambda: None, []),
        "1 % changed": (lambda: _put_normals(range(60, num_normals, 100), seed=1), []),
    }
    with served(folder / "weed") as server:
        for name, (change, overrides) in itertools.islice(changes.items(), 3 if light else None):
            change()
            files = _files()
            before = server.requests()
            watch = Watch(folder, server, overrides)
            code = watch.process.wait()
            seconds = time.time() - watch.started
            asked = {kind: count - before.get(kind, 0) for kind, count in server.requests().items()}
            now = _files()
            written = sum(size for path, size in now.items() if path not in files)
            share = written / sum(files.values())
            print(
                f"{name}: exit code {code}, {seconds:,.0f} s, {len(now.keys() - files):,} files came and "
                f"{len(files.keys() - now):,} left; bytes written {share:.1%} of the table's; requests {asked}",
                flush=True,
            )


def _put_normals(numbers: Iterable[int], seed: int = 0) -> None:
    for number in numbers:
        name, data = normal(number, seed)
        storage.put(f"{POOL}/{name}", data)


def _delete_normals(numbers: Iterable[int]) -> None:
    for number in numbers:
        storage.delete(f"{POOL}/{normal(number)[0]}")


def _files() -> dict[str, int]:
    """The table's files, and their bytes."""
    actions = pa.table(
        DeltaTable(TABLE, storage_options={"allow_http": "true"}).get_add_actions(flatten=True)
    )
    return dict(zip(actions["path"].to_pylist(), actions["size_bytes"].to_pylist(), strict=True))


def plot(folder: Path, file: Path) -> None:
    """Memory and samples over the time of all attempts, as a picture; their figures as text."""
    from matplotlib.figure import Figure

    rows = json.loads((folder / "run.json").read_text())
    starts, end = [0.0], 0.0
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        row["time"] = starts[-1] + row["seconds"]
        if following is not None and following["attempt"] != row["attempt"]:
            starts.append(row["time"] + 20)
        end = row["time"]
    minutes = [row["time"] / 60 for row in rows]
    figure = Figure(figsize=(9, 5), layout="constrained")
    memory, samples = figure.subplots(2, 1, sharex=True)
    for name in ("driver", "workers", "largest worker", "object store", "ray"):
        memory.plot(minutes, [row[name] for row in rows], label=name)
        print(f"{name}: at most {max(row[name] for row in rows):,.0f} MB")
    memory.set_ylabel("MB")
    memory.legend(ncols=5, fontsize="small")
    samples.plot(minutes, [row["done"] / 1e6 if row["done"] else math.nan for row in rows])
    samples.set_ylabel("million samples")
    samples.set_xlabel("minutes")
    for start in starts[1:]:
        samples.axvline(start / 60, color="grey", linestyle=":")
    figure.savefig(file, dpi=110)
    print(f"{end / 60:.0f} minutes in {len(starts)} attempts")
    for attempt in range(len(starts)):
        of = [row for row in rows if row["attempt"] == attempt and row["done"]]
        moving = [(a, b) for a, b in itertools.pairwise(of) if b["done"] > a["done"]]
        if not moving:
            continue
        print(f"attempt {attempt}: first progress after {of[0]['seconds']:.0f} s", end="")
        tenth = max(1, len(moving) // 10)
        for name, part in (("first", moving[1 : 1 + tenth]), ("last", moving[-tenth - 1 : -1])):
            if part:
                (start, _), (_, stop) = part[0], part[-1]
                rate = (stop["done"] - start["done"]) / (stop["seconds"] - start["seconds"])
                print(f", {name} tenth {rate:,.0f} samples/s", end="")
        print()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("step", choices=["pool", "run", "check", "count", "nights", "plot"])
    parser.add_argument("file", type=Path, nargs="?", help="of the plot")
    parser.add_argument("--normals", type=int, default=1_000_000)
    parser.add_argument("--light", action="store_true", help="three nights, not five")
    parser.add_argument("--kill-at", type=float, nargs="*", default=[0.2, 0.6])
    parser.add_argument("--set", dest="overrides", action="append", default=[])
    args = parser.parse_args()
    (args.folder / "weed").mkdir(parents=True, exist_ok=True)
    if args.step == "pool":
        with served(args.folder / "weed") as server:
            make_pool(args.normals, server.filer)
    elif args.step == "check":
        check(args.folder)
    elif args.step == "count":
        with served(args.folder / "weed"):
            count(DeltaTable(TABLE, storage_options={"allow_http": "true"}))
    elif args.step == "nights":
        nights(args.folder, args.normals, args.light)
    elif args.step == "plot":
        plot(args.folder, args.file or args.folder / "run.png")
    else:
        run(args.folder, 4 * args.normals, args.kill_at, args.overrides)


if __name__ == "__main__":
    main()
