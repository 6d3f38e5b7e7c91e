"""Who gets how many CPUs and GPUs: settled before the chain starts, since Ray Data waits in silence for ever
when its actors leave no CPU for its tasks."""

from collections.abc import Mapping
from typing import NamedTuple

from raygen.config import ComputeConfig
from raygen.errors import UserError


class Resources(NamedTuple):
    """The chain's share of the cluster, in Ray's logical units."""

    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    cpus_per_task: float


def plan_resources(compute: ComputeConfig, cluster: Mapping[str, float], num_shards: int) -> Resources:
    """Fills in what the recipe leaves open.

    Args:
        compute: the recipe's wishes.
        cluster: `ray.cluster_resources()`.
        num_shards: shards to do; more actors would be idle.

    Raises:
        UserError: actors and one task do not fit together.
    """
    cpus, gpus = cluster.get("CPU", 0.0), cluster.get("GPU", 0.0)
    gpus_per_actor = compute.gpus_per_actor
    if gpus_per_actor is None:
        gpus_per_actor = 1.0 if gpus else 0.0
    if gpus_per_actor > gpus:
        raise UserError(
            f"compute.gpus_per_actor = {gpus_per_actor:g}, and the cluster has {gpus:g} GPUs; "
            "add a GPU node, or set 0"
        )
    on_gpu = gpus_per_actor > 0
    cpus_per_actor = compute.cpus_per_actor or (1.0 if on_gpu else 0.75)
    cpus_per_task = compute.cpus_per_task or (1.0 if on_gpu else 0.25)
    num_actors = compute.num_actors or max(1, int(gpus / gpus_per_actor if on_gpu else cpus))
    num_actors = min(num_actors, max(num_shards, 1))
    needed = num_actors * cpus_per_actor + cpus_per_task
    if needed > cpus:
        raise UserError(
            f"{num_actors} actors × {cpus_per_actor:g} CPUs leave no room for a task of {cpus_per_task:g} on a "
            f"cluster of {cpus:g} CPUs; lower compute.num_actors, cpus_per_actor or cpus_per_task"
        )
    if num_actors * gpus_per_actor > gpus:
        raise UserError(
            f"{num_actors} actors × {gpus_per_actor:g} GPUs are more than the cluster's {gpus:g}; "
            "lower compute.num_actors"
        )
    if not on_gpu and cpus_per_actor == cpus_per_task:
        # Ray Data fuses neighbours of equal resources, and would read inside the actor.
        cpus_per_task *= 0.99
    return Resources(num_actors, cpus_per_actor, gpus_per_actor, cpus_per_task)
