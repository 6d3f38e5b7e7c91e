"""The judge's fit: features of the real photos, a linear head on them, and its temperature."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from raygen.checkpoint import JUDGE
from raygen.data.defects import group_by_cell, load_photos
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.extras import require
from raygen.families.family import Contents, Taken
from raygen.families.judge.config import JudgeConfig
from raygen.families.judge.judge import Logits, features, lite0, log_softmax
from raygen.families.masks import Floats
from raygen.families.photos import TRAINING_SPLITS, VALIDATION_SPLITS, DefectSet
from raygen.records import NORMAL

MOST = 10.0
"""The largest temperature, and the inverse of the least: of a few photos that are all told right, the best one
would be 0."""

Labels = NDArray[np.int64]


class JudgeCollector:
    """See raygen.families.family.Collector."""

    captions: tuple[str, ...] = ()

    def __init__(self, config: JudgeConfig) -> None:
        self.config = config

    def draft(self) -> tuple[dict[str, Any], DefectSet]:
        config = self.config
        require("sklearn.linear_model", "evaluate")
        defects = DefectSet.read(config)
        others = {photo.defect_type for photo in config.survey().photos} - {NORMAL, *defects.defect_types}
        if others:
            name = min(others)
            raise UserError(
                f"defects = {config.defects}: no photos of {name!r} in its split train; move some there, or leave "
                f'the folder out: types = {{{name} = "-"}}'
            )
        photos = [
            photo
            for splits in (TRAINING_SPLITS, VALIDATION_SPLITS)
            for photo in defects.part(splits).spread(config.references_per_cell)
        ]
        return self._model(), defects.having(photos)

    def take(self, photo: Photo) -> Taken:
        pixels = load_photos([photo], self.config.image_size, self.config.channels)
        return Taken({"features": features(lite0(self.config.weights), pixels)[0]})

    def contents(self, photos: Sequence[Photo], taken: Sequence[Taken]) -> Contents:
        seen = np.stack([one.arrays["features"] for one in taken])
        classes = (NORMAL, *sorted({photo.defect_type for photo in photos} - {NORMAL}))
        labels = np.array([classes.index(photo.defect_type) for photo in photos])
        held_out = np.array([photo.split in VALIDATION_SPLITS for photo in photos])
        weights = np.zeros(len(photos))  # every cell's are 1 in all, in either part
        for rows in (np.flatnonzero(held_out), np.flatnonzero(~held_out)):
            for cell in group_by_cell(photos[row] for row in rows.tolist()).values():
                weights[rows[cell]] = 1 / len(cell)
        weight, bias = fit(seen[~held_out], labels[~held_out], weights[~held_out], self.config.l2)
        logits = seen[held_out].astype(np.float64) @ weight.T + bias
        temperature, record, report = calibrate(logits, labels[held_out], weights[held_out])
        arrays = {"weight": weight, "bias": bias, "temperature": np.array([temperature])}
        return Contents(
            self._model(),
            self.config.image_size,
            self.config.channels,
            {JUDGE: arrays},
            report=report,
            record={"calibration": record},
        )

    def _model(self) -> dict[str, Any]:
        """What the features are of."""
        return {"weights": self.config.weights, "features": lite0(self.config.weights).digest}


def fit(seen: Floats, labels: Labels, weights: NDArray[np.float64], l2: float) -> tuple[Logits, Logits]:
    """A multinomial logistic regression on standardised features; those that vary less than most do, by the median
    deviation.

    Args:
        seen: features, (n, D).
        labels: classes, (n,), from 0; each has a row.
        weights: of the rows, (n,).
        l2: strength of the regularisation: the mean loss + l2 · |W|² is least.

    Returns:
        The head on features as they are: (classes, D) and (classes,).
    """
    linear: Any = require("sklearn.linear_model", "evaluate")
    share, x = weights / weights.sum(), seen.astype(np.float64)
    mean = share @ x
    scale = np.sqrt(share @ np.square(x - mean))
    # Some features hardly ever leave 0 in the training split: divided by their own deviation, they would decide of
    # the first photo in which they do.
    scale = np.maximum(scale, np.median(scale))
    model = linear.LogisticRegression(C=1 / (2 * l2), max_iter=5000)
    model.fit((x - mean) / scale, labels, sample_weight=share)
    weight, bias = model.coef_, model.intercept_
    if len(weight) == 1:  # of two classes it has the difference alone
        weight, bias = (np.concatenate([-half, half]) for half in (weight / 2, bias / 2))
    weight = weight / scale
    return weight, bias - weight @ mean


def calibrate(
    logits: Logits, labels: Labels, weights: NDArray[np.float64]
) -> tuple[float, dict[str, Any], list[str]]:
    """The temperature for logits of photos held back, (n, classes), their labels and weights, (n,); the figures
    before and after, for the record; and the same in words. Without photos the temperature is 1."""
    if not len(labels):
        return 1.0, {}, ["no photos of the split val: not calibrated, temperature 1"]
    temperature = best_temperature(logits, labels, weights)
    before, after = measure(logits, labels, weights), measure(logits / temperature, labels, weights)
    record: dict[str, Any] = {"photos": len(labels), "temperature": temperature}
    record |= {"before": before._asdict(), "after": after._asdict()}
    return (
        temperature,
        record,
        [
            f"calibrated on {len(labels):,} photos of the split val, products and types of equal weight",
            f"temperature {temperature:.2f}, accuracy {after.accuracy:.3f}; expected calibration error "
            f"{after.ece:.3f} (before: {before.ece:.3f}), log loss {after.nll:.3f} (before: {before.nll:.3f})",
        ],
    )


def best_temperature(logits: Logits, labels: Labels, weights: NDArray[np.float64]) -> float:
    """What logits, (n, classes), are to be divided by for the least log loss (Guo et al., ICML 2017); between
    1 / MOST and MOST."""

    def loss(log_temperature: float) -> float:
        return measure(logits / np.exp(log_temperature), labels, weights).nll

    found: Any = minimize_scalar(loss, bounds=(-np.log(MOST), np.log(MOST)), method="bounded")
    return float(np.exp(found.x))


class Calibration(NamedTuple):
    """How far probabilities are to be trusted."""

    accuracy: float
    nll: float  # log loss
    ece: float  # expected calibration error, with 10 bins


def measure(logits: Logits, labels: Labels, weights: NDArray[np.float64]) -> Calibration:
    """Of rows of logits, (n, classes), with labels and weights, (n,)."""
    log_probs, share = log_softmax(logits), weights / weights.sum()
    right, sure = log_probs.argmax(1) == labels, np.exp(log_probs.max(1))
    bins = np.minimum((sure * 10).astype(int), 9)
    gaps = np.bincount(bins, share * (right - sure), 10)
    nll = -(share * log_probs[np.arange(len(labels)), labels]).sum()
    return Calibration(float((share * right).sum()), float(nll), float(np.abs(gaps).sum()))
