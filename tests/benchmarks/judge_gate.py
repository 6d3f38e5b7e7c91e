"""What the gate of a judge is worth to a classifier that has nothing in common with it.

    python tests/benchmarks/judge_gate.py DEFECT_SET [--size 64] [--min-type-prob 0.5]

DEFECT_SET has a metadata.csv with a column `group`. Groups of photos are held out in turn, as in `copy_paste.py`:
of the other folds, one calibrates the judge, and what is left is what judge and copies are made of. A small
convolutional network, from scratch, learns normal and the defect types from real photos alone, with copies as they
come, and with copies that the judge's gate accepts (of those that it never accepts, the best, as keep-best does);
every cell (product × type) is drawn equally often, and half of a defect's images are copies. The error is the mean
over cells, its relative change has a 95 % interval by bootstrap over groups.
"""

import argparse
import os
import sys
import tempfile
import time
from typing import Any

from copy_paste import ALLOCATOR, NUM_FOLDS, Data, error, interval

if __name__ == "__main__" and not ALLOCATOR.items() <= os.environ.items():
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from raygen.checkpoint import Checkpoint, CheckpointConfig, save_checkpoint
from raygen.families import load_generator, load_judge
from raygen.families.copy_paste.collector import CopyPasteCollector
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.family import Contents, Taken
from raygen.families.judge.collector import JudgeCollector
from raygen.families.judge.config import JudgeConfig
from raygen.families.recipes import SamplingConfig
from raygen.generate.config import GateConfig
from raygen.generate.judging import Judged
from raygen.generate.sampling import Samples, Windows, sample
from raygen.records import MODES, NORMAL, plan_requests

STEPS, BATCH = 160, 64
SETTINGS = ("real alone", "with copies", "with accepted copies")


class Bench:
    """What all folds have in common: what judge and bank take of each photo."""

    def __init__(self, data: Data, normals: int) -> None:
        self.data, size = data, data.pixels.shape[1]
        places: dict[str, Any] = {"defects": "d", "output": "o", "image_size": size, "channels": 1}
        self.judges = JudgeCollector(JudgeConfig.model_validate(places))
        self.copies = CopyPasteCollector(CopyPasteConfig.model_validate(places))
        random, self.shown = np.random.default_rng(0), np.flatnonzero(data.label > 0).tolist()
        for product in range(len(data.products)):
            rows = np.flatnonzero(data.cell == product * len(data.types))
            self.shown += random.permutation(rows)[:normals].tolist()
        self.seen = {row: self.judges.take(data.photos[row]) for row in self.shown}
        defects = [row for row in self.shown if data.label[row]]
        self.cut = {row: self.copies.take(data.photos[row]) for row in defects}

    def checkpoint(self, family: str, contents: Contents, folder: str) -> Checkpoint:
        config = CheckpointConfig(
            family=family,
            model=contents.model,
            image_size=contents.image_size,
            channels=contents.channels,
            products=tuple(self.data.products),
            defect_types=tuple(self.data.types[1:]),
            images_seen=0,
            trained_on="",
        )
        return save_checkpoint(folder, config, contents.tensors, contents.references)

    def make(self, fold: int, per_cell: int, min_type_prob: float) -> tuple[list[Samples], str]:
        """Copies of a fold's training photos, each product's, on its normals: without a gate, and with it."""
        data, held = self.data, (fold + 1) % NUM_FOLDS
        rows = [row for row in self.shown if data.fold[row] != fold]
        split = ["val" if data.fold[row] == held else "train" for row in rows]
        photos = [data.photos[row]._replace(split=of) for row, of in zip(rows, split, strict=True)]
        fitted = self.judges.contents(photos, [self.seen[row] for row in rows])
        kept = [
            row for row in rows if data.fold[row] != held and row in self.cut and not self.cut[row].refused
        ]
        taken: list[Taken] = [self.cut[row] for row in kept]
        bank = self.copies.contents([data.photos[row] for row in kept], taken)
        config = SamplingConfig(pool="p", reference_products="same")
        requests = plan_requests(tuple(data.types[1:]), MODES, 1)
        random = np.random.default_rng(fold)
        normals = np.concatenate(
            [
                random.choice(
                    [row for row in rows if data.cell[row] == product * len(data.types)],
                    per_cell // len(MODES),
                )
                for product in range(len(data.products))
            ]
        )
        names = [data.photos[row].product for row in normals]
        seeds = random.integers(2**62, size=(len(normals), len(requests)))
        windows = Windows(data.pixels[normals][:, None], names)
        with tempfile.TemporaryDirectory() as folder:
            generator = load_generator(self.checkpoint("copy-paste", bank, f"{folder}/bank"), config)
            judge = load_judge(self.checkpoint("judge", fitted, f"{folder}/judge"), config)
            gates = [GateConfig(max_attempts=1), GateConfig(min_type_prob=min_type_prob)]
            made = [
                sample(one, windows, requests, lambda attempt: seeds + attempt, gate)
                for one, gate in zip((generator, Judged(generator, judge)), gates, strict=True)
            ]
        accepted = np.array([[reason is None for reason in row] for row in made[1].reasons])
        first = accepted & (made[1].num_attempts == 1)
        figures = (
            f"{fitted.report[-1]}; accepted at once {first.mean():.0%}, in the end {accepted.mean():.0%}"
        )
        return made, figures


def network(num_classes: int) -> nn.Sequential:
    """Four convolutions of stride 2, grey to classes."""
    layers: list[nn.Module] = []
    for before, after, kernel in ((1, 16, 5), (16, 32, 3), (32, 64, 3), (64, 128, 3)):
        layers += [nn.Conv2d(before, after, kernel, 2, kernel // 2), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))


def scaled(pixels: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (N, H, W, 1) -> (N, 1, H, W), by each image's own mean."""
    x = torch.tensor(pixels).permute(0, 3, 1, 2).float()
    return (x - x.mean((1, 2, 3), keepdim=True)) / 32


def learn(
    pixels: NDArray[np.uint8], groups: list[NDArray[np.int64]], labels: list[int], seed: int
) -> nn.Module:
    """Trains on images of groups that are drawn equally often, mirrored and with other contrasts.

    Args:
        pixels: uint8 (N, H, W, 1).
        groups: rows of pixels.
        labels: the groups'.
        seed: of weights and draws.
    """
    torch.manual_seed(seed)
    random, model = np.random.default_rng(seed), network(max(labels) + 1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    for _ in range(STEPS):
        chosen = random.integers(len(groups), size=BATCH)
        x = scaled(pixels[[random.choice(groups[group]) for group in chosen]])
        x = x.flip(3) if random.random() < 0.5 else x
        x = x.flip(2) if random.random() < 0.5 else x
        x = x * torch.tensor(random.uniform(0.8, 1.25, (BATCH, 1, 1, 1)), dtype=torch.float32)
        loss = F.cross_entropy(model(x), torch.tensor([labels[group] for group in chosen]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def errors(
    data: Data, made: dict[int, list[Samples]], setting: str, shown: list[int], seed: int
) -> NDArray[np.float64]:
    """1 for each photo that is taken for something else by a network that has not seen its group, else 0."""
    wrong, num_types = np.zeros(len(data.photos)), len(data.types)
    for fold, (free, gated) in made.items():
        samples = {"with copies": free, "with accepted copies": gated}.get(setting)
        rows = np.array([row for row in shown if data.fold[row] != fold])
        pixels, groups, labels = data.pixels, [], []
        for cell in range(data.num_cells):
            groups += [rows[data.cell[rows] == cell]] * 2
            labels += [cell % num_types] * 2
        if samples is not None:
            flat = samples.made.pixels.reshape(-1, *data.pixels.shape[1:])
            per_product = len(samples.made.pixels) // len(data.products)
            numbers = np.arange(len(flat)).reshape(len(data.products), per_product, num_types - 1, len(MODES))
            for cell, label in enumerate(labels[::2]):
                if label:
                    groups[2 * cell + 1] = len(pixels) + numbers[cell // num_types, :, label - 1].ravel()
            pixels = np.concatenate([pixels, flat])
        model = learn(pixels, groups, labels, seed)
        tested = np.flatnonzero(data.fold == fold)
        with torch.inference_mode():
            guessed = torch.cat(
                [
                    model(scaled(data.pixels[part])).argmax(1)
                    for part in np.split(tested, range(256, len(tested), 256))
                ]
            )
        wrong[tested] = guessed.numpy() != data.label[tested]
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("defects")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--per-cell", type=int, default=60, help="copies of each cell and fold")
    parser.add_argument("--normals", type=int, default=150, help="of each product, to learn from")
    parser.add_argument("--min-type-prob", type=float, default=0.5)
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each setting and fold")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    started = time.monotonic()
    data = Data(args.defects, args.size)
    assert data.types[0] == NORMAL
    bench = Bench(data, args.normals)
    print(f"{len(bench.shown)} photos, taken in {time.monotonic() - started:.0f} s", flush=True)
    made: dict[int, list[Samples]] = {}
    for fold in range(NUM_FOLDS):
        made[fold], figures = bench.make(fold, args.per_cell, args.min_type_prob)
        print(f"fold {fold}: {figures}; {time.monotonic() - started:.0f} s", flush=True)
    found = {}
    for setting in SETTINGS:
        runs = [errors(data, made, setting, bench.shown, seed) for seed in range(args.seeds)]
        found[setting] = np.mean(runs, axis=0)
        print(
            f"{setting}: error {error(data, found[setting]):.3f}; {time.monotonic() - started:.0f} s",
            flush=True,
        )
    for before, after in ((0, 1), (0, 2), (1, 2)):
        change, low, high = interval(data, found[SETTINGS[before]], found[SETTINGS[after]])
        print(f"{SETTINGS[before]} -> {SETTINGS[after]}: {change:+.0%} [{low:+.0%}, {high:+.0%}]")
    print(f"{(time.monotonic() - started) / 60:.1f} min")


if __name__ == "__main__":
    main()
