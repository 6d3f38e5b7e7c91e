"""Makes what the tests of training need: a tiny defect set, a tiny recipe, batches of it; and kills."""

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from factories import TINY
from torch.utils._python_dispatch import TorchDispatchMode

from raygen import images, storage, surfaces
from raygen.families.dtgan.batches import Batch, BatchMaker, Sampler, to_batch
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.train.folder import TrainingFolder

SIZES = DTGANConfig(**{**TINY.__dict__, "trunk_norm": "instance", "background_out": 64})
RECIPE: dict[str, Any] = {
    "preset": "small-64",
    "model": {"image_size": 32, "width": 1 / 16, "background_out": 64},
    "images": 24,
    "batch_per_worker": 2,
    "checkpoint_every": 8,
    "references_per_cell": 2,
    "loss": {"r1_every": 2, "diversity_every": 2},
    "compute": {"num_workers": 1},
    "optimizer": {"head_start": 4, "encoder_on_references": True, "average_ramp": True},
}
"""Two iterations of head start, and ten more."""


def recipe(defects: Any = "/defects", output: Any = "/output", **changes: Any) -> DTGANTrainConfig:
    """The tiny recipe with some changes."""
    return DTGANTrainConfig.model_validate({**RECIPE, "defects": defects, "output": output, **changes})


def write_defect_set(uri: str, num_normals: int = 4, num_defects: int = 3, seed: int = 0) -> None:
    """Writes a procedural defect set of 32 px, with a metadata.csv that holds some photos back."""
    rows = ["id,product,domain,split"]
    for name, pixels in surfaces.defect_set(num_normals, num_defects, seed, size=32):
        storage.put(storage.join(uri, name), images.encode_png(pixels.reshape(32, 32, 1)))
        product, domain, file = name.split("/")
        rows.append(
            f"{file.removesuffix('.png')},{product},{domain},{'val' if file == '000000.png' else 'train'}"
        )
    storage.put(storage.join(uri, "metadata.csv"), "\n".join(rows).encode())


def batch_maker(
    sizes: DTGANConfig = SIZES, seed: int = 0, with_masks: bool = False, num_latents: int = 2
) -> BatchMaker:
    """Draws from a few photos in memory, of all domains and products."""
    channels = sizes.channels + with_masks
    photos = np.random.default_rng(0).integers(
        0, 256, (18, sizes.image_size, sizes.image_size, channels), dtype=np.uint8
    )
    domains, products = np.arange(18) % sizes.num_domains, np.arange(18) // 6 % sizes.num_products
    load = photos.__getitem__
    return BatchMaker(
        Sampler(domains, products, seed),
        load,
        sizes,
        augment=True,
        with_masks=with_masks,
        num_latents=num_latents,
    )


class NoWaiting(TorchDispatchMode):
    """Fails at what makes a host wait for its device: reading a number off a tensor, or a shape by one."""

    WAITS = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::equal",
        "aten::unique",
        "aten::lift_fresh",  # a tensor made of numbers on the host, as for an index by a list,
    )

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.name().split(".")[0]
        by_mask = name == "aten::index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        assert name not in self.WAITS, f"{name} waits for the device"
        assert not by_mask, "indexing by a mask waits for the device"
        return func(*args, **(kwargs or {}))


def batch(size: int = 4, sizes: DTGANConfig = SIZES) -> Batch:
    """The first images of a training."""
    return to_batch(batch_maker(sizes)(range(size)))


def metrics(output: str) -> list[dict[str, float]]:
    """All that a training measured, but for the clock."""
    files = sorted(entry.uri for entry in storage.list_files(f"{output}/metrics"))
    return [json.loads(line) for uri in files for line in storage.read(uri).splitlines()]


@contextlib.contextmanager
def worker_killed_after_a_checkpoint(output: str) -> Iterator[None]:
    """SIGKILL to the training's worker on this test's cluster as soon as there is a checkpoint."""
    killed = threading.Event()

    def kill() -> None:
        while not TrainingFolder(output).checkpoints():
            time.sleep(0.05)
        mark = f"RAYGEN_TEST_CLUSTER={os.getpid()}".encode()
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # gone while we looked
                ours = mark in (process / "environ").read_bytes()
                if ours and (process / "cmdline").read_bytes().startswith(b"ray::RayTrainWorker"):
                    os.kill(int(process.name), signal.SIGKILL)
                    killed.set()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    yield
    killer.join()
    assert killed.is_set()
