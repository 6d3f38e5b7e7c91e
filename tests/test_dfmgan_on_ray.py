"""DFM-GAN on real Ray and real S3: both stages, a run of seeds, and its defects back as a defect set."""

from typing import Any

import pytest
from training import metrics, worker_killed_after_a_checkpoint, write_defect_set

from raygen import storage
from raygen.checkpoint import JUDGE, load_checkpoint
from raygen.data.defects import list_defect_set
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.stylegan2.config import StyleGAN2TrainConfig
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.defect_set import write_defect_set as write_synthetic
from raygen.generate.job import CONTACT_SHEET, generate
from raygen.generate.verify import verify_run
from raygen.train.folder import TrainingFolder
from raygen.train.job import train

SIZES = {
    "image_size": 32,
    "channels": 1,
    "latent_dim": 8,
    "w_dim": 8,
    "channel_base": 256,
    "channel_max": 16,
}
TRANSFORMS = {"full_range": 40, "every": 1}  # augmentation takes part


@pytest.mark.usefixtures("ray_cluster", "s3_server")
def test_two_stages_and_a_run_from_s3_to_s3(s3_uri: str) -> None:
    """Stage 2 is trained by two processes, of which each sees half of every batch."""
    defects = storage.join(s3_uri, "defects")
    write_defect_set(defects)
    common: dict[str, Any] = {"defects": defects, "checkpoint_every": 8, "adaptive": TRANSFORMS}
    stage1 = StyleGAN2TrainConfig(
        output=storage.join(s3_uri, "stage-1"), images=16, batch_per_worker=4, model=SIZES, **common
    )
    train(stage1, lambda _: None)
    folder = TrainingFolder(stage1.output)
    assert folder.checkpoints() == [8, 16]
    assert JUDGE in load_checkpoint(stage1.output).files, "stage 2 goes on from D"

    said: list[str] = []
    stage2 = DFMGANTrainConfig(
        output=storage.join(s3_uri, "stage-2"),
        backbone=stage1.output,
        images=16,
        batch_per_worker=4,
        compute={"num_workers": 2, "cpus_per_worker": 0.5},  # type: ignore[arg-type]
        **common,
    )
    train(stage2, said.append)
    checkpoint = load_checkpoint(stage2.output)
    assert (checkpoint.config.family, checkpoint.config.images_seen) == ("dfmgan", 16)
    trained, frozen = checkpoint.tensors("generator.safetensors"), load_checkpoint(stage1.output)
    for name, value in frozen.tensors("generator.safetensors").items():
        assert trained[f"generator.{name}"].equal(value), f"{name} of the backbone has changed"
    train(stage2, said.append)
    assert said[-1] == f"{stage2.output} is complete: nothing to do"

    config = GenerateConfig(
        pool="seeds:100-106",
        output=storage.join(s3_uri, "run"),
        checkpoint=stage2.output,
        modes=("latent",),
        samples_per_cell=2,
        write_normals=True,
        normals_per_shard=4,
        compute=ComputeConfig(gpus_per_actor=0),
    )
    manifest = generate(config, said.append)
    assert manifest.num_samples == 6 * 5
    verify_run(config.output)
    assert storage.read(storage.join(config.output, CONTACT_SHEET))

    accepted = sum(cell.accepted for cell in manifest.cells if cell.defect_type != "normal")
    assert write_synthetic(config.output, storage.join(s3_uri, "synthetic")) == accepted
    if accepted:
        photos = list_defect_set(storage.join(s3_uri, "synthetic"), kinds=["defects"])
        assert len(photos) == accepted


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster", "s3_server")
def test_a_killed_worker_of_either_stage_costs_the_work_since_the_last_checkpoint(s3_uri: str) -> None:
    """The end is that of a training that nobody killed, probabilities and averages included."""
    write_defect_set(f"{s3_uri}/defects")
    common: dict[str, Any] = {
        "defects": f"{s3_uri}/defects",
        "adaptive": TRANSFORMS,
        "images": 64,
        "batch_per_worker": 4,
        "checkpoint_every": 8,
    }
    stage1 = StyleGAN2TrainConfig(output=f"{s3_uri}/stage-1", model=SIZES, **common)
    stage2 = DFMGANTrainConfig(output=f"{s3_uri}/stage-2", backbone=stage1.output, **common)
    for config in (stage1, stage2):
        train(config, lambda _: None)
        killed = config.model_copy(update={"output": f"{config.output}-killed"})
        with worker_killed_after_a_checkpoint(killed.output):
            train(killed, lambda _: None)
        assert metrics(killed.output) == metrics(config.output)
        ends = [
            load_checkpoint(output).tensors("generator.safetensors")
            for output in (config.output, killed.output)
        ]
        assert all(ends[1][name].equal(value) for name, value in ends[0].items())
