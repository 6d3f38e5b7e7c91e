"""What a DFM-GAN has learned, cell by cell, and how much of what is wrong is the backbone's.

    python tests/benchmarks/dfmgan_learning.py CHECKPOINT DEFECTS

DEFECTS is a set with masks; its split train is looked at. For each product × type it prints unbiased kernel
distances × 1000 (EfficientNet-Lite0): of the backbone's normals from real ones; and from real defects, of real
normals, of drawn defects as they are, and of their change alone, added to real normals, whole and within the mask
only. Then the share of the change that z decides, not noise, on one normal; the share of the change that lies
within the mask; the masks' area ÷ that of real ones; the change within the mask ÷ a real defect's; the share of
blank masks; and, of real and of drawn masks, the share whose largest part holds four fifths of it.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from dtgan_learning import NUM_SAMPLES, Cell, cells, largest_parts

from raygen import images
from raygen.checkpoint import GENERATOR, load_checkpoint
from raygen.families.dfmgan.networks import DFMGANConfig, DFMGANGenerator, full_mask
from raygen.families.dtgan.batches import healed
from raygen.families.stylegan2.networks import repeat_w
from raygen.families.vital_signs import in_parts, share_of_variance
from raygen.metrics import kernel_distance
from raygen.pretrained import Lite0Features

LATENTS, NOISES = 10, 4  # of the layout that tells z's share

COLUMNS = (
    *("backbone", "normals", "drawn", "change", "masked"),
    *("z's share", "in mask", "area", "strength", "blank", "real:1-part", "drawn:1-part"),
)


class Drawn(NamedTuple):
    """Defects that a DFM-GAN drew."""

    plain: Tensor  # (N, C, H, W): the normals below them
    image: Tensor  # (N, C, H, W)
    mask: Tensor  # (N, 1, H, W), 1 on the defect


@torch.no_grad()
def draw(network: DFMGANGenerator, product: int, kind: int, *, on_one: bool = False) -> Drawn:
    """NUM_SAMPLES defects on normals of their own, or on one, there each z under NOISES noises."""
    sizes, backbone = network.config, network.config.backbone
    random = torch.Generator().manual_seed(0)

    def normal(size: int, repeats: int = 1) -> Tensor:
        rows = torch.randn(NUM_SAMPLES // repeats, size, generator=random)
        return rows.repeat_interleave(repeats, dim=0)

    everywhere = NUM_SAMPLES if on_one else 1

    def of(z: Tensor, noise: Tensor, defect_z: Tensor, defect_noise: Tensor) -> Tensor:
        ws = network.backbone.mapping(z, torch.full((len(z),), product))
        ws = repeat_w(ws, backbone.num_ws)
        normals = network.begin(ws, noise)
        defect_ws = network.defect_ws(defect_z, torch.full((len(z),), kind))
        made = network.finish(normals, ws, noise, defect_ws, defect_noise)
        mask = full_mask(made.mask, backbone.image_size) >= 0
        return torch.cat([network.plain(normals, ws, noise), made.image, mask.to(made.image)], dim=1)

    drawn = in_parts(
        of,
        normal(backbone.latent_dim, everywhere),
        normal(backbone.noise_size, everywhere),
        normal(backbone.latent_dim, NOISES if on_one else 1),
        normal(sizes.noise_size),
    )
    return Drawn(*drawn.split([backbone.channels, backbone.channels, 1], dim=1))


def look(network: DFMGANGenerator, cell: Cell, product: int, features: Lite0Features) -> list[float]:
    """The figures of a cell, in the order of the table."""
    drawn = draw(network, product, cell.domain - 1)
    change = drawn.image - drawn.plain
    real, normals = features(cell.defects[..., :-1]), features(cell.normals)
    on = images.to_model(torch.from_numpy(cell.normals))

    def distance(a: np.ndarray, b: np.ndarray | Tensor) -> float:
        made = features(images.from_model(b.clamp(-1, 1)).numpy()) if isinstance(b, Tensor) else b
        return 1000 * kernel_distance(a, made, num_subsets=20).mean

    truth = np.stack([healed(photo) for photo in cell.defects])
    depth = np.abs(cell.defects[..., :-1].astype(np.float32) - truth).mean(axis=3) / 127.5
    true = cell.defects[..., -1] > 127
    mask = drawn.mask[:, 0].numpy() > 0
    size = change.abs().mean(dim=1).numpy()
    on_one = draw(network, product, cell.domain - 1, on_one=True)
    of_z = (on_one.image - on_one.plain).unflatten(0, (LATENTS, NOISES))
    return [
        distance(normals, drawn.plain),
        distance(real, normals),
        distance(real, drawn.image),
        distance(real, on + change[: len(on)]),
        distance(real, on + (change * drawn.mask)[: len(on)]),
        share_of_variance(of_z),
        float((size * mask).sum() / size.sum()),
        float(mask.mean() / true.mean()),
        float(size[mask].mean() / depth[true].mean()) if mask.any() else float("nan"),
        float((~mask.any(axis=(1, 2))).mean()),
        largest_parts(true),
        largest_parts(mask),
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("defects")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    network = DFMGANGenerator(DFMGANConfig.of(checkpoint.config.model)).eval().requires_grad_(False)
    weights = checkpoint.tensors(GENERATOR)
    network.load_state_dict({name.removeprefix("generator."): value for name, value in weights.items()})
    print(f"{'':20}" + "".join(f"{name:>13}" for name in COLUMNS))
    features, table = Lite0Features(None, torch.device("cpu")), []
    for cell in cells(checkpoint, args.defects):
        product = checkpoint.config.products.index(cell.name.split("/")[0])
        table.append(look(network, cell, product, features))
        print(f"{cell.name:20}" + "".join(f"{value:13.2f}" for value in table[-1]), flush=True)
    print(f"{'mean':20}" + "".join(f"{value:13.2f}" for value in np.nanmean(table, axis=0)))


if __name__ == "__main__":
    main()
