"""Perlin, the family that needs no real defect: its noise and masks, and the whole path through the engines."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from factories import write_bank, write_run, write_split_set

from raygen import images, storage
from raygen.checkpoint import REFERENCE_CODES, export_checkpoint, load_checkpoint
from raygen.data.runs import read_shard
from raygen.errors import UserError
from raygen.families import family_of
from raygen.families.family import stream
from raygen.families.perlin import PerlinConfig
from raygen.families.perlin.anomalies import altered, perlin_noise
from raygen.generate.config import GenerateConfig
from raygen.generate.reproduce import reproduce
from raygen.generate.verify import verify_run
from raygen.train.config import load_train_config
from raygen.train.job import dry_run, train

ROOT = Path(__file__).parent.parent


def config_of(folder: Path, **changes: object) -> PerlinConfig:
    values = {"defects": str(folder / "set"), "output": str(folder / "bank"), "image_size": 64, "channels": 1}
    return PerlinConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A defect set, a bank of its textures, and its normals as a pool."""
    folder = tmp_path_factory.mktemp("perlin")
    write_split_set(str(folder / "set"), {"train": (6, 2), "test": (2, 2)})
    for photo in (folder / "set").glob("*/normal/train-*.png"):
        target = folder / "pool" / photo.parent.parent.name / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    write_bank(config_of(folder))
    return folder


def run_of(folder: Path, name: str, **changes: object) -> GenerateConfig:
    values = {
        "pool": str(folder / "pool"),
        "checkpoint": str(folder / "bank"),
        "output": str(folder / name),
        "composition": "residual",
    }
    return GenerateConfig.model_validate({**values, **changes})


def rows_of(config: GenerateConfig) -> list[dict]:
    rows = [row for stats in write_run(config).shards for row in read_shard(config.output, stats).to_pylist()]
    return sorted(rows, key=lambda row: (row["normal_uri"], row["mode"]))


def pixels_of(data: bytes) -> np.ndarray:
    return images.decode_photo(data, 2**20).astype(int)


def naive_noise(seed: int, size: int) -> np.ndarray:
    """Perlin's noise, pixel by pixel, corner by corner."""
    random = stream(seed)
    angle, (down, across) = random.uniform(0, 2 * np.pi), 2.0 ** random.integers(0, int(np.log2(size / 4)), 2)
    directions = random.uniform(0, 2 * np.pi, (64, 64))
    noise = np.zeros((size, size))
    for row in range(size):
        for column in range(size):
            y = down * (np.cos(angle) * row - np.sin(angle) * column) / size
            x = across * (np.sin(angle) * row + np.cos(angle) * column) / size
            top, left = int(np.floor(y)), int(np.floor(x))

            def toward(i: int, j: int, y: float = y, x: float = x) -> float:
                direction = directions[i % 64, j % 64]
                return np.sin(direction) * (y - i) + np.cos(direction) * (x - j)

            def blend(a: float, b: float, t: float) -> float:
                return a + (b - a) * (6 * t**5 - 15 * t**4 + 10 * t**3)

            upper = blend(toward(top, left), toward(top, left + 1), x - left)
            lower = blend(toward(top + 1, left), toward(top + 1, left + 1), x - left)
            noise[row, column] = np.sqrt(2) * blend(upper, lower, y - top)
    return noise


@pytest.mark.parametrize("seed", range(4))
def test_the_noise_is_perlin_s(seed: int) -> None:
    assert perlin_noise(stream(seed), 24) == pytest.approx(naive_noise(seed, 24), abs=1e-5)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_texture_is_altered_and_keeps_its_form(channels: int) -> None:
    texture = np.random.default_rng(0).integers(0, 200, (40, 40, channels), np.uint8)
    for seed in range(8):
        found = altered(texture, stream(seed))
        assert (found.shape, found.dtype) == (texture.shape, np.uint8)
        assert (found != texture).mean() > 0.5


@pytest.mark.parametrize("composition", ["reconstruct", "residual"])
def test_masks_are_exact(folder: Path, composition: str) -> None:
    """What changed lies inside the mask, and most of the mask has changed."""
    config = run_of(folder, composition, composition=composition)
    shares = []
    for row in rows_of(config):
        mask = pixels_of(row["mask"]["bytes"])[:, :, 0] == 255
        change = pixels_of(row["image"]["bytes"]) != pixels_of(storage.read(row["normal_uri"]))
        assert mask.any()
        assert not change[~mask].any()
        shares.append(change[mask].mean())
        assert (row["preservation"], row["realism"], row["novelty"]) == (0, None, None)
        assert row["mask_area"] == pytest.approx(mask.mean())
        assert (row["reference_uri"] is None) == (row["mode"] == "latent")
    assert np.mean(shares) > 0.85


def test_what_shows_nothing_is_no_anomaly(folder: Path) -> None:
    """On black, where many alterations change nothing: no mask there, and the gate refuses the sample."""
    storage.put(str(folder / "black" / "wall" / "0.png"), images.encode_png(np.zeros((64, 64, 1), np.uint8)))
    black = {"pool": str(folder / "black"), "strict_products": False}
    config = run_of(folder, "dark", **black, modes=["latent"], samples_per_cell=20)
    found = rows_of(config.model_copy(update={"gate": config.gate.model_copy(update={"max_attempts": 1})}))
    for row in found:
        mask, image = pixels_of(row["mask"]["bytes"]), pixels_of(row["image"]["bytes"])
        assert mask.any() == image.any() == row["accepted"]
    assert 0 < sum(row["accepted"] for row in found) < 20


def test_the_gate_refuses_what_can_hardly_be_seen(folder: Path) -> None:
    gate = {"min_contrast": 12.0, "max_attempts": 2}
    rows = rows_of(run_of(folder, "gated", gate=gate, samples_per_cell=2))
    assert {row["reject_reason"] for row in rows} == {None, "min_contrast"}
    assert all((abs(row["contrast"]) >= 12) == row["accepted"] for row in rows)


def test_without_masks_there_are_no_scores(folder: Path) -> None:
    for row in rows_of(run_of(folder, "bare", composition="reconstruct", masks=False)):
        assert row["mask_area"] is row["contrast"] is row["preservation"] is None
        assert not pixels_of(row["mask"]["bytes"]).any()


def test_a_sample_is_its_seed_s_alone(folder: Path) -> None:
    """The same bytes in other batches and shards, and made again by its row."""
    config = run_of(folder, "one-shard")
    one = rows_of(config)
    other = rows_of(run_of(folder, "small-shards", micro_batch=3, normals_per_shard=4))
    # micro_batch and shards are part of a run's name, not of its samples.
    kept = ("sample_id", "seed", "image_sha256", "mask_sha256", "reference_uri")
    assert [[row[key] for key in kept] for row in one] == [[row[key] for key in kept] for row in other]
    reproduce(config.output, one[3]["sample_id"])
    assert verify_run(config.output).num_samples == len(one)


def test_references_of_its_own_product(folder: Path) -> None:
    for row in rows_of(run_of(folder, "same", reference_products="same", modes=["reference"])):
        assert Path(row["reference_uri"]).parent.parent.name == row["product"]
        assert Path(row["reference_uri"]).name.startswith("train-")


def test_it_lies_where_it_may_on_full_size_photographs(folder: Path) -> None:
    for photo in (folder / "set").glob("*/normal/train-000000.png"):
        large = np.tile(images.decode_photo(photo.read_bytes(), 2**20), (3, 4, 1))
        storage.put(str(folder / "large" / photo.parent.parent.name / "0.png"), images.encode_png(large))
        region = np.zeros((192, 256, 1), np.uint8)
        region[:, :128] = 255
        storage.put(str(folder / "roi" / f"{photo.parent.parent.name}.png"), images.encode_png(region))
    config = run_of(
        folder, "native", native=True, max_pixels=100_000, roi=str(folder / "roi"), pool=str(folder / "large")
    )
    for row in rows_of(config):
        pixels, normal = pixels_of(row["image"]["bytes"]), pixels_of(storage.read(row["normal_uri"]))
        assert pixels.shape == normal.shape == (192, 256, 1)
        outside = pixels_of(row["mask"]["bytes"])[:, :, 0] == 0
        assert (pixels[outside] == normal[outside]).all()
        assert (pixels == normal)[:, 128:].all()
        assert (pixels != normal).any()


def test_a_bank_is_written_once_and_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.stat().st_mtime_ns for file in (folder / "bank").rglob("*") if file.is_file()}
    train(config_of(folder))
    assert "nothing to do" in capsys.readouterr().out
    assert before == {
        file: file.stat().st_mtime_ns for file in (folder / "bank").rglob("*") if file.is_file()
    }
    dry_run(config_of(folder))
    assert "nothing is learned in iterations" in capsys.readouterr().out


def test_another_bank_wants_another_folder(folder: Path) -> None:
    with pytest.raises(UserError, match="its references_per_cell is 64, not 2"):
        train(config_of(folder, references_per_cell=2))


def test_an_exported_bank_has_the_same_textures(folder: Path) -> None:
    own = load_checkpoint(str(folder / "bank"))
    export_checkpoint(own.uri, str(folder / "exported"))
    exported = load_checkpoint(str(folder / "exported"))
    assert len(own.references) == 18
    assert exported.references == own.references
    textures = [checkpoint.tensors(REFERENCE_CODES)["textures"] for checkpoint in (own, exported)]
    assert textures[0].max() > 100
    assert textures[0].equal(textures[1])


def test_a_checkpoint_of_a_family_that_there_is_none_of_is_one_line(folder: Path) -> None:
    own = load_checkpoint(str(folder / "bank"))
    other = replace(own, config=own.config.model_copy(update={"family": "crystal"}))
    with pytest.raises(
        UserError, match="of the family 'crystal', which this version of raygen does not know"
    ):
        family_of(other)


@pytest.mark.parametrize(
    "override", ["images=5", "batch_per_worker=2", "model.width=2", "seed=1", "image_size=4"]
)
def test_what_it_has_no_use_for_is_refused(override: str) -> None:
    with pytest.raises(Exception, match=override.split("=")[0].split(".")[0]):
        load_train_config(str(ROOT / "jobs/perlin.toml"), ["defects=d", "output=o", override])


def test_a_family_takes_few_lines() -> None:
    files = [*(ROOT / "raygen/families/perlin").glob("*.py"), ROOT / "jobs/perlin.toml"]
    assert sum(len(file.read_text().splitlines()) for file in files) < 120
