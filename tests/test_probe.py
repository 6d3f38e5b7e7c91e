"""The probe: weights, calibration, draws of samples, what is compared in which fold, and what it finds."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import write_split_set
from PIL import Image

from raygen.data.defects import load_photos
from raygen.errors import UserError
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.augmentation import augment_photo
from raygen.evaluate.config import EvaluateConfig, ProbeConfig
from raygen.evaluate.feature_cache import Cache, within
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.probe import Labelled, balance, calibration_error, fit
from raygen.evaluate.probe_fits import Images, ProbeInput, draw, fit_probes_of
from raygen.evaluate.probe_plan import Setting
from raygen.evaluate.probe_table import ProbeTable
from raygen.evaluate.real_photos import RealSet
from raygen.evaluate.segmentation import dice_of
from raygen.records import NORMAL


def blobs(num: int, cells: list[int], seed: int, distance: float = 4.0, noise: float = 1.0) -> Labelled:
    """Features around a centre of their class (a cell's number modulo 3), shifted by product."""
    random = np.random.default_rng(seed)
    of = np.repeat(cells, num)
    features = random.normal(0, noise, (len(of), 8))
    features[np.arange(len(of)), of % 3] += distance
    features[:, 5] += of // 3
    return Labelled(features.astype(np.float32), of)


# --------------------------------------------------------------------------------------- the probe itself


def test_every_cell_weighs_the_same_or_its_share() -> None:
    cells = np.array([0, 0, 0, 1, 4, 4])
    weights = balance(cells)
    assert np.bincount(cells, weights)[[0, 1, 4]].tolist() == [1, 1, 1]
    shares = balance(cells, {0: 1.0, 1: 0.5, 4: 0.25})
    assert np.bincount(cells, shares)[[0, 1, 4]].tolist() == [1, 0.5, 0.25]


def test_it_separates_what_can_be_separated() -> None:
    train, val, test = (blobs(20, [0, 1, 2, 3, 4, 5], seed) for seed in range(3))
    probe = fit(train, balance(train.cells), val, 3, (1e-1, 1e-2, 1e-3))
    found = probe.log_chances(test.features)
    assert np.exp(found).sum(axis=1) == pytest.approx(np.ones(len(found)))
    assert (found.argmax(axis=1) == test.cells % 3).mean() > 0.97


def test_a_class_that_was_not_seen_is_never_found() -> None:
    train, test = blobs(20, [0, 2], 0), blobs(20, [0, 1, 2], 1)
    probe = fit(train, balance(train.cells), Labelled(train.features[:0], train.cells[:0]), 3, (1e-2,))
    assert set(probe.log_chances(test.features).argmax(axis=1)) == {0, 2}


def test_the_strength_is_the_one_that_validates_best() -> None:
    random = np.random.default_rng(0)
    # Many useless features and few images: what is regularised least has learned them by heart.
    train, val = blobs(6, [0, 1, 2], 0, 1.0), blobs(200, [0, 1, 2], 1, 1.0)
    wide = [
        Labelled(
            np.hstack([s.features, random.normal(0, 1, (len(s.cells), 300)).astype(np.float32)]), s.cells
        )
        for s in (train, val)
    ]
    probe = fit(wide[0], balance(train.cells), wide[1], 3, (1.0, 1e-1, 1e-6))
    assert probe.strength > 1e-6


def test_a_temperature_calibrates_it() -> None:
    """What is learned by heart is too sure of itself, until it has been held against validation photos."""
    train, val, test = (blobs(n, [0, 1, 2], seed, 1.2) for n, seed in ((15, 0), (400, 1), (400, 2)))
    probe = fit(train, balance(train.cells), val, 3, (1e-6,))
    plain = fit(train, balance(train.cells), Labelled(val.features[:0], val.cells[:0]), 3, (1e-6,))
    assert probe.temperature > 1
    errors = []
    for one in (plain, probe):
        chances = one.log_chances(test.features)
        right = chances.argmax(axis=1) == test.cells % 3
        errors.append(calibration_error(np.exp(chances.max(axis=1)), right))
    assert errors[1] < errors[0] / 2


def test_the_calibration_error_is_what_it_is_called() -> None:
    confidence = np.array([0.75, 0.75, 0.75, 0.75, 0.95, 0.95])
    assert calibration_error(confidence, np.array([1, 1, 1, 0, 1, 1], bool)) == pytest.approx(2 * 0.05 / 6)
    assert calibration_error(np.ones(4), np.zeros(4, bool)) == 1


# --------------------------------------------------------------------------------------- draws of samples


def _cells_of(drawn: list[Any], cells: dict[Any, np.ndarray]) -> dict[Any, dict[int, int]]:
    found: dict[Any, dict[int, int]] = {}
    for key, rows in drawn:
        for cell in cells[key][rows].tolist():
            found.setdefault(key, {}).setdefault(cell, 0)
            found[key][cell] += 1
    return found


def test_a_mix_has_half_of_either_mode_and_of_each_part_its_share() -> None:
    cells = {(part, mode): np.repeat([1, 2], 50) for part in ("a", "b") for mode in ("latent", "reference")}
    drawn = draw("mix", {"a": 0.75, "b": 0.25}, cells, {1: 20, 2: 8}, 0)
    assert _cells_of(drawn, cells) == {
        ("a", "latent"): {1: 7, 2: 3},
        ("a", "reference"): {1: 8, 2: 3},
        ("b", "latent"): {1: 2, 2: 1},
        ("b", "reference"): {1: 3, 2: 1},
    }


def test_a_smaller_amount_is_among_a_larger_one_and_each_seed_draws_others() -> None:
    cells = {("a", "latent"): np.ones(100, int)}

    def rows(count: int, seed: int) -> set[int]:
        return {int(row) for _, some in draw("latent", {"a": 1.0}, cells, {1: count}, seed) for row in some}

    assert rows(10, 0) < rows(30, 0)
    assert rows(10, 0) != rows(10, 1)
    assert len(rows(300, 0)) == 100


class Table:
    """Features by name."""

    def __init__(self, **groups: Labelled) -> None:
        self.rows = {
            f"{name}{row}": one.features[row] for name, one in groups.items() for row in range(len(one.cells))
        }
        self.groups = groups

    def images(self, name: str) -> Images:
        cells = self.groups[name].cells
        return Images(names=tuple(f"{name}{row}" for row in range(len(cells))), cells=tuple(cells.tolist()))

    def gather(self, keys: Any, groups: Any) -> list[np.ndarray]:
        del keys
        return [np.stack([self.rows[name] for name in names]) for names in groups]


def test_samples_that_look_real_help_and_random_ones_do_not() -> None:
    """A planted gain and a planted harm, in the order of the settings."""
    table = Table(
        real=blobs(3, [0, 1, 2], 0, 1.5),
        augmented=blobs(2, [1, 2], 1, 1.5),
        val=blobs(40, [0, 1, 2], 2, 1.5),
        test=blobs(300, [0, 1, 2], 3, 1.5),
        good=blobs(100, [1, 2], 4, 1.5),
        bad=Labelled(
            np.random.default_rng(5).normal(0, 3, (200, 8)).astype(np.float32), np.repeat([1, 2], 100)
        ),
    )
    data = ProbeInput(
        settings=(
            Setting("no-aug"),
            Setting("trad-aug"),
            *(Setting("samples", s, "latent", 30) for s in ("good", "bad")),
        ),
        shares={"good": {"good": 1.0}, "bad": {"bad": 1.0}},
        keys=(),
        num_classes=3,
        seed=0,
        real=table.images("real"),
        augmented=table.images("augmented"),
        val=table.images("val"),
        test=table.images("test"),
        samples={name: {"latent": table.images(name)} for name in ("good", "bad")},
        wanted={30: {1: 90, 2: 90}},
    )
    results = fit_probes_of(data, table, ProbeConfig())
    truth = table.groups["test"].cells
    errors = [(np.array(one.log_chances).argmax(axis=1) != truth).mean() for one in results]
    assert errors[2] < min(errors[0], errors[1]) < errors[3]
    assert [(one.num_real, one.num_synthetic) for one in results] == [(9, 0), (9, 0), (9, 180), (9, 180)]
    assert data.key(ProbeConfig(), "x") != data.model_copy(update={"seed": 1}).key(ProbeConfig(), "x")


# --------------------------------------------------------------------------------------- what is compared


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("probe")
    write_split_set(str(base / "set"), {"train": (9, 6), "val": (3, 3), "test": (4, 4)})
    return base


def config_of(folder: Path, **changes: Any) -> EvaluateConfig:
    values = {
        "defects": str(folder / "set"),
        "output": str(folder / "report"),
        "channels": 1,
        "probe": {"real_defects": [2, 4, 500], "amounts": [1, 3], "seeds": 2},
        **changes,
    }
    return EvaluateConfig(**values)


def test_without_a_run_copy_paste_is_compared(folder: Path) -> None:
    plan = EvaluationPlan.prepare(config_of(folder)).probe
    assert len(plan.folds) == 1
    assert plan.counts == (2, 4)  # nobody has 500
    assert {(work.fold, work.few, work.seed) for work in plan.works} == {
        (0, few, seed) for few in (None, 2, 4) for seed in (0, 1)
    }
    names = [(setting.name, setting.amount) for setting in plan.works[0].settings]
    assert names == [
        ("No-Aug", 0),
        ("Trad-Aug", 0),
        ("copy-paste: latent", 3),
        ("copy-paste: reference", 3),
        ("copy-paste: mix", 3),
        ("copy-paste: mix", 1),
    ]
    few = next(work for work in plan.works if work.few == 2)
    assert [setting.name for setting in few.settings] == ["No-Aug", "Trad-Aug", "copy-paste: mix"]
    assert all(setting.base == Setting("trad-aug", few=2) for setting in few.settings)


def test_few_defects_are_few_to_choose_by_as_well(folder: Path) -> None:
    real = RealSet.read(config_of(folder)).with_few(2)
    for photos in (real.train, real.val):
        cells = [(photo.product, photo.defect_type) for photo in photos if photo.defect_type != NORMAL]
        assert set(np.unique(cells, axis=0, return_counts=True)[1].tolist()) == {2}
    assert real.num_normals(real.products[0]) == 9


def test_every_defect_is_tested_once_in_folds(folder: Path) -> None:
    plan = EvaluationPlan.prepare(config_of(folder, folds=3)).probe
    tested = [photo.uri for fold in plan.folds for photo in fold.test if photo.defect_type != NORMAL]
    assert len(tested) == len(set(tested)) == 3 * 2 * (6 + 3 + 4)
    assert {work.fold for work in plan.works} == {0, 1, 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"probe": {"alternatives": ["dtgan"]}},
            "'dtgan' is no family that makes samples without a training",
        ),
        ({"probe": {"conditions": ["mix"]}}, 'keep "trad-aug"'),
        ({"probe": {"amounts": [1, 2]}}, "amount = 3 is not among amounts"),
        ({"probe": {"mixes": {"half": {"copy-paste": 0.5}}}}, "mixes.half: shares of two or more, 1 in all"),
        (
            {"probe": {"mixes": {"half": {"copy-paste": 0.5, "ours": 0.5}}}},
            "'ours' is neither a run nor an alternative",
        ),
        ({"runs": {"copy-paste": "run"}}, "'copy-paste' names two of runs, alternatives and mixes"),
        ({"probe": {"alternatives": []}}, "runs: name one, or probe.alternatives"),
    ],
)
def test_what_cannot_be_probed_is_named(folder: Path, changes: dict[str, Any], message: str) -> None:
    def prepare() -> None:
        plan = EvaluationPlan.prepare(config_of(folder, **changes))
        ProbeTable(plan.probe, plan.config, (32, 1), print)

    with pytest.raises((UserError, ValueError), match=message):
        prepare()


# --------------------------------------------------------------------------------------- samples made here


def test_samples_made_here_are_of_their_cell_and_repeat(folder: Path) -> None:
    real = RealSet.read(config_of(folder))
    alternative = Alternative.of("copy-paste", real, 3, seed=1)
    made = alternative.make(32, 1)
    assert len(made.names) == len(set(made.names)) == len(alternative) == 3 * 2 * 2 * 3
    assert made.pixels.shape == (36, 32, 32, 1)
    assert made.masks.any(axis=(1, 2)).all()
    assert np.array_equal(made.pixels, alternative.make(32, 1).pixels)
    other = Alternative.of("copy-paste", real, 3, seed=2)
    assert other.key != alternative.key
    assert not set(other.make(32, 1).names) & set(made.names)


def test_samples_made_here_know_no_more_than_the_training_photos(folder: Path) -> None:
    real = RealSet.read(config_of(folder))
    few = Alternative.of("copy-paste", real.with_few(2), 3, seed=1)
    held_out = {photo.uri for photo in real.test + real.val}
    assert not held_out & {photo.uri for photo in few.known + few.normals}
    assert len(few.known) == 3 * 2 * 2
    anomalies = Alternative.of("perlin", real, 3, seed=1)
    assert {photo.defect_type for photo in anomalies.known} == {NORMAL}
    with pytest.raises(
        UserError, match="perlin makes anomaly, and the set has scratches, spots; name its types"
    ):
        anomalies.make(32, 1)


def test_anomalies_made_here_are_of_the_one_type(folder: Path) -> None:
    real = RealSet.read(config_of(folder, types={"scratches": "anomaly", "spots": "anomaly"}))
    made = Alternative.of("perlin", real, 3, seed=1).make(32, 1)
    assert made.masks.any(axis=(1, 2)).sum() > len(made.names) / 2
    with pytest.raises(UserError, match="'judge' is no family that makes samples"):
        Alternative.of("judge", real, 3, seed=1)


# ------------------------------------------------------------------------------------ augmentation, masks


@pytest.mark.parametrize("channels", [1, 3])
def test_a_mask_is_moved_with_its_photo(channels: int) -> None:
    photo = np.full((64, 64, channels), 100, np.uint8)
    photo[20:36, 30:50] = 220
    mask = photo[:, :, 0] == 220
    for seed in range(5):
        moved, of_mask = augment_photo(photo, np.random.default_rng(seed), mask)
        assert moved.shape == photo.shape
        assert of_mask is not None
        level = moved[:, :, 0].astype(float)
        assert dice_of(level > (level.max() + level.min()) / 2, of_mask) > 0.9
        alone, nothing = augment_photo(photo, np.random.default_rng(seed))
        assert np.array_equal(alone, moved)
        assert nothing is None


def test_dice_by_hand() -> None:
    one, other = np.zeros((2, 8, 8), bool)
    one[:4], other[2:6] = True, True
    assert dice_of(one, other) == 0.5
    assert dice_of(one, one) == 1
    assert dice_of(one, ~one) == 0
    assert dice_of(one & ~one, one & ~one) == 1


def test_photos_are_of_the_set(folder: Path) -> None:
    """What the probe reads is what the loader reads."""
    real = RealSet.read(config_of(folder))
    plan = EvaluationPlan.prepare(config_of(folder)).probe
    photos = plan.training(real)
    assert load_photos(photos[:2], 32, 1).shape == (2, 32, 32, 1)
    assert {plan.cell_name(plan.cell(photo)) for photo in photos} == {
        f"{product}/{kind}" for product in real.products for kind in (NORMAL, *real.defect_types)
    }


def test_runs_of_one_checkpoint_keep_their_own_features(tmp_path: Path) -> None:
    """Their samples may have the same ids, and other pixels."""
    cache = Cache(str(tmp_path), "x")
    for key, value in (("a", 1.0), ("b", 2.0)):
        cache.put(key, ["same"], np.full((1, 3), value, np.float32))
    cache.put("c", [], np.empty((0, 0), np.float32))
    found = cache.gather(["c", "a", "b"], [[within("a", "same")], [within("b", "same"), "nowhere"]])
    assert found[0].tolist() == [[1, 1, 1]]
    assert found[1][0].tolist() == [2, 2, 2]
    assert np.isnan(found[1][1]).all()


def test_other_masks_are_other_copies(folder: Path, tmp_path: Path) -> None:
    real = RealSet.read(config_of(folder))
    alternative = Alternative.of("copy-paste", real, 3, seed=1)
    photo = alternative.known[0]
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(64, dtype=np.uint8) * 255).save(mask)
    changed = (photo._replace(mask_uri=str(mask)), *alternative.known[1:])
    assert alternative.model_copy(update={"known": changed}).key != alternative.key


def test_defects_of_which_nothing_can_be_cut_give_no_samples(folder: Path) -> None:
    real = RealSet.read(config_of(folder))
    alternative = Alternative.of("copy-paste", real, 3, seed=1)
    bare = tuple(photo._replace(mask_uri=None) for photo in alternative.known)
    assert alternative.model_copy(update={"known": bare}).make(32, 1).names == []


def test_no_sample_is_lost_to_rounding() -> None:
    cells = {(part, mode): np.ones(50, int) for part in "ab" for mode in ("latent", "reference")}
    for count in range(1, 12):
        drawn = draw("mix", {"a": 0.5, "b": 0.5}, cells, {1: count}, 0)
        assert sum(len(rows) for _, rows in drawn) == count


def test_what_is_validated_without_a_class_is_not_chosen_by_it() -> None:
    train, val = blobs(6, [0, 1, 2], 0, 1.0), blobs(50, [0], 1, 1.0)
    probe = fit(train, balance(train.cells), val, 3, (1e-1, 1e-2, 1e-6))
    assert (probe.strength, probe.temperature) == (1e-2, 1.0)
