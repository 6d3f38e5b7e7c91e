"""What a DT-GAN has learned, cell by cell, and whether M can learn to say where.

    python tests/benchmarks/dtgan_learning.py CHECKPOINT DEFECTS
    python tests/benchmarks/dtgan_learning.py CHECKPOINT DEFECTS --mapping 1200
    python tests/benchmarks/dtgan_learning.py CHECKPOINT DEFECTS --masks

DEFECTS is a set with masks; its split train is looked at. The first prints, for each product × type, the
unbiased kernel distance × 1000 (EfficientNet-Lite0) of normals, latent-guided and reference-guided samples from
real defects; how the strength and sign of what is drawn of a reference correlate with the reference's own; the
share of a real defect's contrast that B keeps (median); the share of bright defects; the share whose largest part
holds four fifths of the mask; the contrast (median, grey levels) of real, latent-guided and reference-guided
defects on their masks; the share of references that turn from bright to dark, or back, with the style of
the same photo turned over; and the standard deviation of M's styles ÷ that of E's. The second trains M alone, on
the checkpoint's E and F, to draw the codes that E reads off augmented defects, against a fresh code discriminator:
without `content_map` and with it. The third compares thresholds by which masks are read off layers: how many of
the latents' and of the references' layers have one, and how the references' lie on the true ones (mean IoU, and
their area ÷ the true ones'); with `product_codes`, also how strong a cell's latents are as each product.
"""

import argparse
import dataclasses
import itertools
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raygen import images
from raygen.checkpoint import GENERATOR, Checkpoint, load_checkpoint
from raygen.data.defects import list_defect_set
from raygen.families.dtgan.batches import augmented, healed
from raygen.families.dtgan.networks import CodeDiscriminator, Generator, MappingNetwork, StyleContentEncoder
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.losses import adversarial, r1
from raygen.families.masks import find_defects
from raygen.families.photos import TRAINING_SPLITS, loader
from raygen.families.recipes import MaskConfig
from raygen.families.vital_signs import in_parts, share_of_variance
from raygen.metrics import kernel_distance
from raygen.pretrained import Lite0Features
from raygen.records import NORMAL

NUM_SAMPLES, NUM_DEFECTS = 40, 150  # of a cell
THRESHOLDS, PEAK_SHARES = (20.0, 8.0, 5.0), (0.2, 0.35, 0.5)  # of masks
NUM_AUGMENTED, BATCH = 480, 32  # for M: codes of a cell, rows of a step


class Trained(NamedTuple):
    """A checkpoint's networks."""

    sizes: DTGANConfig
    generator: Generator
    mapping: MappingNetwork
    encoder: StyleContentEncoder


class Cell(NamedTuple):
    """Real photographs of a product and a defect type."""

    name: str
    domain: int
    product: int
    normals: np.ndarray  # uint8 (n, H, W, C)
    defects: np.ndarray  # uint8 (m, H, W, C + 1), the last the mask


def trained(checkpoint: Checkpoint) -> Trained:
    sizes = DTGANConfig(**checkpoint.config.model)
    found = Trained(sizes, Generator(sizes), MappingNetwork(sizes), StyleContentEncoder(sizes))
    weights = checkpoint.tensors(GENERATOR)
    for name in ("generator", "mapping", "encoder"):
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        getattr(found, name).eval().requires_grad_(False).load_state_dict(own)
    return found


def cells(checkpoint: Checkpoint, defects: str) -> Iterator[Cell]:
    photos = [photo for photo in list_defect_set(defects) if photo.split in TRAINING_SPLITS]

    def of(product: str, kind: str, most: int) -> np.ndarray:
        some = [photo for photo in photos if (photo.product, photo.defect_type) == (product, kind)]
        some = some[:: max(1, len(some) // most)][:most]
        return loader(some, checkpoint.config, in_memory=False, masks="known")([*range(len(some))])

    for number, product in enumerate(checkpoint.config.products):
        normals = of(product, NORMAL, NUM_SAMPLES)[..., :-1]
        for domain, kind in enumerate(checkpoint.config.defect_types, 1):
            yield Cell(f"{product}/{kind}", domain, number, normals, of(product, kind, NUM_DEFECTS))


def bright(drawn: Tensor, masks: Tensor) -> np.ndarray:
    """Whether what is drawn, (N, C, H, W), is bright on masks (N, 1, H, W) that hold anything."""
    signs = (drawn.mean(dim=1, keepdim=True) * masks).sum((1, 2, 3))
    return (signs[masks.any(dim=3).any(dim=2)[:, 0]] > 0).numpy()


def codes(networks: Trained, x: Tensor, domain: int) -> tuple[Tensor, Tensor]:
    """What E reads off (N, C, H, W)."""
    read = [networks.encoder(part, torch.full((len(part),), domain)) for part in x.split(32)]
    return torch.cat([style for style, _ in read]), torch.cat([content for _, content in read])


def contrast(drawn: Tensor, masks: Tensor) -> float:
    """How strong what is drawn is on masks as `bright` takes them: the median of |mean change|, grey levels."""
    size = masks.sum((1, 2, 3))
    change = (drawn.mean(dim=1, keepdim=True) * masks).sum((1, 2, 3)) / size.clamp(min=1)
    return 127.5 * change[size > 0].abs().median().item()


def share(of: np.ndarray) -> float:
    """The share of yes; NaN of nothing."""
    return float(of.mean()) if len(of) else float("nan")


def largest_parts(masks: np.ndarray) -> float:
    """The share of masks, bool (N, H, W), whose largest part holds four fifths of them."""
    single = []
    for mask in masks[masks.any(axis=(1, 2))]:
        _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
        areas = stats[1:, cv2.CC_STAT_AREA]  # without the background
        single.append(areas.max() >= 0.8 * areas.sum())
    return share(np.array(single))


@torch.no_grad()
def look(networks: Trained, cell: Cell, features: Lite0Features) -> list[float]:
    """The figures of a cell, in the order of the table."""
    random = np.random.default_rng(0)
    rows = random.integers(len(cell.defects), size=NUM_SAMPLES)
    defects = cell.defects[rows]
    x, h = (
        images.to_model(torch.from_numpy(np.ascontiguousarray(pixels)))
        for pixels in (defects[..., :-1], np.stack([healed(photo) for photo in defects]))
    )
    mask = torch.from_numpy(defects[..., -1] > 127)[:, None].float()
    size = mask.sum((1, 2, 3)).clamp(min=1)
    sizes = networks.sizes
    lengths = sizes.latent_dim, sizes.noise_size
    z, noise = (torch.from_numpy(random.standard_normal((NUM_SAMPLES, n), np.float32)) for n in lengths)
    style, content = codes(networks, x, cell.domain)
    product = torch.full((NUM_SAMPLES,), cell.product)
    drawn_style, drawn_content = networks.mapping.for_domain(z, cell.domain, noise, product)
    latent = in_parts(networks.generator.defect_layer, drawn_style, drawn_content)
    reference = in_parts(networks.generator.defect_layer, style, content)
    turned = in_parts(networks.generator.defect_layer, codes(networks, 2 * h - x, cell.domain)[0], content)
    background = in_parts(networks.generator.background, images.to_model(torch.from_numpy(cell.normals)))

    real = features(cell.defects[..., :-1])
    distances = [kernel_distance(real, features(cell.normals), num_subsets=20).mean]
    for layer in (latent, reference):
        made = (background + layer[: len(background), : sizes.channels]).clamp(-1, 1)
        distances.append(
            kernel_distance(real, features(images.from_model(made).numpy()), num_subsets=20).mean
        )
    true, drawn = (((part * mask).sum((1, 2, 3)) / size).numpy() for part in (x - h, reference))
    kept = ((in_parts(networks.generator.background, x) - h).abs() * mask).sum((1, 2, 3))
    kept /= ((x - h).abs() * mask).sum((1, 2, 3)).clamp(min=1e-3)
    bare = (latent - latent.median(dim=0).values)[:, : sizes.channels]
    found = find_defects((bare.abs().amax(dim=1) * 127.5).numpy(), MaskConfig()).masks > 0
    return [
        *(1000 * distance for distance in distances),
        float(np.corrcoef(true, drawn)[0, 1]),
        kept.median().item(),
        float((true > 0).mean()),
        share(bright(bare, torch.from_numpy(found)[:, None])),
        largest_parts(defects[..., -1] > 127),
        largest_parts(found),
        contrast(x - h, mask),
        contrast(bare, torch.from_numpy(found)[:, None]),
        contrast(reference[:, : sizes.channels], mask),
        share(bright(reference[:, : sizes.channels], mask) != bright(turned[:, : sizes.channels], mask)),
        (drawn_style.std(dim=0).mean() / style.std(dim=0).mean()).item(),
    ]


@torch.no_grad()
def compare_masks(networks: Trained, some: Sequence[Cell]) -> None:
    """Of each cell and of several ways to read masks: how often there is one, and how well it lies."""
    print(f"{'':28}{'threshold':>10}{'peak share':>11}{'latents':>9}{'references':>11}{'IoU':>6}{'area':>6}")
    means: dict[tuple[float, float], list[float]] = {}
    for cell in some:
        random = np.random.default_rng(0)
        defects = cell.defects[random.integers(len(cell.defects), size=NUM_SAMPLES)]
        x = images.to_model(torch.from_numpy(np.ascontiguousarray(defects[..., :-1])))
        true, sizes = defects[..., -1] > 127, networks.sizes
        lengths = sizes.latent_dim, sizes.noise_size
        z, noise = (torch.from_numpy(random.standard_normal((NUM_SAMPLES, n), np.float32)) for n in lengths)
        own = networks.mapping.for_domain(z, cell.domain, noise, torch.full((NUM_SAMPLES,), cell.product))
        reference = in_parts(networks.generator.defect_layer, *codes(networks, x, cell.domain))
        latent = in_parts(networks.generator.defect_layer, *own)
        bare = reference.median(dim=0).values
        size = int(np.median(true.sum(axis=(1, 2))))
        as_others = []
        for product in range(sizes.num_products if sizes.product_codes else 0):
            told = networks.mapping.for_domain(z, cell.domain, noise, torch.full((NUM_SAMPLES,), product))
            layers = in_parts(networks.generator.defect_layer, *told)
            change = (layers - layers.median(dim=0).values).abs().flatten(1).topk(size).values.mean(dim=1)
            as_others.append(f"{127.5 * change.median().item():.0f}")
        if as_others:
            told = ", ".join(as_others)
            print(
                f"{cell.name}: the strongest {size} pixels of latents, as each product, grey levels: {told}"
            )
        strengths = [(127.5 * (layer - bare).abs().amax(dim=1)).numpy() for layer in (latent, reference)]
        for threshold, share_ in itertools.product(THRESHOLDS, PEAK_SHARES):
            config = MaskConfig(threshold=threshold, peak_share=share_)
            drawn, read = (find_defects(strength, config).masks for strength in strengths)
            both, either = ((read & true).sum((1, 2)), (read | true).sum((1, 2)).clip(1))
            iou, area = float((both / either).mean()), read.sum() / true.sum()
            means.setdefault((threshold, share_), []).append(iou)
            has = [float(found.any(axis=(1, 2)).mean()) for found in (drawn, read)]
            row = f"{threshold:10g}{share_:11g}{has[0]:9.0%}{has[1]:11.0%}{iou:6.2f}{area:6.2f}"
            print(f"{cell.name:28}{row}", flush=True)
    for (threshold, share_), found in means.items():
        print(f"{'mean':28}{threshold:10g}{share_:11g}{'':20}{np.mean(found):6.3f}")


def learn_codes(networks: Trained, some: Sequence[Cell], with_map: bool, steps: int) -> None:
    """Trains a fresh M on the codes that E reads, and prints z's share as it goes."""
    random, sizes = np.random.default_rng(0), dataclasses.replace(networks.sizes, content_map=with_map)
    real, domains, products = [], [], []
    for cell in some:
        rows = random.integers(len(cell.defects), size=NUM_AUGMENTED)
        drawn = [augmented(cell.defects[row, ..., :-1], random) for row in rows]
        with torch.no_grad():
            style, content = codes(networks, images.to_model(torch.from_numpy(np.stack(drawn))), cell.domain)
        real.append(torch.cat([style, content.flatten(1)], dim=1))
        domains.append(torch.full((len(drawn),), cell.domain))
        products.append(torch.full((len(drawn),), cell.product))
    bank, domain, product = torch.cat(real), torch.cat(domains), torch.cat(products)
    torch.manual_seed(0)
    mapping, judge = MappingNetwork(sizes), CodeDiscriminator(sizes)
    optimizers = [torch.optim.Adam(n.parameters(), 1e-3, betas=(0.0, 0.99)) for n in (mapping, judge)]
    started = time.monotonic()
    for step in range(steps + 1):
        rows = torch.randint(len(bank), (BATCH,))
        own = domain[rows], product[rows]
        style, content = mapping(torch.randn(BATCH, sizes.latent_dim), own[0], product=own[1])
        made, x = torch.cat([style, content.flatten(1)], dim=1), bank[rows].requires_grad_(step % 4 == 0)
        logits = judge(x, *own)
        loss = adversarial(logits, True) + adversarial(judge(made.detach(), *own), False)
        loss = loss + 4 * 0.05 * r1(logits, x) if step % 4 == 0 else loss
        optimizers[1].zero_grad()
        loss.backward()
        optimizers[1].step()
        optimizers[0].zero_grad()
        F.softplus(-judge(made, *own)).mean().backward()
        optimizers[0].step()
        if step % max(1, steps // 4) == 0:
            z = torch.randn(8, sizes.latent_dim).repeat_interleave(4, dim=0)
            with torch.no_grad():
                ones = torch.ones(32, dtype=torch.long)
                drawn = mapping(z, ones, product=ones)[1].unflatten(0, (8, 4))
            kind = "with" if with_map else "without"
            share, seconds = share_of_variance(drawn), time.monotonic() - started
            print(f"{kind} the map, {step:,} steps, {seconds:.0f} s: z's share {share:.2f}", flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint")
    parser.add_argument("defects")
    parser.add_argument("--mapping", type=int, metavar="STEPS")
    parser.add_argument("--masks", action="store_true")
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.checkpoint)
    networks, found = trained(checkpoint), [*cells(checkpoint, args.defects)]
    if args.mapping:
        for with_map in (False, True):
            learn_codes(networks, found, with_map, args.mapping)
        return
    if args.masks:
        compare_masks(networks, found)
        return
    names = "normals latent reference correlation kept real:bright latent:bright real:1-part latent:1-part"
    names += " real:grey latent:grey ref:grey"
    print(f"{'':28}" + "".join(f"{name:>14}" for name in [*names.split(), "turned", "styles"]))
    features = Lite0Features(None, torch.device("cpu"))
    table = []
    for cell in found:
        values = look(networks, cell, features)
        table.append(values)
        print(f"{cell.name:28}" + "".join(f"{value:14.2f}" for value in values), flush=True)
    print(f"{'mean':28}" + "".join(f"{value:14.2f}" for value in np.nanmean(table, axis=0)))


if __name__ == "__main__":
    main()
