"""The metrics equal closed forms, references and what their names promise."""

import math

import numpy as np
import pytest
import scipy.linalg

from raygen.metrics import (
    clustered_distance,
    copy_rate,
    density_coverage,
    frechet_distance,
    kernel_distance,
    kernel_interval,
    nearest,
    precision_recall,
    weighted_kernel_distances,
)


def normal(seed: int, rows: int, columns: int, scale: float = 1.0, shift: float = 0.0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns)) * scale + shift


# ------------------------------------------------------------------------------------- Fréchet distance


def with_moments(mean: np.ndarray, covariance: np.ndarray, rows: int, seed: int) -> np.ndarray:
    """Features of exactly this mean and covariance."""
    x = normal(seed, rows, len(mean))
    x -= x.mean(axis=0)
    whitened = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    return whitened @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_gaussians_in_closed_form() -> None:
    mean, variances = np.array([1.0, -2.0, 0.5]), (np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 0.25]))
    x = with_moments(np.zeros(3), np.diag(variances[0]), 50, seed=0)
    y = with_moments(mean, np.diag(variances[1]), 80, seed=1)
    expected = np.square(mean).sum() + np.square(np.sqrt(variances[0]) - np.sqrt(variances[1])).sum()
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize(("rows", "columns"), [((60, 90), 20), ((12, 300), 40), ((10, 15), 64)])
def test_frechet_distance_agrees_with_the_square_root_of_a_matrix(
    rows: tuple[int, int], columns: int
) -> None:
    """Also for sets smaller than the features, whose covariances are singular."""
    x, y = (normal(i, n, columns, scale=1 + i, shift=i / 2).astype(np.float32) for i, n in enumerate(rows))
    covariances = [np.cov(some.astype(np.float64), rowvar=False) for some in (x, y)]
    root = np.real(np.asarray(scipy.linalg.sqrtm(covariances[0] @ covariances[1])))
    means = [some.astype(np.float64).mean(axis=0) for some in (x, y)]
    expected = np.square(means[0] - means[1]).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-4)
    assert frechet_distance(x, y) == pytest.approx(frechet_distance(y, x), rel=1e-9)


def test_a_set_is_at_no_frechet_distance_from_itself() -> None:
    for rows in (10, 200):
        x = normal(0, rows, 32)
        assert frechet_distance(x, x) == pytest.approx(0, abs=1e-9)


# -------------------------------------------------------------------------------------- kernel distance


def test_kernel_distance_of_identical_sets_is_about_zero() -> None:
    x = normal(0, 500, 16)
    same, other = (
        kernel_distance(x, y, num_subsets=50, subset_size=200) for y in (x, normal(1, 500, 16, shift=1))
    )
    # A little below: an image may be in both blocks, and is nearest to itself.
    assert -0.01 * other.mean < same.mean <= 0


def test_kernel_distance_is_unbiased() -> None:
    """Over many pairs of sets from one distribution it is 0 on average, whatever the sizes."""
    values = [
        kernel_distance(normal(2 * i, 40, 8), normal(2 * i + 1, 60, 8), num_subsets=1).mean
        for i in range(300)
    ]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 4 * np.std(values) / math.sqrt(len(values))


def test_kernel_distance_by_hand() -> None:
    """The whole of both sets as one block: the sums of the definition, term by term."""
    x, y = normal(0, 7, 5), normal(1, 7, 5, shift=1)

    def k(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / 5 + 1) ** 3

    within = sum(k(s[i], s[j]) for s in (x, y) for i in range(7) for j in range(7) if i != j) / (7 * 6)
    between = sum(k(a, b) for a in x for b in y) / 49
    found = kernel_distance(x, y, num_subsets=3, subset_size=1000)
    assert found.mean == pytest.approx(within - 2 * between, rel=1e-12)
    assert found.std == pytest.approx(0, abs=1e-12)


def test_kernel_distance_grows_with_the_shift_and_repeats() -> None:
    x = normal(0, 200, 8)
    near, far = (kernel_distance(x, normal(1, 200, 8, shift=shift), 20, 100, seed=3) for shift in (0.2, 1.0))
    assert near.mean < far.mean
    assert kernel_distance(x, normal(1, 200, 8, shift=0.2), 20, 100, seed=3) == near
    assert kernel_distance(x, normal(1, 200, 8, shift=0.2), 20, 100, seed=4) != near


def test_weights_of_one_give_the_unbiased_estimate() -> None:
    x, y = normal(0, 30, 6), normal(1, 30, 6, shift=0.5)
    ones = np.ones((2, 30), int)
    whole = kernel_distance(x, y, num_subsets=1, subset_size=30).mean
    np.testing.assert_allclose(weighted_kernel_distances(x, y, ones, ones), whole, rtol=1e-10)


def test_weights_count_pairs_of_different_images() -> None:
    """An image drawn twice is no pair with itself: the sums of the definition, term by term."""
    x, y = normal(0, 4, 3), normal(1, 5, 3)
    drawn = [0, 0, 0, 2], [1, 1, 3, 4, 4]

    def mean(a: np.ndarray, b: np.ndarray, rows: list[int], others: list[int], is_one_set: bool) -> float:
        pairs = [(i, j) for i in rows for j in others if not (is_one_set and i == j)]
        return float(np.mean([(a[i] @ b[j] / 3 + 1) ** 3 for i, j in pairs]))

    expected = (
        mean(x, x, drawn[0], drawn[0], True)
        + mean(y, y, drawn[1], drawn[1], True)
        - 2 * mean(x, y, *drawn, False)
    )
    weights = (np.bincount(rows, minlength=len(s))[None] for rows, s in zip(drawn, (x, y), strict=True))
    assert weighted_kernel_distances(x, y, *weights)[0] == pytest.approx(expected, rel=1e-12)
    lone = weighted_kernel_distances(x, y, np.array([[4, 0, 0, 0]]), np.ones((1, 5), int))
    assert math.isnan(lone[0])


def test_the_interval_covers_the_true_distance_about_as_often_as_it_says() -> None:
    """In one dimension (xy + 1)³ compares the first three moments, in closed form: 3 Δ₁² + 3 Δ₂² + Δ₃²."""
    mu, sigma, num_trials = 0.5, 0.5, 300
    true = 3 * mu**2 + 3 * mu**4 + (mu**3 + 3 * mu * sigma**2) ** 2
    inside = 0
    for trial in range(num_trials):
        x = normal(2 * trial, 80, 1, scale=sigma)
        y = normal(2 * trial + 1, 120, 1, scale=sigma, shift=mu)
        low, high = kernel_interval(x, y, num_draws=300, seed=trial)
        inside += low <= true <= high
    assert 0.87 < inside / num_trials < 0.98


def test_the_interval_of_one_distribution_holds_zero_and_shrinks_as_sets_grow() -> None:
    def interval(rows: int, shift: float) -> tuple[float, float]:
        return kernel_interval(normal(0, rows, 8), normal(1, rows, 8, shift=shift))

    low, high = interval(200, 0)
    assert low < 0 < high
    widths = [high - low for low, high in (interval(50, 0.5), interval(800, 0.5))]
    assert widths[1] < 0.5 * widths[0]
    assert interval(50, 0.5) == interval(50, 0.5)


# ------------------------------------------------------------------- precision, recall, copies, clusters


def test_precision_and_recall_tell_fidelity_from_diversity() -> None:
    real = normal(0, 400, 4)
    same = precision_recall(real, normal(1, 400, 4))
    assert same.precision > 0.8
    assert same.recall > 0.8
    collapsed = precision_recall(real, normal(1, 400, 4, scale=0.1))  # real, but all alike
    assert collapsed.precision > 0.9
    assert collapsed.recall < 0.2
    wild = precision_recall(real, normal(1, 400, 4, scale=5))  # diverse, but not real
    assert wild.precision < 0.3
    assert wild.recall > 0.8


def test_precision_by_hand() -> None:
    """On a line, k = 1: real ones at 0, 1 and 10 reach 1, 1 and 9 far."""
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[2.0], [2.1], [-1.5], [19.0]])
    found = precision_recall(real, fake, neighbours=1)
    assert found.precision == pytest.approx(3 / 4)  # 2 (of 1), 2.1 and 19 (of 10); not −1.5
    assert found.recall == pytest.approx(3 / 3)  # 19 reaches 16.9 far, −1.5 reaches 3.5


def test_density_and_coverage_by_hand() -> None:
    """On a line, k = 1: real ones at 0, 1 and 10 reach 1, 1 and 9 far."""
    real, fake = np.array([[0.0], [1.0], [10.0]]), np.array([[0.5], [1.5], [-3.0], [30.0]])
    found = density_coverage(real, fake, neighbours=1)
    assert found.density == pytest.approx((2 + 2 + 0 + 0) / 4)  # 0.5: of 0 and 1; 1.5: of 1 and 10
    assert found.coverage == pytest.approx(3 / 3)
    assert density_coverage(real, fake[2:], neighbours=1) == (0, 0)


def test_density_and_coverage_by_their_definition() -> None:
    real, fake, k = normal(0, 300, 4), normal(1, 500, 4, scale=0.7), 5
    own = np.sort(np.linalg.norm(real[:, None] - real[None], axis=2), axis=1)[:, k]
    inside = np.linalg.norm(fake[:, None] - real[None], axis=2) <= own
    found = density_coverage(real, fake, neighbours=k)
    assert found.density == pytest.approx(inside.sum() / (k * 500))
    assert found.coverage == pytest.approx(inside.any(axis=0).mean())


def test_wild_samples_have_recall_but_neither_density_nor_coverage() -> None:
    real = normal(0, 400, 4)
    same = density_coverage(real, normal(1, 400, 4))
    assert same.density == pytest.approx(1, abs=0.15)
    assert same.coverage > 0.8
    wild = density_coverage(real, normal(1, 400, 4, scale=5))
    assert wild.density < 0.3
    assert wild.coverage < 0.3


def test_nearest() -> None:
    x, y = normal(0, 3000, 6), normal(1, 50, 6)
    distances = np.linalg.norm(x[:, None] - y[None], axis=2)
    found = nearest(x, y)
    np.testing.assert_allclose(found.distance, distances.min(axis=1), atol=1e-6)
    np.testing.assert_array_equal(found.row, distances.argmin(axis=1))


def test_copies_are_counted() -> None:
    train, held_out = normal(0, 200, 8), normal(1, 200, 8)
    fresh = normal(2, 1000, 8)
    copies = train[:100] + normal(3, 100, 8, scale=1e-3)
    assert copy_rate(fresh, train, held_out) == pytest.approx(0.05, abs=0.04)
    assert copy_rate(np.concatenate([copies, fresh[:100]]), train, held_out) == pytest.approx(0.52, abs=0.04)


def test_clusters_measure_diversity_and_not_copies() -> None:
    real = normal(0, 10, 12, scale=10)
    copies = np.repeat(real, 20, axis=0)
    spread = copies + normal(1, 200, 12)
    assert clustered_distance(copies, real).mean == pytest.approx(0, abs=1e-6)
    # Squared distance of two points with unit noise in 12 dimensions: 24.
    assert clustered_distance(spread, real).mean == pytest.approx(24, rel=0.1)


def test_empty_clusters_count_zero() -> None:
    real = np.array([[0.0, 0.0], [100.0, 0.0]])
    fake = np.array([[0.0, 1.0], [0.0, -1.0], [100.0, 0.0]])  # the second cluster has but one
    found = clustered_distance(fake, real)
    assert found.mean == pytest.approx(4 / 2)
    assert found.mean_of_nonempty == pytest.approx(4)
    assert math.isnan(clustered_distance(fake[2:], real).mean_of_nonempty)


def test_only_so_many_of_a_cluster_count() -> None:
    fake = np.array([[0.0], [1.0], [50.0]])
    assert clustered_distance(fake, np.zeros((1, 1)), max_cluster=2).mean == pytest.approx(1)


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, kernel_interval, precision_recall])
def test_too_few_images_are_refused(measure) -> None:
    with pytest.raises(ValueError, match=r"want"):
        measure(normal(0, 1, 4), normal(1, 50, 4))
