"""How much sharing and folding save when one normal gets four DT-GAN defects.

    python tests/benchmarks/shared_work.py --preset paper-128 --threads 1 --repeats 5

Each row adds one step to the row above it; "layout, norms, skips" is the converted network with nothing folded:
channels_last, instance norms of few passes, skips at the lower resolution. Weights are random: the arithmetic
does not depend on them. The steps are timed in turn, round after round, and the medians compared, since
machines are seldom quiet.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from raygen.families.dtgan.folded import FoldedGenerator
from raygen.families.dtgan.networks import Generator
from raygen.families.dtgan.sizes import PRESETS

NUM_DEFECTS = 4
NUM_CACHED = 2
"""Of the four layers, those that a reference guides: computed once for a checkpoint."""

Step = tuple[str, Callable[[], Tensor]]


def randomize(generator: Generator) -> None:
    """Gives every bias, scale and the fusion values that a wrong fold would show in."""
    with torch.no_grad():
        for name, parameter in generator.named_parameters():
            if parameter.ndim == 1 or name == "fusion.weight":
                parameter.add_(0.1 * torch.randn_like(parameter))


def make_steps(preset: str, dtype: torch.dtype, compiled: bool) -> list[Step]:
    """The steps, each a function that computes the four images, (4, channels, H, W)."""
    config = PRESETS[preset]
    plain = Generator(config).eval()
    randomize(plain)
    plain = plain.to(dtype)
    converted = FoldedGenerator(plain, fold_fusion=False, fold_resampling=False)
    fused = FoldedGenerator(plain, fold_resampling=False)
    folded = FoldedGenerator(plain)

    x = (torch.rand(1, config.channels, config.image_size, config.image_size) * 2 - 1).to(dtype)
    style = torch.randn(NUM_DEFECTS, config.style_dim).to(dtype)
    content = torch.randn(NUM_DEFECTS, config.content_channels, 16, 16).to(dtype)
    cached = folded.defect_layer(style[:NUM_CACHED], content[:NUM_CACHED])

    def four_passes() -> Tensor:
        return torch.cat([plain(x, s, c) for s, c in zip(style.split(1), content.split(1), strict=True)])

    def with_cache() -> Tensor:
        drawn = folded.defect_layer(style[NUM_CACHED:], content[NUM_CACHED:])
        return folded.background(x) + torch.cat([cached, drawn])

    steps: list[Step] = [
        ("four plain passes", four_passes),
        ("shared: B + 4 F", lambda: plain.background(x) + plain.defect_layer(style, content)),
        ("+ layout, norms, skips", lambda: converted.background(x) + converted.defect_layer(style, content)),
        ("+ fusion folded", lambda: fused.background(x) + fused.defect_layer(style, content)),
        ("+ resampling folded", lambda: folded.background(x) + folded.defect_layer(style, content)),
        ("+ references cached: B + 2 F", with_cache),
    ]
    if compiled:
        background, layer = torch.compile(folded.background), torch.compile(folded.defect_layer)
        steps.append(("folded (B + 4 F), compiled", lambda: background(x) + layer(style, content)))
    return steps


@torch.inference_mode()
def measure(steps: list[Step], repeats: int) -> tuple[list[float], list[Tensor]]:
    """Median seconds and the result of each step, after one round to warm up."""
    results = [step() for _, step in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(repeats):
        for i, (_, step) in enumerate(steps):
            start = time.perf_counter()
            step()
            seconds[i].append(time.perf_counter() - start)
    return [statistics.median(s) for s in seconds], results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", choices=PRESETS, default="paper-128")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float64"), default="float32")
    parser.add_argument(
        "--compile", action="store_true", help="also time torch.compile of the folded generator"
    )
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    steps = make_steps(args.preset, getattr(torch, args.dtype), args.compile)
    seconds, results = measure(steps, args.repeats)

    plain = results[0].float()
    image_range = (plain.max() - plain.min()).item()
    print(
        f"{args.preset}, {args.dtype}, {args.threads} thread(s): one normal, {NUM_DEFECTS} defects; "
        f"median of {args.repeats}"
    )
    print(f"{'step':<30}{'seconds':>10}{'speed-up':>10}{'difference / range':>20}")
    for (name, _), median, result in zip(steps, seconds, results, strict=True):
        difference = (result.float() - plain).abs().max().item() / image_range
        print(f"{name:<30}{median:>10.4f}{seconds[0] / median:>9.2f}×{difference:>20.1e}")


if __name__ == "__main__":
    main()
