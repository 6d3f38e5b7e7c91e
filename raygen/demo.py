"""`raygen demo`: from nothing to defects that one can look at, through the same code as the job."""

from collections.abc import Callable
from pathlib import Path

from raygen import images, storage, surfaces
from raygen.checkpoint import load_checkpoint
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.generate.job import generate
from raygen.generate.verify import verify_run

CHECKPOINT = str(Path(__file__).parent / "demo_checkpoint")
"""A small DT-GAN that comes with the package, trained on procedural surfaces; its config.json says how."""

NORMALS_PER_PRODUCT = 40
POOL_SEED = 1


def demo(folder: str, say: Callable[[str], None] = print) -> None:
    """Renders a pool of surfaces that the checkpoint has not seen, and puts four defects on every normal.

    Everything lands in `folder` (pool/, run/) and stays: a second call has nothing left to do.
    """
    base = str(Path(folder).resolve())
    config = GenerateConfig(
        pool=f"{base}/pool",
        checkpoint=CHECKPOINT,
        output=f"{base}/run",
        normals_per_shard=20,
        max_reject_rate=0,
        gate=GateConfig(min_type_prob=0.5),
    )
    if not storage.exists(f"{config.output}/manifest.json"):
        sizes = load_checkpoint(CHECKPOINT).config
        say(f"rendering {NORMALS_PER_PRODUCT} normals of each of {', '.join(surfaces.PRODUCTS)} …")
        for name, pixels in surfaces.pool(NORMALS_PER_PRODUCT, POOL_SEED, sizes.image_size, sizes.channels):
            storage.put(f"{config.pool}/{name}", images.encode_png(pixels))
    generate(config, say)
    verify_run(config.output)
    say(f"verified; the samples are in {config.output}/shards (pandas.read_parquet reads them)")
