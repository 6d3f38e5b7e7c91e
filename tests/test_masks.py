"""Masks are where the change is: cleaned of noise, whole, and faded only around the defect."""

import numpy as np
import pytest
from scipy import ndimage

from raygen.families.masks import boxes, confine, find_defects, surroundings
from raygen.families.recipes import MaskConfig

PLAIN = MaskConfig(threshold=10, noise_factor=4, peak_share=0, spread=0.5, close=0, min_area=0)


def find_cores(strength: np.ndarray, config: MaskConfig) -> np.ndarray:
    return find_defects(strength, config).masks


def layer(*patches: tuple[slice, slice, float], size: int = 32) -> np.ndarray:
    """Changes in grey levels, (1, size, size)."""
    strength = np.zeros((1, size, size), np.float32)
    for rows, columns, value in patches:
        strength[0, rows, columns] = value
    return strength


def test_a_defect_reaches_as_far_as_half_the_threshold_and_no_weak_one_is_found() -> None:
    strong = (slice(5, 9), slice(5, 9), 30.0)
    around = (slice(5, 9), slice(9, 12), 6.0)  # above half of 10, and touching
    weak = (slice(20, 24), slice(20, 24), 9.0)  # nowhere above 10
    core = find_cores(layer(weak, around, strong), PLAIN)[0]
    assert core.sum() == 4 * 4 + 4 * 3
    assert core[5:9, 5:12].all()


def test_the_threshold_rises_with_the_noise_of_the_layer() -> None:
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(0, 5, (1, 64, 64))).astype(np.float32)
    noise[0, 10:16, 10:16] = 60
    core = find_cores(noise, PLAIN.model_copy(update={"spread": 1.0}))[0]
    assert core[10:16, 10:16].all()
    assert core.sum() - 36 < 5  # of 4,096 pixels of noise, 190 exceed 10 grey levels


def test_beside_a_strong_defect_a_weak_one_is_its_fringe() -> None:
    strength = layer((slice(5, 9), slice(5, 9), 100.0), (slice(20, 24), slice(20, 24), 25.0))
    config = PLAIN.model_copy(update={"peak_share": 0.3})
    assert find_cores(strength, config)[0].sum() == 16
    strength[0, 5:9, 5:9] = 50
    assert find_cores(strength, config)[0].sum() == 32


def test_small_parts_are_noise_and_gaps_are_closed() -> None:
    strength = layer((slice(3, 4), slice(3, 4), 50.0), (slice(10, 12), slice(4, 14), 50.0))
    strength[0, 10:12, 8:10] = 0  # a gap of two pixels
    closed = find_cores(strength, PLAIN.model_copy(update={"close": 1, "min_area": 4 / 1024}))[0]
    assert closed.sum() == 2 * 10
    assert closed[10:12, 4:14].all()


def test_defects_at_the_edge_stay_whole() -> None:
    strength = layer((slice(0, 3), slice(0, 32), 50.0))
    core = find_cores(strength, PLAIN.model_copy(update={"close": 2}))[0]
    assert core[:3].all()
    assert not core[3:].any()


def test_a_mask_of_one_image_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(1)
    strength = (rng.random((6, 40, 40)) ** 8 * 60).astype(np.float32)
    config = MaskConfig()
    whole = find_cores(strength, config)
    for i in range(6):
        np.testing.assert_array_equal(find_cores(strength[i : i + 1], config)[0], whole[i])
    assert 0 < whole.mean() < 1


def test_a_defect_fades_in_from_where_it_begins() -> None:
    strength = np.zeros((1, 8, 64), np.float32)
    strength[0] = np.arange(64)
    masks, weights = find_defects(
        strength, PLAIN.model_copy(update={"fade": 1.5, "spread": 1.0, "threshold": 20, "noise_factor": 0})
    )
    np.testing.assert_array_equal(masks[0, 0], np.arange(64) > 20)
    np.testing.assert_allclose(weights[0, 0], ((np.arange(64) - 20) / 30).clip(0, 1), atol=1e-6)


def test_defects_stay_where_they_may_lie_and_off_the_edges() -> None:
    strength = np.zeros((2, 32, 32), np.float32)
    strength[:, 0:20, 0:20] = 100
    found = find_defects(strength, PLAIN)
    allowed = np.ones((2, 32, 32), bool)
    allowed[0, :, 10:] = False
    masks, weights = confine(found, allowed, fade_edges=False)
    assert masks[0, :20, :10].all()
    assert not masks[0, :, 10:].any()
    np.testing.assert_array_equal(masks[1], found.masks[1])
    masks, weights = confine(found, None, fade_edges=True)
    assert not masks[:, 0].any()
    assert not masks[:, :, 0].any()
    np.testing.assert_allclose(weights[1, :4, 10], [0, 1 / 3, 2 / 3, 1], atol=1e-6)
    np.testing.assert_array_equal(masks, weights > 0)


def test_boxes_tell_each_part() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:5, 10:12] = True
    mask[8:10, 1:5] = True
    mask[10, 5] = True  # joined by a corner
    assert boxes(mask, top=100, left=7) == [
        {"x": 17, "y": 102, "width": 2, "height": 3, "area": 6},
        {"x": 8, "y": 108, "width": 5, "height": 3, "area": 9},
    ]
    assert boxes(np.zeros((4, 4), bool)) == []


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7])
def test_boxes_are_those_that_another_library_finds(share: float) -> None:
    random = np.random.default_rng(0)
    for mask in random.random((20, 24, 31)) < share:
        parts, num_parts = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore
        found = []
        for number, (rows, columns) in enumerate(ndimage.find_objects(parts), 1):
            sizes = columns.stop - columns.start, rows.stop - rows.start
            found.append((columns.start, rows.start, *sizes, int((parts == number).sum())))
        assert len(found) == num_parts
        names = ("x", "y", "width", "height", "area")
        for kind in (bool, np.uint8):
            told = [tuple(box[name] for name in names) for box in boxes(mask.astype(kind))]
            assert sorted(told) == sorted(found)
            assert [(box[1], box[0]) for box in told] == sorted((box[1], box[0]) for box in told)


def test_surroundings_are_a_band() -> None:
    mask = np.zeros((1, 9, 9), bool)
    mask[0, 4, 4] = True
    band = surroundings(mask, 2)
    assert band.sum() == 24
    assert not (band & mask).any()
