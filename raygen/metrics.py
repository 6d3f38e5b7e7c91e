"""Distances between sets of images, as pure functions of their features: float arrays (N, D), one row an
image."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.floating]


class KernelDistance(NamedTuple):
    """A block estimate: mean and standard deviation over the subsets."""

    mean: float
    std: float


class PrecisionRecall(NamedTuple):
    """Both 0..1."""

    precision: float  # share of the generated ones that lie among the real ones: are they real?
    recall: float  # share of the real ones that lie among the generated ones: are they diverse?


class DensityCoverage(NamedTuple):
    """Fidelity and diversity that single outliers of the real set do not decide."""

    density: (
        float  # in how many real ones' neighbourhoods a generated one lies, of the k expected; may be above 1
    )
    coverage: float  # share of the real ones in whose neighbourhood any generated one lies, 0..1


class Interval(NamedTuple):
    """The bounds of a confidence interval."""

    low: float
    high: float


class Nearest(NamedTuple):
    """The nearest neighbour of each of N images."""

    row: NDArray[np.intp]  # its row in the other set, (N,)
    distance: NDArray[np.float64]  # Euclidean, (N,)


class ClusteredDistance(NamedTuple):
    """Mean pairwise distance within clusters."""

    mean: float  # clusters of at most one image count 0
    mean_of_nonempty: float  # without those; NaN if all are so


def frechet_distance(x: Features, y: Features) -> float:
    """The Fréchet distance of the Gaussians fitted to two sets (Heusel et al. 2017; FID on Inception's
    features).

    |μx − μy|² + tr(Σx + Σy − 2 (Σx Σy)^½). The trace of the root is the sum of the singular values of R_x R_yᵀ,
    with Σ = RᵀR: no covariance is formed and no root of a singular matrix drawn, so that sets smaller than D do
    no harm to the arithmetic. (They do bias the distance upwards: compare only sets of equal sizes.)

    Args:
        x, y: features (N, D) and (M, D), at least two rows each.

    Returns:
        At least 0.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("a Fréchet distance wants at least two images on either side")
    mean_x, root_x = _gaussian(x)
    mean_y, root_y = _gaussian(y)
    traces = np.square(root_x).sum() + np.square(root_y).sum()
    cross = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    return max(0.0, float(np.square(mean_x - mean_y).sum() + traces - 2 * cross))


def _gaussian(x: Features) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean (D,) and R (min(N, D), D) with RᵀR = the unbiased covariance."""
    x = np.asarray(x, np.float64)
    mean = x.mean(axis=0)
    centred = (x - mean) / np.sqrt(len(x) - 1)
    if len(x) > x.shape[1]:
        centred = np.asarray(np.linalg.qr(centred, mode="r"))
    return mean, centred


def kernel_distance(
    x: Features, y: Features, num_subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> KernelDistance:
    """The squared maximum mean discrepancy with the kernel (x·y / D + 1)³, unbiased (Bińkowski et al. 2018; KID
    on Inception's features): its expectation is 0 for two sets from one distribution, and it may be below.

    Args:
        x, y: features (N, D) and (M, D), at least two rows each.
        num_subsets: blocks drawn from either side, without replacement within a block.
        subset_size: of a block, at most; never more than the smaller set.
        seed: of the draws.
    """
    size = min(subset_size, len(x), len(y))
    if size < 2:
        raise ValueError("a kernel distance wants at least two images on either side")
    random = np.random.RandomState(
        seed
    )  # torch-fidelity's, drawn in its order: the same subsets, the same figures
    values = []
    for _ in range(num_subsets):
        a, b = (some[random.choice(len(some), size, replace=False)].astype(np.float64) for some in (x, y))
        within = _kernel(a, a), _kernel(b, b)
        between = _kernel(a, b).mean()
        values.append(sum((k.sum() - np.trace(k)) / (size * (size - 1)) for k in within) - 2 * between)
    return KernelDistance(float(np.mean(values)), float(np.std(values)))


def _kernel(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return (a @ b.T / a.shape[1] + 1) ** 3


def kernel_interval(
    x: Features,
    y: Features,
    num_draws: int = 500,
    max_images: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Interval:
    """A confidence interval of the kernel distance, by the percentiles of a bootstrap over the images of both
    sets. A draw weighs an image by how often it was drawn; pairs of an image with itself are left out
    (`weighted_kernel_distances`): they would count as two images that are alike, and bias every draw upwards.

    Of 95 % it holds the true distance some 90 % of the time where the sets differ, as percentiles of small sets
    do, and nearly always where they are of one distribution: there the statistic is degenerate.

    Args:
        x, y: features (N, D) and (M, D), at least two rows each.
        num_draws: of the bootstrap.
        max_images: of a larger set so many are taken, and the interval is that of a set so large: too wide.
        confidence: its level.
        seed: of the draws.
    """
    if min(len(x), len(y)) < 2:
        raise ValueError("an interval of the kernel distance wants at least two images on either side")
    random = np.random.default_rng(seed)
    some = [s[random.permutation(len(s))[:max_images]].astype(np.float64) for s in (x, y)]
    draws = (random.multinomial(len(s), np.full(len(s), 1 / len(s)), num_draws) for s in some)
    values = weighted_kernel_distances(*some, *draws)
    low, high = np.nanquantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def weighted_kernel_distances(
    x: Features, y: Features, x_weights: NDArray[np.number], y_weights: NDArray[np.number]
) -> NDArray[np.float64]:
    """The kernel distances of two sets whose images weigh differently; with weights of 1 the unbiased estimate.

    Args:
        x, y: features (N, D) and (M, D).
        x_weights, y_weights: of each image in each draw, (K, N) and (K, M).

    Returns:
        One a draw, (K,); NaN for draws of a single image.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    a, b = np.asarray(x_weights, np.float64), np.asarray(y_weights, np.float64)

    def within(s: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
        kernel = _kernel(s, s)
        np.fill_diagonal(kernel, 0)
        num_pairs = w.sum(axis=1) ** 2 - np.square(w).sum(axis=1)
        num_pairs[num_pairs == 0] = np.nan
        return np.einsum("kn,kn->k", w @ kernel, w) / num_pairs

    between = np.einsum("km,km->k", a @ _kernel(x, y), b) / (a.sum(axis=1) * b.sum(axis=1))
    return within(x, a) + within(y, b) - 2 * between


def precision_recall(real: Features, fake: Features, neighbours: int = 3) -> PrecisionRecall:
    """Improved precision and recall (Kynkäänniemi et al. 2019): an image lies among those of a set if, for one
    of them, it is no farther away than that one's k-th nearest neighbour in its own set.

    Args:
        real, fake: features (N, D) and (M, D), more than `neighbours` rows each.
        neighbours: k.
    """
    if min(len(real), len(fake)) <= neighbours:
        raise ValueError(f"precision and recall with k = {neighbours} want more images on either side")

    def share_among(x: Features, y: Features) -> float:
        radius = _radii(y, neighbours)
        inside = [(d <= radius).any(axis=1) for d in _distances(x, y)]
        return float(np.concatenate(inside).mean())

    return PrecisionRecall(share_among(fake, real), share_among(real, fake))


def density_coverage(real: Features, fake: Features, neighbours: int = 3) -> DensityCoverage:
    """Density and coverage (Naeem et al. 2020): both ask which generated images lie no farther from a real one
    than its k-th nearest real neighbour. Unlike recall, coverage asks nothing of the generated set's own
    neighbourhoods, which a few wild images make so large that everything lies in them.

    Args:
        real, fake: features (N, D), more than `neighbours` rows, and (M, D), at least one.
        neighbours: k.
    """
    if len(real) <= neighbours or not len(fake):
        raise ValueError(f"density and coverage with k = {neighbours} want more images on either side")
    radius = _radii(real, neighbours)
    num_inside, is_covered = 0, np.zeros(len(real), bool)
    for distances in _distances(fake, real):
        inside = distances <= radius
        num_inside += int(inside.sum())
        is_covered |= inside.any(axis=0)
    return DensityCoverage(num_inside / (neighbours * len(fake)), float(is_covered.mean()))


def _radii(x: Features, neighbours: int) -> NDArray[np.float64]:
    """The squared distance of each row of x, (N, D), to its k-th nearest neighbour in x: (N,)."""
    return np.concatenate([np.partition(d, neighbours, axis=1)[:, neighbours] for d in _distances(x, x)])


def nearest(x: Features, y: Features) -> Nearest:
    """Which row of y, (M, D), is nearest to each row of x, (N, D); neither is empty."""
    found = [(d.argmin(axis=1), d.min(axis=1)) for d in _distances(x, y)]
    rows, squares = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Nearest(rows, np.sqrt(squares))


def copy_rate(fake: Features, train: Features, held_out: Features, quantile: float = 0.05) -> float:
    """The share of the generated images that are as close to a training image as copies are: closer than all
    but a `quantile` of the real images that were held out. Without copying it is about `quantile`, or less.

    Args:
        fake, train, held_out: features (N, D), (M, D), (K, D); no set empty.
    """
    limit = np.quantile(nearest(held_out, train).distance, quantile)
    return float((nearest(fake, train).distance < limit).mean())


def clustered_distance(fake: Features, real: Features, max_cluster: int = 200) -> ClusteredDistance:
    """Clustered LPIPS (Ojha et al. 2021, as DFM-GAN uses it) on vectors whose *squared* Euclidean distance is
    the perceptual one: every generated image joins the nearest real one; the mean pairwise distance in each
    cluster is averaged over the clusters. Copies of the real images, however many, score 0.

    Args:
        fake, real: vectors (N, D) and (M, D).
        max_cluster: only the first so many of a cluster count.
    """
    cluster = nearest(fake, real).row
    means = []
    for centre in range(len(real)):
        members = fake[cluster == centre][:max_cluster]
        count = len(members)
        total = sum(float(d.sum()) for d in _distances(members, members)) if count > 1 else 0.0
        means.append(total / (count * (count - 1)) if count > 1 else np.nan)
    zeroed = np.nan_to_num(means)
    nonempty = float(np.nanmean(means)) if not np.isnan(means).all() else float("nan")
    return ClusteredDistance(float(zeroed.mean()), nonempty)


def _distances(x: Features, y: Features, rows: int = 256) -> Iterator[NDArray[np.float64]]:
    """Squared Euclidean distances, (some rows of x, M), block by block: memory does not grow with N."""
    y = np.asarray(y)
    norms = np.einsum("nd,nd->n", y, y, dtype=np.float64)
    for start in range(0, len(x), rows):
        some = np.asarray(x[start : start + rows])
        own = np.einsum("nd,nd->n", some, some, dtype=np.float64)
        yield np.maximum(own[:, None] + norms - 2 * (some @ y.T).astype(np.float64), 0)
