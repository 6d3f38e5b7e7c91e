"""What a release makes, the next one makes: samples of the shipped checkpoint against digests that were taken
when that checkpoint was made.

`python tests/test_same_bytes.py` writes them anew, for a change that is meant to change samples.
"""

import hashlib
import io
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import write_run
from PIL import Image

from raygen import images, storage, surfaces
from raygen.data.runs import read_shard
from raygen.demo import CHECKPOINT
from raygen.generate.config import GenerateConfig

GOLDEN = Path(__file__).with_name("same_bytes.json")
COMPOSITIONS = ("reconstruct", "residual")


def kernels() -> str:
    """What decides which of torch's kernels run, and so the last bit: other processors have others."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("vendor_id", "cpu family", "model")
    cpu = [line.partition(":")[2].strip() for name in names for line in lines if line.split("\t")[0] == name]
    model = " ".join(dict.fromkeys(cpu))
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}"


def samples_of(composition: str, folder: Path) -> list[tuple[str, str, float]]:
    """Of each sample of four normals a product: what it is, the digest of its pixels and mask, their mean."""
    for name, pixels in surfaces.pool(4, seed=11, size=64):
        data = io.BytesIO()
        # By no encoder of ours: seeds follow from a file's bytes.
        Image.fromarray(pixels[:, :, 0]).save(data, "PNG", compress_level=1)
        storage.put(str(folder / "pool" / name), data.getvalue())
    config = GenerateConfig(
        pool=str(folder / "pool"),
        output=str(folder / composition),
        checkpoint=CHECKPOINT,
        composition=composition,  # pyright: ignore[reportArgumentType]
    )
    found = []
    for stats in write_run(config).shards:
        for row in read_shard(config.output, stats).to_pylist():
            name = "/".join((Path(row["normal_uri"]).stem, row["product"], row["defect_type"], row["mode"]))
            pixels = [images.decode_photo(row[key]["bytes"], 2**20) for key in ("image", "mask")]
            sha = hashlib.sha256(b"".join([str(row["seed"]).encode(), *(p.tobytes() for p in pixels)]))
            found.append((name, sha.hexdigest(), float(np.mean(pixels))))
    return sorted(found)


def measured() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        return {
            "kernels": kernels(),
            **{composition: samples_of(composition, Path(folder)) for composition in COMPOSITIONS},
        }


@pytest.mark.parametrize("composition", COMPOSITIONS)
def test_the_shipped_checkpoint_makes_the_samples_that_it_made(composition: str, tmp_path: Path) -> None:
    golden = json.loads(GOLDEN.read_text())
    now = samples_of(composition, tmp_path)
    names, digests, means = zip(*golden[composition], strict=True)
    assert [name for name, _, _ in now] == list(names)
    # Another CPU, or torch, may round the last bit otherwise: then all but the same.
    assert [mean for _, _, mean in now] == pytest.approx(means, abs=0.5)
    if golden["kernels"] == kernels():
        assert [digest for _, digest, _ in now] == list(digests)


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(measured(), indent=1) + "\n")
