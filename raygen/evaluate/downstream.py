"""Do the samples lower a classifier's error? What is trained on what, and one training of a classifier."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from raygen import images
from raygen.evaluate.classifier import Classifier, augment
from raygen.evaluate.config import Condition, DownstreamConfig
from raygen.evaluate.samples import GUIDANCES
from raygen.records import digest

ALL = "all"
"""The scope of a classifier for all products."""

PROTOCOL = 2
"""Grows when a training would come out otherwise: results of an earlier one are not taken for its own."""


class Fit(BaseModel):
    """One training of a classifier."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: str  # ALL, or a product
    condition: Condition
    run: str | None  # whose samples; None without
    source: str | None  # cross-domain: the product whose references guide; else None
    size: int  # images of each product and class
    seed: int

    @property
    def is_synthetic(self) -> bool:
        return self.run is not None

    def describe(self) -> str:
        parts = [
            self.scope,
            self.run,
            self.condition,
            f"v{self.source}" if self.source else None,
            f"{self.size}",
        ]
        return " ".join(part for part in parts if part)


class FitResult(BaseModel):
    """What came of it. Errors are shares in [0, 1] of the test split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fit: Fit
    error: float  # mean over the cells (product × class): each counts alike, however many photos it has
    plain_error: float  # over all photos
    confusion: tuple[tuple[int, ...], ...]  # photos of the test split: true class -> found class
    num_real: int  # images to train on, without repetitions
    num_synthetic: int
    best_epoch: int  # chosen on the validation split, from 1
    val_error: float  # of that epoch, mean over the cells
    seconds: float


class Photos(NamedTuple):
    """N labelled images, real or synthetic."""

    pixels: np.ndarray  # uint8 (N, H, W, C)
    product: np.ndarray  # int (N,)
    kind: np.ndarray  # int (N,): 0 normal, 1 … the defect types

    def of(self, products: Sequence[int]) -> "Photos":
        rows = np.isin(self.product, products)
        return Photos(self.pixels[rows], self.product[rows], self.kind[rows])


class Synthetic(NamedTuple):
    """Samples of one run, product, defect type and mode, in an order that is as good as random."""

    pixels: np.ndarray  # uint8 (N, H, W, C)
    source: np.ndarray  # int (N,): product of the reference; -1 without


class DownstreamData(NamedTuple):
    """All that the trainings draw from."""

    products: tuple[str, ...]
    kinds: tuple[str, ...]  # normal first
    train: Photos  # in an order that is as good as random
    val: Photos
    test: Photos
    synthetic: Mapping[tuple[str, str, str, str], Synthetic]  # run, product, defect type, mode


def plan_fits(config: DownstreamConfig, runs: Sequence[str], num_normals: Mapping[str, int]) -> list[Fit]:
    """Every training that a recipe asks for, the seeds of one comparison side by side.

    Args:
        config: the recipe's.
        runs: those with samples to train on.
        num_normals: product -> training normals: a size beyond them all is what there is, once.
    """
    products = sorted(num_normals)
    scopes = [ALL] * config.general
    if config.single_products and (len(products) > 1 or not scopes):
        scopes += products
    fits: list[Fit] = []

    def add(scope: str, condition: Condition, run: str | None, size: int, source: str | None = None) -> None:
        for seed in range(config.seeds):
            fits.append(Fit(scope=scope, condition=condition, run=run, source=source, size=size, seed=seed))

    for scope in scopes if config.conditions else ():
        most = max(count for product, count in num_normals.items() if scope in (ALL, product))
        for size in dict.fromkeys(min(size, most) for size in config.sizes):
            for condition in config.conditions:
                for run in runs if condition in GUIDANCES else (None,):
                    add(scope, condition, run, size)
            if config.cross_domain and scope != ALL:
                for run in runs:
                    for source in products:
                        add(scope, "reference", run, size, source)
    return fits


class _TrainingSet(NamedTuple):
    pixels: np.ndarray  # uint8 (N, H, W, C)
    kind: np.ndarray  # int (N,)
    is_synthetic: np.ndarray  # bool (N,)
    order: np.ndarray  # int (M,): rows of one epoch, minorities oversampled


def assemble(data: DownstreamData, fit: Fit) -> _TrainingSet:
    """The images of one training: of each product `size` normals, or all if there are fewer, and all its
    defects, filled up to as many of each defect type with synthetic ones or, where those are none or too few,
    oversampled. A larger size holds all that a smaller one does, and all conditions hold the same real
    images."""
    pixels: list[np.ndarray] = []
    kinds: list[int] = []
    is_synthetic: list[bool] = []
    order: list[np.ndarray] = []

    def add(some: np.ndarray, kind: int, synthetic: bool) -> np.ndarray:
        rows = np.arange(len(kinds), len(kinds) + len(some))
        pixels.append(some)
        kinds.extend([kind] * len(some))
        is_synthetic.extend([synthetic] * len(some))
        return rows

    for number, product in enumerate(data.products):
        if fit.scope not in (ALL, product):
            continue
        own = data.train.of([number])
        num_normals = min(fit.size, int((own.kind == 0).sum()))
        order.append(add(own.pixels[own.kind == 0][:num_normals], 0, synthetic=False))
        there = sorted(set(own.kind.tolist()) - {0})  # a type that a product never has gets no synthetic ones
        for kind in there:
            rows = add(own.pixels[own.kind == kind], kind, synthetic=False)
            if fit.is_synthetic:
                made = _fill(data, fit, product, data.kinds[kind], num_normals - len(rows))
                rows = np.concatenate([rows, add(made, kind, synthetic=True)])
            order.append(np.resize(rows, max(num_normals, len(rows))))
    return _TrainingSet(
        np.concatenate(pixels), np.array(kinds), np.array(is_synthetic, bool), np.concatenate(order)
    )


def _fill(data: DownstreamData, fit: Fit, product: str, defect_type: str, count: int) -> np.ndarray:
    """At most `count` synthetic images of a cell, half of either mode for the mix."""
    shares: dict[str, int] = {fit.condition: count}
    if fit.condition == "mix":
        shares = {"latent": count // 2, "reference": count - count // 2}
    parts = []
    for mode, share in shares.items():
        found = data.synthetic[fit.run or "", product, defect_type, mode]
        pixels = found.pixels
        if fit.source is not None:
            pixels = pixels[found.source == data.products.index(fit.source)]
        parts.append(pixels[: max(share, 0)])
    return np.concatenate(parts)


def run_fit(data: DownstreamData, fit: Fit, config: DownstreamConfig, device: torch.device) -> FitResult:
    """Trains a classifier, keeps the epoch of the lowest validation error (of equal ones, that of the lowest
    loss), and asks it once for the test split."""
    started = time.monotonic()
    torch.manual_seed(int(digest(fit.scope, fit.seed, num_bytes=4), 16))
    random = torch.Generator().manual_seed(fit.seed)
    training = assemble(data, fit)
    scope = range(len(data.products)) if fit.scope == ALL else [data.products.index(fit.scope)]
    val, test = data.val.of(list(scope)), data.test.of(list(scope))

    classifier = Classifier(config, len(data.kinds)).to(device)
    learning = [parameter for parameter in classifier.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(learning, config.lr, config.momentum, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=config.plateau_factor, patience=config.plateau_patience
    )
    best: tuple[float, float] | None = None
    best_epoch, best_state = 0, {}
    for epoch in range(1, config.epochs + 1):
        classifier.train()
        for rows in _batches(training.order, config.batch, random):
            loss = _loss(classifier, training, rows, fit, config, random, device)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        found = _judge(classifier, val, config, device)
        schedule.step(found.loss)
        if best is None or (found.error, found.loss) < best:
            best, best_epoch = (found.error, found.loss), epoch
            best_state = {key: value.detach().cpu().clone() for key, value in classifier.state_dict().items()}
    assert best is not None
    classifier.load_state_dict(best_state)
    found = _judge(classifier, test, config, device)
    confusion = np.zeros((len(data.kinds), len(data.kinds)), int)
    np.add.at(confusion, (test.kind, found.classes), 1)
    return FitResult(
        fit=fit,
        error=found.error,
        plain_error=float((found.classes != test.kind).mean()),
        confusion=tuple(map(tuple, confusion.tolist())),
        num_real=int((~training.is_synthetic).sum()),
        num_synthetic=int(training.is_synthetic.sum()),
        best_epoch=best_epoch,
        val_error=best[0],
        seconds=round(time.monotonic() - started, 1),
    )


def seconds_per_image(config: DownstreamConfig, image_size: int, channels: int, num_classes: int) -> float:
    """Seconds of a training step for one image on this process's one thread; measured on a few of noise."""
    torch.set_num_threads(1)
    classifier = Classifier(config, num_classes)
    noise = torch.rand(16, channels, image_size, image_size) * 2 - 1
    times = []
    for _ in range(3):
        started = time.perf_counter()
        classes, domain = classifier(noise)
        (classes.mean() + domain.mean()).backward()
        times.append(time.perf_counter() - started)
    return min(times) / len(noise)


def _batches(order: np.ndarray, size: int, random: torch.Generator) -> Iterator[np.ndarray]:
    """An epoch's rows, shuffled. A last batch of one would be too small for batch norm, and is left out."""
    rows = order[torch.randperm(len(order), generator=random).numpy()]
    for start in range(0, len(rows), size):
        if len(some := rows[start : start + size]) > 1:
            yield some


def _loss(
    classifier: Classifier,
    training: _TrainingSet,
    rows: np.ndarray,
    fit: Fit,
    config: DownstreamConfig,
    random: torch.Generator,
    device: torch.device,
) -> Tensor:
    """Cross-entropy of the classes and, where there are synthetic images, of real against synthetic."""
    x = images.to_model(torch.from_numpy(training.pixels[rows]).to(device))
    if fit.condition != "no-aug":
        x = augment(x, random)
    classes, domain = classifier(x)
    loss = F.cross_entropy(classes, torch.from_numpy(training.kind[rows]).to(device))
    if fit.is_synthetic and config.domain_weight:
        is_synthetic = torch.from_numpy(training.is_synthetic[rows]).to(device).float()
        loss = loss + F.binary_cross_entropy_with_logits(domain, is_synthetic)
    return loss


class _Judgement(NamedTuple):
    error: float  # mean over the cells
    loss: float  # likewise
    classes: np.ndarray  # found, int (N,)


@torch.inference_mode()
def _judge(
    classifier: Classifier, photos: Photos, config: DownstreamConfig, device: torch.device
) -> _Judgement:
    classifier.eval()
    losses, classes = [], []
    for start in range(0, len(photos.pixels), config.batch):
        some = slice(start, start + config.batch)
        logits, _ = classifier(images.to_model(torch.tensor(photos.pixels[some], device=device)))
        kinds = torch.from_numpy(photos.kind[some]).to(device)
        losses.append(F.cross_entropy(logits, kinds, reduction="none").cpu().numpy())
        classes.append(logits.argmax(1).cpu().numpy())
    loss, found = np.concatenate(losses), np.concatenate(classes)
    cell = photos.product * (photos.kind.max() + 1) + photos.kind
    wrong = found != photos.kind
    error, mean_loss = np.mean(
        [(wrong[cell == number].mean(), loss[cell == number].mean()) for number in np.unique(cell)], axis=0
    )
    return _Judgement(float(error), float(mean_loss), found)
