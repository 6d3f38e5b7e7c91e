"""Who gets how many CPUs and GPUs, decided without a cluster."""

import pytest

from raygen.errors import UserError
from raygen.generate.config import ComputeConfig
from raygen.resources import Resources, plan_resources


def plan(cpus: float, gpus: float = 0, shards: int = 1000, **wishes) -> Resources:
    return plan_resources(ComputeConfig(**wishes), [{"CPU": cpus, "GPU": gpus}], shards)


def test_defaults_use_the_cluster_and_leave_room() -> None:
    assert plan(2) == Resources(2, 0.75, 0, 0.25, share_left=0.25)
    assert plan(64) == Resources(64, 0.75, 0, 0.25, share_left=0.25)
    assert plan(64, gpus=8) == Resources(8, 1, 1, 1, share_left=7 / 8)
    assert plan(64, gpus=8, gpus_per_actor=0.5).num_actors == 16
    assert plan(64, gpus=8, gpus_per_actor=0).num_actors == 64


def test_actors_for_the_nodes_that_may_come() -> None:
    head, worker = {"CPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}
    limits = {"nodes": 8, "cpus": 16, "gpus": 4}
    compute = ComputeConfig.model_validate({"autoscaling": limits})
    alone = plan_resources(compute, [head], 1000)
    assert alone == Resources(32, 1, 1, 1, num_coming=8, share_left=100 / 132)
    assert alone.describe(1) == "32 actors of 1 GPU and 1 CPU, on 1 node and up to 8 that may come"
    assert plan_resources(compute, [head, worker, worker], 1000).num_coming == 6
    assert plan_resources(compute, [head] + 9 * [worker], 1000).num_actors == 36, "more than it was said"
    with pytest.raises(UserError, match=r"has 0 GPUs; add a GPU node, say in compute\.autoscaling"):
        plan_resources(ComputeConfig(gpus_per_actor=1), [head], 1000)


@pytest.mark.parametrize("cpus", [1, 2, 3, 8, 9, 64])
@pytest.mark.parametrize("gpus", [0, 1])
def test_a_reader_and_a_writer_find_room_beside_the_actors(cpus: float, gpus: float) -> None:
    if cpus > gpus:
        found = plan(cpus, gpus)
        assert found.num_actors * found.cpus_per_actor + 2 * found.cpus_per_task <= cpus
        assert found.cpus_per_task > 0


def test_no_more_actors_than_shards() -> None:
    assert plan(64, shards=3).num_actors == 3
    assert plan(64, shards=0).num_actors == 1


@pytest.mark.parametrize(
    ("cpus", "gpus", "wishes"),
    [
        (2, 0, {"num_actors": 2, "cpus_per_actor": 1}),  # the three that hang, as measured
        (2, 0, {"num_actors": 1, "cpus_per_actor": 2}),
        (1, 0, {"num_actors": 1, "cpus_per_actor": 1}),
        (8, 8, {}),
        (8, 4, {"num_actors": 5, "gpus_per_actor": 0.75}),  # a part of an actor's GPU does not lie on another
        (0, 0, {}),
    ],
)
def test_a_cluster_that_would_hang_is_refused(cpus: float, gpus: float, wishes: dict) -> None:
    with pytest.raises(UserError, match=r"do not fit on the cluster.*lower compute\.num_actors"):
        plan(cpus, gpus, **wishes)


def test_gpus_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="the cluster has 0 GPUs; add a GPU node, say"):
        plan(8, gpus_per_actor=1)
    with pytest.raises(UserError, match="3 actors of 1 CPUs and 1 GPUs"):
        plan(8, gpus=2, num_actors=3)


def test_actors_do_not_straddle_nodes() -> None:
    small = [{"CPU": 4.0}] * 4
    with pytest.raises(UserError, match="do not fit"):
        plan_resources(ComputeConfig(num_actors=1, cpus_per_actor=8), small, 100)
    gpus = [{"CPU": 32.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    assert plan_resources(ComputeConfig(), gpus, 100)[:4] == (8, 1, 1, 1)
    assert plan_resources(ComputeConfig(gpus_per_actor=0.75), gpus, 100).num_actors == 8
    assert Resources(8, 1, 1, 1).describe(3) == "8 actors of 1 GPU and 1 CPU, on 3 nodes"


def test_readers_and_actors_never_ask_for_the_same() -> None:
    """Ray Data would fuse them, and decode inside the actor."""
    resources = plan(8, num_actors=2, cpus_per_actor=1, cpus_per_task=1)
    assert resources.cpus_per_task != resources.cpus_per_actor
