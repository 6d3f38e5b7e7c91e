"""The judge that any family can have: its fit and calibration, and what a gate makes of its word."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import Head
from factories import (
    InProcess,
    write_bank,
    write_checkpoint,
    write_dfmgan_checkpoint,
    write_manifest_of_normals,
    write_run,
    write_split_set,
)

from raygen import images, storage, surfaces
from raygen.checkpoint import Checkpoint, export_checkpoint, load_checkpoint, save_checkpoint
from raygen.data.defects import list_defect_set, load_photos
from raygen.data.runs import Manifest, Run, read_run, read_shard
from raygen.errors import UserError
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.judge.collector import best_temperature, fit, measure
from raygen.families.judge.config import JudgeConfig
from raygen.families.judge.judge import LinearJudge, log_softmax
from raygen.families.perlin import PerlinConfig
from raygen.families.recipes import SamplingConfig
from raygen.generate.config import GenerateConfig
from raygen.generate.judging import judge_warnings
from raygen.generate.plan import open_run
from raygen.generate.reproduce import reproduce
from raygen.generate.stages import GenerateActor
from raygen.generate.verify import verify_run
from raygen.publish.config import RefreshConfig
from raygen.publish.refresh import refresh
from raygen.records import NORMAL

SIZES = {"image_size": 64, "channels": 1}
SURE = {"min_type_prob": 0.9, "min_realism": 0.0, "max_attempts": 3}


def judge_config(folder: Path, name: str = "judge", **changes: Any) -> JudgeConfig:
    values = {"defects": str(folder / "set"), "output": str(folder / name), **SIZES}
    return JudgeConfig.model_validate({**values, **changes})


@pytest.fixture(scope="module")
def told() -> list[str]:
    """What the user is told of the judge's fit."""
    return []


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, told: list[str]) -> Path:
    """A defect set, a judge of it, another of one type alone, banks to make samples of, and a pool."""
    folder = tmp_path_factory.mktemp("judge")
    write_split_set(str(folder / "set"), {"train": (8, 6), "val": (4, 4), "test": (4, 4)})
    write_bank(judge_config(folder), told.append)
    for photo in (folder / "set").glob("*/normal/train-00000[0-2].png"):
        target = folder / "pool" / photo.parent.parent.name / photo.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(photo.read_bytes())
    places = {"defects": str(folder / "set"), **SIZES}
    write_bank(CopyPasteConfig.model_validate({**places, "output": str(folder / "copies")}))
    write_bank(PerlinConfig.model_validate({**places, "output": str(folder / "perlin")}))
    return folder


@pytest.fixture(scope="module")
def another(folder: Path) -> Checkpoint:
    """A judge that takes nothing for a defect: the first one's, with a bias."""
    judge = load_checkpoint(str(folder / "judge"))
    arrays = judge.arrays("judge.safetensors")
    arrays["bias"] = arrays["bias"] + np.array([100.0, 0, 0])
    return save_checkpoint(str(folder / "another"), judge.config, {"judge.safetensors": arrays})


def run_of(folder: Path, name: str, judge: str | None = "judge", **changes: Any) -> GenerateConfig:
    values = {
        "pool": str(folder / "pool"),
        "checkpoint": str(folder / "copies"),
        "output": str(folder / name),
        "composition": "residual",
        "gate": SURE | ({"judge": str(folder / judge)} if judge else {}),
    }
    return GenerateConfig.model_validate({**values, **changes})


def begin(config: GenerateConfig) -> Run:
    return open_run(config, load_checkpoint(config.checkpoint))


def rows_of(config: GenerateConfig, manifest: Manifest) -> list[dict[str, Any]]:
    rows = [row for stats in manifest.shards for row in read_shard(config.output, stats).to_pylist()]
    return sorted(rows, key=lambda row: row["sample_id"])


def loaded(folder: Path, name: str = "judge", **changes: Any) -> LinearJudge:
    return LinearJudge(load_checkpoint(str(folder / name)), SamplingConfig(pool="p", **changes))


def photos_of(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Their pixels, their classes, and the classes' names."""
    photos = [photo for photo in list_defect_set(str(folder / "set")) if photo.split == split]
    names = [NORMAL, *surfaces.DEFECT_TYPES]
    return load_photos(photos, 64, 1), np.array([names.index(photo.defect_type) for photo in photos]), names


# ------------------------------------------------------------------------------------------------------ the fit


def test_it_tells_held_out_surfaces_apart_by_probabilities(folder: Path) -> None:
    pixels, labels, names = photos_of(folder, "test")
    judge = loaded(folder)
    probs = np.stack([judge(pixels, name)["type_prob"] for name in names], axis=1)
    assert probs.sum(axis=1) == pytest.approx(1, abs=1e-5)
    of_classes = [(probs[labels == k].argmax(1) == k).mean() for k in range(3)]
    assert np.mean(of_classes) > 0.6  # by chance a third
    assert np.mean(probs[np.arange(len(labels)), labels]) > 0.55


def test_realism_is_the_log_odds_against_normal(folder: Path) -> None:
    pixels, labels, names = photos_of(folder, "test")
    judge = loaded(folder)
    normal = judge(pixels, NORMAL)
    assert np.isnan(normal["realism"]).all()
    for number, name in enumerate(names[1:], start=1):
        found = judge(pixels, name)
        odds = np.log(found["type_prob"]) - np.log(normal["type_prob"])
        assert found["realism"] == pytest.approx(odds, abs=1e-3)
        assert found["realism"][labels == number].mean() > 0 > found["realism"][labels == 0].mean()


def test_its_calibration_is_told_and_recorded(folder: Path, told: list[str]) -> None:
    """The same figures come of judging the photos of the split val once more."""
    found = load_checkpoint(str(folder / "judge")).config.training["calibration"]
    assert found["photos"] == 4 * 3 * 3
    pixels, labels, _ = photos_of(folder, "val")
    logits = loaded(folder).logits(pixels)
    for number, temperature in (("after", 1.0), ("before", 1 / found["temperature"])):
        again = measure(logits / temperature, labels, np.ones(len(labels)))
        assert again == pytest.approx([found[number][name] for name in again._fields], abs=1e-5)
    assert found["after"]["nll"] < found["before"]["nll"]
    assert "36 photos" in told[0]
    assert f"temperature {found['temperature']:.2f}" in told[1]
    assert not any("sheet" in line for line in told)


def test_the_temperature_has_the_least_log_loss() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(3, size=400)
    logits = 5 * (np.eye(3)[labels] + random.normal(0, 1, (400, 3)))  # five times too sure
    weights = random.uniform(0.1, 1, 400)
    found = best_temperature(logits, labels, weights)
    losses = {
        temperature: measure(logits / temperature, labels, weights).nll for temperature in np.arange(1, 10)
    }
    assert measure(logits / found, labels, weights).nll < min(losses.values())
    assert measure(logits / found, labels, weights).ece < measure(logits, labels, weights).ece / 3
    # Logits that are calibrated as they are stay: the labels are drawn by their own probabilities.
    drawn = np.array([random.choice(3, p=np.exp(row)) for row in log_softmax(logits)])
    assert best_temperature(logits, drawn, np.ones(400)) == pytest.approx(1, abs=0.2)
    assert best_temperature(np.eye(3), np.arange(3), np.ones(3)) == pytest.approx(0.1, abs=0.01)


def test_the_calibration_error_is_the_gap_in_each_of_ten_bins() -> None:
    sure = np.array([0.62, 0.64, 0.95, 0.95, 0.93, 0.97])
    logits = np.log(np.stack([sure, 1 - sure], axis=1))
    found = measure(logits, np.array([0, 1, 0, 0, 0, 1]), np.ones(6))
    assert found.ece == pytest.approx((2 * abs(0.5 - 0.63) + 4 * abs(0.75 - 0.95)) / 6)
    assert found.accuracy == pytest.approx(4 / 6)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_every_cell_has_equal_weight(num_classes: int) -> None:
    """Photos of a cell that stand there ten times, at a tenth of the weight each, change nothing."""
    random = np.random.default_rng(0)
    seen = random.normal(0, [1, 5, 0.1, 2], (60, 4)).astype(np.float32) + 3
    labels = np.arange(60) % num_classes
    seen[:, 0] += labels
    many = np.where(labels == 0, 10, 1)
    once = fit(seen, labels, np.ones(60), l2=1e-3)
    repeated = fit(np.repeat(seen, many, axis=0), np.repeat(labels, many), np.repeat(1 / many, many), l2=1e-3)
    assert once[0].shape == (num_classes, 4)
    assert once[0] == pytest.approx(repeated[0], abs=2e-3)
    logits = seen @ once[0].T + once[1]
    # At the optimum the mean probability of each class is its share.
    assert np.exp(log_softmax(logits)).mean(axis=0) == pytest.approx(np.bincount(labels) / 60, abs=1e-3)


def test_without_validation_photos_it_says_so(folder: Path, tmp_path: Path) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (2, 2)})
    told: list[str] = []
    judge = write_bank(judge_config(tmp_path), told.append)
    assert told[0] == "no photos of the split val: not calibrated, temperature 1"
    assert judge.arrays("judge.safetensors")["temperature"] == 1


def test_photos_that_are_of_no_use_are_one_line(tmp_path: Path) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (2, 1), "val": (1, 1)})
    cracks = tmp_path / "set" / "woven_fabric" / "cracks"
    cracks.mkdir()
    (cracks / "7.png").write_bytes((tmp_path / "set/woven_fabric/spots/val-000000.png").read_bytes())
    metadata = tmp_path / "set" / "metadata.csv"
    metadata.write_text(metadata.read_text() + "\n7,woven_fabric,cracks,test")
    with pytest.raises(
        UserError, match="no photos of 'cracks' in its split train; move some there, or leave"
    ):
        write_bank(judge_config(tmp_path))
    (tmp_path / "set/woven_fabric/spots/train-000000.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"spots/train-000000.png: not_an_image"):
        write_bank(judge_config(tmp_path, types={"cracks": "-"}))
    with pytest.raises(UserError, match="no such file"):
        write_bank(judge_config(tmp_path, "other", types={"cracks": "-"}, weights=str(tmp_path / "none.pt")))


# ------------------------------------------------------------------------------------------------------ at work


def test_a_sample_s_scores_are_its_own(folder: Path) -> None:
    """Whatever else is judged with it, and in however large micro-batches."""
    pixels, _, _ = photos_of(folder, "test")
    whole = loaded(folder).logits(pixels[:7])
    assert (loaded(folder, micro_batch=3).logits(pixels[2:5]) == whole[2:5]).all()
    assert (loaded(folder).logits(pixels[[6, 0, 4]]) == whole[[6, 0, 4]]).all()


def test_it_takes_samples_of_other_sizes_and_colours(folder: Path) -> None:
    pixels, _, names = photos_of(folder, "test")
    judge = loaded(folder)
    large = np.repeat(np.repeat(np.repeat(pixels, 2, 1), 2, 2), 3, 3)
    likely = [judge(shown, names[1])["type_prob"] for shown in (pixels, large)]
    assert np.abs(likely[0] - likely[1]).mean() < 0.05


def test_an_exported_judge_judges_alike(folder: Path) -> None:
    export_checkpoint(str(folder / "judge"), str(folder / "exported"))
    pixels, _, _ = photos_of(folder, "val")
    probs = [np.exp(log_softmax(loaded(folder, name).logits(pixels))) for name in ("judge", "exported")]
    assert probs[0] == pytest.approx(probs[1], abs=0.02)


def test_other_weights_of_the_network_are_one_line(folder: Path) -> None:
    judge = load_checkpoint(str(folder / "judge"))
    model = judge.config.model | {"features": "of another network"}
    other = save_checkpoint(
        str(folder / "elsewhere"),
        judge.config.model_copy(update={"model": model}),
        {"judge.safetensors": judge.arrays("judge.safetensors")},
    )
    with pytest.raises(UserError, match="features of other weights"):
        LinearJudge(other, SamplingConfig(pool="p"))(np.zeros((1, 64, 64, 1), np.uint8), "spots")


def test_the_gate_refuses_by_its_scores_and_tries_again(folder: Path) -> None:
    """Every sample of copy-paste has the judge's scores and verdict; the run is verified and reproduced."""
    config = run_of(folder, "gated", normals_per_shard=4)
    manifest = write_run(config)
    rows = rows_of(config, manifest)
    free = run_of(folder, "free", judge=None)
    before = {row["sample_id"]: row for row in rows_of(free, write_run(free))}
    judge = loaded(folder)
    attempts, reasons = 0, set()
    for row in rows:
        found = judge(images.decode_photo(row["image"]["bytes"], 2**20)[None], row["defect_type"])
        assert (row["type_prob"], row["realism"]) == (found["type_prob"][0], found["realism"][0])
        assert row["accepted"] == (row["type_prob"] >= 0.9 and row["realism"] >= 0)
        assert row["product_prob"] is None
        assert row["preservation"] == 0
        reasons.add(row["reject_reason"])
        if row["attempt"] == 0:  # the same sample, but for what the judge says of it
            assert row["image_sha256"] == before[row["sample_id"]]["image_sha256"]
        attempts += row["attempt"]
    assert before.keys() == {row["sample_id"] for row in rows}
    assert all(row["type_prob"] is row["realism"] is None and row["accepted"] for row in before.values())
    assert reasons == {None, "min_type_prob"}
    assert attempts > 0
    assert sum(cell.attempts for cell in manifest.cells) > len(rows)
    assert verify_run(config.output).num_samples == len(rows)
    for row in (next(row for row in rows if row["attempt"]), rows[0]):
        reproduce(config.output, row["sample_id"])


def test_a_sample_s_verdict_does_not_depend_on_its_shard(folder: Path) -> None:
    one, other = (
        run_of(folder, f"shards-of-{n}", normals_per_shard=n, micro_batch=n, modes=["latent"]) for n in (9, 2)
    )
    kept = ("sample_id", "seed", "attempt", "image_sha256", "realism", "type_prob", "reject_reason")
    found = [
        [[row[key] for key in kept] for row in rows_of(config, write_run(config))] for config in (one, other)
    ]
    assert found[0] == found[1]


def test_perlin_s_one_type_has_a_judge_that_calls_all_defects_so(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"gate.judge: 'anomaly' is unknown to .* knows normal, scratches, spots"
    ):
        begin(run_of(folder, "unknown", checkpoint=str(folder / "perlin")))
    write_bank(judge_config(folder, "anomalies", types={"scratches": "anomaly", "spots": "anomaly"}))
    rows = rows_of(
        config := run_of(folder, "anomalous", judge="anomalies", checkpoint=str(folder / "perlin")),
        write_run(config),
    )
    for row in rows:
        # Of two classes: the probability is the logistic function of the log-odds.
        assert row["type_prob"] == pytest.approx(1 / (1 + np.exp(-row["realism"])), abs=1e-4)
        assert row["novelty"] is None
    assert {row["reject_reason"] for row in rows} > {None}


def test_a_discriminator_s_word_gives_way_to_the_judge_s(folder: Path) -> None:
    write_checkpoint(str(folder / "dtgan"))
    settings: dict[str, Any] = {"checkpoint": str(folder / "dtgan"), "modes": ["latent"], "masks": True}
    own, judged = (
        run_of(folder, f"dtgan-{judge}", **settings, gate=gate)
        for judge, gate in ((None, {}), ("judge", {"judge": str(folder / "judge")}))
    )
    for before, after in zip(rows_of(own, write_run(own)), rows_of(judged, write_run(judged)), strict=True):
        changed = {name for name, value in after.items() if before[name] != value}
        assert changed == {"realism", "type_prob", "run_id"}


def test_drawn_normals_are_not_judged_and_defects_on_them_are(folder: Path) -> None:
    write_dfmgan_checkpoint(str(folder / "dfmgan"))
    config = run_of(
        folder,
        "drawn",
        checkpoint=str(folder / "dfmgan"),
        pool="seeds:0-3",
        modes=["latent"],
        write_normals=True,
    )
    for row in rows_of(config, write_run(config)):
        assert (row["type_prob"] is None) == (row["realism"] is None) == (row["defect_type"] == NORMAL)


# ------------------------------------------------------------------------------------------------------ identity


def test_without_a_judge_a_run_is_what_it_was(folder: Path) -> None:
    """The gate's part of the identity, as it stood in run ids before there were judges; and a run.json of then."""
    found = GenerateConfig(pool="p", checkpoint="null:8x1", output="o").identity()
    assert "judge" not in json.dumps(found)
    assert json.dumps(found["gate"]) == (
        '{"min_mask_area": 0.0005, "max_mask_area": null, "min_type_prob": null, "min_product_prob": null, '
        '"min_realism": null, "max_background_change": null, "min_contrast": null, "min_novelty": null, '
        '"max_attempts": 4, "on_shortfall": "keep-best"}'
    )
    config = run_of(folder, "old", judge=None)
    begin(config)
    run = json.loads(storage.read(storage.join(config.output, "run.json")))
    del run["judge"], run["config"]["gate"]["judge"]
    storage.put(storage.join(config.output, "run.json"), json.dumps(run).encode())
    assert read_run(config.output) is not None
    assert begin(config).run_id == run["run_id"]


def test_a_run_is_of_its_judge_by_content_not_by_place(folder: Path, another: Checkpoint) -> None:
    run = begin(run_of(folder, "its-own"))
    assert run.judge == load_checkpoint(str(folder / "judge")).digest
    moved = folder / "moved"
    for name in ("config.json", "judge.safetensors", "learned.parquet"):
        uri = load_checkpoint(str(folder / "judge")).uri
        storage.put(str(moved / name), storage.read(storage.join(uri, name)))
    assert begin(run_of(folder, "its-own", "moved")).run_id == run.run_id
    assert begin(run_of(folder, "its-copy", "moved")).run_id == run.run_id
    assert begin(run_of(folder, "another-s", "another")).run_id != run.run_id
    for other in ("another", None):
        with pytest.raises(UserError, match=r"holds another run: its gate.judge is '.*', not ('|None)"):
            begin(run_of(folder, "its-own", other))


def test_a_judge_that_was_changed_meanwhile_is_refused(folder: Path, another: Checkpoint) -> None:
    config = run_of(folder, "changed", modes=["latent"], defect_types=["spots"])
    sample_id = rows_of(config, write_run(config))[0]["sample_id"]
    run = read_run(config.output)
    assert run is not None
    other = config.model_copy(update={"gate": config.gate.model_copy(update={"judge": another.uri})})
    with pytest.raises(UserError, match="is not the judge of this run any more; put the old one back"):
        _ = GenerateActor(other, run, other.checkpoint).generator
    text = json.loads(storage.read(storage.join(config.output, "run.json")))
    text["config"]["gate"]["judge"] = another.uri
    storage.put(storage.join(config.output, "run.json"), json.dumps(text).encode())
    with pytest.raises(UserError, match="is not the judge of this run any more"):
        reproduce(config.output, sample_id)


# ------------------------------------------------------------------------------------------------------ refusals


def test_what_is_no_judge_is_one_line(folder: Path) -> None:
    write_checkpoint(str(folder / "gan"))
    for name in ("copies", "perlin", "gan"):
        with pytest.raises(
            UserError, match=r"is no judge; name a folder that `raygen train jobs/judge.toml`"
        ):
            begin(run_of(folder, "none", name))
    with pytest.raises(UserError, match=r"gate.judge: .*nowhere: no checkpoint there"):
        begin(run_of(folder, "none", "nowhere"))


def test_a_judge_makes_no_samples(folder: Path) -> None:
    with pytest.raises(UserError, match=r"is a judge, which makes no samples; name it as gate.judge"):
        begin(run_of(folder, "none", checkpoint=str(folder / "judge")))


def test_what_has_no_masks_is_not_judged(folder: Path) -> None:
    with pytest.raises(UserError, match=r"samples of null:64x1 have no masks, and nothing is gated; leave"):
        begin(run_of(folder, "none", checkpoint="null:64x1"))
    with pytest.raises(ValueError, match="without masks nothing is gated"):
        run_of(folder, "none", masks=False, composition="reconstruct")


def test_what_it_was_not_fitted_to_is_told(folder: Path) -> None:
    write_bank(judge_config(folder, "large", image_size=96, products=["woven_fabric"]))
    config = run_of(folder, "told", "large")
    size, products = judge_warnings(config, begin(config))
    assert "fitted to photos of 96 px, and samples have 64" in size
    assert products.startswith("brushed_metal, grained_leather: not among the products")
    windows = run_of(folder, "windows", native=True, checkpoint="null:64x1")
    (native,) = judge_warnings(
        windows, begin(run_of(folder, "windows", None, checkpoint="null:64x1", gate={}))
    )
    assert "fitted to whole photos, and is to judge windows" in native
    fitting = run_of(folder, "not-told")
    assert judge_warnings(fitting, begin(fitting)) == []


# ------------------------------------------------------------------------------------------------------ the nights


def test_another_judge_makes_the_table_anew(folder: Path, another: Checkpoint, tmp_path: Path) -> None:
    def night(judge: str) -> str:
        config = RefreshConfig.model_validate(
            {
                "pool": str(folder / "pool"),
                "table": str(tmp_path / "table"),
                "checkpoint": str(folder / "copies"),
                "generate": {"composition": "residual", "gate": {"judge": judge}},
            }
        )
        report = refresh(config, lambda line: None, InProcess())
        return f"{report.status}: {report.counts.new} new, {report.counts.outdated} outdated"

    judge = str(folder / "judge")
    assert night(judge) == "published: 9 new, 0 outdated"
    assert night(judge) == "nothing to do: 0 new, 0 outdated"
    assert night(another.uri) == "published: 0 new, 9 outdated"


@pytest.mark.slow
def test_from_photos_to_a_gated_run(ray_head: Head, s3_uri: str) -> None:
    """Fitted and asked on a real Ray, its samples evaluated, S3 to S3; each by `ray job submit`."""
    write_split_set(f"{s3_uri}/set", {"train": (8, 6), "val": (4, 4), "test": (4, 3)})
    write_manifest_of_normals(f"{s3_uri}/set", f"{s3_uri}/pool.csv")

    small = {"defects": f"{s3_uri}/set", "image_size": "64", "channels": "1"}
    types = '{scratches = "anomaly", spots = "anomaly"}'
    told = ray_head.run("train", "judge", **small, types=types, output=f"{s3_uri}/judge")
    assert "calibrated on 36 photos" in told
    ray_head.run("train", "perlin", **small, output=f"{s3_uri}/bank")
    places = {"pool": f"{s3_uri}/pool.csv", "checkpoint": f"{s3_uri}/bank", "output": f"{s3_uri}/run"}
    gate = {"gate.judge": f"{s3_uri}/judge", "gate.min_type_prob": "0.9"}
    ray_head.run("generate", "generate", **places, **gate, composition="residual", normals_per_shard="5")
    manifest = verify_run(f"{s3_uri}/run")
    found = [row for stats in manifest.shards for row in read_shard(f"{s3_uri}/run", stats).to_pylist()]
    assert all(row["type_prob"] is not None and row["accepted"] == (row["type_prob"] >= 0.9) for row in found)
    reproduce(f"{s3_uri}/run", found[3]["sample_id"])

    quick = {
        "distances.samples_per_cell": "6",
        "distances.kid_subsets": "5",
        "distances.cluster_samples": "4",
    }
    quick |= {"downstream.sizes": "[6]", "downstream.seeds": "2", "downstream.epochs": "1"}
    quick |= {"downstream.input_size": "32", "downstream.frozen_blocks": "15"}
    evaluated = {"defects": f"{s3_uri}/set", "output": f"{s3_uri}/report", "runs.perlin": f"{s3_uri}/run"}
    ray_head.run("evaluate", "evaluate-quick", **evaluated, **quick, types=types)
    assert b"perlin" in storage.read(f"{s3_uri}/report/metrics.json")
