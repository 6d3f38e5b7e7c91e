"""A worker for each GPU; what does not fit is refused with a line."""

import pytest

from raygen.errors import UserError
from raygen.families.recipes import TrainComputeConfig
from raygen.train.workers import Workers, plan_workers

GPU_NODE, CPU_NODE = {"CPU": 16.0, "GPU": 4.0}, {"CPU": 8.0}


@pytest.mark.parametrize(
    ("wishes", "nodes", "wanted"),
    [
        ({}, [GPU_NODE, GPU_NODE, CPU_NODE], Workers(8, 1, 1)),
        ({}, [CPU_NODE], Workers(1, 1, 0)),
        ({"num_workers": 2}, [CPU_NODE], Workers(2, 1, 0)),
        ({"num_workers": 2}, [GPU_NODE], Workers(2, 1, 1)),
        ({"gpus_per_worker": 0.5}, [GPU_NODE], Workers(8, 1, 0.5)),
        ({"gpus_per_worker": 0}, [GPU_NODE], Workers(1, 1, 0)),
        ({"cpus_per_worker": 8}, [GPU_NODE], Workers(2, 8, 1)),
    ],
)
def test_workers_are_planned(wishes: dict, nodes: list[dict], wanted: Workers) -> None:
    assert plan_workers(TrainComputeConfig(**wishes), nodes) == wanted


@pytest.mark.parametrize(
    "wishes", [{"num_workers": 9}, {"gpus_per_worker": 1}, {"cpus_per_worker": 9}, {"gpus_per_worker": 8}]
)
def test_workers_that_do_not_fit_are_refused(wishes: dict) -> None:
    with pytest.raises(UserError, match="do not fit on the cluster's 1 nodes"):
        plan_workers(TrainComputeConfig(**wishes), [CPU_NODE])
