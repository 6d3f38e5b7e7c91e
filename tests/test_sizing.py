"""What bounds a run: the model by hand and by properties, the probe on real stages, actors that simulate."""

import itertools
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from factories import write_pool

from raygen import accelerator
from raygen.checkpoint import load_checkpoint
from raygen.cli import main
from raygen.errors import UserError
from raygen.generate import on_ray
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.job import dry_run
from raygen.generate.plan import draft_run, open_run
from raygen.generate.probe import probe
from raygen.generate.sizing import ENOUGH, Costs, Sizing
from raygen.resources import plan_resources

MS = 1e-3
ON_GPU = Costs(read=1 * MS, generate=1 * MS, accelerator=4 * MS, write=2 * MS)
ON_CPU = Costs(read=0.5 * MS, generate=20 * MS, accelerator=0.0, write=1.5 * MS)


# -------------------------------------------------------------------------------------------- the model


def test_one_gpu_and_its_cores_by_hand() -> None:
    starved, fed = Sizing(ON_GPU, num_cores=0.5, num_accelerators=1), Sizing(ON_GPU, 16, 1)
    assert fed.by_accelerators == pytest.approx(250)
    assert fed.by_cores == pytest.approx(4000)
    assert (fed.rate, fed.bound) == (pytest.approx(250), "accelerators")
    assert fed.knee == pytest.approx(16)  # 4 ms of each core's time for 4 ms of an accelerator's
    assert starved.rate == pytest.approx(125)
    assert starved.bound == "cores, most of all for encoding"


def test_an_accelerator_that_one_actor_would_leave_idle_is_shared() -> None:
    """One actor works on it four fifths of its time; of two, one works while the other is on its core."""
    sizing = Sizing(ON_GPU, 16, 2)
    assert sizing.actors_per_accelerator == 2
    compute = sizing.compute(ComputeConfig())
    assert (compute.num_actors, compute.gpus_per_actor) == (4, 0.5)
    assert Sizing(ON_GPU._replace(generate=0.1 * MS), 16, 2).actors_per_accelerator == 1
    assert (
        Sizing(ON_GPU._replace(generate=100 * MS), 16, 2).actors_per_accelerator == 8
    )  # memory ends somewhere


def test_on_cpus_actors_get_the_share_of_the_cores_that_generating_takes() -> None:
    compute = Sizing(ON_CPU, 2, 1).compute(ComputeConfig())
    assert compute == ComputeConfig(num_actors=2, gpus_per_actor=0, cpus_per_actor=0.8, cpus_per_task=0.2)
    encoding = Sizing(ON_CPU._replace(generate=0.2 * MS), 8, 1).compute(ComputeConfig())
    assert encoding.num_actors == 1
    assert encoding.cpus_per_task == pytest.approx(0.9)


def test_a_task_that_waits_for_storage_leaves_its_core_to_others() -> None:
    local, far = (Sizing(ON_CPU._replace(wait=wait), 16, 1).compute(ComputeConfig()) for wait in (0, 6 * MS))
    assert far.cpus_per_task is not None
    assert local.cpus_per_task is not None
    assert far.cpus_per_task == pytest.approx(local.cpus_per_task / 4, abs=0.05)


def test_storage_that_lets_all_tasks_wait_is_the_bound() -> None:
    """Twenty tasks a core, each waiting for 2 s: 20 normals in 2 s for each of the two cores."""
    sizing = Sizing(Costs(read=0.0, generate=1 * MS, accelerator=0.0, write=1 * MS, wait=2.0), 2, 1)
    assert (sizing.rate, sizing.bound) == (pytest.approx(20), "storage")
    assert sizing.compute(ComputeConfig()).cpus_per_task == 0.05
    assert Sizing(ON_CPU._replace(wait=0.01), 2, 1).bound == "cores, most of all for generating"


@pytest.mark.parametrize(
    ("costs", "nodes", "given"),
    [
        (ON_GPU, [{"CPU": 8.0, "GPU": 1.0}], {"gpus_per_actor": 1.0}),
        (ON_GPU, [{"CPU": 64.0, "GPU": 8.0}], {"num_actors": 2}),
        (ON_GPU, [{"CPU": 8.0, "GPU": 2.0}], {"cpus_per_task": 1.0}),
        (ON_CPU, [{"CPU": 8.0}], {"cpus_per_actor": 1.0}),
        (ON_CPU, [{"CPU": 2.0}], {"cpus_per_task": 1.0}),
    ],
)
def test_what_is_given_is_taken_into_account(
    costs: Costs, nodes: list[dict[str, float]], given: dict
) -> None:
    cores, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    compute = Sizing(costs, cores, gpus).compute(ComputeConfig(**given))
    assert compute.model_dump(include=set(given)) == given
    plan_resources(compute, nodes, num_items=1000)  # fits
    if "num_actors" in given:
        assert compute.gpus_per_actor == 1  # not two actors on one of eight GPUs


def test_what_the_recipe_says_stays() -> None:
    given = ComputeConfig(num_actors=3, gpus_per_actor=0.25, cpus_per_task=0.5, read_threads=2)
    compute = Sizing(ON_GPU, 16, 1).compute(given)
    assert compute.model_copy(update={"cpus_per_actor": None}) == given
    assert compute.cpus_per_actor is not None


@pytest.mark.parametrize(
    ("core", "num_bytes", "num_normals", "wanted"),
    [
        (2 * MS, 6e3, 1_000_000, 2048),  # thumbnails: 5 s of a core
        (100 * MS, 4e6, 1_000_000, 32),  # large photographs: 128 MB
        (2 * MS, 6e3, 1_000, 16),  # few: some for every core until the end
        (2 * MS, 6e3, 3, 1),
        (10.0, 1e9, 1_000, 1),
    ],
)
def test_a_good_shard(core: float, num_bytes: float, num_normals: int, wanted: int) -> None:
    costs = Costs(read=core / 2, generate=0.0, accelerator=0.0, write=core / 2)
    assert Sizing(costs, 4, 1).normals_per_shard(num_normals, num_bytes) == wanted


def machines(count: int = 500) -> Iterator[Sizing]:
    """Sizings of all orders of magnitude, with accelerators and without."""
    random = np.random.default_rng(0)
    for _ in range(count):
        read, generate, device, write, wait = 10 ** random.uniform(-5, 0, size=5)
        device *= random.random() < 0.7
        gpus = int(random.integers(1, 9))
        cores = int(random.integers(2 * gpus, 129))  # no machine with fewer is for sale
        yield Sizing(Costs(read, generate, device, write, wait * (random.random() < 0.5)), cores, gpus)


def test_what_is_proposed_fits_into_the_cluster() -> None:
    for sizing in machines():
        compute = sizing.compute(ComputeConfig())
        gpus = sizing.num_accelerators if sizing.costs.accelerator else 0.0
        resources = plan_resources(compute, [{"CPU": sizing.num_cores, "GPU": gpus}], num_items=10_000)
        assert resources.num_actors == compute.num_actors
        assert resources.num_actors * resources.cpus_per_actor + resources.cpus_per_task <= sizing.num_cores


def test_more_of_what_bounds_a_run_makes_it_faster_and_more_of_the_other_does_not() -> None:
    for sizing in machines():
        cores = replace(sizing, num_cores=sizing.num_cores + 1)
        accelerators = replace(sizing, num_accelerators=sizing.num_accelerators + 1)
        by_accelerators = sizing.bound == "accelerators"
        more, other = (accelerators, cores) if by_accelerators else (cores, accelerators)
        assert more.rate > sizing.rate
        assert other.rate == sizing.rate
        computing = sizing.costs.accelerator
        if computing and sizing.bound != "storage":
            assert by_accelerators == (sizing.num_accelerators <= sizing.knee)
        if computing and sizing.actors_per_accelerator < 8:
            assert sizing.actors_per_accelerator * computing / (computing + sizing.costs.generate) >= ENOUGH


# -------------------------------------------------------------------------------------------- the probe


def config_of(folder: Path, checkpoint: str, **changes: object) -> GenerateConfig:
    places = {"pool": f"{folder}/pool", "output": f"{folder}/out", "checkpoint": checkpoint}
    return GenerateConfig.model_validate({**places, **changes})


def test_a_simulated_accelerator_takes_its_time_and_leaves_the_core_alone(tmp_path: Path) -> None:
    write_pool(f"{tmp_path}/pool", 16, size=64)
    config = config_of(tmp_path, "null:64x1@5", micro_batch=3)
    checkpoint = load_checkpoint(config.checkpoint)
    run = draft_run(config, checkpoint, tmp_path / "plan.parquet", lambda _: None)
    found = probe(config, run, checkpoint, seconds=1.0)
    assert found is not None
    assert 19.9 * MS < found.costs.accelerator < 40 * MS  # 4 samples of 5 ms; sleepers wake late, never early
    for cost in (found.costs.read, found.costs.generate, found.costs.write):
        assert 0 < cost < found.costs.accelerator
    assert found.num_bytes > 4 * 100
    assert not (tmp_path / "out").exists()
    assert set(found.faster_at) == {12}  # as fast as the recipe's, so that none larger is tried
    assert found.faster_at[12] == pytest.approx(1, abs=0.3)


def test_accelerators_work_for_as_long_as_they_are_simulated_and_threads_have_their_own() -> None:
    started = time.perf_counter()
    seconds = accelerator.seconds_of(lambda: accelerator.simulate(0.05))
    assert 0.05 <= seconds <= time.perf_counter() - started
    other = Thread(target=accelerator.simulate, args=(0.02,))
    assert accelerator.seconds_of(lambda: (other.start(), other.join())) == 0


def test_the_dry_run_says_the_bound_and_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raygen.generate.job.probe", partial(probe, seconds=0.2))
    write_pool(f"{tmp_path}/pool", 3)
    said: list[str] = []
    dry_run(config_of(tmp_path, "null:32x1@30", compute={"num_actors": 2}), said.append)
    text = "\n".join(said)
    assert "ms of an accelerator: " in text
    assert "2 accelerators: " in text
    assert "the bound: accelerators" in text
    assert "compute = {num_actors = 2, gpus_per_actor = 0, cpus_per_actor = " in text
    dry_run(config_of(tmp_path, "null:32x1"), said.append)
    assert "the bound: cores, most of all for " in said[-2]


def test_auto_is_short_for_a_table_with_it() -> None:
    places = {"pool": "p", "output": "o", "checkpoint": "null:32x1"}
    assert GenerateConfig.model_validate({**places, "compute": "auto"}).compute == ComputeConfig(auto=True)
    assert not GenerateConfig.model_validate(places).compute.auto
    with pytest.raises(ValueError, match="compute"):
        GenerateConfig.model_validate({**places, "compute": "automatic"})


@pytest.mark.parametrize("uri", ["null:32x1@", "null:32x1@fast", "null:32x1@-1"])
def test_milliseconds_that_are_none_are_refused(uri: str) -> None:
    with pytest.raises(UserError, match="write null:SIZExCHANNELS"):
        load_checkpoint(uri)


# ------------------------------------------------------------------------------------------ real actors


@pytest.mark.slow
def test_simulated_accelerators_are_busy_while_the_cores_can_feed_them(
    tmp_path: Path, ray_cluster: None
) -> None:
    """Four of them, well below the knee: each works nearly all the time, as the dry run says."""
    write_pool(f"{tmp_path}/pool", 256, size=32)
    config = config_of(
        tmp_path,
        "null:32x1@20",
        normals_per_shard=16,
        compute={"auto": True, "num_actors": 4, "gpus_per_actor": 0},
    )
    checkpoint = load_checkpoint(config.checkpoint)
    said: list[str] = []
    on_ray.run_shards(config, open_run(config, checkpoint), checkpoint, said.append)
    assert any("the bound: accelerators" in line for line in said)
    marks = sorted(path.stat().st_mtime for path in Path(config.output, "shards").glob("*.json"))
    later = marks[len(marks) // 2 :]  # by then all actors have started
    rate = 16 * (len(later) - 1) / (later[-1] - later[0])  # normals a second
    assert rate * 80 * MS / 4 > 0.75  # 80 ms a normal; waves of four blur both ends


@pytest.mark.slow
def test_auto_runs_as_a_user_would_start_it(tmp_path: Path, ray_cluster: None) -> None:
    write_pool(f"{tmp_path}/pool", 8)
    settings = [f"pool={tmp_path}/pool", f"output={tmp_path}/out", "checkpoint=null:32x1", "compute=auto"]
    assert main(["generate", *itertools.chain(*(("--set", setting) for setting in settings))]) == 0
    assert main(["verify", f"{tmp_path}/out"]) == 0
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["num_samples"] == 24 * 4
