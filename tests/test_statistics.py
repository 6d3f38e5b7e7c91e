"""The verdict's statistics: closed forms, every pattern of signs, planted nulls and gains of known size."""

import itertools

import numpy as np
import pytest

from raygen.evaluate.statistics import (
    POWER,
    Interval,
    TestPhotos,
    compare,
    exchange_test,
    holm,
    worth,
)


def photos_of(num_groups: int, group_size: int = 1, num_cells: int = 1, num_folds: int = 1) -> TestPhotos:
    group = np.repeat(np.arange(num_groups), group_size)
    return TestPhotos(group=group, fold=group % num_folds, cell=group // num_folds % num_cells)


def interval_of(photos: TestPhotos, losses: np.ndarray) -> Interval:
    """Of the mean loss."""
    return compare(photos, losses, np.zeros_like(losses)).loss


def test_the_interval_of_a_plain_mean_is_the_textbooks() -> None:
    losses = np.random.default_rng(0).normal(0.3, 0.1, 400)
    found = interval_of(photos_of(400), losses[:, None])
    half = 1.96 * losses.std() / 20
    assert found.value == pytest.approx(losses.mean())
    assert [found.low, found.high] == pytest.approx(
        [losses.mean() - half, losses.mean() + half], abs=half / 10
    )


def test_photos_of_one_group_count_once() -> None:
    one = np.random.default_rng(0).normal(0.3, 0.1, 50)
    alone = interval_of(photos_of(50), one[:, None])
    ten_times = interval_of(photos_of(50, 10), np.repeat(one, 10)[:, None])
    assert ten_times.high - ten_times.low == pytest.approx(alone.high - alone.low, rel=0.1)


def test_seeds_that_differ_widen_the_interval() -> None:
    photos = photos_of(200, num_folds=5)
    rng = np.random.default_rng(0)
    shift = rng.normal(0, 0.1, (5, 3))[photos.fold]  # of a whole fold's training
    calm = rng.normal(0.3, 0.01, (200, 3))
    found = interval_of(photos, calm + shift)
    # The variance of a fold's mean over 3 seeds, by the draws of 3 of them, and of the mean over 5 folds.
    expected = 1.96 * np.sqrt(np.mean([shift[photos.fold == f][0].var() / 3 for f in range(5)]) / 5)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.15)


def test_each_cell_counts_alike() -> None:
    photos = TestPhotos(np.arange(12), np.zeros(12, int), np.array([0] * 10 + [1] * 2))
    losses = np.array([0.0] * 10 + [1.0] * 2)
    assert photos.mean(losses) == 0.5
    assert photos.by_cell(losses).tolist() == [0, 1]


def test_the_chance_is_that_of_all_patterns_of_signs() -> None:
    photos = photos_of(9, 3, num_cells=2)
    differences = np.random.default_rng(1).normal(0.2, 0.5, 27)
    statistics = []
    for signs in itertools.product([1, -1], repeat=9):
        flipped = differences * np.array(signs)[photos.group]
        statistics.append(abs(photos.by_cell(flipped).mean()))
    found = abs(photos.by_cell(differences).mean())
    assert exchange_test(photos, differences) == np.mean(np.array(statistics) >= found - 1e-12)


def test_many_groups_are_drawn_to_the_same_chance() -> None:
    photos, random = photos_of(60), np.random.default_rng(2)
    differences = random.choice([-1.0, 0.0, 1.0], 60, p=[0.3, 0.5, 0.2])
    # McNemar's exact test: a binomial over the photos that differ.
    import scipy.stats

    better, worse = int((differences < 0).sum()), int((differences > 0).sum())
    exact = scipy.stats.binomtest(better, better + worse).pvalue
    assert exchange_test(photos, differences) == pytest.approx(exact, abs=0.02)


def test_equal_conditions_have_no_difference_and_chance_one() -> None:
    photos, losses = (
        photos_of(40, num_cells=3),
        np.random.default_rng(0).integers(0, 2, (40, 2)).astype(float),
    )
    found = compare(photos, losses, losses)
    assert found.points == (0, 0, 0)
    assert found.p == 1
    assert found.cell_chances == [1, 1, 1]
    # Six groups must differ, all one way, for a chance of 2 / 2⁶: six photos of the 14 in a cell, of three cells.
    assert found.detectable == pytest.approx(6 / 14 / 3)


def _planted(random: np.random.Generator, photos: TestPhotos, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Errors whose groups are hard or easy, right or wrong by chance, lower by `gain` in the first condition."""
    hard = random.uniform(0.15, 0.45, photos.group.max() + 1)[photos.group]
    return tuple(  # type: ignore[return-value]
        (random.random((len(hard), 1)) < rate[:, None]).astype(float) for rate in (hard - gain, hard)
    )


@pytest.mark.slow
def test_a_planted_null_is_rejected_at_most_one_time_in_twenty() -> None:
    photos, random = photos_of(60, 4, num_cells=3, num_folds=5), np.random.default_rng(0)
    rejected = 0
    for draw in range(1000):
        loss, base = _planted(random, photos, 0)
        rejected += exchange_test(photos, (loss - base)[:, 0], draw) <= 0.05
    assert rejected <= 50 + 2 * np.sqrt(1000 * 0.05 * 0.95)


@pytest.mark.slow
def test_a_planted_gain_of_the_size_called_detectable_is_found_as_often_as_promised() -> None:
    photos, random = photos_of(60, 4, num_cells=3, num_folds=5), np.random.default_rng(0)
    told = [compare(photos, *_planted(random, photos, 0.1), seed=draw).detectable for draw in range(20)]
    gain, found = float(np.median(told)), 0
    assert 0.05 < gain < 0.15
    for draw in range(1000):
        loss, base = _planted(random, photos, gain)
        found += exchange_test(photos, (loss - base)[:, 0], draw) <= 0.05
    assert found / 1000 == pytest.approx(POWER, abs=0.06)


@pytest.mark.slow
def test_the_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    photos, random = photos_of(60, 4, num_cells=3, num_folds=5), np.random.default_rng(3)
    held = 0
    for draw in range(300):
        found = compare(photos, *_planted(random, photos, 0.1), seed=draw).points
        held += found.low <= -0.1 <= found.high
    assert held / 300 == pytest.approx(0.95, abs=0.035)


def test_several_chances_are_corrected_as_holm_has_it() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def test_worth_reads_the_curve_of_real_defects_backwards() -> None:
    curve = [(5, 0.4), (10, 0.3), (20, 0.2), (50, 0.22)]
    assert worth(curve, 0.3) == pytest.approx(10)
    assert worth(curve, 0.25) == pytest.approx(np.sqrt(10 * 20))
    assert worth(curve, 0.19) is None
    assert worth(curve, 0.5) == pytest.approx(5)
