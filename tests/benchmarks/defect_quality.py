"""Are the generated defects good? A judge of checkpoints that knows nothing of the GAN's own discriminator.

    python tests/benchmarks/defect_quality.py CHECKPOINT --sheet sheet.png
    python tests/benchmarks/defect_quality.py CHECKPOINT --defects FOLDER --train-split train --test-split test

The real images are procedural surfaces that no training has seen or, with --defects, a defect set. Samples are
generated as the job does it: two seeds for each normal, defect type and mode. It tells, grey levels being 0..255:

type        share of the samples in which a classifier sees the wanted defect type. It is trained on real images
            only; its accuracy on held-back real images is printed first: that is the ceiling.
background  mean change from the normal to its sample outside the defect, in grey levels. The defect is where the
            smoothed change exceeds 10 grey levels, dilated by 3 px at 64 px; `cover` is its share of the image.
diversity   mean difference of two samples of one normal and type, inside the defects of either (not dilated)
            and outside (dilated), in grey levels, and their ratio.
cycle       mean |x - (B(x̃) + F(E(x)))| for real defect images x and their translation to normal
            x̃ = B(x) + F(s, 0), in grey levels. A small one means little where x̃ is x: hence also `changed`,
            mean |x - x̃|, and the share of the x̃ that the classifier takes for normal.

The last line is JSON with the main numbers.
"""

import argparse
import hashlib
import inspect
import json
import math
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from factories import make_samples

from raygen import images, storage, surfaces
from raygen.checkpoint import GENERATOR, Checkpoint, load_checkpoint
from raygen.data.defects import list_defect_set, load_photos
from raygen.data.photo import Photo
from raygen.families import load_generator
from raygen.families.dtgan.networks import Generator, MappingNetwork, StyleContentEncoder
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.generate.config import GenerateConfig
from raygen.records import MODES, NORMAL, digest, plan_requests, sample_seed
from raygen.show import draw_sheet

SURFACES_TO_TRAIN, SURFACES_TO_TEST = 600, 100  # of each product and kind
THRESHOLD = 10.0  # grey levels; a smaller change is no defect
NUM_SEEDS = 2  # samples of a normal, defect type and mode


class Images(NamedTuple):
    """N labelled photographs."""

    pixels: np.ndarray  # uint8 (N, H, W, C)
    product: np.ndarray  # int (N,)
    kind: np.ndarray  # int (N,): 0 normal, 1... the checkpoint's defect types


class RealData(NamedTuple):
    """What a generator is held against."""

    products: tuple[str, ...]
    train_key: str  # decides the images to train on
    train: Callable[[], Images]
    test: Callable[[], Images]


def real_surfaces(size: int, channels: int, kinds: Sequence[str]) -> RealData:
    """Procedural surfaces, of seeds that are this benchmark's own."""

    def render(part: str, count: int) -> Images:
        seed, pixels, labels = int(digest("defect_quality", part), 16), [], []
        for name, image in surfaces.defect_set(count, count, seed, size, channels):
            product, kind, file = name.split("/")
            if kind in kinds and not file.endswith("_mask.png"):
                pixels.append(image)
                labels.append((surfaces.PRODUCTS.index(product), kinds.index(kind)))
        return Images(np.stack(pixels), *np.array(labels).T)

    train, test = partial(render, "train", SURFACES_TO_TRAIN), partial(render, "test", SURFACES_TO_TEST)
    return RealData(surfaces.PRODUCTS, digest(inspect.getsource(surfaces), SURFACES_TO_TRAIN), train, test)


def real_photos(
    folder: str, splits: Sequence[str], size: int, channels: int, kinds: Sequence[str]
) -> RealData:
    """A defect set, the train and the test split of it, without photos of other types than the checkpoint's."""
    photos = [photo for photo in list_defect_set(folder) if photo.defect_type in kinds]
    products = tuple(sorted({photo.product for photo in photos}))

    def load(part: list[Photo]) -> Images:
        labels = [(products.index(photo.product), kinds.index(photo.defect_type)) for photo in part]
        return Images(load_photos(part, size, channels), *np.array(labels).T)

    train, test = ([photo for photo in photos if photo.split == split] for split in splits)
    for split, part in zip(splits, (train, test), strict=True):
        if missing := set(kinds) - {photo.defect_type for photo in part}:
            raise SystemExit(f"{folder}: split {split!r} has no {', '.join(sorted(missing))}")
    key = digest(*(f"{photo.uri} {photo.etag} {photo.defect_type}" for photo in train))
    return RealData(products, key, partial(load, train), partial(load, test))


class Classifier(nn.Module):
    """A small CNN: 3×3 convolutions from 64 px down to 8, then the mean and the maximum. Larger images are first
    brought down to 64 px: on some hundred photos of 128 px it is right more often so."""

    def __init__(self, size: int, channels: int, num_kinds: int) -> None:
        super().__init__()
        self.size = min(size, 64)
        widths = [1024 // side for side in (64, 32, 16, 8) if side <= size]
        stages: list[nn.Module] = []
        for before, after in pairwise([channels, *widths]):
            stages += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages[:-1])
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * widths[-1], num_kinds)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, C, H, W) -> logits (N, num_kinds)."""
        x = F.adaptive_avg_pool2d(x, self.size)
        h = self.stages(x.contiguous(memory_format=torch.channels_last))
        return self.head(self.dropout(torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)))


def train_classifier(real: Images, num_kinds: int, num_steps: int = 600) -> Classifier:
    """Trains on batches in which every product and kind is as frequent."""
    torch.manual_seed(0)
    _, size, _, channels = real.pixels.shape
    num_rows = 64
    classifier = Classifier(size, channels, num_kinds)
    optimizer = torch.optim.AdamW(classifier.parameters(), weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_steps, pct_start=0.15)
    cell = real.product * num_kinds + real.kind
    frequency = torch.from_numpy(1 / np.bincount(cell)[cell])
    pixels, kind = torch.from_numpy(real.pixels), torch.from_numpy(real.kind)
    for _ in range(num_steps):
        rows = torch.multinomial(frequency, num_rows, replacement=True)
        x = images.to_model(pixels[rows])
        for turn in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
            x = torch.where(torch.rand(num_rows, 1, 1, 1) < 0.5, turn(x), x)
        gain, offset = torch.rand(2, num_rows, 1, 1, 1) * 0.3 - 0.15
        loss = F.cross_entropy(classifier(x * (1 + gain) + offset), kind[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier


def cached_classifier(
    real: RealData, size: int, channels: int, num_kinds: int, folder: str, num_steps: int = 600
) -> Classifier:
    """The classifier for this data, this size and this way of training; trained where the folder lacks it."""
    source = inspect.getsource(Classifier) + inspect.getsource(train_classifier)
    file = Path(folder, f"{digest(real.train_key, size, channels, num_kinds, num_steps, source)}.safetensors")
    if not file.exists():
        print("training the classifier …", flush=True)
        classifier = train_classifier(real.train(), num_kinds, num_steps)
        storage.put(str(file), safetensors.torch.save(classifier.state_dict()))  # whole or not at all
    classifier = Classifier(size, channels, num_kinds)
    classifier.load_state_dict(safetensors.torch.load_file(file))
    return classifier.eval()


@torch.inference_mode()
def classify(classifier: Classifier, pixels: np.ndarray) -> np.ndarray:
    """The kinds of uint8 images (…, H, W, C), (…)."""
    flat = torch.from_numpy(pixels.reshape(-1, *pixels.shape[-3:]))
    kinds = [classifier(images.to_model(some)).argmax(1) for some in flat.split(64)]
    return torch.cat(kinds).numpy().reshape(pixels.shape[:-3])


def generate(checkpoint: Checkpoint, normals: np.ndarray, seed: int) -> tuple[np.ndarray, list[str]]:
    """Samples as the job makes them of PNG files of the normals, uint8 (N, R, H, W, C), and their captions."""
    config = GenerateConfig(
        pool="pool",
        output="output",
        checkpoint=checkpoint.uri,
        seed=seed,
        samples_per_cell=NUM_SEEDS,
        masks=False,
    )
    requests = plan_requests(checkpoint.config.defect_types, config.modes, config.samples_per_cell)
    hashes = [hashlib.sha256(images.encode_png(normal)).hexdigest() for normal in normals]
    seeds = [[sample_seed(sha, checkpoint.digest, item, config.seed) for item in requests] for sha in hashes]
    made = make_samples(load_generator(checkpoint, config), normals, np.array(seeds), requests).made
    return made.pixels, [f"{item.defect_type}, {item.mode} {item.k}" for item in requests]


def measure(classifier: Classifier, normals: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Judges samples (N, types, modes, seeds, H, W, C) of normals (N, H, W, C).

    Returns:
        (N, types, modes, 7): the share of the wanted type, the change of the background, the cover, and then of
        the first two seeds the sum of differences inside and its number of pixels, and the same outside.
    """
    kinds = classify(classifier, samples)
    margin = max(1, round(3 * normals.shape[1] / 64))
    values = np.empty((*kinds.shape[:3], 7))
    for i, j, k in np.ndindex(values.shape[:3]):
        made = samples[i, j, k].astype(np.float32)  # (seeds, H, W, C)
        change = np.abs(made - normals[i]).mean(-1)  # (seeds, H, W)
        smooth = F.avg_pool2d(torch.from_numpy(change), 3, 1, 1, count_include_pad=False)
        defect = smooth > THRESHOLD
        beyond = F.max_pool2d(defect.float(), 2 * margin + 1, 1, margin).numpy() == 0
        background = (change * beyond).sum((1, 2)) / beyond.sum((1, 2)).clip(1)
        difference = np.abs(made[0] - made[1]).mean(-1)  # (H, W)
        inside, outside = defect.numpy()[:2].any(0), beyond[:2].all(0)
        sums = [v for region in (inside, outside) for v in (difference[region].sum(), region.sum())]
        values[i, j, k] = (kinds[i, j, k] == j + 1).mean(), background.mean(), 1 - beyond.mean(), *sums
    return values


@torch.inference_mode()
def cycle(
    checkpoint: Checkpoint, judge: Classifier, x: np.ndarray, kind: np.ndarray, seed: int
) -> np.ndarray:
    """Translates real defect images (N, H, W, C) to normal and back.

    Returns:
        (N, 3): mean |x - back| and mean |x - x̃| in grey levels, and whether x̃ is taken for normal; NaN without E.
    """
    values = np.full((len(x), 3), np.nan)
    weights = checkpoint.tensors(GENERATOR) if GENERATOR in checkpoint.files else {}
    if not any(key.startswith("encoder.") for key in weights):
        return values
    sizes = DTGANConfig(**checkpoint.config.model)
    generator, mapping, encoder = Generator(sizes), MappingNetwork(sizes), StyleContentEncoder(sizes)
    for prefix, network in (("generator.", generator), ("mapping.", mapping), ("encoder.", encoder)):
        own = {key.removeprefix(prefix): value for key, value in weights.items() if key.startswith(prefix)}
        network.eval().load_state_dict(own)
    z = torch.randn(len(x), sizes.latent_dim, generator=torch.Generator().manual_seed(seed))
    for rows in np.array_split(np.arange(len(x)), math.ceil(len(x) / 8)):
        photo, domain = images.to_model(torch.from_numpy(x[rows])), torch.from_numpy(kind[rows])
        normal = generator(
            photo, *mapping.for_domain(z[rows], 0, product=torch.zeros(len(rows), dtype=torch.long))
        )
        back = generator(normal, *encoder(photo, domain))
        values[rows, 0] = (photo - back).abs().mean((1, 2, 3)) * 127.5
        values[rows, 1] = (photo - normal).abs().mean((1, 2, 3)) * 127.5
        values[rows, 2] = classify(judge, images.from_model(normal).numpy()) == 0
    return values


def summary(values: np.ndarray, types: Sequence[str]) -> dict[str, float]:
    """The numbers of some of what `measure` returned, by their columns in the table."""
    _, background, cover, *sums = values.mean((0, 1, 2))
    of_types = values[..., 0].mean((0, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        inside, outside = sums[0] / sums[1], sums[2] / sums[3]  # NaN where there is no such pixel
    ratio = inside / outside if outside else np.nan
    names = ("type", *types, "background", "cover", "inside", "outside", "ratio")
    numbers = (of_types.mean(), *of_types, background, cover, inside, outside, ratio)
    return {name: round(float(number), 4) for name, number in zip(names, numbers, strict=True)}


def print_row(name: str, cells: Sequence[str] | np.ndarray) -> None:
    """Prints a row of a table; "-" for a number that there is not."""
    texts = [c if isinstance(c, str) else "-" if math.isnan(c) else f"{c:.3f}" for c in cells]
    print(f"{name:28}" + "".join(f"{text:>11}" for text in texts), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint")
    parser.add_argument("--defects", help="a defect set; else procedural surfaces")
    parser.add_argument("--train-split", default="train", help="of the classifier")
    parser.add_argument("--test-split", default="test", help="of all that is judged")
    parser.add_argument("--normals", type=int, default=40, help="of each product, to generate from (at most)")
    parser.add_argument("--steps", type=int, default=600, help="of the classifier's training")
    parser.add_argument("--seed", type=int, default=0, help="other normals, other samples")
    parser.add_argument("--sheet", help="PNG to draw")
    parser.add_argument("--classifier-cache", default=f"{tempfile.gettempdir()}/raygen-classifiers")
    args = parser.parse_args()
    torch.set_num_threads(1)

    checkpoint = load_checkpoint(args.checkpoint)
    size, channels = checkpoint.config.image_size, checkpoint.config.channels
    types = checkpoint.config.defect_types
    kinds = (NORMAL, *types)
    if args.defects:
        real = real_photos(args.defects, (args.train_split, args.test_split), size, channels, kinds)
    else:
        real = real_surfaces(size, channels, kinds)
    print(
        f"{checkpoint.uri}: {checkpoint.config.images_seen:,} images seen, {size} px, {channels} channel(s)"
    )
    classifier = cached_classifier(real, size, channels, len(kinds), args.classifier_cache, args.steps)
    parts = {name: [p] for p, name in enumerate(real.products)} | {"all": list(range(len(real.products)))}

    pixels, product, kind = real.test()
    is_right = classify(classifier, pixels) == kind
    recalls, from_normals, from_defects = np.full((len(real.products), len(kinds)), np.nan), [], []
    rng = np.random.default_rng(args.seed)
    for p, k in np.ndindex(recalls.shape):
        rows = np.flatnonzero((product == p) & (kind == k))
        recalls[p, k] = is_right[rows].mean() if len(rows) else np.nan
        (from_defects if k else from_normals).extend(rng.permutation(rows)[: args.normals])
    print_row("\nreal, held back", ["accuracy", *kinds])
    for name, members in parts.items():
        print_row(name, np.array([np.nanmean(recalls[members]), *np.nanmean(recalls[members], axis=0)]))

    normals = pixels[from_normals]
    samples, captions = generate(checkpoint, normals, args.seed)
    cells = (len(normals), len(types), len(MODES), NUM_SEEDS)
    measured = measure(classifier, normals, samples.reshape(*cells, *normals.shape[1:]))
    numbers: dict[tuple[str, str], dict[str, float]] = {}
    for name, members in parts.items():
        of_part = measured[np.isin(product[from_normals], members)]
        for mode in (*MODES, "both"):
            some = of_part if mode == "both" else of_part[:, :, [MODES.index(mode)]]
            numbers[name, mode] = summary(some, types)
    print_row("\nsamples", list(numbers["all", "both"]))
    for (name, mode), found in numbers.items():
        print_row(f"{name}, {mode}", np.array(list(found.values())))

    cycles = cycle(checkpoint, classifier, pixels[from_defects], kind[from_defects], args.seed)
    print_row("\nreal defects", ["cycle", "changed", "is normal"])
    for name, members in parts.items():
        print_row(name, cycles[np.isin(product[from_defects], members)].mean(0))

    if args.sheet:
        groups = {
            name: [[normals[row], *samples[row]] for row in np.flatnonzero(product[from_normals] == p)[:3]]
            for p, name in enumerate(real.products)
        }
        storage.put(str(Path(args.sheet).absolute()), draw_sheet([NORMAL, *captions], groups, size))
    main_numbers = {
        "real_accuracy": round(float(np.nanmean(recalls)), 4),
        **{key: numbers["all", "both"][key] for key in ("type", "background", "cover")},
        "type_of_product": {name: numbers[name, "both"]["type"] for name in real.products},
        "type_of_cell": {f"{kind}/{mode}": numbers["all", mode][kind] for kind in types for mode in MODES},
        "diversity": {mode: numbers["all", mode]["ratio"] for mode in MODES},
        "cycle": round(float(cycles[:, 0].mean()), 4),
    }
    print("\n" + json.dumps(main_numbers).replace("NaN", "null"))


if __name__ == "__main__":
    main()
