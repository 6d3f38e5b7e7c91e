"""Training on real Ray, real S3 and real kills: from a recipe to a checkpoint that the main job takes."""

import json
from pathlib import Path

import pytest
from conftest import Head
from factories import write_pool
from training import RECIPE, metrics, recipe, worker_killed_after_a_checkpoint, write_defect_set

from raygen import storage
from raygen.checkpoint import JUDGE, load_checkpoint
from raygen.errors import PromiseError, UserError
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate
from raygen.generate.verify import verify_run
from raygen.images import decode_photo
from raygen.learned import LEARNED
from raygen.train.folder import TrainingFolder
from raygen.train.job import dry_run, train


@pytest.fixture(scope="module")
def defects(s3_server: object) -> str:
    """A defect set on S3."""
    uri = "s3://raygen/defects-of-test-train"
    write_defect_set(uri)
    return uri


@pytest.fixture(scope="module")
def trained(ray_cluster: None, defects: str) -> tuple[DTGANTrainConfig, list[str]]:
    """A training from S3 to S3, uninterrupted, on one worker; and what was said."""
    config = recipe(defects, "s3://raygen/training-of-test-train")
    said: list[str] = []
    train(config, said.append)
    return config, said


def test_a_training_without_ray_is_the_same(
    trained: tuple[DTGANTrainConfig, list[str]], tmp_path: Path
) -> None:
    config, _ = trained
    alone = config.model_copy(update={"output": str(tmp_path)})
    train(alone, alone=True)
    assert metrics(alone.output) == metrics(config.output)


def test_a_training_leaves_what_it_promises(trained: tuple[DTGANTrainConfig, list[str]]) -> None:
    config, said = trained
    folder = TrainingFolder(config.output)
    assert folder.checkpoints()[-2:] == [16, 24]
    assert f"done: the last good checkpoint is {folder.checkpoint_uri(24)}" in said
    names = {
        entry.uri.removeprefix(f"{folder.checkpoint_uri(24)}/")
        for entry in storage.list_files(folder.checkpoint_uri(24))
    }
    bank = {"references/codes.safetensors", "references/index.json"}
    assert names == {"config.json", "generator.safetensors", JUDGE, LEARNED, "state.pt", "sheet.png"} | bank
    height, width, _ = decode_photo(storage.read(f"{folder.checkpoint_uri(24)}/sheet.png"), 2**31).shape
    assert min(height, width) > 500
    rows = metrics(config.output)
    assert [row["images_seen"] for row in rows if "latent/G/cycle" in row] == list(range(6, 26, 2))
    assert [row["images_seen"] for row in rows if "validation/objective" in row] == [8, 16, 24]
    assert [row["images_seen"] for row in rows if "vital/content/z_share" in row] == [8, 16, 24]
    events = [entry.uri for entry in storage.list_files(f"{config.output}/tensorboard")]
    assert len(events) == 3
    record = load_checkpoint(folder.checkpoint_uri(24)).config
    assert record.images_seen == 24
    assert record.training["seconds"] > 0
    assert record.training["recipe"]["loss"]["r1_every"] == 2
    assert 0 <= record.training["vital"]["content/z_share"] <= 1
    assert "brushed_metal: 3 normal, 2 scratches, 2 spots" in record.trained_on


def test_the_best_checkpoint_stands_for_the_training(trained: tuple[DTGANTrainConfig, list[str]]) -> None:
    config, _ = trained
    objectives = {
        int(row["images_seen"]): row["validation/objective"]
        for row in metrics(config.output)
        if "validation/objective" in row
    }
    best = min(objectives, key=objectives.__getitem__)
    assert load_checkpoint(config.output).config.images_seen == best


def test_the_main_job_takes_it(trained: tuple[DTGANTrainConfig, list[str]], s3_uri: str) -> None:
    config, _ = trained
    write_pool(f"{s3_uri}/pool", 2)
    manifest = generate(
        GenerateConfig(pool=f"{s3_uri}/pool", output=f"{s3_uri}/run", checkpoint=config.output)
    )
    assert manifest.num_samples == 3 * 2 * 4
    verify_run(f"{s3_uri}/run")


def test_the_same_command_again_does_nothing(trained: tuple[DTGANTrainConfig, list[str]]) -> None:
    config, _ = trained
    before = {entry.uri: entry.etag for entry in storage.list_files(config.output)}
    said: list[str] = []
    train(config, said.append)
    assert said[-1] == f"{config.output} is complete: nothing to do"
    assert {entry.uri: entry.etag for entry in storage.list_files(config.output)} == before


def test_another_recipe_in_the_same_output_is_refused(trained: tuple[DTGANTrainConfig, list[str]]) -> None:
    config, _ = trained
    other = config.model_copy(update={"seed": 1})
    with pytest.raises(UserError, match="holds another training: its seed is 0, not 1"):
        train(other)


def test_a_dry_run_tells_and_writes_nothing(defects: str, tmp_path: Path) -> None:
    said: list[str] = []
    dry_run(recipe(defects, str(tmp_path / "out")), said.append)
    assert any("in one process" in line for line in said)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("max_failures", [1, 0])
def test_a_killed_worker_costs_the_work_since_the_last_checkpoint(
    trained: tuple[DTGANTrainConfig, list[str]],
    ray_cluster: None,
    defects: str,
    s3_uri: str,
    max_failures: int,
) -> None:
    """SIGKILL after the first checkpoint. Ray Train starts the worker anew or, if it must not, the same command
    goes on; and the end is that of a training that nobody killed."""
    config = recipe(defects, s3_uri, compute={"num_workers": 1, "max_failures": max_failures})
    with worker_killed_after_a_checkpoint(s3_uri):
        if max_failures:
            train(config)
        else:
            with pytest.raises(PromiseError, match=r"a worker was lost .* run the same command again"):
                train(config)
            assert TrainingFolder(s3_uri).checkpoints()[-1] < 24
            train(config)
    assert metrics(s3_uri) == metrics(trained[0].output)


def test_two_workers_train_together(ray_cluster: None, defects: str, s3_uri: str) -> None:
    config = recipe(
        defects, s3_uri, images=16, batch_per_worker=1, compute={"num_workers": 2, "gpus_per_worker": 0}
    )
    train(config)
    alone = recipe(defects, f"{s3_uri}-alone", images=16, compute={"num_workers": 1, "gpus_per_worker": 0})
    train(alone)
    for together, single in zip(metrics(config.output), metrics(alone.output), strict=True):
        # Vital signs are by ranks and ratios, which a rounding may tip; they are measured by one process.
        for name in (name for name in single if not name.startswith("vital/")):
            assert together[name] == pytest.approx(single[name], rel=2e-2, abs=2e-3), name


@pytest.mark.slow
def test_folders_may_be_relative(ray_cluster: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_defect_set("set")
    train(recipe("set", "training", images=4))
    assert TrainingFolder(str(tmp_path / "training")).checkpoints() == [4]


@pytest.mark.slow
def test_streamed_photos_are_the_same_photos(
    trained: tuple[DTGANTrainConfig, list[str]], defects: str, s3_uri: str
) -> None:
    config = recipe(defects, s3_uri, compute={"num_workers": 1, "loading": "stream"})
    train(config)
    assert metrics(s3_uri) == metrics(trained[0].output)


def test_a_training_that_diverges_names_the_loss_and_keeps_the_last_good_checkpoint(
    ray_cluster: None, defects: str, s3_uri: str
) -> None:
    config = recipe(defects, s3_uri, checkpoint_every=4, optimizer={"head_start": 4, "generator_lr": 1e30})
    with pytest.raises(PromiseError, match=r"the loss \w+/\w+/\w+ is (nan|inf) at image") as failure:
        train(config)
    good = TrainingFolder(s3_uri).checkpoints()
    assert good == [4]
    assert f"the last good checkpoint is {s3_uri}/checkpoints/000000004" in str(failure.value)
    load_checkpoint(f"{s3_uri}/checkpoints/000000004")


def test_a_damaged_photo_is_named_before_anything_starts(defects: str, s3_uri: str) -> None:
    write_defect_set(f"{s3_uri}/set")
    storage.put(f"{s3_uri}/set/brushed_metal/spots/000001.png", b"no image")
    with pytest.raises(UserError, match=r"brushed_metal/spots/000001\.png: not_an_image"):
        train(recipe(f"{s3_uri}/set", f"{s3_uri}/out"))
    assert not list(storage.list_files(f"{s3_uri}/out"))


@pytest.mark.slow
def test_a_training_through_ray_job_submit(ray_head: Head, defects: str, s3_uri: str, tmp_path: Path) -> None:
    recipe_file = tmp_path / "recipe.toml"
    sections = {name: value for name, value in RECIPE.items() if isinstance(value, dict)}
    lines = [f"{name} = {json.dumps(value)}" for name, value in RECIPE.items() if name not in sections]
    for name, section in sections.items():
        lines += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in section.items())]
    recipe_file.write_text("\n".join(lines))
    arguments = [f"--set={setting}" for setting in (f"defects={defects}", f"output={s3_uri}")]
    job = ray_head.submit("jobs/train.py", str(recipe_file), *arguments)
    out, _ = job.communicate(timeout=300)
    assert job.returncode == 0, out
    assert f"{s3_uri}/checkpoints/000000024: objective" in out
    assert TrainingFolder(s3_uri).checkpoints()[-1] == 24
