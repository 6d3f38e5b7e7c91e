"""The most likely copies, and how they are shown. (A whole evaluation: test_evaluate_on_ray.py.)"""

from pathlib import Path

import numpy as np
import pytest
from factories import write_run, write_split_set

from raygen.data.runs import read_manifest, read_shard
from raygen.demo import CHECKPOINT
from raygen.evaluate.memorisation import crop_defect, most_copied
from raygen.evaluate.samples import read_masks, read_pixels
from raygen.generate.config import GenerateConfig


def test_a_planted_copy_is_the_likeliest() -> None:
    random = np.random.default_rng(0)
    train, held_out, samples = (random.normal(size=(rows, 8)) for rows in (30, 40, 200))
    samples[17] = train[5]
    samples[40] = train[9] + 0.01
    found = most_copied(samples, train, held_out, num=5)
    assert [some[:2] for some in found[:2]] == [(17, 5), (40, 9)]
    ratios = [ratio for *_, ratio in found]
    assert ratios == sorted(ratios)
    assert ratios[0] == pytest.approx(0, abs=1e-6)
    assert ratios[1] < 0.05 < ratios[2]


def test_the_ratio_by_hand() -> None:
    """On a line: held-out defects are 1, 2 and 6 away from their nearest, 2 in the median."""
    train, held_out = np.array([[0.0], [10.0]]), np.array([[1.0], [12.0], [16.0]])
    samples = np.array([[5.0], [10.5], [3.0], [11.0]])
    assert most_copied(samples, train, held_out) == [(1, 1, 0.25), (3, 1, 0.5), (2, 0, 1.5), (0, 0, 2.5)]
    assert most_copied(samples, train, train) == []  # held-out defects that are copies tell nothing


def test_a_crop_holds_the_defect_and_a_little_more() -> None:
    pixels = np.arange(64 * 64, dtype=np.uint8).reshape(64, 64, 1)
    mask = np.zeros((64, 64), np.uint8)
    np.testing.assert_array_equal(crop_defect(pixels, mask), pixels)
    mask[:] = 255
    np.testing.assert_array_equal(crop_defect(pixels, mask), pixels)
    for rows, columns in (
        (slice(2, 12), slice(40, 60)),
        (slice(60, 64), slice(0, 3)),
        (slice(30, 31), slice(9, 10)),
    ):
        shown, spot = np.full((64, 64, 1), 100, np.uint8), np.zeros((64, 64), np.uint8)
        shown[rows, columns] = 200
        spot[rows, columns] = 255
        crop = crop_defect(shown, spot)
        side = max(1.5 * max(rows.stop - rows.start, columns.stop - columns.start), 16)
        area = (rows.stop - rows.start) * (columns.stop - columns.start)
        assert crop.shape == (64, 64, 1)
        assert (crop > 150).mean() == pytest.approx(area / side**2, rel=0.1)


def test_masks_are_read_as_pixels_are(tmp_path: Path) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (2, 1)})
    normals = sorted((tmp_path / "set").glob("*/normal/*.png"))
    (tmp_path / "pool.csv").write_text("\n".join(["uri,product", *(f"{f},{f.parts[-3]}" for f in normals)]))
    run = str(tmp_path / "run")
    write_run(GenerateConfig(pool=str(tmp_path / "pool.csv"), output=run, checkpoint=CHECKPOINT))
    manifest = read_manifest(run)
    assert manifest is not None
    (shard,) = manifest.shards
    names, masks = read_masks(run, shard, None, 64)
    assert names == read_pixels(run, shard, None, 64, 1)[0]
    boxes = read_shard(run, shard)["boxes"].to_pylist()
    assert masks.shape == (len(names), 64, 64)
    for mask, found in zip(masks, boxes, strict=True):
        assert mask.any() == bool(found)
        for box in found:
            assert mask[box["y"] : box["y"] + box["height"], box["x"] : box["x"] + box["width"]].any()
    some, half = read_masks(run, shard, {names[3]}, 32)
    assert some == [names[3]]
    assert half.shape == (1, 32, 32)
