"""What reading, encoding and writing cost, by this checkout and another.

    python tests/benchmarks/encoding.py DEFECTS --against CHECKOUT

Both turn the same normals (those of a set of real photographs, brought to --size) and the same four samples of
each, with the set's own masks, into the shards of a run, in turn, in fresh processes of one thread; generation is
left out. Prints milliseconds of CPU a sample, medians, by stage, the ratio this ÷ other, and the bytes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAGES = ("read", "encode", "write")

WORK = """
import json, sys, time
from pathlib import Path
import numpy as np
import pyarrow as pa
from raygen.checkpoint import load_checkpoint
from raygen.generate import shards
from raygen.generate.config import GenerateConfig
from raygen.generate.encode import encode_samples
from raygen.generate.plan import open_run, read_plan
from raygen.generate.stages import GenerateActor, read_planned

pool, output, checkpoint, masks = sys.argv[1:]
config = GenerateConfig(pool=pool, checkpoint=checkpoint, output=output, normals_per_shard=64)
run = open_run(config, load_checkpoint(config.checkpoint))
actor = GenerateActor(config, run, config.checkpoint)
masks = np.load(masks)
seconds = dict.fromkeys(("read", "encode", "write"), 0.0)

def timed(stage, function, *args, **kwargs):
    started = time.process_time()
    found = function(*args, **kwargs)
    seconds[stage] += time.process_time() - started
    return found

num_bytes = 0
for shard in range(-1, run.num_shards):  # the first one twice, to warm up
    if shard == 0:
        seconds, num_bytes = dict.fromkeys(seconds, 0.0), 0
    normals, rejects = timed("read", lambda: read_planned(read_plan(output, run, max(shard, 0)), config, run))
    made = actor.sample(normals)
    own = masks[(np.arange(4 * made.num_rows) + 64 * shard) % len(masks)].reshape(made.num_rows, -1)
    rows = pa.array([row.tobytes() for row in own], pa.large_binary())
    made = made.set_column(made.schema.get_field_index("masks"), "masks", rows)
    encoded = timed("encode", encode_samples, made, max(shard, 0), config, run)
    stats = timed(
        "write", shards.write_shard, output + ("-warm" if shard < 0 else ""), config.layout, max(shard, 0),
        num_normals=made.num_rows, encoded=encoded, rejects=rejects, seconds={},
    )
    num_bytes += stats.num_bytes
print(json.dumps({**{s: 1e3 * t / run.num_samples for s, t in seconds.items()},
                  "bytes": num_bytes / run.num_samples}))
"""


def prepare(defects: str, folder: Path, size: int, channels: int, most: int) -> None:
    """A pool of the set's normals, and its masks, uint8 (N, size, size), in one file."""
    import numpy as np

    from raygen import images
    from raygen.data.defects import list_defect_set, load_photos

    photos = list_defect_set(defects)
    normals = [photo for photo in photos if photo.defect_type == "normal"]
    normals = normals[:: max(1, len(normals) // most)][:most]
    for number, pixels in enumerate(load_photos(normals, size, channels)):
        file = folder / "pool" / normals[number].product / f"{number:06}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(images.encode_png(pixels))
    with_masks = [photo._replace(uri=photo.mask_uri, etag=None) for photo in photos if photo.mask_uri]
    masks = load_photos(with_masks[:200], size, 1)[..., 0] > 127
    np.save(folder / "masks.npy", masks * np.uint8(255))


def cost(checkout: Path, folder: Path, output: str, checkpoint: str) -> dict[str, float]:
    """Milliseconds of CPU a sample, by stage, and bytes."""
    run = [sys.executable, "-c", WORK, str(folder / "pool"), str(folder / output), checkpoint]
    environment = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*run, str(folder / "masks.npy")],
        env=environment,
        cwd=checkout,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defects")
    parser.add_argument("--against", type=Path, required=True, help="another checkout of raygen")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--channels", type=int, default=1)
    parser.add_argument("--normals", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        prepare(args.defects, folder, args.size, args.channels, args.normals)
        found: dict[Path, list[dict[str, float]]] = {ROOT: [], args.against: []}
        for round_ in range(args.rounds):
            for number, (checkout, of) in enumerate(found.items()):
                null = f"null:{args.size}x{args.channels}"
                of.append(cost(checkout, folder, f"{round_}-{number}", null))
    for stage in (*STAGES, "all", "bytes"):
        this, other = (
            statistics.median(
                sum(one[s] for s in STAGES) if stage == "all" else one[stage] for one in found[checkout]
            )
            for checkout in (ROOT, args.against)
        )
        print(f"{stage:7} other {other:10.3f}  this {this:10.3f}  this ÷ other {this / other:.2f}")


if __name__ == "__main__":
    main()
