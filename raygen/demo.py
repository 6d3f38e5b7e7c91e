"""`raygen demo`: from nothing to defects that one can look at, through the same code as the job."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from raygen import images, storage, surfaces
from raygen.checkpoint import load_checkpoint
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.generate.job import CONTACT_SHEET, generate
from raygen.generate.verify import verify_run
from raygen.on_ray import connected
from raygen.train.config import load_train_config
from raygen.train.job import train

CHECKPOINT = str(Path(__file__).parent / "demo_checkpoint")
"""A small DT-GAN that comes with the package, trained on procedural surfaces; its config.json says how."""

NORMALS_PER_PRODUCT, DEFECTS_PER_CELL = 40, 12
POOL_SEED = 1


def demo(folder: str, say: Callable[[str], None] = print) -> None:
    """Renders a pool of surfaces that the checkpoint has not seen, and puts four defects on every normal: by the
    checkpoint, and by cutting out and pasting a few defects of other surfaces.

    Everything lands in `folder` (pool/, run/, defects/, cut-outs/, pasted/, contact-sheet.png) and stays: a second
    call has nothing left to do.
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
    sizes = load_checkpoint(CHECKPOINT).config
    if not storage.exists(f"{config.output}/manifest.json"):
        say(f"rendering {NORMALS_PER_PRODUCT} normals of each of {', '.join(surfaces.PRODUCTS)} …")
        for name, pixels in surfaces.pool(NORMALS_PER_PRODUCT, POOL_SEED, sizes.image_size, sizes.channels):
            storage.put(f"{config.pool}/{name}", images.encode_png(pixels))
    is_done = storage.exists(f"{base}/{CONTACT_SHEET}")
    with nullcontext() if is_done else connected():  # one Ray for all three
        generate(config, say)
        say("and without a training: cutting out the defects of other surfaces, to paste them …")
        cut_outs = f"{base}/cut-outs"
        if not storage.exists(f"{cut_outs}/best.json"):
            count, seed = DEFECTS_PER_CELL, POOL_SEED + 1
            for name, pixels in surfaces.defect_set(1, count, seed, sizes.image_size, sizes.channels):
                pixels = pixels.reshape(
                    sizes.image_size, sizes.image_size, -1
                )  # a mask has no axis of channels
                storage.put(f"{base}/defects/{name}", images.encode_png(pixels))
        places = (f"defects={base}/defects", f"output={cut_outs}")
        shape = (f"image_size={sizes.image_size}", f"channels={sizes.channels}")
        train(load_train_config(None, ["family=copy-paste", *places, *shape]), say)
        pasted = {"checkpoint": cut_outs, "output": f"{base}/pasted", "gate": GateConfig()}
        generate(config.model_copy(update=pasted), say)
    for output in (config.output, f"{base}/pasted"):
        verify_run(output)
    sheets = [
        images.decode_photo(storage.read(f"{base}/{name}/{CONTACT_SHEET}"), 2**28)
        for name in ("run", "pasted")
    ]
    storage.put(f"{base}/{CONTACT_SHEET}", images.encode_png(np.concatenate(sheets, axis=1)))
    say(f"verified; the samples are in {config.output}/shards (pandas.read_parquet reads them)")
    say(f"look at {base}/{CONTACT_SHEET}: DT-GAN's on the left, copies on the right")
