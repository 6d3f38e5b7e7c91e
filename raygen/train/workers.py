"""How many processes train, and with what: settled before Ray Train would wait in silence for room."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from raygen.errors import UserError
from raygen.families.recipes import TrainComputeConfig


class Workers(NamedTuple):
    """The training's share of the cluster, in Ray's logical units."""

    num_workers: int
    cpus_per_worker: float
    gpus_per_worker: float

    def describe(self) -> str:
        """`8 workers of 1 GPU and 1 CPU`"""
        gpus = f"{self.gpus_per_worker:g} GPU and " if self.gpus_per_worker else "no GPU and "
        return (
            f"{self.num_workers} worker{'s' * (self.num_workers > 1)} of {gpus}{self.cpus_per_worker:g} CPU"
        )


def plan_workers(compute: TrainComputeConfig, nodes: Sequence[Mapping[str, float]]) -> Workers:
    """Fills in what the recipe leaves open: a worker for each GPU of the cluster, or one without GPUs.

    Args:
        compute: the recipe's wishes.
        nodes: each living node's resources, as `ray.nodes()` tells them.

    Raises:
        UserError: the workers do not fit.
    """
    has_gpus = any(node.get("GPU", 0.0) for node in nodes)
    gpus = compute.gpus_per_worker if compute.gpus_per_worker is not None else float(has_gpus)
    cpus = compute.cpus_per_worker
    most = sum(
        int(min(node.get("CPU", 0.0) / cpus, node.get("GPU", 0.0) / gpus if gpus else float("inf")))
        for node in nodes
    )
    num_workers = compute.num_workers or (max(most, 1) if gpus else 1)
    if num_workers > most:
        share = f"{cpus:g} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        raise UserError(
            f"{num_workers} workers of {share} do not fit on the cluster's {len(nodes)} nodes, {most} would; "
            "lower compute.num_workers, cpus_per_worker or gpus_per_worker, or add nodes"
        )
    return Workers(num_workers, cpus, gpus)
