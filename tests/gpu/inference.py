"""Is raygen right on CUDA, and how fast does a normal become four samples?

    python tests/gpu/inference.py --minutes 7
    python tests/gpu/inference.py --device cpu --minutes 0.5 --presets small-64 --micro-batches 8

Right: folded against plain networks and bfloat16 against float32; a sample's bytes from run to run, beside other
neighbours, and in fewer rows; one step of every family's training against the CPU, in float32; a training that
went on against one that was not interrupted; NCCL. Fast: what an actor runs, masks, scores and gate included,
against four plain float32 passes of the same card. Weights are random: the arithmetic does not depend on them.
"""

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import Clock, begin, parser, seconds_of, told
from factories import write_checkpoint
from gan_training import MAKE, iterated, maker, start
from gan_training import SIZES as GAN_SIZES
from torch import Tensor
from training import SIZES, batch_maker, metrics, recipe, write_defect_set

from raygen import surfaces
from raygen.checkpoint import GENERATOR, Checkpoint
from raygen.families import load_generator
from raygen.families.dtgan.batches import to_batch
from raygen.families.dtgan.folded import FoldedGenerator
from raygen.families.dtgan.networks import Generator
from raygen.families.dtgan.sizes import PRESETS, DTGANConfig
from raygen.families.dtgan.step import Training, iterate
from raygen.families.stylegan2.batches import GANBatch, to_gan_batch
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.generate.sampling import Samples, Windows, sample
from raygen.records import MODES, SampleRequest
from raygen.train.folder import TrainingFolder
from raygen.train.job import train

_COMPILING = 90  # seconds that must be left for it; a guess, on a CPU it takes as long
REQUESTS = [SampleRequest(kind, mode, 0) for kind in surfaces.DEFECT_TYPES for mode in MODES]


def moved(fields: Any, device: torch.device) -> Any:
    """A named tuple's tensors, however deep they lie, on a device."""
    if isinstance(fields, Tensor):
        return fields.to(device)
    if isinstance(fields, tuple):
        parts = [moved(part, device) for part in fields]
        return type(fields)(*parts) if hasattr(fields, "_fields") else tuple(parts)
    return (
        {name: moved(part, device) for name, part in fields.items()} if isinstance(fields, dict) else fields
    )


def gan_batch(config: Any, device: torch.device) -> GANBatch:
    """The first images of a training of either of DFM-GAN's stages, as the loop brings them there."""
    return to_gan_batch(maker(config)(range(4)), GAN_SIZES.channels, device)


# ---------------------------------------------------------------------------------------------------- right


def networks_agree(sizes: DTGANConfig, checkpoint: Checkpoint, device: torch.device) -> None:
    """Folded against plain, and bfloat16 against float32, in the range of 2."""
    plain = Generator(sizes).eval().requires_grad_(False)
    weights = checkpoint.tensors(GENERATOR)
    plain.load_state_dict(
        {k.removeprefix("generator."): v for k, v in weights.items() if k.startswith("generator.")}
    )
    folded = FoldedGenerator(plain).to(device)
    plain = plain.to(device)
    x = torch.rand(8, sizes.channels, sizes.image_size, sizes.image_size, device=device) * 2 - 1
    style = torch.randn(8, sizes.style_dim, device=device)
    content = torch.randn(8, sizes.content_channels, 16, 16, device=device)
    with torch.inference_mode():
        whole = folded.background(x) + folded.defect_layer(style, content)[:, : sizes.channels]
        off = (whole - plain(x, style, content)).abs().max().item() / 2
        with torch.autocast(device.type, torch.bfloat16):
            half = folded.background(x) + folded.defect_layer(style, content)[:, : sizes.channels]
        rms = (half.float() - whole).square().mean().sqrt().item() / 2
    told("folded against plain, float32, largest difference of the range", f"{off:.1e} (aim 1e-4)")
    told("bfloat16 against float32, rms of the range", f"{rms:.1e}")


def steps_agree(device: torch.device) -> None:
    """One step of each family's training against the CPU's: losses, and weights after it."""
    terms: dict[str, list[dict[str, Tensor]]] = {}
    weights: dict[str, list[Tensor]] = {}
    for on in (torch.device("cpu"), device):
        torch.manual_seed(0)
        config = recipe(optimizer={"head_start": 0})
        dtgan = Training.start(config, SIZES, on)
        some = moved(to_batch(batch_maker()(range(4))), on)
        terms.setdefault("dtgan", []).append(iterate(dtgan, dtgan.networks, some, config, 4))
        flat = [p.detach().cpu().flatten() for _, n in dtgan.networks.items() for p in n.parameters()]
        weights.setdefault("dtgan", []).append(torch.cat(flat))
        for family, make in MAKE.items():
            config = make()
            training = start(config)
            training.controller.p = 0.5  # so that augmentation takes part
            for _, network in training.networks():
                network.to(on)
            if hasattr(training, "path_mean"):
                training.path_mean = training.path_mean.to(on)  # type: ignore[union-attr]
            terms.setdefault(family, []).append(iterated(training, gan_batch(config, on), config))
            flat = [p.detach().cpu().flatten() for _, n in training.networks() for p in n.parameters()]
            weights.setdefault(family, []).append(torch.cat(flat))
    for family, (cpu, other) in terms.items():
        off = max((cpu[name].cpu() - other[name].cpu()).abs().item() for name in cpu)
        moved_by = (weights[family][0] - weights[family][1]).abs().max().item()
        told(f"{family}: a step against the CPU's: losses, weights differ by", f"{off:.1e}, {moved_by:.1e}")


def resumes(folder: Path) -> None:
    """A training that went on from its first checkpoint against the same without interruption, by its metrics."""
    write_defect_set(str(folder / "set"))
    config = recipe(str(folder / "set"), str(folder / "training"), num_to_keep=3)
    train(config, lambda _: None, alone=True)
    whole = metrics(config.output)
    for number in (16, 24):
        shutil.rmtree(TrainingFolder(config.output).checkpoint_uri(number))
    train(config, lambda _: None, alone=True)
    parts = metrics(config.output)
    off = max(abs(a[name] - b[name]) for a, b in zip(whole, parts, strict=True) for name in a)
    told("a training that went on against one uninterrupted, metrics", f"differ by {off:.1e}")


def communicates(device: torch.device, folder: Path) -> None:
    """NCCL starts, with one process, and sums."""
    if device.type != "cuda" or not dist.is_nccl_available():
        told("NCCL with one process", "not here")
        return
    dist.init_process_group("nccl", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1)
    value = torch.ones(1, device=device)
    dist.all_reduce(value)
    dist.destroy_process_group()
    told("NCCL with one process", "works" if value.item() == 1 else f"gives {value.item()}")


# ----------------------------------------------------------------------------------------------------- fast


def sampler(checkpoint: Checkpoint, pixels: np.ndarray, **settings: Any) -> Any:
    """Four samples of each normal as an actor makes them; of the first `num` of them, from row `first` on."""
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, **settings)
    generator = load_generator(checkpoint, config)
    products = [surfaces.PRODUCTS[i % len(surfaces.PRODUCTS)] for i in range(len(pixels))]

    def make(first: int = 0, num: int | None = None) -> Samples:
        rows = np.arange(len(pixels))[first : None if num is None else first + num]
        windows = Windows(pixels[rows, None], [products[row] for row in rows])
        seeds = 1000 + 4 * rows[:, None] + np.arange(4)
        return sample(generator, windows, REQUESTS, lambda attempt: seeds + 10**6 * attempt, config.gate)

    return make


def same_bytes(checkpoint: Checkpoint, pixels: np.ndarray, micro_batch: int) -> None:
    """Of the same sample: again, beside other neighbours, and with fewer rows."""
    make = sampler(checkpoint, pixels, micro_batch=micro_batch)
    whole = make().made
    for what, first, num in (("again", 0, None), ("beside others", 1, None), ("with 3 rows", 0, 3)):
        other = make(first, num).made
        some = slice(first, None if num is None else first + num)
        same = np.array_equal(whole.pixels[some], other.pixels) and np.array_equal(
            whole.masks[some], other.masks
        )
        told(f"a sample's bytes, {what}", "the same" if same else "differ")


def plain_rate(plain: Generator, shape: DTGANConfig, size: int, device: torch.device) -> float:
    """Samples a second of one plain pass each."""
    x = torch.rand(size, shape.channels, shape.image_size, shape.image_size, device=device) * 2 - 1
    style = torch.randn(size, shape.style_dim, device=device)
    content = torch.randn(size, shape.content_channels, 16, 16, device=device)
    with torch.inference_mode():
        return size / seconds_of(lambda: plain(x, style, content), device, repeats=5)


def is_fast(
    preset: str, checkpoint: Checkpoint, sizes: list[int], clock: Clock, device: torch.device
) -> None:
    """Samples a second, and how many times those of four plain float32 passes they are."""
    shape = PRESETS[preset]
    plain = Generator(shape).eval().to(device)
    random = np.random.default_rng(0)
    for size in sizes:
        if not clock.allows(15, f"{preset}, micro-batch {size} and more"):
            return
        base = plain_rate(plain, shape, size, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        told(f"{preset}, {size} rows: plain passes, float32", f"{base:.0f} samples/s")
        pixels = random.integers(
            0, 256, (2 * size, shape.image_size, shape.image_size, shape.channels), np.uint8
        )
        variants = [(name, masks, False) for name in ("float32", "bfloat16") for masks in (False, True)]
        can_compile = device.type == "cuda" and shutil.which("g++")
        if can_compile and clock.allows(_COMPILING, f"{preset}, {size} rows, compiled"):
            variants.append(("bfloat16", True, True))
        for precision, masks, compiles in variants:
            settings = {"micro_batch": size, "precision": precision, "masks": masks, "compile": compiles}
            make = sampler(checkpoint, pixels, **settings, gate=GateConfig(max_attempts=1))
            rate = 4 * len(pixels) / seconds_of(make, device, repeats=3)
            what = f"{preset}, {size} rows: {precision}, {'masks, scores, gate' if masks else 'images alone'}"
            told(what + ", compiled" * compiles, f"{rate:.0f} samples/s, {rate / base:.1f} ×")
        if device.type == "cuda":
            told(
                f"{preset}, {size} rows: peak memory", f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB"
            )


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument(
        "--presets", nargs="+", default=["small-128", "paper-128"], choices=sorted(PRESETS)
    )
    arguments.add_argument("--micro-batches", nargs="+", type=int, default=[8, 32, 128, 512])
    args = arguments.parse_args()
    clock, device = Clock(args.minutes), begin(args.device)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        communicates(device, folder)
        steps_agree(device)
        resumes(folder)
        for preset in args.presets:
            shape = PRESETS[preset]
            checkpoint = write_checkpoint(str(folder / preset), shape)
            networks_agree(shape, checkpoint, device)
            pixels = np.random.default_rng(1).integers(
                0, 256, (11, shape.image_size, shape.image_size, shape.channels), np.uint8
            )
            same_bytes(checkpoint, pixels, args.micro_batches[0])
            is_fast(preset, checkpoint, args.micro_batches, clock, device)
    told("seconds in all", f"{args.minutes * 60 - clock.left:.0f}")


if __name__ == "__main__":
    main()
