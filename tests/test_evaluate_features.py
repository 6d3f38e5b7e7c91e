"""Features that need no ImageNet: what they tell apart, and that an evaluation takes them where it must."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import write_run, write_split_set

from raygen import storage
from raygen.config import load_config
from raygen.data.defects import list_defect_set, load_photos
from raygen.demo import CHECKPOINT
from raygen.errors import UserError
from raygen.evaluate import on_ray
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.distance_table import DistanceTable
from raygen.evaluate.features import extract
from raygen.evaluate.own_features import OwnFeatures, own_key, train_own
from raygen.evaluate.plan import EvaluationPlan
from raygen.generate.config import GenerateConfig
from raygen.metrics import kernel_distance
from raygen.pixel_features import PixelFeatures
from raygen.records import NORMAL

CPU = torch.device("cpu")
PIXELS = PixelFeatures(None, CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect set with splits, and a run on its training normals."""
    base = tmp_path_factory.mktemp("features")
    write_split_set(str(base / "set"), {"train": (8, 8), "test": (8, 8)})
    pool = [f"{file},{file.parts[-3]}" for file in sorted((base / "set").glob("*/normal/train-*.png"))]
    (base / "pool.csv").write_text("\n".join(["uri,product", *pool]))
    write_run(GenerateConfig(pool=str(base / "pool.csv"), output=str(base / "run"), checkpoint=CHECKPOINT))
    return base


# -------------------------------------------------------------------------------------------- pixels


def test_pixel_features_are_histograms_of_one_length() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 51, 1), np.uint8)
    found = PIXELS(pixels)
    assert found.shape == (3, 120)
    assert found.dtype == np.float32
    np.testing.assert_allclose(np.square(found).mean(axis=1), 1, rtol=1e-5)
    grey = np.square(found[:, :32]) / 32
    expected = np.bincount(pixels[0].ravel() // 8, minlength=32) / (40 * 51)
    np.testing.assert_allclose(grey[0], expected, atol=1e-6)


def test_edges_have_their_strength_and_direction() -> None:
    """A step of 80 grey levels: 40 a pixel, in the first direction; between rows, in the middle one."""
    step = np.full((1, 32, 32, 1), 60, np.uint8)
    step[:, :, 16:] = 140
    across, down = (np.square(PIXELS(s))[0] for s in (step, step.swapaxes(1, 2)))
    directions = slice(32 + 16, 32 + 16 + 12)
    assert across[directions].argmax() == 0
    assert down[directions].argmax() == 6
    assert across[directions].max() == pytest.approx(12)
    edges = across[32 : 32 + 16] / 16
    assert edges[0] == pytest.approx(30 / 32)
    assert edges[np.digitize(40, np.geomspace(1, 256, 16)[:-1])] == pytest.approx(2 / 32)


@pytest.mark.parametrize("channels", [1, 3])
def test_pixel_features_know_no_batch_and_no_colour_of_grey(channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    whole = PIXELS(pixels)
    np.testing.assert_allclose(extract(PIXELS, pixels.repeat(channels, axis=3), 2), whole, atol=1e-3)


def test_a_flat_image_has_features_too() -> None:
    assert np.isfinite(PIXELS(np.full((1, 16, 16, 1), 7, np.uint8))).all()


def photos_of(folder: Path, split: str) -> tuple[list, list]:
    """Defects and normals."""
    photos = [photo for photo in list_defect_set(str(folder / "set")) if photo.split == split]
    return [p for p in photos if p.defect_type != NORMAL], [p for p in photos if p.defect_type == NORMAL]


# ----------------------------------------------------------------------------------------------- own


def test_the_same_photos_and_seed_give_the_same_network(folder: Path) -> None:
    photos = [*photos_of(folder, "train")[0][:12], *photos_of(folder, "train")[1][:6]]
    state = torch.get_rng_state()
    first = train_own(photos, 32, 1, seed=0, num_steps=3)
    assert torch.equal(state, torch.get_rng_state())
    assert train_own(photos, 32, 1, seed=0, num_steps=3) == first
    assert train_own(photos, 32, 1, seed=1, num_steps=3) != first


def test_the_key_knows_what_decides_the_weights(folder: Path) -> None:
    photos = photos_of(folder, "train")[0]
    usual = own_key(photos, 64, 1, 0)
    relabelled = [photos[0]._replace(defect_type="other"), *photos[1:]]
    others = [own_key(photos[1:], 64, 1, 0), own_key(photos, 32, 1, 0), own_key(photos, 64, 3, 0)]
    others += [own_key(photos, 64, 1, 1), own_key(relabelled, 64, 1, 0)]
    assert len({usual, *others}) == 6


def test_both_tell_defects_from_normals(folder: Path, tmp_path: Path) -> None:
    """Held-out defects are nearer to the training defects than normals are."""
    (defects, normals), (held_out, _) = photos_of(folder, "train"), photos_of(folder, "test")
    weights = str(tmp_path / "own.safetensors")
    storage.put(weights, train_own([*defects, *normals], 64, 1, seed=0, num_steps=60))
    own = OwnFeatures(weights, CPU)
    for extractor in (own, PIXELS):
        train, test, nothing = (
            extract(extractor, load_photos(some, 64, 1), 32) for some in (defects, held_out, normals)
        )
        assert kernel_distance(test, train).mean < 0.5 * kernel_distance(nothing, train).mean
    storage.put(weights, train_own([*defects, *normals], 64, 1, seed=1, num_steps=1))
    assert OwnFeatures(weights, CPU).digest != own.digest


# -------------------------------------------------------------------------------------- the choice


def plan_of(folder: Path, judge: str | None = None, **changes: Any) -> EvaluationPlan:
    """A plan of the run, as if a judge had gated it."""
    values: dict[str, Any] = {
        "defects": str(folder / "set"),
        "output": str(folder / "report"),
        "runs": {"ours": str(folder / "run")},
        "downstream": {"conditions": ()},
        **changes,
    }
    plan = EvaluationPlan.prepare(EvaluateConfig(**values))
    object.__setattr__(
        plan.chosen["ours"], "run", plan.chosen["ours"].run.model_copy(update={"judge": judge})
    )
    return plan


def test_distances_are_by_features_that_no_gate_has_used(folder: Path) -> None:
    def told(plan: EvaluationPlan) -> str:
        (line,) = [line for line in plan.caveats() if "judge" in line] or [""]
        return line

    plain, judged = plan_of(folder), plan_of(folder, judge="0" * 64)
    assert (plain.extractor, told(plain)) == ("lite0", "")
    assert judged.extractor == "own"
    assert told(judged).startswith(
        "ours: a judge chose the samples by ImageNet's features; distances are by others"
    )
    assert DistanceTable(judged, print).names == {
        "frechet": "FD-Own", "kid": "KID-Own", "clustered": "clustered LPIPS-Lite0"
    }  # fmt: skip
    asked = plan_of(folder, judge="0" * 64, features={"extractor": "lite0"})
    assert asked.extractor == "lite0"
    assert "distances by them favour these runs" in told(asked)
    assert plan_of(folder, judge="0" * 64, features={"extractor": "pixels"}).extractor == "pixels"


def test_the_network_is_trained_once_and_on_the_training_split(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []

    def train(photos: Any, *size: int) -> bytes:
        trained.append(photos)
        return train_own(photos[:8], *size, num_steps=1)

    monkeypatch.setattr(on_ray, "train_extractor", train)
    lines: list[str] = []
    plan = plan_of(folder, output=str(tmp_path), features={"extractor": "own"})
    weights = DistanceTable(plan, lines.append)._with_weights().weights
    assert weights is not None
    assert DistanceTable(plan, lines.append)._with_weights().weights == weights
    assert OwnFeatures(weights, CPU).network.side == 64
    (photos,) = trained
    assert {photo.split for photo in photos} == {"train"}
    assert len(photos) == len(plan.real.train)
    assert len(lines) == 1


def test_weights_are_of_a_network_that_is_named() -> None:
    with pytest.raises(UserError, match="weights are of extractor"):
        load_config(EvaluateConfig, None, ["defects=d", "output=o", "runs.ours=r", "features.weights=w"])
