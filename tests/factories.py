"""Makes what the tests need: pools of surfaces, and checkpoints whose weights do something."""

import dataclasses
import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from raygen import images, storage, surfaces
from raygen.checkpoint import (
    GENERATOR,
    JUDGE,
    REFERENCE_CODES,
    Checkpoint,
    CheckpointConfig,
    Reference,
    load_checkpoint,
    save_checkpoint,
)
from raygen.data.runs import Manifest, Run, ShardStats
from raygen.errors import UserError
from raygen.families.dfmgan.networks import DFMGANConfig, DFMGANGenerator
from raygen.families.dtgan.joint import build_generator
from raygen.families.dtgan.networks import Discriminator, MappingNetwork
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.family import DefectGenerator
from raygen.families.recipes import BankConfig
from raygen.families.stylegan2.networks import StyleGAN2Config
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.generate.plan import open_run
from raygen.generate.sampling import Samples, Windows, sample
from raygen.generate.shards import write_manifest
from raygen.generate.stages import GenerateActor, read_shard, write_shard
from raygen.records import SampleRequest
from raygen.train.collect import batches_of, take, unpack
from raygen.train.collect import write_bank as write_collected
from raygen.train.config import collector_of
from raygen.train.folder import TrainingFolder
from raygen.train.job import draft, learned_from

A = TypeVar("A")
R = TypeVar("R")

TINY = DTGANConfig(
    image_size=32,
    channels=1,
    width=1 / 16,
    stem_kernel=3,
    shared_content_trunk=True,
    background_skip=True,
)


def write_pool(uri: str, num_per_product: int, size: int = 32, channels: int = 1, seed: int = 0) -> list[str]:
    """Writes a pool of normals; returns their URIs."""
    uris = []
    for name, pixels in surfaces.pool(num_per_product, seed, size, channels):
        uris.append(storage.join(uri, name))
        storage.put(uris[-1], images.encode_png(pixels))
    return uris


def write_checkpoint(
    uri: str,
    sizes: DTGANConfig = TINY,
    num_references: int = 4,
    seed: int = 0,
    references_at: str | None = None,
    **changes,
) -> Checkpoint:
    """Writes a DT-GAN checkpoint of random weights, scaled so that every sample shows its own defect.

    Every weight is drawn anew: a fresh network has zero biases and, with a background skip, a zero fusion, and
    would hide mistakes. The references' files, where `references_at` says, hold their own names.
    """
    torch.manual_seed(seed)
    generator, mapping, judge = build_generator(sizes), MappingNetwork(sizes), Discriminator(sizes)
    with torch.no_grad():
        for parameter in [*generator.parameters(), *mapping.parameters()]:
            parameter.add_(0.1 * torch.randn_like(parameter))
        channels, size = sizes.channels, sizes.image_size
        probe = torch.randn(4, channels, size, size)
        content = torch.randn(4, sizes.content_channels, 16, 16)
        made = generator(probe, torch.randn(4, sizes.style_dim), content)
        last = "fusion.weight" if sizes.decoders == "separate" else "output.2.weight"
        generator.get_parameter(last).mul_(0.3 / made.std())  # grey levels that seldom clip
    bank = [
        Reference(
            uri=f"{references_at or 'surfaces:'}{product}/{defect_type}/{i}",
            product=product,
            defect_type=defect_type,
        )
        for product in surfaces.PRODUCTS
        for defect_type in surfaces.DEFECT_TYPES
        for i in range(num_references)
    ]
    for item in bank if references_at else ():
        storage.put(item.uri, item.uri.encode())
    codes = {
        "style": torch.randn(len(bank), sizes.style_dim),
        "content": torch.randn(len(bank), sizes.content_channels, 16, 16),
    }
    config = CheckpointConfig(
        family="dtgan",
        model=dataclasses.asdict(sizes),
        image_size=sizes.image_size,
        channels=sizes.channels,
        products=surfaces.PRODUCTS,
        defect_types=surfaces.DEFECT_TYPES,
        images_seen=1,
        trained_on="nothing: random weights",
    ).model_copy(update=changes)
    tensors = {
        GENERATOR: {f"generator.{k}": v for k, v in generator.state_dict().items()}
        | {f"mapping.{k}": v for k, v in mapping.state_dict().items()},
        JUDGE: judge.state_dict(),
        REFERENCE_CODES: codes,
    }
    return save_checkpoint(uri, config, tensors, tuple(bank))


TINY_DFMGAN = DFMGANConfig(
    backbone=StyleGAN2Config(
        image_size=32, channels=1, num_products=3, latent_dim=8, w_dim=8, channel_base=256, channel_max=16
    ),
    num_types=2,
)


def write_dfmgan_checkpoint(uri: str, sizes: DFMGANConfig = TINY_DFMGAN, seed: int = 0) -> Checkpoint:
    """Writes a DFM-GAN checkpoint of random weights, with noise, whose defects lie here and there.

    Noise begins at zero, w hardly depends on z, and would hide mistakes; and the images of a fresh backbone are
    mostly beyond white and black.
    """
    torch.manual_seed(seed)
    generator = DFMGANGenerator(sizes).eval()
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if name.endswith("strength"):
                parameter.fill_(0.3)
            if ".to_image." in name and name.endswith(".weight"):
                parameter.mul_(0.2)
    config = CheckpointConfig(
        family="dfmgan",
        model=sizes.as_dict(),
        image_size=sizes.backbone.image_size,
        channels=sizes.backbone.channels,
        products=surfaces.PRODUCTS[: sizes.backbone.num_products],
        defect_types=surfaces.DEFECT_TYPES[: sizes.num_types],
        images_seen=1,
        trained_on="nothing: random weights",
    )
    weights = {f"generator.{name}": value for name, value in generator.state_dict().items()}
    return save_checkpoint(uri, config, {GENERATOR: weights})


def make_samples(
    generator: DefectGenerator,
    normals: np.ndarray,
    seeds: np.ndarray,
    requests: Sequence[SampleRequest],
    gate: GateConfig | None = None,
    products: Sequence[str] = (),
) -> Samples:
    """Samples of normals, (N, H, W, C), from the seeds of their first attempts, (N, R); those of the next attempts
    are the numbers after them."""
    windows = Windows(normals[:, None], list(products) or ["brushed_metal"] * len(normals))
    gate = gate or GateConfig(min_mask_area=None)
    return sample(generator, windows, requests, lambda attempt: seeds + attempt, gate)


def image_digests(output_uri: str) -> dict[tuple[str, str, str, int], str]:
    """(normal, defect type, mode, k) -> SHA-256 of the sample's PNG, over a whole run; fails on a duplicate."""
    from raygen.data.runs import done_shards, read_shard, read_stats

    found: dict[tuple[str, str, str, int], str] = {}
    for stats in read_stats(output_uri, done_shards(output_uri)):
        for row in read_shard(output_uri, stats).to_pylist():
            key = (row["normal_uri"], row["defect_type"], row["mode"], row["k"])
            assert key not in found, f"{key} stands twice"
            found[key] = hashlib.sha256(row["image"]["bytes"]).hexdigest()
    return found


def reject_reasons(output_uri: str) -> dict[str, str]:
    """Normal -> why it was rejected, over a whole run."""
    from raygen.data.runs import done_shards, read_rejects, read_stats

    return {
        row["uri"]: row["reason"]
        for stats in read_stats(output_uri, done_shards(output_uri))
        for row in read_rejects(output_uri, stats).to_pylist()
    }


def bad_files() -> dict[str, tuple[bytes, str]]:
    """Ten damaged files: name -> (bytes, the reason that is due)."""
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    png = images.encode_png(noise[:, :, None])
    jpeg, huge, floats = io.BytesIO(), io.BytesIO(), io.BytesIO()
    Image.fromarray(noise).save(jpeg, "JPEG")
    Image.new("L", (9000, 9000)).save(huge, "PNG")
    Image.fromarray(noise.astype(np.float32)).save(floats, "TIFF")
    return {
        "empty.png": (b"", "empty"),
        "empty.jpg": (b"", "empty"),
        "text.png": (b"not an image, whatever its name says", "not_an_image"),
        "zeros.png": (bytes(5000), "not_an_image"),
        "half.png": (png[: len(png) // 2], "truncated"),
        "most.png": (png[:-40], "truncated"),
        "half.jpg": (jpeg.getvalue()[: len(jpeg.getvalue()) // 2], "truncated"),
        "flipped.png": (png[:200] + bytes([png[200] ^ 255]) + png[201:], "truncated"),
        "bomb.png": (huge.getvalue(), "too_many_pixels"),
        "float.tif": (floats.getvalue(), "unsupported"),
    }


def write_run(config: GenerateConfig) -> Manifest:
    """A whole run of the main job in this process, stage by stage, without Ray."""
    run = open_run(config, load_checkpoint(config.checkpoint))
    return write_manifest(config.output, run.run_id, write_shards(config, run, range(run.num_shards)))


def write_shards(config: GenerateConfig, run: Run, shards: Iterable[int]) -> list[ShardStats]:
    """Some shards of a run in this process."""
    actor = GenerateActor(config, run, config.checkpoint)
    stats = []
    for shard in shards:
        normals = read_shard(pa.table({"shard": [shard]}), config, run)
        (row,) = write_shard(actor(normals), config, run).to_pylist()
        if row.get("error"):
            raise UserError(row["error"])
        stats.append(ShardStats.model_validate_json(row.get("done") or row["stats"]))
    return stats


def write_bank(config: BankConfig, say: Callable[[str], None] = print) -> Checkpoint:
    """A bank collected in this process, task by task, without Ray."""
    run, photos = draft(config, *collector_of(config)(config).draft())
    folder = TrainingFolder(config.output)
    run = folder.begin(run, photos.photos, learned_from(config, photos))
    rows = []
    for work in batches_of(photos.photos):
        (row,) = take(pa.Table.from_pylist([work]), config=config).to_pylist()
        if row.get("error"):
            raise UserError(row["error"])
        rows.insert(0, row)  # in any order
    write_collected(config, folder, run, unpack(rows), say)
    return load_checkpoint(config.output)


def write_split_set(uri: str, splits: Mapping[str, tuple[int, int]], size: int = 64, seed: int = 5) -> None:
    """A defect set of procedural surfaces with splits in its metadata.csv: split -> normals, and defects of each
    type, of each product."""
    rows = ["id,product,domain,split"]
    for number, (split, (normals, defects)) in enumerate(splits.items()):
        for name, pixels in surfaces.defect_set(normals, defects, seed + number, size):
            product, kind, file = name.split("/")
            target = f"{split}-{file}"
            storage.put(
                storage.join(uri, product, kind, target), images.encode_png(pixels.reshape(size, size, 1))
            )
            if not file.endswith("_mask.png"):
                rows.append(f"{target.removesuffix('.png')},{product},{kind},{split}")
    storage.put(storage.join(uri, "metadata.csv"), "\n".join(rows).encode())


class InProcess:
    """`raygen.publish.execution.Executor` without Ray: the same stages and functions, here, one by one."""

    def __init__(self) -> None:
        self.normals = 0  # generated for

    def connected(self) -> AbstractContextManager[None]:
        return nullcontext()

    def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
        manifest = write_run(config)
        self.normals += manifest.num_normals
        return manifest

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]:
        return [function(item) for item in items]


def write_manifest_of_normals(set_uri: str, uri: str) -> int:
    """Writes a pool: a CSV manifest of a `write_split_set`'s training normals; returns how many there are."""
    rows = ["uri,product"]
    for entry in storage.list_files(set_uri):
        *_, product, kind, name = entry.uri.split("/")
        if kind == "normal" and name.startswith("train"):
            rows.append(f"{entry.uri},{product}")
    storage.put(uri, "\n".join(rows).encode())
    return len(rows) - 1
