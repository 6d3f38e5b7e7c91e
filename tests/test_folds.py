"""Folds: every photo is tested once, no group is torn, alike shares; and what a training leaves out."""

from pathlib import Path

import numpy as np
import pytest
from factories import write_split_set
from PIL import Image

from raygen.data.defects import EVERY, keep_defects
from raygen.data.folds import Folds, deal, with_groups
from raygen.data.photo import Photo
from raygen.data.survey import survey
from raygen.errors import UserError
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.photos import DefectSet


def photos_of(counts: dict[tuple[str, str], list[int]]) -> list[Photo]:
    """Photos of cells, of each so many in a group."""
    return [
        Photo(
            f"set/{product}/{kind}/{group}-{n}.png",
            product,
            kind,
            None,
            "",
            None,
            group=f"{product}-{kind}-{group}",
        )
        for (product, kind), sizes in counts.items()
        for group, size in enumerate(sizes)
        for n in range(size)
    ]


@pytest.fixture
def photos() -> list[Photo]:
    random = np.random.default_rng(0)
    cells = [(product, kind) for product in "ABC" for kind in ("normal", "scratches", "spots")]
    return photos_of({cell: random.integers(1, 12, random.integers(6, 40)).tolist() for cell in cells})


def test_every_photo_is_tested_once_and_no_group_is_torn(photos: list[Photo]) -> None:
    folds = Folds.deal(photos, 5)
    tested = [photo.uri for fold in range(5) for photo in folds.split(fold) if photo.split == "test"]
    assert sorted(tested) == sorted(photo.uri for photo in photos)
    for fold in range(5):
        splits: dict[str, set[str]] = {}
        for photo in folds.split(fold):
            splits.setdefault(photo.group, set()).add(photo.split)
        assert all(len(names) == 1 for names in splits.values())
        assert {name for names in splits.values() for name in names} == {"train", "val", "test"}


def test_folds_have_alike_shares_of_every_cell(photos: list[Photo]) -> None:
    folds = Folds.deal(photos, 5)
    for fold in range(5):
        split = folds.split(fold)
        for cell in {(photo.product, photo.defect_type) for photo in photos}:
            own = [photo.split for photo in split if (photo.product, photo.defect_type) == cell]
            largest = max(
                np.unique(
                    [p.group for p in photos if (p.product, p.defect_type) == cell], return_counts=True
                )[1]
            )
            assert abs(own.count("test") - len(own) / 5) <= largest
            assert own.count("train") > own.count("test") > own.count("val")


def test_dealing_is_the_same_in_any_order(photos: list[Photo]) -> None:
    here = dict(zip((p.uri for p in photos), Folds.deal(photos, 4).tested.tolist(), strict=True))
    other = photos[::-1]
    assert here == dict(zip((p.uri for p in other), Folds.deal(other, 4).tested.tolist(), strict=True))


def test_equal_groups_are_dealt_evenly() -> None:
    assert np.bincount(deal(np.arange(20), np.zeros(20, int), 5)).tolist() == [4] * 5


def test_nearly_the_same_pictures_are_one_group_and_others_are_not(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    pictures = random.integers(0, 256, (6, 96, 96)).astype(np.uint8)
    for number, picture in enumerate(pictures):
        kind = "spots" if number % 2 else "normal"
        (tmp_path / "A" / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "A" / kind / f"{number}.png")
        Image.fromarray((picture * 0.8 + 20).astype(np.uint8)).save(
            tmp_path / "A" / kind / f"{number}-again.jpg", quality=80
        )
    found = with_groups(survey(str(tmp_path)).photos)
    groups = {Path(photo.uri).stem: photo.group for photo in found}
    assert all(groups[str(n)] == groups[f"{n}-again"] for n in range(6))
    assert len(set(groups.values())) == 6


def test_more_folds_than_groups_is_refused() -> None:
    with pytest.raises(UserError, match="folds = 5: the set has 4 groups"):
        Folds.deal(photos_of({("A", "normal"): [3, 3], ("A", "spots"): [3, 3]}), 5)


def test_a_training_leaves_its_fold_out(tmp_path: Path) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (9, 9), "val": (3, 3), "test": (3, 3)})
    folds = Folds.deal(survey(str(tmp_path / "set")).photos, 3)
    config = CopyPasteConfig(defects=str(tmp_path / "set"), output=str(tmp_path / "bank"), folds=3, fold=1)
    defects = DefectSet.read(config, kinds=["defects"])
    held_out = {photo.uri for photo in folds.split(1) if photo.split == "test"}
    assert held_out
    assert not held_out & {photo.uri for photo in defects.photos}
    assert any("fold 1 of 3 is left out" in note for note in defects.notes)
    assert config.identity()["fold"] == 1
    with pytest.raises(ValueError, match="fold = 3: there are folds 0 to 2"):
        CopyPasteConfig(defects="d", output="o", folds=3, fold=3)


def test_fewer_defects_are_among_more_and_each_draw_is_another(photos: list[Photo]) -> None:
    def kept(count: int, draw: int = 0) -> set[Photo]:
        return {p for p in keep_defects(photos, {EVERY: count}, draw) if p.defect_type != "normal"}

    assert kept(3) < kept(7)
    assert len(kept(3)) == 3 * 6
    assert kept(3) != kept(3, 1)
    assert {p for p in photos if p.defect_type == "normal"} <= set(keep_defects(photos, {EVERY: 3}))


def test_every_type_validates_where_photos_are_few() -> None:
    """One photo of a type in each fold: it may validate for the fold before, rather than never."""
    folds = Folds.deal(photos_of({("A", kind): [1] * 5 for kind in ("normal", "scratches", "spots")}), 5)
    for fold in range(5):
        splits = [(photo.defect_type, photo.split) for photo in folds.split(fold)]
        for kind in ("scratches", "spots"):
            assert [splits.count((kind, split)) for split in ("train", "val", "test")] == [3, 1, 1]


def _draw_parts(folder: Path, count: int) -> None:
    """Parts before a fixed camera: all alike but for noise and a scratch."""
    random = np.random.default_rng(2)
    y, x = np.mgrid[:96, :96] - 48
    part = np.where(np.hypot(x, y) < 30, 180, 40) + np.where(np.abs(x) < 6, -60, 0)
    for number in range(count):
        picture = part + random.normal(0, 4, part.shape)
        row = random.integers(30, 60)
        picture[row : row + 2, 30:60] = 250
        kind = "spots" if number % 2 else "normal"
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(folder / kind / f"{number}.png")


def test_parts_before_a_fixed_camera_are_not_one_group(tmp_path: Path) -> None:
    _draw_parts(tmp_path / "A", 40)
    photos = with_groups(survey(str(tmp_path)).photos)
    assert len({photo.group for photo in photos}) > 20
    Folds.deal(photos, 5)


def test_folds_are_the_same_wherever_the_set_lies(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    for place in ("here", "there/else"):
        for number in range(20):
            kind = "spots" if number % 2 else "normal"
            (tmp_path / place / "A" / kind).mkdir(parents=True, exist_ok=True)
    for number in range(20):
        picture = Image.fromarray(random.integers(0, 256, (64, 64)).astype(np.uint8))
        for place in ("here", "there/else"):
            picture.save(tmp_path / place / "A" / ("spots" if number % 2 else "normal") / f"{number}.png")
    dealt = [
        {Path(p.uri).stem: p.split for p in Folds.deal(survey(str(tmp_path / place)).photos, 5).split(2)}
        for place in ("here", "there/else")
    ]
    assert dealt[0] == dealt[1]
