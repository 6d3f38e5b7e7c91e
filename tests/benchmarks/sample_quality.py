"""Are masks, scores and the gate any good? Measured with networks that know nothing of the GAN.

    python tests/benchmarks/sample_quality.py CHECKPOINT
    python tests/benchmarks/sample_quality.py CHECKPOINT --defects FOLDER   (splits train, val, test, with masks)

Without --defects the real images are procedural surfaces that no training has seen. It prints

1. *masks of real defects*, of the test split against the true ones, read in three ways: off F(E(x)), the layer
   that the generator draws of what the encoder reads; off |x - B(x)|; and off |x - G(x -> normal)|. Threshold and
   peak share are chosen for each way on the split val; in brackets, the recipe's defaults.
2. *masks of samples*, against a segmentation network trained on true masks (its own IoU on the test split is the
   ceiling), with the recipe's defaults.
3. *the gate*: by a classifier trained on real images, the share of samples of the wanted type among those of one
   attempt that the gate accepts and refuses, and among those kept after four attempts.
4. *compositions*: reconstruct against residual: wanted type, change of the background, accuracy of a classifier
   of real against synthetic defects trained on half of them (0.5: it cannot tell), and the unbiased kernel
   distance on the type classifier's features, beside that of real train against real test images.
"""

import argparse
import itertools
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
sys.path.insert(0, str(Path(__file__).parent))
from defect_quality import Classifier, Images, RealData, cached_classifier, classify, train_classifier
from factories import make_samples

from raygen import images, surfaces
from raygen.checkpoint import GENERATOR, Checkpoint, load_checkpoint
from raygen.data.defects import list_defect_set, load_photos
from raygen.families import load_generator
from raygen.families.dtgan.generator import DTGANGenerator
from raygen.families.dtgan.networks import Generator, MappingNetwork, StyleContentEncoder, compose
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.masks import find_defects
from raygen.families.recipes import MaskConfig
from raygen.generate.config import GateConfig, GenerateConfig
from raygen.records import MODES, NORMAL, digest, plan_requests

NUM_SURFACES = {"train": 200, "val": 40, "test": 60}  # of each product and kind


class Split(NamedTuple):
    """Real photographs."""

    images: Images
    masks: np.ndarray  # bool (N, H, W)


def render(split: str, size: int, channels: int, kinds: Sequence[str]) -> Split:
    """Procedural surfaces."""
    seed, count = int(digest("sample_quality", split), 16), NUM_SURFACES[split]
    pixels, masks, labels = [], [], []
    for name, image in surfaces.defect_set(count, count, seed, size, channels):
        product, kind, file = name.split("/")
        if file.endswith("_mask.png"):
            masks[-1] = image.reshape(size, size) > 0
            continue
        pixels.append(image)
        masks.append(np.zeros((size, size), bool))
        labels.append((surfaces.PRODUCTS.index(product), kinds.index(kind)))
    return Split(Images(np.stack(pixels), *np.array(labels).T), np.stack(masks))


def load(folder: str, split: str, size: int, channels: int, kinds: Sequence[str]) -> Split:
    """One split of a defect set with masks."""
    photos = [
        photo for photo in list_defect_set(folder) if photo.split == split and photo.defect_type in kinds
    ]
    products = sorted({photo.product for photo in photos})
    labels = [(products.index(photo.product), kinds.index(photo.defect_type)) for photo in photos]
    masks = np.zeros((len(photos), size, size), bool)
    rows = [row for row, photo in enumerate(photos) if photo.mask_uri]
    of_masks = [photos[row]._replace(uri=photos[row].mask_uri or "", etag=None) for row in rows]
    masks[rows] = load_photos(of_masks, size, 1)[..., 0] > 127
    return Split(Images(load_photos(photos, size, channels), *np.array(labels).T), masks)


def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
    """IoU, precision and recall of masks (N, H, W), means over the images."""
    both = (found & true).sum((1, 2))
    counts = (found | true).sum((1, 2)), found.sum((1, 2)), true.sum((1, 2))
    return np.array([(both / count.clip(1)).mean() for count in counts])


# ------------------------------------------------------------------------------------- masks of real defects


@torch.inference_mode()
def real_strengths(checkpoint: Checkpoint, generator: DTGANGenerator, split: Split) -> dict[str, np.ndarray]:
    """Way -> change in grey levels that real defects make, (N, H, W)."""
    sizes = DTGANConfig(**checkpoint.config.model)
    networks = {
        "generator": Generator(sizes),
        "mapping": MappingNetwork(sizes),
        "encoder": StyleContentEncoder(sizes),
    }
    for name, network in networks.items():
        weights = checkpoint.tensors(GENERATOR)
        own = {k.removeprefix(f"{name}."): v for k, v in weights.items() if k.startswith(f"{name}.")}
        network.eval().load_state_dict(own)
    plain, mapping, encoder = networks.values()
    z = torch.randn(1, sizes.latent_dim, generator=torch.Generator().manual_seed(0))
    bare = plain.defect_layer(*mapping.for_domain(z, 0, product=torch.zeros(1, dtype=torch.long)))
    found: dict[str, list[np.ndarray]] = {"F(E(x))": [], "x - B(x)": [], "x - G(x -> normal)": []}
    for rows in np.array_split(np.arange(len(split.masks)), -(-len(split.masks) // 16)):
        x, kind = images.to_model(torch.from_numpy(split.images.pixels[rows])), split.images.kind[rows]
        layer, background = plain.defect_layer(*encoder(x, torch.from_numpy(kind))), plain.background(x)
        types = checkpoint.config.defect_types
        found["F(E(x))"] += [
            generator._strength(one[None], types[k - 1])[0] for one, k in zip(layer, kind, strict=True)
        ]
        for way, other in (
            ("x - B(x)", background),
            ("x - G(x -> normal)", compose(background, bare.expand(len(rows), -1, -1, -1))),
        ):
            found[way] += list((x - other).abs().amax(1).mul(127.5).numpy())
    return {way: np.stack(values) for way, values in found.items()}


def defects_of(split: Split) -> Split:
    rows = split.images.kind > 0
    return Split(Images(*(field[rows] for field in split.images)), split.masks[rows])


def judge_real_masks(
    checkpoint: Checkpoint,
    generator: DTGANGenerator,
    val: Split,
    test: Split,
    kinds: Sequence[str],
    products: tuple[str, ...],
) -> None:
    val, test = defects_of(val), defects_of(test)
    tuning, testing = (real_strengths(checkpoint, generator, split) for split in (val, test))
    print("\nmasks of real defects: IoU precision recall, on the test split")
    for way in tuning:
        options = [
            MaskConfig(threshold=threshold, peak_share=share, noise_factor=0)
            for threshold, share in itertools.product((4, 6, 8, 10, 15, 20, 25, 30), (0, 0.2, 0.4, 0.6))
        ]
        config = max(options, key=lambda c: overlap(find_defects(tuning[way], c).masks, val.masks)[0])
        found = find_defects(testing[way], config).masks
        usual = find_defects(testing[way], MaskConfig()).masks
        print(f"{way} (threshold {config.threshold:g}, peak share {config.peak_share:g})")
        for p, k in itertools.product(range(len(products)), range(1, len(kinds))):
            rows = (test.images.product == p) & (test.images.kind == k)
            numbers = " ".join(f"{value:.2f}" for value in overlap(found[rows], test.masks[rows]))
            usually = overlap(usual[rows], test.masks[rows])[0]
            print(
                f"    {products[p] + ' ' + kinds[k]:34} {numbers}   [defaults {usually:.2f}] {rows.sum()} images"
            )


# -------------------------------------------------------------------------------------------- segmentation


class Segmenter(nn.Module):
    """A small U-Net: 3×3 convolutions at three resolutions."""

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()

        def block(before: int, after: int) -> nn.Sequential:
            layers: list[nn.Module] = []
            for inner in (before, after):
                layers += [
                    nn.Conv2d(inner, after, 3, padding=1, bias=False),
                    nn.BatchNorm2d(after),
                    nn.ReLU(),
                ]
            return nn.Sequential(*layers)

        self.down1, self.down2, self.down3 = (
            block(channels, width),
            block(width, 2 * width),
            block(2 * width, 4 * width),
        )
        self.up2, self.up1 = block(6 * width, 2 * width), block(3 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, C, H, W) -> logits (N, H, W)."""
        a = self.down1(x.contiguous(memory_format=torch.channels_last))
        b = self.down2(F.max_pool2d(a, 2))
        c = self.down3(F.max_pool2d(b, 2))
        b = self.up2(torch.cat([b, F.interpolate(c, scale_factor=2)], 1))
        return self.head(self.up1(torch.cat([a, F.interpolate(b, scale_factor=2)], 1)))[:, 0]


def train_segmenter(split: Split, num_steps: int) -> Segmenter:
    """Learns true masks by cross-entropy and Dice; normals have none."""
    torch.manual_seed(0)
    segmenter = Segmenter(split.images.pixels.shape[3])
    optimizer = torch.optim.AdamW(segmenter.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, num_steps)
    pixels, masks = torch.from_numpy(split.images.pixels), torch.from_numpy(split.masks).float()
    cell = split.images.product * 10 + np.minimum(split.images.kind, 9)
    frequency = torch.from_numpy(1 / np.bincount(cell)[cell])
    for step in range(num_steps):
        rows = torch.multinomial(frequency, 16, replacement=True)
        x, y = images.to_model(pixels[rows]), masks[rows]
        for axis in (dim for dim in (1, 2) if (step >> (dim - 1)) % 2):
            x, y = x.flip(axis + 1), y.flip(axis)
        logits = segmenter(x)
        guess = logits.sigmoid()
        dice = 1 - (2 * (guess * y).sum() + 1) / ((guess + y).sum() + 1)
        loss = F.binary_cross_entropy_with_logits(logits, y) + dice
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return segmenter.eval()


@torch.inference_mode()
def segment(segmenter: Segmenter, pixels: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, C) -> bool (N, H, W)."""
    found = [segmenter(images.to_model(some)) > 0 for some in torch.from_numpy(pixels).split(32)]
    return torch.cat(found).numpy()


# ------------------------------------------------------------------------------------------------- samples


def make(
    checkpoint: Checkpoint,
    split: Split,
    products: tuple[str, ...],
    num: int,
    gate: GateConfig,
    **changes: Any,
) -> tuple[Any, np.ndarray]:
    """Samples of some normals of each product, and these products' numbers."""
    normal = split.images.kind == 0
    rows = np.concatenate(
        [np.flatnonzero(normal & (split.images.product == p))[:num] for p in range(len(products))]
    )
    config = GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri, **changes)
    requests = plan_requests(checkpoint.config.defect_types, MODES, 1)
    seeds = np.random.default_rng(0).integers(0, 2**62, (len(rows), len(requests)))
    names = [str(products[p]) for p in split.images.product[rows].tolist()]
    made = make_samples(
        load_generator(checkpoint, config), split.images.pixels[rows], seeds, requests, gate, names
    )
    return made, split.images.product[rows]


def cells(
    made: Any, product: np.ndarray, products: tuple[str, ...], types: Sequence[str]
) -> Iterator[tuple[str, Any]]:
    """Name and index of each product × type × mode."""
    requests = plan_requests(tuple(types), MODES, 1)
    for (p, name), (column, request) in itertools.product(enumerate(products), enumerate(requests)):
        yield f"{name} {request.defect_type} {request.mode}", (product == p, column)


@torch.inference_mode()
def features(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """What the classifier's last layer sees, (N, D)."""
    kept: list[Tensor] = []
    hook = classifier.head.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    classify(classifier, pixels)
    hook.remove()
    return torch.cat(kept).numpy()


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared maximum mean discrepancy with the kernel (x·y / D + 1)³."""

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        values = kernel(x, x)
        return (values.sum() - np.trace(values)) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()


def tells_apart(real: np.ndarray, samples: np.ndarray) -> float:
    """Balanced accuracy of a classifier of real against synthetic, on the half it has not learned from."""
    num = min(len(real), len(samples))
    rng = np.random.default_rng(0)
    both = [some[rng.permutation(len(some))[:num]] for some in (real, samples)]
    half = num // 2
    learn = Images(
        np.concatenate([some[:half] for some in both]), np.zeros(2 * half, int), np.repeat([0, 1], half)
    )
    judge = train_classifier(learn, 2).eval()
    return float(np.mean([(classify(judge, some[half:]) == label).mean() for label, some in enumerate(both)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--defects", help="a defect set with masks and splits; else procedural surfaces")
    parser.add_argument("--normals", type=int, default=40, help="of each product, to generate from (at most)")
    parser.add_argument("--min-type-prob", type=float, default=0.9, help="the gate's rule")
    args = parser.parse_args()
    torch.set_num_threads(1)
    checkpoint = load_checkpoint(args.checkpoint)
    size, channels, types = (
        checkpoint.config.image_size,
        checkpoint.config.channels,
        checkpoint.config.defect_types,
    )
    kinds = (NORMAL, *types)
    splits = {
        name: load(args.defects, name, size, channels, kinds)
        if args.defects
        else render(name, size, channels, kinds)
        for name in NUM_SURFACES
    }
    train, val, test = splits.values()
    products = surfaces.PRODUCTS
    if args.defects:
        products = tuple(sorted({photo.product for photo in list_defect_set(args.defects)}))
    fusion = checkpoint.config.model.get("fusion", "linear")
    print(f"{checkpoint.uri}: {checkpoint.config.images_seen:,} images seen, {fusion} fusion")
    generator = load_generator(
        checkpoint, GenerateConfig(pool="pool", output="out", checkpoint=checkpoint.uri)
    )
    assert isinstance(generator, DTGANGenerator)
    judge_real_masks(checkpoint, generator, val, test, kinds, products)

    segmenter = train_segmenter(train, 500)
    real = defects_of(test)
    ceiling = overlap(segment(segmenter, real.images.pixels), real.masks)[0]
    once = GateConfig(min_type_prob=args.min_type_prob, max_attempts=1)
    made, product = make(checkpoint, test, products, args.normals, once)
    masks = made.made.masks > 0
    print(
        f"\nmasks of samples against a segmentation network (itself {ceiling:.2f} on real ones): IoU, mask area"
    )
    for name, (rows, column) in cells(made, product, products, types):
        found, seen = masks[rows, column], segment(segmenter, made.made.pixels[rows, column])
        print(f"    {name:44} {overlap(found, seen)[0]:.2f}   {found.mean():.4f}")

    key = digest(*(str(part) for part in (args.defects or "surfaces", len(train.masks), size, channels)))
    data = RealData(products, key, lambda: train.images, lambda: test.images)
    classifier = cached_classifier(
        data, size, channels, len(kinds), f"{tempfile.gettempdir()}/raygen-classifiers"
    )
    right = classify(classifier, test.images.pixels) == test.images.kind
    print(
        f"\nthe gate (min_type_prob {args.min_type_prob}); classifier right on {right.mean():.2f} of real ones"
    )
    wanted = np.repeat(np.arange(1, len(kinds)), len(MODES))

    def agreement(of: Any) -> np.ndarray:
        return classify(classifier, of.made.pixels) == wanted

    agrees, accepted = agreement(made), made.reasons == None  # noqa: E711 element by element
    again, _ = make(checkpoint, test, products, args.normals, once.model_copy(update={"max_attempts": 4}))
    agrees_again, accepted_again = agreement(again), again.reasons == None  # noqa: E711
    for name, index in [("all", (slice(None), slice(None))), *cells(made, product, products, types)]:
        ok, yes = accepted[index], agrees[index]
        refused = f"{yes[~ok].mean():.2f} of {(~ok).sum()}" if (~ok).any() else "none"
        taken = f"{yes[ok].mean():.2f} of {ok.sum()}" if ok.any() else "none"
        print(
            f"    {name:44} wanted type: ungated {yes.mean():.2f}, accepted {taken}, refused {refused}; after 4 "
            f"attempts accepted {accepted_again[index].mean():.2f}, wanted type {agrees_again[index].mean():.2f}"
        )

    print("\ncompositions")
    test_features = features(classifier, real.images.pixels)
    floor = kernel_distance(features(classifier, defects_of(train).images.pixels), test_features)
    pool = np.concatenate([defects_of(split).images.pixels for split in splits.values()])
    for composition in ("reconstruct", "residual"):
        of, _ = make(
            checkpoint, test, products, args.normals, GateConfig(max_attempts=1), composition=composition
        )
        pixels = of.made.pixels.reshape(-1, *of.made.pixels.shape[2:])
        distance = kernel_distance(features(classifier, pixels), test_features)
        kept = of.made.scores.reshape(-1, of.made.scores.shape[2])
        print(
            f"    {composition} wanted type {agreement(of).mean():.2f}, realism {np.nanmedian(kept[:, 0]):+.2f}, "
            f"background {np.nanmean(kept[:, 3]):.2f}/255, told from real ones {tells_apart(pool, pixels):.2f}, "
            f"kernel distance {distance:.4f} (real train against test {floor:.4f})",
            flush=True,
        )


if __name__ == "__main__":
    main()
