"""What copies of real defects are worth to a classifier: groups of photos are held out in turn, so that every
defect is tested once, and none is copied from a photo of the group that it is tested with.

    python tests/benchmarks/copy_paste.py DEFECT_SET [--size 64] [--real 5 10 20] [--ablate]

DEFECT_SET has a metadata.csv with a column `group`. On frozen EfficientNet-Lite0 features of images of `--size`
px, a multinomial logistic regression learns normal and the defect types, every cell (product × type) of equal
weight, from the real photos and their traditional augmentation, with and without copies; at two strengths of
regularisation. The error is the mean over cells; its relative change has a 95 % interval by bootstrap over groups.
"""

import argparse
import csv
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# As the main job's actors have it: else glibc gives every large buffer back to the kernel, and features take
# thrice as long.
ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(2**30), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
if __name__ == "__main__" and not ALLOCATOR.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

# ruff: noqa: E402
import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from raygen.checkpoint import CheckpointConfig, save_checkpoint
from raygen.data.defects import list_defect_set, load_photos
from raygen.data.folds import deal
from raygen.evaluate.augmentation import augment_photo
from raygen.evaluate.features import Lite0Features
from raygen.families.copy_paste import CopyPaste
from raygen.families.copy_paste.collector import CopyPasteCollector
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.family import Taken, Views
from raygen.families.recipes import SamplingConfig
from raygen.metrics import kernel_distance
from raygen.records import MODES, NORMAL, Mode, SampleRequest, digest

STRENGTHS = (3e-4, 3e-3)  # of the regularisation: the mean loss + this × |W|²
NUM_FOLDS = 5


class Data:
    """The photos, what they show, and which fold each is tested in."""

    def __init__(self, uri: str, size: int) -> None:
        self.photos = list_defect_set(uri)
        with Path(uri, "metadata.csv").open(encoding="utf-8", newline="") as file:
            groups = {row["id"]: row["group"] for row in csv.DictReader(file)}
        self.group = np.array([groups[Path(photo.uri).stem] for photo in self.photos])
        self.products = sorted({photo.product for photo in self.photos})
        self.types = [NORMAL, *sorted({photo.defect_type for photo in self.photos} - {NORMAL})]
        self.label = np.array([self.types.index(photo.defect_type) for photo in self.photos])
        product = np.array([self.products.index(photo.product) for photo in self.photos])
        self.cell = product * len(self.types) + self.label
        self.num_cells = len(self.products) * len(self.types)
        self.fold = deal(np.unique(self.group, return_inverse=True)[1], self.cell, NUM_FOLDS)
        self.pixels = load_photos(self.photos, size, 1)

    def cells(self) -> list[tuple[int, str, str]]:
        """Number, product and type of the cells of defects."""
        return [
            (product * len(self.types) + label, name, self.types[label])
            for product, name in enumerate(self.products)
            for label in range(1, len(self.types))
        ]

    def training(self, fold: int, real: int | None) -> NDArray[np.bool_]:
        """Which photos a fold learns from; of each cell of defects so many at most, in an order of their names."""
        kept = self.fold != fold
        for cell, _, _ in self.cells() if real else ():
            rows = np.flatnonzero(kept & (self.cell == cell))
            order = sorted(rows, key=lambda row: digest(Path(self.photos[row].uri).name, fold))
            kept[order[real:]] = False
        return kept


class Bench:
    """What all settings have in common: features of photos and of their augmentation, and the baselines."""

    def __init__(self, data: Data, augmentations: int) -> None:
        self.data, self.network = data, Lite0Features(None, torch.device("cpu"))
        self.augmentations = augmentations
        random = np.random.default_rng(0)
        defects, normals = np.flatnonzero(data.label > 0), np.flatnonzero(data.label == 0)
        normals = random.permutation(normals)[: len(defects) * 3]
        self.sources = np.concatenate([np.repeat(defects, augmentations), normals])
        self.taken: dict[str, list[Taken]] = {}
        self.baselines: dict[int | None, list[NDArray[np.float64]]] = {}
        if not augmentations:  # distances alone
            self.real = np.zeros((len(data.pixels), self.network.network.num_features), np.float32)
            self.real[defects] = self.features(data.pixels[defects])
            return
        self.real = self.features(data.pixels)
        self.augmented = self.features(
            np.stack([augment_photo(data.pixels[row], random)[0] for row in self.sources])
        )

    def features(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(N, H, W, 1) -> (N, 1280)."""
        return np.concatenate([self.network(pixels[i : i + 32]) for i in range(0, len(pixels), 32)])

    def errors(
        self, real: int | None, copies: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]] | None
    ) -> list[NDArray[np.float64]]:
        """Which photos are taken for something else by a classifier that has not seen their group.

        Args:
            real: real defects of each cell to learn from; None for all.
            copies: features and cells of copies, of each fold; None for none.

        Returns:
            1 or 0 for each photo, at each strength.
        """
        data, wrong = self.data, [np.zeros(len(self.data.photos)) for _ in STRENGTHS]
        for fold in range(NUM_FOLDS):
            rows = data.training(fold, real)
            kept = rows[self.sources]
            x = [self.real[rows], self.augmented[kept]]
            cells = np.concatenate([data.cell[rows], data.cell[self.sources[kept]]])
            weights = 1 / np.bincount(cells, minlength=data.num_cells)[cells]
            if copies is not None:
                # Half of a cell of defects is what is real, the other half copies.
                found = copies[fold]
                x.append(found[0])
                own = np.where(cells % len(data.types) > 0, 0.5, 1.0)
                others = 0.5 / np.bincount(found[1], minlength=data.num_cells)[found[1]]
                cells, weights = np.concatenate([cells, found[1]]), np.concatenate([weights * own, others])
            features, labels, tested = np.concatenate(x), cells % len(data.types), data.fold == fold
            for number, strength in enumerate(STRENGTHS):
                guessed = classify(features, labels, weights, self.real[tested], strength)
                wrong[number][tested] = guessed != data.label[tested]
        return wrong

    def copies(
        self, settings: dict[str, Any], real: int | None, modes: Sequence[Mode], per_mode: int
    ) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
        """Features and cells of copies for each fold, from its training photos alone."""
        data, made = self.data, []
        size = data.pixels.shape[1]
        config = CopyPasteConfig.model_validate(
            {"defects": "d", "output": "o", "image_size": size, "channels": 1, **settings}
        )
        key = config.cut.model_dump_json()
        collector = CopyPasteCollector(config)
        if key not in self.taken:
            self.taken[key] = [
                collector.take(photo) if photo.defect_type != NORMAL else Taken({}, refused="normal")
                for photo in data.photos
            ]
        taken = self.taken[key]
        for fold in range(NUM_FOLDS):
            learned = data.training(fold, real)
            rows = [row for row in np.flatnonzero(learned) if not taken[row].refused]
            contents = collector.contents([data.photos[row] for row in rows], [taken[row] for row in rows])
            with tempfile.TemporaryDirectory() as folder:
                checkpoint = save_checkpoint(
                    folder,
                    CheckpointConfig(
                        family="copy-paste",
                        model=contents.model,
                        image_size=size,
                        channels=1,
                        products=tuple(data.products),
                        defect_types=tuple(data.types[1:]),
                        images_seen=0,
                        trained_on="",
                    ),
                    contents.tensors,
                    contents.references,
                )
            generator = CopyPaste().generator(checkpoint, SamplingConfig(pool="p"))
            pixels, cells = [], []
            random = np.random.default_rng(fold)
            for cell, product, defect_type in data.cells():
                normals = np.flatnonzero(learned & (data.cell == cell - cell % len(data.types)))
                for mode in modes:
                    chosen = random.choice(normals, per_mode)
                    views = Views(data.pixels[chosen], [product] * len(chosen), None, None)
                    seeds = random.integers(2**62, size=len(chosen))
                    pixels.append(generator.make(views, SampleRequest(defect_type, mode, 0), seeds).pixels)
                    cells += [cell] * len(chosen)
            made.append((self.features(np.concatenate(pixels)), np.array(cells)))
        return made

    def compare(
        self, name: str, settings: dict[str, Any], real: int | None, modes: Sequence[Mode], per_mode: int
    ) -> None:
        """Prints a row: errors without and with copies, and how far the copies are from real defects."""
        started, data = time.monotonic(), self.data
        copies, changes = self.copies(settings, real, modes, per_mode), []
        if self.augmentations:
            if real not in self.baselines:
                self.baselines[real] = self.errors(real, None)
            for before, after in zip(self.baselines[real], self.errors(real, copies), strict=True):
                change, low, high = interval(data, before, after)
                errors = f"{error(data, before):.3f} -> {error(data, after):.3f}"
                changes.append(f"{errors} {change:+4.0%} [{low:+.0%}, {high:+.0%}]")
        found = np.concatenate([one for one, _ in copies])
        cells = np.concatenate([one for _, one in copies])
        by_cell = [
            kernel_distance(self.real[data.cell == cell], found[cells == cell], num_subsets=20).mean
            for cell, _, _ in data.cells()
        ]
        # All together, each cell as often as it really is.
        rng = np.random.default_rng(0)
        counts = np.bincount(data.cell, minlength=data.num_cells)
        mixed = np.concatenate(
            [found[rng.choice(np.flatnonzero(cells == cell), counts[cell])] for cell, _, _ in data.cells()]
        )
        whole = kernel_distance(self.real[data.label > 0], mixed, num_subsets=20).mean
        print(
            f"{name:28} {' | '.join(changes)} | KID-Lite0 {whole:.4f}; by cell "
            f"{' '.join(f'{value:.3f}' for value in by_cell)} | {time.monotonic() - started:.0f} s",
            flush=True,
        )


def classify(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    weights: NDArray[np.float64],
    tested: NDArray[np.float32],
    strength: float,
) -> NDArray[np.int64]:
    """Fits a multinomial logistic regression and returns what it takes others for."""
    mean, deviation = features.mean(axis=0), features.std(axis=0) + 1e-6
    x, y = torch.from_numpy((features - mean) / deviation), torch.from_numpy(labels)
    shares = torch.from_numpy(weights / weights.sum()).float()
    layer = torch.nn.Linear(x.shape[1], int(labels.max()) + 1)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.cross_entropy(layer(x), y, reduction="none")
        loss = (losses * shares).sum() + strength * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        return layer(torch.from_numpy((tested - mean) / deviation)).argmax(dim=1).numpy()


def error(data: Data, wrong: NDArray[np.float64], weights: NDArray[np.float64] | None = None) -> float:
    """The mean over cells of the share of photos that are taken for something else."""
    counts = np.bincount(data.cell, weights, data.num_cells)
    missed = np.bincount(data.cell, wrong if weights is None else wrong * weights, data.num_cells)
    return float((missed[counts > 0] / counts[counts > 0]).mean())


def interval(
    data: Data, before: NDArray[np.float64], after: NDArray[np.float64]
) -> tuple[float, float, float]:
    """The relative change of the error, and its 95 % interval over groups drawn anew."""
    names, members = np.unique(data.group, return_inverse=True)
    random, changes = np.random.default_rng(0), []
    for _ in range(1000):
        weights = np.bincount(random.integers(len(names), size=len(names)), minlength=len(names))[members]
        weights = weights.astype(float)
        changes.append(error(data, after, weights) / error(data, before, weights) - 1)
    low, high = np.quantile(changes, [0.025, 0.975])
    return error(data, after) / error(data, before) - 1, float(low), float(high)


ABLATIONS: dict[str, dict[str, Any]] = {
    "as the recipe has it": {},
    "from any photo": {"vary": {"alike": 1}},
    "of 12, the most alike": {"vary": {"alike": 12}},
    "placed anywhere": {"vary": {"place": "anywhere"}},
    "exactly where it was": {"vary": {"jitter": 0.0}},
    "blend: poisson": {"vary": {"blend": "poisson"}},
    "blend: paste": {"vary": {"blend": "paste"}},
    "blend: mixed": {"vary": {"blend": "mixed"}},
    "inpainting: navier-stokes": {"cut": {"inpainting": "navier-stokes"}},
    "inpainting: membrane": {"cut": {"inpainting": "membrane"}},
    "inpainting: match": {"cut": {"inpainting": "match"}},
    "not turned": {"vary": {"turns": "none"}},
    "turned by right angles": {"vary": {"turns": "quarters"}},
    "rotated by 10 degrees": {"vary": {"rotation": 10.0}},
    "scaled by 1.25": {"vary": {"scale": 1.25}},
    "bent by 0.05": {"vary": {"bend": 0.05}},
    "gain of 1.4": {"vary": {"gain": 1.4}},
    "lighting as it was": {"vary": {"lighting": False}},
    "grown by 1": {"cut": {"grow": 1}},
    "grown by 3": {"cut": {"grow": 3}},
}
"""One setting changed at a time."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defects")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--per-mode", type=int, default=120, help="copies of each cell, mode and fold")
    parser.add_argument(
        "--augmentations", type=int, default=6, help="of each defect, traditional ones; 0 for distances alone"
    )
    parser.add_argument(
        "--real", type=int, nargs="*", default=[], help="and with so many real defects a cell"
    )
    parser.add_argument(
        "--ablate", action="store_true", help="instead: one setting changed at a time, reference-guided"
    )
    args = parser.parse_args()
    cv2.setNumThreads(1)
    started = time.monotonic()
    bench = Bench(Data(args.defects, args.size), args.augmentations)
    print(f"{len(bench.data.photos)} photos, features {time.monotonic() - started:.0f} s", flush=True)
    header = f"strengths {STRENGTHS}: error without -> with copies, change [95 %]"
    print(header)
    if args.ablate:
        for name, settings in ABLATIONS.items():
            bench.compare(name, settings, None, ["reference"], args.per_mode)
    else:
        for real in [None, *args.real]:
            bench.compare(f"both modes, {real or 'all'} real", {}, real, MODES, args.per_mode)
        for mode in MODES:
            bench.compare(f"{mode} alone", {}, None, [mode], args.per_mode)
    print(f"{(time.monotonic() - started) / 60:.1f} min")


if __name__ == "__main__":
    main()
