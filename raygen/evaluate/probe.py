"""The probe: a logistic regression on frozen features. Pure functions of features and labels."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.optimize
import scipy.special
from numpy.typing import NDArray

from raygen.metrics import Features

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

_MAX_ITERATIONS, _TOLERANCE = 300, 1e-3


class Labelled(NamedTuple):
    """N images: features (N, D), and the cell of each (product × class, class within product), int (N,)."""

    features: Features
    cells: Ints

    def __add__(self, other: "Labelled") -> "Labelled":  # type: ignore[override]
        return Labelled(
            np.concatenate([self.features, other.features]), np.concatenate([self.cells, other.cells])
        )


@dataclass(frozen=True)
class Probe:
    """A classifier, fitted and calibrated."""

    mean: NDArray[np.floating]  # (D,)
    deviation: NDArray[np.floating]
    weights: NDArray[np.floating]  # (D, K)
    intercepts: NDArray[np.floating]  # (K,)
    strength: float  # of the regularisation, as chosen
    temperature: float  # what logits are divided by

    def log_chances(self, features: Features) -> Floats:
        """The logarithm of each class's chance, (N, K)."""
        logits = ((features - self.mean) / self.deviation) @ self.weights + self.intercepts
        return scipy.special.log_softmax(np.asarray(logits, np.float64) / self.temperature, axis=1)


def fit(
    train: Labelled, weights: Floats, val: Labelled, num_classes: int, strengths: Sequence[float]
) -> Probe:
    """Fits at each strength and keeps the one of the lowest validation loss, its cells of equal weight; then finds
    the temperature of its logits that lowers that loss most (Guo et al. 2017).

    Args:
        train: what to learn from; one cell at least of each class.
        weights: of its images, (N,), of any sum.
        val: what to choose by; without some class of `train`: the middle strength stays as it is.
        num_classes: a cell's class is its number modulo this.
        strengths: of the regularisation: the mean loss + strength × |W|².
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean = train.features.mean(axis=0)
    deviation = train.features.std(axis=0) + 1e-6
    x = (train.features - mean) / deviation
    y = train.cells % num_classes
    shares = weights / weights.sum()
    if set(np.unique(y)) - set((val.cells % num_classes).tolist()):
        val = Labelled(val.features[:0], val.cells[:0])
    of_val = balance(val.cells)
    best: tuple[float, Probe] | None = None
    model = LogisticRegression(max_iter=_MAX_ITERATIONS, tol=_TOLERANCE, warm_start=True)
    ordered = sorted(strengths, reverse=True)  # each begins where the stronger one has ended
    for strength in ordered if len(val.cells) else [ordered[len(ordered) // 2]]:
        model.set_params(C=1 / (2 * strength))
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ConvergenceWarning
            )  # as far as it came, it is judged like all others
            model.fit(x, y, sample_weight=shares)
        probe = _expanded(model, mean, deviation, strength, num_classes)
        loss = _loss(probe.log_chances(val.features), val.cells % num_classes, of_val) if len(of_val) else 0.0
        if best is None or loss < best[0]:
            best = loss, probe
    assert best is not None
    return _calibrated(best[1], val, of_val, num_classes)


def balance(cells: Ints, shares: Mapping[int, float] | None = None) -> Floats:
    """Weights (N,) by which each cell counts alike, or as its share says."""
    counts = np.bincount(cells) if len(cells) else np.zeros(0)
    weights = 1 / counts[cells] if len(cells) else np.zeros(0)
    if shares is None:
        return weights
    return weights * np.array([shares[cell] for cell in cells.tolist()])


def calibration_error(confidence: Floats, is_right: NDArray[np.bool_], num_bins: int = 10) -> float:
    """How far a classifier's confidence is from its accuracy: their absolute difference in bins of equal width,
    weighted by photos (Naeini et al. 2015). 0 is calibrated.

    Args:
        confidence: the chance of the class that it chose, (N,).
        is_right: whether that is the true one, (N,).
    """
    bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)
    gaps = np.bincount(bins, is_right - confidence, num_bins)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def _expanded(model, mean, deviation, strength: float, num_classes: int) -> Probe:
    """A fitted model with a row for each class, also for those that it has not seen or, of two, leaves out."""
    coefficients, intercepts = model.coef_, model.intercept_
    if len(model.classes_) == 2:
        coefficients = np.concatenate([-coefficients, coefficients]) / 2
        intercepts = np.concatenate([-intercepts, intercepts]) / 2
    weights = np.zeros((mean.shape[0], num_classes), coefficients.dtype)
    whole = np.full(num_classes, -1e9)
    weights[:, model.classes_], whole[model.classes_] = coefficients.T, intercepts
    return Probe(mean, deviation, weights, whole, strength, 1.0)


def _calibrated(probe: Probe, val: Labelled, of_val: Floats, num_classes: int) -> Probe:
    if not len(of_val):
        return probe
    logits, classes = probe.log_chances(val.features), val.cells % num_classes

    def loss(log_temperature: float) -> float:
        return _loss(scipy.special.log_softmax(logits / np.exp(log_temperature), axis=1), classes, of_val)

    found = scipy.optimize.minimize_scalar(loss, bounds=(-7, 7), method="bounded")
    return Probe(
        probe.mean,
        probe.deviation,
        probe.weights,
        probe.intercepts,
        probe.strength,
        float(np.exp(found.x)),  # pyright: ignore
    )


def _loss(log_chances: Floats, classes: Ints, weights: Floats) -> float:
    losses = -log_chances[np.arange(len(classes)), classes]
    return float((weights * losses).sum() / weights.sum())
