"""Copy-paste: what is cut out, how it lies on normals, what is refused, and the whole path through the engines."""

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from conftest import Head
from factories import write_bank, write_manifest_of_normals, write_run, write_split_set

from raygen import images, storage
from raygen.checkpoint import Checkpoint, export_checkpoint, load_checkpoint
from raygen.data.runs import read_run, read_shard
from raygen.errors import UserError
from raygen.families import load_generator
from raygen.families.copy_paste.blending import blend
from raygen.families.copy_paste.collector import cutouts_of, orientation
from raygen.families.copy_paste.config import CopyPasteConfig, CutConfig, LatentConfig, VaryConfig
from raygen.families.copy_paste.cutouts import Refused, cut
from raygen.families.copy_paste.warping import draw_pose, prepare, warp
from raygen.families.family import Made, Views, stream
from raygen.families.inpainting import FILLS, membrane
from raygen.families.recipes import SamplingConfig
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.reproduce import reproduce
from raygen.generate.sizing import wishes
from raygen.generate.verify import verify_run
from raygen.records import SCORES, Mode, SampleRequest
from raygen.resources import plan_resources
from raygen.train.config import load_train_config

ROOT = Path(__file__).parent.parent
SIDE = 64


def config_of(folder: Path, **changes: object) -> CopyPasteConfig:
    values = {
        "defects": str(folder / "set"),
        "output": str(folder / "bank"),
        "image_size": SIDE,
        "channels": 1,
    }
    return CopyPasteConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect set, a bank of its cut-outs, and its normals as a pool."""
    folder = tmp_path_factory.mktemp("copy-paste")
    write_split_set(str(folder / "set"), {"train": (6, 5), "test": (2, 2)})
    for photo in (folder / "set").glob("*/normal/train-*.png"):
        target = folder / "pool" / photo.parent.parent.name / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    write_bank(config_of(folder))
    return folder


@pytest.fixture(scope="module")
def bank(folder: Path) -> Checkpoint:
    return load_checkpoint(str(folder / "bank"))


def run_of(folder: Path, name: str, **changes: object) -> GenerateConfig:
    values = {"pool": str(folder / "pool"), "checkpoint": str(folder / "bank"), "output": str(folder / name)}
    return GenerateConfig.model_validate({**values, **changes})


def rows_of(config: GenerateConfig) -> list[dict]:
    return [row for stats in write_run(config).shards for row in read_shard(config.output, stats).to_pylist()]


def pixels_of(data: bytes) -> np.ndarray:
    return images.decode_photo(data, 2**24).astype(int)


# ---------------------------------------------------------------------------------------------- the background


def photo_with_disc(level: int, side: int = SIDE, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """A slope with noise, and a disc on it; and the disc's mask."""
    y, x = np.mgrid[:side, :side]
    noise = np.random.default_rng(0).integers(-3, 4, (side, side))
    mask = (y - 30) ** 2 + (x - 34) ** 2 <= 36
    pixels = (100 + y + noise + level * mask).clip(0, 255).astype(np.uint8)
    return np.repeat(pixels[:, :, None], channels, axis=2), mask


@pytest.mark.parametrize("name", FILLS)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_hole_is_filled_with_its_surroundings(name: str, channels: int) -> None:
    photo, mask = photo_with_disc(80, channels=channels)
    clean, _ = photo_with_disc(0, channels=channels)
    hole = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5))).astype(bool)
    filled = FILLS[name](photo, hole)
    assert filled.shape == photo.shape
    assert np.array_equal(filled[~hole], photo[~hole])
    assert np.abs(filled - clean)[hole].mean() < 6  # of 80; the noise alone makes 2 or more


def test_a_membrane_is_the_mean_of_its_neighbours() -> None:
    random = np.random.default_rng(1)
    values = random.normal(size=(12, 10, 2)).astype(np.float32)
    hole = random.random((12, 10)) < 0.6
    hole[3:6, 0] = True  # at the edge, where there are three neighbours
    filled = membrane(values, hole).astype(float)
    assert np.array_equal(filled[~hole], values[~hole].astype(float))
    for y, x in np.argwhere(hole):
        around = [
            filled[v, u]
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
            if 0 <= v < 12 and 0 <= u < 10
        ]
        assert filled[y, x] == pytest.approx(np.mean(around, axis=0), abs=1e-5)


def test_match_keeps_texture() -> None:
    """On stripes, what is found elsewhere has stripes, and a membrane has none."""
    _, x = np.mgrid[:SIDE, :SIDE]
    photo = (128 + 60 * np.sign(np.sin(x * np.pi / 3))).astype(np.uint8)[:, :, None]
    hole = np.zeros((SIDE, SIDE), bool)
    hole[20:36, 24:40] = True
    assert np.abs(FILLS["match"](photo, hole) - photo).mean() < 1
    assert np.abs(FILLS["membrane"](photo, hole) - photo)[hole].mean() > 20


# -------------------------------------------------------------------------------------------------- a cut-out


def test_a_cut_out_put_back_is_the_photo() -> None:
    photo, mask = photo_with_disc(80)
    cutout, background = cut(photo, mask, CutConfig(), fade_at_border=False)
    (y, x), (height, width) = cutout.place, cutout.mask.shape
    box = np.s_[round(y * SIDE - height / 2) :, round(x * SIDE - width / 2) :]
    put = background.astype(float)
    put[box][:height, :width] += cutout.residual * (cutout.matte[..., None] / 255)
    assert np.abs(put - photo)[mask].max() <= 1
    assert cutout.strength == pytest.approx(80, abs=5)
    assert cutout.around == pytest.approx(background[mask].mean(), abs=1)
    assert cutout.mask.sum() == mask.sum()


def test_a_darker_defect_has_a_negative_strength() -> None:
    photo, mask = photo_with_disc(-60)
    assert cut(photo, mask, CutConfig(), fade_at_border=False)[0].strength == pytest.approx(-60, abs=5)


def test_a_defect_that_is_bright_and_dark_is_strong_all_the_same() -> None:
    """Else a latent sample that takes another's strength would blow it up."""
    photo, mask = photo_with_disc(0)
    bright = mask & (np.arange(SIDE) < 34)
    photo[bright] += 50
    photo[mask & ~bright] -= 50
    cutout, _ = cut(photo, mask, CutConfig(inpainting="membrane"), fade_at_border=False)
    assert abs(cutout.strength) == pytest.approx(50, abs=6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda photo, mask: (photo, np.zeros_like(mask)), "empty"),
        (lambda photo, mask: (photo, ~mask), "inverted"),
        (lambda photo, mask: (photo_with_disc(0)[0], mask), "cannot be seen"),
        (lambda photo, mask: (photo, mask & (np.arange(SIDE) < 34)), "misses part of it"),
    ],
)
def test_what_cannot_be_cut_out_says_why(change: Any, message: str) -> None:
    photo, mask = change(*photo_with_disc(80))
    with pytest.raises(Refused, match=message):
        cut(photo, mask, CutConfig(min_change=4, max_leak=0.05), fade_at_border=False)


@pytest.mark.parametrize("fade", [True, False])
def test_a_defect_at_the_border_goes_on_or_fades(fade: bool) -> None:
    photo, _ = photo_with_disc(0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:20, 30:33] = True
    photo[mask] += 60
    cutout, _ = cut(photo, mask, CutConfig(), fade_at_border=fade)
    middle = cutout.matte.shape[1] // 2
    assert cutout.touches == ((False,) * 4 if fade else (True, False, False, False))
    assert (cutout.matte[0, middle] < 128) == fade


@pytest.mark.parametrize(("angle", "size"), [(0, (3, 20)), (90, (20, 3))])
def test_orientation(angle: float, size: tuple[int, int]) -> None:
    assert abs(orientation(np.ones(size, np.uint8))) == pytest.approx(angle)
    diagonal = orientation(np.eye(20, dtype=np.uint8))
    assert diagonal == pytest.approx(45)


# ------------------------------------------------------------------------------------------------- on a normal


def disc_piece():
    photo, mask = photo_with_disc(80)
    cutout, _ = cut(photo, mask, CutConfig(), fade_at_border=False)
    return cutout, prepare(cutout)


def test_a_cut_out_that_is_only_moved_keeps_its_pixels() -> None:
    cutout, piece = disc_piece()
    for seed in range(20):
        pose = draw_pose(cutout, 96, VaryConfig(turns="none"), "none", False, stream(seed))
        laid = warp(piece, pose, 96)
        where = laid.matte > 0
        assert np.array_equal(laid.residual[where], cutout.residual[cutout.matte > 0].astype(np.float32))
        assert laid.mask.sum() == cutout.mask.sum()


@pytest.mark.parametrize("turns", ["none", "flips", "quarters", "any"])
def test_turns_are_those_allowed(turns: Any) -> None:
    photo, _ = photo_with_disc(0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[20:24, 10:40] = mask[24:34, 10:14] = True  # an L, lying
    photo[mask] += 60
    cutout, _ = cut(photo, mask, CutConfig(), fade_at_border=False)
    piece, seen = prepare(cutout), set()
    for seed in range(60):
        pose = draw_pose(cutout, SIDE, VaryConfig(), turns, False, stream(seed))
        seen.add(tuple(tuple(round(value, 3) for value in row) for row in pose.matrix))
        assert warp(piece, pose, SIDE).mask.sum() == pytest.approx(mask.sum(), rel=0.15)
    assert len(seen) == {"none": 1, "flips": 4, "quarters": 8, "any": 60}[turns]
    if turns != "any":
        assert all(abs(value) in (0, 1) for matrix in seen for row in matrix for value in row)


@pytest.mark.parametrize("turns", ["none", "flips", "quarters"])
def test_pixels_that_stay_pixels_are_laid_as_all_others(turns: Any) -> None:
    """A hair of scale makes the general way of what is else a turn: the same, but for interpolation."""
    photo, _ = photo_with_disc(0)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[0:30, 12:16] = True  # which its photo cuts off
    photo[mask] += 60
    cutout, _ = cut(photo, mask, CutConfig(), fade_at_border=False)
    piece = prepare(cutout)
    for seed in range(12):
        pose = draw_pose(cutout, SIDE, VaryConfig(jitter=0.3), turns, False, stream(seed))
        hair = replace(pose, matrix=tuple(tuple(1.00001 * value for value in row) for row in pose.matrix))  # type: ignore
        fields = []
        for one in (pose, hair):
            laid, field = warp(piece, one, SIDE), np.zeros((SIDE, SIDE), np.float32)
            field[laid.box] = (laid.residual * laid.matte[..., None])[..., 0]
            fields.append(field)
        assert np.abs(fields[0] - fields[1]).max() < 2
        assert fields[0].any()


def test_places_are_the_real_ones_or_anywhere() -> None:
    cutout, _ = disc_piece()

    def centres(**vary: object) -> np.ndarray:
        config = VaryConfig.model_validate({"turns": "none", **vary})
        return (
            np.array([draw_pose(cutout, SIDE, config, "none", False, stream(n)).centre for n in range(300)])
            / SIDE
        )

    as_real, anywhere = centres(jitter=0.05), centres(place="anywhere")
    assert np.abs(as_real - cutout.place).max() < 0.05 + 1 / SIDE
    assert np.ptp(as_real, axis=0).min() > 0.07
    half = np.array(cutout.mask.shape) / 2 / SIDE
    assert np.all(anywhere.min(axis=0) >= half - 1 / SIDE)
    assert np.all(anywhere.max(axis=0) <= 1 - half + 1 / SIDE)
    assert np.ptp(anywhere, axis=0).min() > 0.6


@pytest.mark.parametrize("how", ["residual", "poisson", "paste"])
def test_blends_against_their_definitions(how: str) -> None:
    cutout, piece = disc_piece()
    laid = warp(piece, draw_pose(cutout, SIDE, VaryConfig(), "none", False, stream(3)), SIDE)
    here = np.random.default_rng(2).uniform(60, 70, (*laid.matte.shape, 1)).astype(np.float32)
    result = blend(here, laid, 1.0, how, stream(0))
    inside = (laid.matte == 1) & laid.mask
    outside = laid.matte == 0
    assert np.allclose(result[outside], here[outside], atol=1e-3)
    if how == "residual":
        assert np.allclose(result[inside], (here + laid.residual)[inside], atol=1e-3)
    elif how == "paste":
        assert np.allclose(result[inside], laid.pixels[inside], atol=1e-3)
    else:  # the Laplacian inside is the source's
        hole = laid.matte > 0
        core = hole[1:-1, 1:-1] & hole[:-2, 1:-1] & hole[2:, 1:-1] & hole[1:-1, :-2] & hole[1:-1, 2:]
        both = [
            cv2.Laplacian(np.ascontiguousarray(one[..., 0]), cv2.CV_32F)[1:-1, 1:-1]
            for one in (result, laid.pixels)
        ]
        assert np.allclose(both[0][core], both[1][core], atol=0.05)
        assert np.abs(result - laid.pixels)[inside].mean() > 20  # it takes on the level of where it lies


# ---------------------------------------------------------------------------------------------- the generator


def make(
    bank: Checkpoint,
    normals: np.ndarray,
    products: Sequence[str],
    mode: Mode,
    seeds: Sequence[int],
    **config: object,
) -> Made:
    sampling = SamplingConfig.model_validate({"pool": "p", **config})
    views = Views(normals, list(products), None, None)
    return load_generator(bank, sampling).make(views, SampleRequest("spots", mode, 0), np.array(seeds))


def grey(count: int, level: int = 120) -> np.ndarray:
    random = np.random.default_rng(4)
    return random.integers(level - 4, level + 5, (count, SIDE, SIDE, 1)).astype(np.uint8)


@pytest.mark.parametrize("mode", ["latent", "reference"])
@pytest.mark.parametrize("blending", ["residual", "poisson", "paste"])
def test_the_mask_is_all_that_changed_and_shows_a_defect(folder: Path, mode: Mode, blending: str) -> None:
    bank = write_bank(config_of(folder, output=str(folder / f"bank-{blending}"), vary={"blend": blending}))
    normals = grey(40)
    made = make(bank, normals, ["brushed_metal"] * 40, mode, range(40))
    changed = (made.pixels != normals).any(axis=3)
    assert not changed[made.masks == 0].any()
    assert made.masks.any(axis=(1, 2)).all()
    assert np.mean([changed[i][made.masks[i] == 255].mean() for i in range(40)]) > 0.6
    scores = dict(zip(SCORES, made.scores.T, strict=True))
    assert (scores["preservation"] == 0).all()
    assert (np.abs(made.pixels.astype(int) - normals).max(axis=(1, 2, 3)) >= 2).all()
    assert np.isnan(scores["realism"]).all()
    assert (made.references >= 0).all() == (mode == "reference")


def test_latent_shapes_are_new_and_references_are_not(bank: Checkpoint) -> None:
    normals = grey(60)
    novelty = list(SCORES).index("novelty")
    latent = make(bank, normals, ["brushed_metal"] * 60, "latent", range(60)).scores[:, novelty]
    assert 0.2 < np.median(latent) <= 1.5
    assert np.isnan(
        make(bank, normals, ["brushed_metal"] * 60, "reference", range(60)).scores[:, novelty]
    ).all()


def test_without_variation_a_latent_sample_is_a_copy(folder: Path) -> None:
    still = {"bend": 0, "scale": 1, "rotation": 0, "mix": 0}
    bank = write_bank(config_of(folder, output=str(folder / "bank-still"), latent=still))
    made = make(bank, grey(10), ["brushed_metal"] * 10, "latent", range(10))
    assert made.scores[:, list(SCORES).index("novelty")] == pytest.approx(0, abs=1e-6)
    assert LatentConfig(**still).mix == 0


def test_a_sample_is_its_seed_s_alone(bank: Checkpoint) -> None:
    normals = grey(8)
    for mode in ("latent", "reference"):
        together = make(bank, normals, ["brushed_metal"] * 8, mode, range(8))
        for i in (0, 5):
            alone = make(bank, normals[i : i + 1], ["brushed_metal"], mode, [i])
            assert np.array_equal(alone.pixels[0], together.pixels[i])
            assert np.array_equal(alone.scores[0], together.scores[i], equal_nan=True)
        assert (
            len(
                {
                    image.tobytes()
                    for image in make(
                        bank, normals[:1].repeat(8, 0), ["brushed_metal"] * 8, mode, range(8)
                    ).pixels
                }
            )
            == 8
        )


def test_cut_outs_are_of_the_normal_s_product(bank: Checkpoint) -> None:
    def products(**config: object) -> set[str]:
        made = make(bank, grey(40), ["woven_fabric"] * 40, "reference", range(40), **config)
        return {bank.references[row].product for row in made.references}

    assert products() == {"woven_fabric"}
    assert products(reference_products=["brushed_metal"]) == {"brushed_metal"}
    made = make(bank, grey(40), ["glass"] * 40, "reference", range(40))  # a product that the bank has not
    assert len({bank.references[row].product for row in made.references}) > 1


def test_a_defect_that_cannot_be_seen_is_not_put(folder: Path) -> None:
    """Bright defects on white, in a bank of bright ones alone: the gate refuses what has no mask."""
    bank = write_bank(
        config_of(folder, output=str(folder / "bank-strict"), vary={"min_change": 250.0, "tries": 2})
    )
    normals = grey(6)
    made = make(bank, normals, ["brushed_metal"] * 6, "reference", range(6))
    assert np.array_equal(made.pixels, normals)
    assert not made.masks.any()


def test_a_defect_on_a_darker_place_is_weaker(tmp_path: Path) -> None:
    _, mask = photo_with_disc(80)
    write_photo(tmp_path, "only", mask * 255)
    bank, changes = write_bank(config_of(tmp_path)), []
    for level in (65, 130):  # the background under the disc is about 130
        normals = np.full((8, SIDE, SIDE, 1), level, np.uint8)
        made = make(bank, normals, ["brushed_metal"] * 8, "reference", range(8))
        changes.append(np.abs(made.pixels.astype(int) - normals).max())
    assert changes[0] == pytest.approx(changes[1] / 2, rel=0.1)


def test_the_actor_has_no_torch(folder: Path) -> None:
    code = (
        "import sys, numpy as np; from raygen.checkpoint import load_checkpoint;"
        "from raygen.families import load_generator;"
        "from raygen.families.family import Views; from raygen.families.recipes import SamplingConfig;"
        "from raygen.records import SampleRequest;"
        f"generator = load_generator(load_checkpoint({str(folder / 'bank')!r}), SamplingConfig(pool='p'));"
        "views = Views(np.full((1, 64, 64, 1), 99, np.uint8), ['brushed_metal'], None, None);"
        "generator.make(views, SampleRequest('spots', 'latent', 0), np.array([1]));"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------- the bank


def test_a_bank_holds_the_training_defects_as_they_were(folder: Path, bank: Checkpoint) -> None:
    assert (len(bank.references), bank.config.defect_types) == (30, ("scratches", "spots"))
    assert all("train-" in reference.uri for reference in bank.references)
    cutouts = cutouts_of(bank.arrays("references/codes.safetensors"))
    for cutout, reference in list(zip(cutouts, bank.references, strict=True))[::7]:
        photo = images.decode_photo(storage.read(reference.uri), 2**20)
        mask = (
            images.decode_photo(storage.read(reference.uri.replace(".png", "_mask.png")), 2**20)[:, :, 0]
            > 127
        )
        assert cutout.mask.sum() == mask.sum()
        (y, x), (height, width) = cutout.place, cutout.mask.shape
        top, left = round(y * SIDE - height / 2), round(x * SIDE - width / 2)
        assert np.array_equal(cutout.pixels, photo[top : top + height, left : left + width])
    facts = bank.config.training["taken"][bank.references[0].uri]
    assert facts["split"] == "train"
    assert facts["area"] == cutouts[0].mask.sum()


def test_an_exported_bank_makes_the_same_samples(folder: Path, bank: Checkpoint) -> None:
    export_checkpoint(bank.uri, str(folder / "exported"))
    exported = load_checkpoint(str(folder / "exported"))
    normals = grey(6)
    both = [
        make(one, normals, ["brushed_metal"] * 6, "reference", range(6)).pixels for one in (bank, exported)
    ]
    assert np.abs(both[0].astype(int) - both[1]).max() <= 1


def test_the_recipe_s_defaults_are_the_code_s() -> None:
    config = load_train_config(str(ROOT / "jobs/copy-paste.toml"), ["defects=d", "output=o"])
    assert config == CopyPasteConfig.model_validate({"defects": "d", "output": "o"})


def write_photo(folder: Path, name: str, mask: np.ndarray | None, size: int = SIDE) -> None:
    photo, _ = photo_with_disc(80, size)
    storage.put(str(folder / f"set/brushed_metal/spots/{name}.png"), images.encode_png(photo))
    if mask is not None:
        storage.put(
            str(folder / f"set/brushed_metal/spots/{name}_mask.png"),
            images.encode_png(mask.astype(np.uint8)[..., None]),
        )


def test_bad_masks_are_refused_one_by_one_and_listed(tmp_path: Path) -> None:
    _, mask = photo_with_disc(80)
    write_photo(tmp_path, "good", mask * 255)
    write_photo(tmp_path, "ones", mask * 1)  # 0 and 1 instead of 0 and 255
    write_photo(tmp_path, "half", (mask * 255)[::2, ::2])  # of half the size
    write_photo(tmp_path, "none", None)
    write_photo(tmp_path, "empty", mask * 0)
    write_photo(tmp_path, "inverted", ~mask * 255)
    write_photo(tmp_path, "other", (mask * 255)[:, :40])  # of another shape
    said: list[str] = []
    bank = write_bank(config_of(tmp_path), said.append)
    assert {Path(reference.uri).stem for reference in bank.references} == {"good", "ones", "half"}
    refused = {Path(uri).stem: reason for uri, reason in bank.config.training["refused"].items()}
    for name, reason in {
        "none": "no mask",
        "empty": "empty",
        "inverted": "is it inverted",
        "other": "its mask is 40×64 px, the photo 64×64",
    }.items():
        assert reason in refused[name]
        assert any(f"{name}.png" in line and reason in line for line in said)
    assert "3 of 7 photos" in said[-1]


def test_a_set_without_masks_is_one_line(tmp_path: Path) -> None:
    write_photo(tmp_path, "a", None)
    write_photo(tmp_path, "b", None)
    with pytest.raises(
        UserError, match=r"nothing to take of spots: all of its photos were refused \(.*no mask"
    ):
        write_bank(config_of(tmp_path))


def test_one_defect_is_enough(tmp_path: Path) -> None:
    _, mask = photo_with_disc(80)
    write_photo(tmp_path, "only", mask * 255)
    made = make(write_bank(config_of(tmp_path)), grey(8), ["brushed_metal"] * 8, "latent", range(8))
    assert made.masks.any(axis=(1, 2)).all()
    assert len({one.tobytes() for one in made.pixels}) == 8


# ------------------------------------------------------------------------------------------------- the engines


def test_a_run_is_verified_and_reproduced(folder: Path) -> None:
    config = run_of(folder, "run", composition="residual", normals_per_shard=5)
    rows = rows_of(config)
    verify_run(config.output)
    assert len(rows) == 4 * 18
    assert np.mean([row["accepted"] for row in rows]) > 0.95
    for row in rows:
        image, normal = pixels_of(row["image"]["bytes"]), pixels_of(storage.read(row["normal_uri"]))
        mask = pixels_of(row["mask"]["bytes"])[:, :, 0] == 255
        assert (image == normal)[~mask].all()
        assert row["boxes"]
    reproduce(config.output, rows[3]["sample_id"])


@pytest.mark.parametrize("channels", [1, 3])
def test_full_size_photographs_get_cut_outs_of_their_own_pixels(tmp_path: Path, channels: int) -> None:
    """Native: a defect of a large photo is put on another, in the region, pixel for pixel."""
    random = np.random.default_rng(6)
    photo = random.integers(90, 111, (300, 400, channels)).astype(np.uint8)
    mask = np.zeros((300, 400), bool)
    mask[100:130, 200:206] = True
    photo[mask] += 70
    storage.put(str(tmp_path / "set/brushed_metal/scratches/a.png"), images.encode_png(photo))
    storage.put(
        str(tmp_path / "set/brushed_metal/scratches/a_mask.png"),
        images.encode_png(mask.astype(np.uint8)[..., None] * 255),
    )
    storage.put(
        str(tmp_path / "pool/brushed_metal/n.png"),
        images.encode_png(np.full((500, 700, channels), 100, np.uint8)),
    )
    region = np.zeros((50, 70, 1), np.uint8)
    region[:, :35] = 255
    storage.put(str(tmp_path / "roi/brushed_metal.png"), images.encode_png(region))
    write_bank(config_of(tmp_path, native=True, channels=channels, image_size=96))
    config = run_of(
        tmp_path,
        "run",
        native=True,
        composition="residual",
        roi=str(tmp_path / "roi"),
        samples_per_cell=6,
        max_pixels=400_000,
        normals_per_shard=8,
    )
    for row in rows_of(config):
        assert row["accepted"]
        image, mask_at = pixels_of(row["image"]["bytes"]), pixels_of(row["mask"]["bytes"])[:, :, 0] == 255
        assert image.shape == (500, 700, channels)
        assert (image == 100)[~mask_at].all()
        assert not mask_at[:, 350:].any()
        if row["mode"] == "reference":  # mirrored at most: the size is that of the defect and its fading rim
            height, width = np.ptp(np.argwhere(mask_at), axis=0) + 1
            assert (30, 6) <= (height, width) <= (36, 12)


def test_its_actors_leave_gpus_to_others(folder: Path, bank: Checkpoint) -> None:
    config = run_of(folder, "unused")
    nodes = [{"CPU": 8.0, "GPU": 2.0}]
    assert plan_resources(wishes(config, bank), nodes, 9).gpus_per_actor == 0
    asked = config.model_copy(update={"compute": ComputeConfig(gpus_per_actor=1)})
    assert plan_resources(wishes(asked, bank), nodes, 9).gpus_per_actor == 1


def test_cut_outs_of_windows_and_of_photos_are_not_mixed_up(folder: Path) -> None:
    with pytest.raises(
        UserError, match="cut-outs are of whole photographs; set native = false here, or cut them out"
    ):
        write_run(run_of(folder, "mixed", native=True, composition="residual"))


def test_a_defect_larger_than_a_window_is_refused(tmp_path: Path) -> None:
    _, mask = photo_with_disc(80)  # 13 pixels, and a rim
    write_photo(tmp_path, "only", mask * 255)
    with pytest.raises(UserError, match="larger than a window of image_size = 16"):
        write_bank(config_of(tmp_path, native=True, image_size=16))
    assert write_bank(
        config_of(tmp_path, output=str(tmp_path / "other"), native=True, image_size=24)
    ).references


@pytest.mark.slow
def test_from_defects_to_a_published_table(ray_head: Head, s3_uri: str) -> None:
    """Cut out, generate through a kill, verify, reproduce, refresh: each by `ray job submit`, S3 to S3."""
    write_split_set(f"{s3_uri}/set", {"train": (8, 6), "test": (4, 3)})
    num_normals = write_manifest_of_normals(f"{s3_uri}/set", f"{s3_uri}/pool.csv")

    cut_out = {"defects": f"{s3_uri}/set", "output": f"{s3_uri}/bank", "image_size": "64", "channels": "1"}
    assert "36 of 36 photos" in ray_head.run("train", "copy-paste", **cut_out)
    assert "nothing to do" in ray_head.run("train", "copy-paste", **cut_out)
    places = {"pool": f"{s3_uri}/pool.csv", "checkpoint": f"{s3_uri}/bank"}
    ray_head.run("generate", "generate", **places, output=f"{s3_uri}/run", normals_per_shard="5")
    manifest = verify_run(f"{s3_uri}/run")
    assert manifest.num_samples == 4 * num_normals
    # What a kill may leave: some shards and no manifest. The same command makes the rest, and the same bytes.
    before = {stats.shard: stats.sha256 for stats in manifest.shards}
    for name in ("manifest.json", "shards/00001.parquet", "shards/00001.json"):
        storage.delete(f"{s3_uri}/run/{name}")
    ray_head.run("generate", "generate", **places, output=f"{s3_uri}/run", normals_per_shard="5")
    assert {stats.shard: stats.sha256 for stats in verify_run(f"{s3_uri}/run").shards} == before
    assert read_run(f"{s3_uri}/run") is not None
    reproduce(f"{s3_uri}/run", read_shard(f"{s3_uri}/run", manifest.shards[0])["sample_id"][0].as_py())

    refreshed = {**places, "table": f"{s3_uri}/table", "generate.normals_per_shard": "5"}
    assert "version" in ray_head.run("refresh", "refresh", **refreshed)
    assert "nothing to do" in ray_head.run("refresh", "refresh", **refreshed)
