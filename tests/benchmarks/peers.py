"""What a user would write without raygen: images/s, CPU seconds and memory, each side as its documentation has it.

    python tests/benchmarks/peers.py [--normals 6000] [--size 64] [--rounds 3]

The same pool in a local folder, and of each normal four PNGs of the same pixels, in Parquet:

- raygen: `raygen generate` with the null generator, as it comes: hashes, seeds, boxes, masks and scores besides;
- ray data: `read_images → map_batches → write_parquet`;
- data loader: a torch `DataLoader` of two workers that decode and encode, and a loop that writes;
- processes: two plain ones of `multiprocessing`, each a part of the files.

Each in a process of its own, start-up included, in turn; medians. CPU seconds are the machine's meanwhile; memory
is the largest sum seen of the anonymous memory of all of a side's processes.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import write_pool

ROOT = Path(__file__).parents[2]
PEERS = {
    "ray data": """
import io, sys
import numpy as np, ray
from PIL import Image

def four(batch):
    images, uris = [], []
    for pixels, uri in zip(batch["image"], batch["path"]):
        for k in range(4):
            buffer = io.BytesIO()
            Image.fromarray(np.squeeze(pixels)).save(buffer, "PNG", compress_level=1)
            images.append(buffer.getvalue())
            uris.append(uri)
    return {"image": np.array(images, object), "uri": np.array(uris, object)}

pool, out = sys.argv[1:]
ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
ray.data.DataContext.get_current().enable_progress_bars = False
ray.data.read_images(pool, mode="L", include_paths=True).map_batches(four).write_parquet(out)
""",
    "data loader": """
import io, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image
from torch.utils.data import DataLoader, Dataset

class Normals(Dataset):
    def __init__(self, pool):
        self.files = sorted(map(str, Path(pool).rglob("*.png")))
    def __len__(self):
        return len(self.files)
    def __getitem__(self, index):
        pixels = np.asarray(Image.open(self.files[index]).convert("L"))
        pngs = []
        for k in range(4):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            pngs.append(buffer.getvalue())
        return self.files[index], pngs

if __name__ == "__main__":
    pool, out = sys.argv[1:]
    Path(out).mkdir()
    loader = DataLoader(Normals(pool), batch_size=256, num_workers=2, collate_fn=list)
    for number, batch in enumerate(loader):
        rows = [{"uri": uri, "image": png} for uri, pngs in batch for png in pngs]
        pq.write_table(pa.Table.from_pylist(rows), f"{out}/{number:05}.parquet")
""",
    "processes": """
import io, multiprocessing, sys
from pathlib import Path
import numpy as np, pyarrow as pa, pyarrow.parquet as pq
from PIL import Image

def work(job):
    number, files, out = job
    rows = []
    for file in files:
        pixels = np.asarray(Image.open(file).convert("L"))
        for k in range(4):
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG", compress_level=1)
            rows.append({"uri": file, "image": buffer.getvalue()})
    pq.write_table(pa.Table.from_pylist(rows), f"{out}/{number:05}.parquet")

if __name__ == "__main__":
    pool, out = sys.argv[1:]
    Path(out).mkdir()
    files = sorted(map(str, Path(pool).rglob("*.png")))
    jobs = [(i, files[i : i + 256], out) for i in range(0, len(files), 256)]
    with multiprocessing.Pool(2) as processes:
        processes.map(work, jobs, chunksize=1)
""",
}


def command_of(side: str, pool: str, out: str, size: int) -> list[str]:
    if side != "raygen":
        return [sys.executable, "-c", PEERS[side], pool, out]
    recipe = str(ROOT / "jobs/generate.toml")
    places = [f"pool={pool}", f"output={out}", f"checkpoint=null:{size}x1"]
    words = [word for place in places for word in ("--set", place)]
    return [sys.executable, "-m", "raygen.cli", "generate", recipe, *words]


class Tree(threading.Thread):
    """Watches the memory of all processes that carry a mark in their environment."""

    def __init__(self, mark: str) -> None:
        super().__init__(daemon=True)
        self.mark = mark.encode()
        self.most = 0.0
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.5):
            total = 0.0
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit():
                    try:
                        if self.mark in (entry / "environ").read_bytes():
                            found = re.search(r"RssAnon:\s+(\d+)", (entry / "status").read_text())
                            total += int(found[1]) / 1000 if found else 0.0
                    except OSError:
                        continue  # gone, or not ours
            self.most = max(self.most, total)


def measure(side: str, pool: str, out: str, size: int) -> tuple[float, float, float]:
    """Seconds, CPU seconds of the whole machine meanwhile, MB."""
    tree = Tree(f"RAYGEN_PEER={out}")
    environment = {**os.environ, "RAYGEN_PEER": out, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
    tree.start()
    busy, started = _busy(), time.monotonic()
    subprocess.run(
        command_of(side, pool, out, size), env=environment, check=True, capture_output=True, text=True
    )
    seconds, cpu = time.monotonic() - started, _busy() - busy
    tree.over.set()
    return seconds, cpu, tree.most


def _busy() -> float:
    """CPU seconds that this machine has worked."""
    user, nice, system = map(int, Path("/proc/stat").read_text().split()[1:4])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--normals", type=int, default=6_000)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float, float]]] = {side: [] for side in ("raygen", *PEERS)}
    with tempfile.TemporaryDirectory() as folder:
        some = write_pool(f"{folder}/some", 100, args.size)
        for number in range(args.normals):
            file = Path(folder, "pool", f"line-{number % 3}", f"{number:06}.png")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.hardlink_to(some[number % len(some)])
        for number in range(args.rounds):
            for side in found:
                found[side].append(
                    measure(side, f"{folder}/pool", f"{folder}/{side[:4]}-{number}", args.size)
                )
                seconds, cpu, memory = found[side][-1]
                print(
                    f"round {number}: {side}: {seconds:.1f} s, {cpu:.1f} CPU s, {memory:.0f} MB", flush=True
                )
    ours = statistics.median(seconds for seconds, _, _ in found["raygen"])
    for side, rows in found.items():
        seconds, cpu, memory = (statistics.median(column) for column in zip(*rows, strict=True))
        print(
            f"{side:12} {4 * args.normals / seconds:7.0f} images/s, {cpu:6.1f} CPU s, {memory:6.0f} MB; raygen is "
            f"{seconds / ours:.2f} times as fast"
        )


if __name__ == "__main__":
    main()
