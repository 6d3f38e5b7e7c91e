"""Whole runs with masks, scores and a gate, also of full-size photographs, on a real Ray; samples made again."""

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from factories import TINY, write_checkpoint, write_pool
from PIL import Image

from raygen import images, storage, surfaces
from raygen.data.runs import Manifest, done_shards, read_manifest, read_rejects, read_shard, read_stats
from raygen.errors import PromiseError, UserError
from raygen.generate.config import ComputeConfig, GateConfig, GenerateConfig
from raygen.generate.job import CONTACT_SHEET, generate
from raygen.generate.reproduce import reproduce
from raygen.generate.verify import verify_run

pytestmark = pytest.mark.usefixtures("ray_cluster")


def quiet(line: str) -> None:
    pass


def config_of(folder_uri: str, **changes: Any) -> GenerateConfig:
    values = {
        "pool": storage.join(folder_uri, "pool"),
        "output": storage.join(folder_uri, "out"),
        "checkpoint": storage.join(folder_uri, "checkpoint"),
        "normals_per_shard": 4,
        "gate": {"max_attempts": 2},
        "compute": ComputeConfig(gpus_per_actor=0),
        **changes,
    }
    return GenerateConfig(**values)


def rows_of(output_uri: str) -> dict[str, dict[str, Any]]:
    """Sample id -> its row, without what names its place in the run."""
    found = {}
    for stats in read_stats(output_uri, done_shards(output_uri)):
        for row in read_shard(output_uri, stats).to_pylist():
            del row["shard"], row["run_id"]
            found[row["sample_id"]] = row
    return found


def counts(manifest: Manifest) -> tuple[int, int, int, int]:
    """Asked, accepted, kept and dropped in all."""
    names = ("asked", "accepted", "kept", "dropped")
    asked, accepted, kept, dropped = (sum(getattr(cell, name) for cell in manifest.cells) for name in names)
    return asked, accepted, kept, dropped


def pixels_of(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))


def test_full_size_photographs_keep_their_pixels_and_their_size(s3_uri: str) -> None:
    """In grey and in colour, of several sizes, with a region of interest for one product; whatever the shards, and
    after a resume; and every sample comes out again."""
    sizes = {"brushed_metal": (90, 130), "woven_fabric": (64, 64), "grained_leather": (200, 75)}
    photos = {}
    for product, (height, width) in sizes.items():
        for seed in range(2):
            photo = surfaces.render_normal(product, seed, 256, channels=3 if seed else 1)[:height, :width]
            uri = storage.join(s3_uri, "pool", product, f"{seed}.png")
            photos[uri] = photo.squeeze()
            storage.put(uri, images.encode_png(photo))
    write_pool(storage.join(s3_uri, "pool/small"), 1)  # 32 px, and a window has 48
    region = np.zeros((45, 65, 1), np.uint8)
    region[5:40, 10:40] = 255
    storage.put(storage.join(s3_uri, "roi/brushed_metal.png"), images.encode_png(region))
    write_checkpoint(storage.join(s3_uri, "checkpoint"))
    options = {
        "native": True,
        "composition": "residual",
        "scale": 1.5,
        "roi": storage.join(s3_uri, "roi"),
        "max_pixels": 20_000,
        "max_reject_rate": 0.5,
        "strict_products": False,  # `small` is none of the checkpoint's
        "mask": {"threshold": 2, "noise_factor": 0},  # random weights draw faint defects
    }
    lines: list[str] = []
    config = config_of(s3_uri, **options)
    manifest = generate(config, lines.append)
    assert manifest == verify_run(config.output, num_processes=1)
    assert (manifest.num_samples, manifest.rejects) == (24, {"too_small": 3})
    assert any(
        line.startswith("WARNING: grained_leather, small, woven_fabric: no region of interest")
        for line in lines
    )
    rows = rows_of(config.output)
    num_changed = 0
    for row in rows.values():
        normal, image, mask = (
            photos[row["normal_uri"]],
            *(pixels_of(row[name]["bytes"]) for name in ("image", "mask")),
        )
        assert image.shape == normal.shape
        assert mask.shape == normal.shape[:2] == (row["height"], row["width"])
        np.testing.assert_array_equal(image[mask == 0], normal[mask == 0])
        assert row["preservation"] == 0
        assert row["window_size"] == 48
        y, x = np.nonzero(mask)
        if len(y):
            assert row["window_y"] <= y.min() < y.max() < row["window_y"] + 48
            assert row["boxes"][0]["y"] == y.min()
            assert sum(box["area"] for box in row["boxes"]) == len(y)
            num_changed += (image != normal).any()
        if row["product"] == "brushed_metal":
            assert (region[y // 2, x // 2, 0] == 255).all()
    assert num_changed > 12
    sheet = pixels_of(storage.read(storage.join(config.output, CONTACT_SHEET)))
    assert sheet.shape[1] > 5 * 128

    other = config_of(s3_uri, **options, normals_per_shard=3, output=storage.join(s3_uri, "other"))
    generate(other, quiet)
    assert rows_of(other.output) == rows
    storage.delete(storage.join(config.output, "manifest.json"))
    storage.delete(storage.join(config.output, "shards/00001.json"))
    generate(config, quiet)
    assert rows_of(config.output) == rows
    for sample_id in list(rows)[::7]:
        reproduce(config.output, sample_id, say=lines.append)
        assert lines[-1].startswith(sample_id)
        assert lines[-1].endswith("identical")


@pytest.mark.parametrize("layout", ["parquet", "webdataset", "png"])
def test_where_a_rule_rejects_all_everything_is_accounted_for(tmp_path: Path, layout: str) -> None:
    write_pool(str(tmp_path / "pool"), 2)
    write_checkpoint(str(tmp_path / "checkpoint"))
    impossible = {"min_realism": 1e6, "min_mask_area": None, "max_attempts": 2}
    config = config_of(str(tmp_path), layout=layout, gate={**impossible, "on_shortfall": "drop"})
    manifest = generate(config, quiet)
    assert manifest == verify_run(config.output, num_processes=1)
    assert manifest.num_samples == 0
    assert counts(manifest) == (24, 0, 0, 24)
    assert all(cell.reasons == {"min_realism": cell.asked} for cell in manifest.cells)
    assert {cell.attempts for cell in manifest.cells} == {4}
    dropped = [row for stats in manifest.shards for row in read_rejects(config.output, stats).to_pylist()]
    assert len({row["sample_id"] for row in dropped}) == 24
    assert {row["reason"] for row in dropped} == {"min_realism"}
    with pytest.raises(UserError, match=r"the gate dropped .* \(min_realism\)"):
        reproduce(config.output, dropped[0]["sample_id"])
    assert storage.exists(str(tmp_path / "out" / CONTACT_SHEET))


def test_a_shortfall_that_fails_the_run_loses_nothing(tmp_path: Path) -> None:
    write_pool(str(tmp_path / "pool"), 2)
    write_checkpoint(str(tmp_path / "checkpoint"))
    impossible = {"min_realism": 1e6, "min_mask_area": None, "max_attempts": 2}
    with pytest.raises(
        PromiseError, match=r"fell short: \d+ of \d+ samples failed all of 2 attempts .*min_realism"
    ):
        generate(config_of(str(tmp_path), gate={**impossible, "on_shortfall": "fail"}), quiet)
    output = str(tmp_path / "out")
    assert read_manifest(output) is None
    kept = read_stats(output, done_shards(output))
    assert kept
    lines: list[str] = []
    manifest = generate(
        config_of(str(tmp_path), gate={**impossible, "on_shortfall": "keep-best"}), lines.append
    )
    assert manifest == verify_run(output, num_processes=1)
    assert [stats for stats in manifest.shards if stats in kept] == kept
    assert counts(manifest) == (24, 0, 24, 0)
    assert manifest.num_samples == 24
    assert any(
        "0 of 2 accepted (2.0 attempts each); 2 kept below the gate: 2 min_realism" in line for line in lines
    )
    assert {(row["accepted"], row["reject_reason"]) for row in rows_of(output).values()} == {
        (False, "min_realism")
    }
    with pytest.raises(UserError, match="gate"):
        generate(config_of(str(tmp_path), gate={**impossible, "on_shortfall": "drop"}), quiet)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [1, 3])
def test_photographs_of_4096_pixels_a_side(tmp_path: Path, channels: int) -> None:
    tile = surfaces.render_normal("woven_fabric", 0, 256, channels)
    photo = np.tile(tile, (16, 16, 1))
    storage.put(str(tmp_path / "pool" / "woven_fabric" / "0.png"), images.encode_png(photo))
    write_checkpoint(str(tmp_path / "checkpoint"), dataclasses.replace(TINY, channels=channels))
    config = config_of(
        str(tmp_path),
        native=True,
        composition="residual",
        scale=16.0,
        normals_per_shard=1,
        max_pixels=4096**2,
        mask={"threshold": 2, "noise_factor": 0},
    )
    generate(config, quiet)
    for row in rows_of(config.output).values():
        image, mask = (pixels_of(row[name]["bytes"]) for name in ("image", "mask"))
        assert (row["height"], row["width"], row["window_size"]) == (4096, 4096, 512)
        np.testing.assert_array_equal(image[mask == 0], photo.squeeze()[mask == 0])


def test_what_is_made_again_is_compared(tmp_path: Path) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    write_checkpoint(str(tmp_path / "checkpoint"))
    config = config_of(str(tmp_path))
    generate(config, quiet)
    sample_id, row = next(iter(rows_of(config.output).items()))
    reproduce(config.output, sample_id, save=str(tmp_path / "again"), say=quiet)
    assert (tmp_path / "again" / f"{sample_id}.png").read_bytes() == row["image"]["bytes"]
    assert (tmp_path / "again" / f"{sample_id}_mask.png").read_bytes() == row["mask"]["bytes"]
    with pytest.raises(UserError, match="no sample 123 in its 1 finished shards"):
        reproduce(config.output, "123")
    with pytest.raises(UserError, match="no run there"):
        reproduce(str(tmp_path / "none"), "123")
    run_json = tmp_path / "out" / "run.json"
    before = run_json.read_text()
    run_json.write_text(before.replace('"threshold": 20.0', '"threshold": 0.1').replace("4.0", "0.0"))
    with pytest.raises(PromiseError, match=r"comes out with another .*mask_sha256.* pixels differ, by up to"):
        reproduce(config.output, sample_id)
    run_json.write_text(before)
    Path(row["normal_uri"]).write_bytes(images.encode_png(np.zeros((32, 32, 1), np.uint8)))
    with pytest.raises(UserError, match=r"planned, and another content when it was read"):
        reproduce(config.output, sample_id)


def test_references_of_one_s_own_product_alone_may_guide(tmp_path: Path) -> None:
    write_pool(str(tmp_path / "pool"), 2)
    write_checkpoint(str(tmp_path / "checkpoint"))
    config = config_of(
        str(tmp_path), reference_products="same", modes=["reference"], gate=GateConfig(max_attempts=1)
    )
    generate(config, quiet)
    rows = rows_of(config.output).values()
    assert all(row["reference_uri"].split(":")[1].startswith(row["product"]) for row in rows)
    chosen = config_of(
        str(tmp_path),
        output=str(tmp_path / "chosen"),
        reference_products=["woven_fabric"],
        samples_per_cell={"scratches": 2, "spots": 1},
    )
    manifest = generate(chosen, quiet)
    assert manifest.num_samples == 6 * (4 + 2)
    guided = [row for row in rows_of(chosen.output).values() if row["mode"] == "reference"]
    assert {row["reference_uri"].split(":")[1].split("/")[0] for row in guided} == {"woven_fabric"}
    with pytest.raises(UserError, match=r"holds no references of 'scratches' of wood"):
        generate(config_of(str(tmp_path), output=str(tmp_path / "x"), reference_products=["wood"]), quiet)
