"""What can be told from errors on test photos: a difference with its interval, its chance, and the smallest gain
that these photos could have shown.

Photos are grouped: those of one group show the same thing, and their errors go together, so that groups are what
is drawn. A fold's classifiers were trained with several seeds, and those are drawn within each fold, too. (Folds
are not drawn by themselves: each group is tested in one, and drawing both would count its chance twice.)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np
import scipy.stats
from numpy.typing import NDArray

Floats = NDArray[np.float64]
K = TypeVar("K")

LEVEL, POWER = 0.05, 0.8
"""Chance of a false alarm that is taken, two-sided; and of finding the smallest gain that is called detectable."""

_DRAWS, _SIGNS, _CHUNK = 2000, 10_000, 200
_MOST_ENUMERATED = 14  # groups whose every pattern of signs is tried


@dataclass(frozen=True)
class TestPhotos:
    """N photos that were tested, each once: all (N,), numbered from 0."""

    __test__ = False  # no test of pytest's

    group: NDArray[np.int64]
    fold: NDArray[np.int64]
    cell: NDArray[np.int64]  # product × class: each counts alike, however many photos it has

    def mean(self, losses: Floats) -> float:
        """The mean over cells of the mean of losses, (N,) or (N, S) of S seeds."""
        return float(self.by_cell(losses).mean())

    def of(self, cell: int) -> "TestPhotos":
        """Those of one cell."""
        own = self.cell == cell
        return TestPhotos(self.group[own], self.fold[own], np.zeros(int(own.sum()), np.int64))

    def by_cell(self, losses: Floats) -> Floats:
        """The mean of each cell's losses, (C,)."""
        each = losses if losses.ndim == 1 else losses.mean(axis=1)
        return np.bincount(self.cell, each) / np.bincount(self.cell)


class Interval(NamedTuple):
    """An estimate with the bounds that hold it at 95 %."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """How much lower, or higher, the loss of one condition is than a base's, on the same photos."""

    loss: Interval  # of the condition
    base: Interval
    points: Interval  # loss minus base
    relative: Interval  # the same as a share of the base; 0 where the base makes no error
    p: float  # two-sided, by exchange of the two conditions group by group
    detectable: float  # the smallest difference that would be found in four of five such tests
    cells: Sequence[Interval]  # loss minus base of each cell
    cell_chances: Sequence[float]  # of each, by exchange of its groups, corrected for their number


def compare(
    photos: TestPhotos, loss: Floats, base: Floats, num_comparisons: int = 1, seed: int = 0
) -> Difference:
    """Compares two conditions.

    Args:
        photos: what was tested.
        loss, base: of each photo and seed, (N, S): 1 for a wrong class, 0 for the right one; or any loss.
        num_comparisons: among so many that are told together: decides `detectable` alone, as Bonferroni has it.
        seed: of the draws.
    """
    losses = _draw_means(photos, np.stack([loss, base]), np.random.default_rng(seed))  # (draws, 2, C)
    means = np.nanmean(losses, axis=2)
    points = means[:, 0] - means[:, 1]
    own, bases = photos.by_cell(loss), photos.by_cell(base)
    differences = (loss - base).mean(axis=1)
    chances = {
        cell: exchange_test(photos.of(cell), differences[photos.cell == cell], seed)
        for cell in range(len(own))
    }
    value, of_base = float(own.mean()), float(bases.mean())
    return Difference(
        loss=_interval(value, means[:, 0]),
        base=_interval(of_base, means[:, 1]),
        points=_interval(value - of_base, points),
        relative=_interval(
            (value - of_base) / of_base if of_base else 0.0,
            np.divide(points, means[:, 1], out=np.zeros_like(points), where=means[:, 1] > 0),
        ),
        p=exchange_test(photos, differences, seed),
        detectable=_smallest_gain(photos, float(points.std(ddof=1)), LEVEL / num_comparisons),
        cells=[
            _interval(one, draws)
            for one, draws in zip(own - bases, (losses[:, 0] - losses[:, 1]).T, strict=True)
        ],
        cell_chances=list(holm(chances).values()),
    )


def exchange_test(photos: TestPhotos, differences: Floats, seed: int = 0) -> float:
    """The chance of a mean difference as large, in either direction, if the two conditions were alike: all photos
    of a group exchange them, or none do. Every pattern is tried where groups are few, else 10,000 at random.

    Args:
        photos: what was tested.
        differences: of each photo, (N,).
    """
    shares = differences / np.bincount(photos.cell)[photos.cell] / len(np.unique(photos.cell))
    by_group = np.bincount(photos.group, shares)
    by_group = by_group[np.abs(by_group) > 1e-12]  # the others change nothing
    found = abs(by_group.sum()) * (1 - 1e-9)
    if len(by_group) <= _MOST_ENUMERATED:
        patterns = np.arange(2 ** len(by_group))[:, None] >> np.arange(len(by_group)) & 1
        return float((np.abs((1 - 2 * patterns) @ by_group) >= found).mean())
    random, reached = np.random.default_rng(seed), 0
    for _ in range(_SIGNS // _CHUNK):
        exchanged = random.integers(0, 2, (_CHUNK, len(by_group)), np.int8).astype(float)
        reached += int((np.abs(by_group.sum() - 2 * (exchanged @ by_group)) >= found).sum())
    return (reached + 1) / (_SIGNS + 1)


def holm(chances: Mapping[K, float]) -> dict[K, float]:
    """Chances corrected for being several (Holm 1979), by name, in their order."""
    corrected: dict[K, float] = {}
    highest = 0.0
    for rank, name in enumerate(sorted(chances, key=lambda name: chances[name])):
        highest = max(highest, min(1.0, chances[name] * (len(chances) - rank)))
        corrected[name] = highest
    return {name: corrected[name] for name in chances}


def worth(points: Sequence[tuple[float, float]], error: float) -> float | None:
    """How many real defects bring an error about.

    Args:
        points: real defects of each cell, and the error without samples: a curve that is made falling, a straight
            line over the logarithm of the number in between.
        error: the one to look for.

    Returns:
        The number; None if none of the curve's is as low.
    """
    counts, errors = zip(*sorted(points), strict=True)
    falling = np.minimum.accumulate(errors)
    if error < falling[-1]:
        return None
    # np.interp wants rising: from the lowest error to the highest
    return float(np.exp(np.interp(error, falling[::-1], np.log(counts[::-1]))))


def _smallest_gain(photos: TestPhotos, deviation: float, alpha: float) -> float:
    """The gain, the same for every photo, that the exchange of conditions finds with the chance POWER: where
    gain = z₁ √(deviation² + gain² Σ w²) + z₂ deviation. A gain is also spread in what it is held against, by the
    more, the fewer groups there are; w is a group's share of the mean. Infinite where they are too few for any;
    and at least what as many photos weigh as groups must differ, all one way, for a chance of alpha."""
    z1, z2 = scipy.stats.norm.ppf([1 - alpha / 2, POWER])
    counts = np.bincount(photos.cell)
    shares = np.bincount(photos.group, 1 / counts[photos.cell]) / np.count_nonzero(counts)
    left = 1 - z1**2 * np.square(shares).sum()
    needed = int(np.ceil(1 - np.log2(alpha)))
    if left <= 0 or np.count_nonzero(shares) < needed:
        return float("inf")
    root = np.sqrt(z2**2 - left * (z2**2 - z1**2))
    lightest = 1 / counts.max() / np.count_nonzero(counts)
    return max(float(deviation * (z2 + root) / left), float(needed * lightest))


def _draw_means(photos: TestPhotos, losses: Floats, random: np.random.Generator) -> Floats:
    """Means of every cell, (draws, K, C), of losses (K, N, S), for groups drawn anew, and seeds within each fold;
    NaN where a draw holds no photo of a cell."""
    num_conditions, _, num_seeds = losses.shape
    names, group = np.unique(photos.group, return_inverse=True)
    num_cells = int(photos.cell.max()) + 1
    folds, fold_of_group = np.unique(photos.fold, return_inverse=True)[0], np.zeros(len(names), np.int64)
    fold_of_group[group] = photos.fold
    place, size = group * num_cells + photos.cell, len(names) * num_cells
    of_group = np.bincount(place, minlength=size).reshape(len(names), num_cells)
    totals = np.array(
        [[np.bincount(place, losses[k, :, s], size) for s in range(num_seeds)] for k in range(num_conditions)]
    ).reshape(num_conditions, num_seeds, len(names), num_cells)
    means = np.empty((_DRAWS, num_conditions, num_cells))
    for start in range(0, _DRAWS, _CHUNK):
        drawn = random.multinomial(len(names), np.full(len(names), 1 / len(names)), _CHUNK).astype(float)
        sums = np.zeros((_CHUNK, num_conditions, num_cells))
        for fold in folds:
            own = fold_of_group == fold
            seeds = random.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), _CHUNK) / num_seeds
            for k, s in np.ndindex(num_conditions, num_seeds):
                sums[:, k] += seeds[:, s, None] * (drawn[:, own] @ totals[k, s, own])
        counts = (drawn @ of_group)[:, None]
        means[start : start + _CHUNK] = np.divide(
            sums, counts, out=np.full_like(sums, np.nan), where=counts > 0
        )
    return means


def _interval(value: float, draws: Floats) -> Interval:
    there = draws[~np.isnan(draws)]
    low, high = np.quantile(there, [LEVEL / 2, 1 - LEVEL / 2]) if len(there) else (np.nan, np.nan)
    return Interval(float(value), float(low), float(high))
