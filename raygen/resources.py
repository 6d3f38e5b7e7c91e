"""Who gets how many CPUs and GPUs: settled before the chain starts, since Ray Data waits in silence for ever
when its actors leave no CPU for its tasks."""

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from raygen.config import ActorPoolConfig, AutoscalingConfig
from raygen.errors import UserError


def num_cores() -> int:
    """Of this machine, as far as this process, or its container, may use them; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):  # no cgroup v2, or no limit
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, int(quota) // int(period))
    return max(1, cores)


class Resources(NamedTuple):
    """The chain's share of the cluster, in Ray's logical units."""

    num_actors: int
    cpus_per_actor: float
    gpus_per_actor: float
    cpus_per_task: float
    num_coming: int = 0  # nodes that are not there yet
    share_left: float = 1.0  # of the CPUs, by the actors

    def describe(self, num_nodes: int) -> str:
        """`8 actors of 1 GPU and 1 CPU, on 2 nodes and up to 6 that may come`"""
        gpus = f"{self.gpus_per_actor:g} GPU and " if self.gpus_per_actor else "no GPU and "
        nodes = f"{num_nodes} node" + ("s" if num_nodes > 1 else "")
        coming = f" and up to {self.num_coming} that may come" if self.num_coming else ""
        return f"{self.num_actors} actors of {gpus}{self.cpus_per_actor:g} CPU, on {nodes}{coming}"


def plan_resources(
    compute: ActorPoolConfig, nodes: Sequence[Mapping[str, float]], num_items: int
) -> Resources:
    """Fills in what the recipe leaves open.

    Args:
        compute: the recipe's wishes.
        nodes: each living node's resources, as `ray.nodes()` tells them.
        num_items: shards, say, to do; more actors would be idle.

    Raises:
        UserError: actors and one task do not fit together.
    """
    coming = coming_nodes(compute.autoscaling, nodes)
    nodes = [*nodes, *coming]
    cpus, gpus = (sum(node.get(kind, 0.0) for node in nodes) for kind in ("CPU", "GPU"))
    gpus_per_actor = compute.gpus_per_actor
    if gpus_per_actor is None:
        gpus_per_actor = 1.0 if gpus else 0.0
    if gpus_per_actor > gpus:
        raise UserError(
            f"compute.gpus_per_actor = {gpus_per_actor:g}, and the cluster has {gpus:g} GPUs; "
            "add a GPU node, say in compute.autoscaling which may come, or set 0"
        )
    on_gpu = gpus_per_actor > 0
    cpus_per_actor = compute.cpus_per_actor or (1.0 if on_gpu else 0.75)
    cpus_per_task = compute.cpus_per_task or (1.0 if on_gpu else 0.25)

    def room(node: Mapping[str, float]) -> int:
        """How many actors one node can hold: they do not straddle nodes, nor parts of them GPUs."""
        by_cpu = int(node.get("CPU", 0.0) / cpus_per_actor)
        if not on_gpu:
            return by_cpu
        num_gpus = node.get("GPU", 0.0)
        by_gpu = (
            int(num_gpus) * int(1 / gpus_per_actor) if gpus_per_actor < 1 else int(num_gpus / gpus_per_actor)
        )
        return min(by_cpu, by_gpu)

    most = sum(map(room, nodes))
    wanted = compute.num_actors or max(1, most if on_gpu else int(cpus))
    num_actors = min(wanted, max(num_items, 1))
    if num_actors > most or num_actors * cpus_per_actor + cpus_per_task > cpus:
        gpu_share = f" and {gpus_per_actor:g} GPUs" if on_gpu else ""
        raise UserError(
            f"{num_actors} actors of {cpus_per_actor:g} CPUs{gpu_share}, and a task of {cpus_per_task:g} CPUs, "
            f"do not fit on the cluster's {len(nodes)} nodes ({cpus:g} CPUs, {gpus:g} GPUs); "
            "lower compute.num_actors, cpus_per_actor or cpus_per_task"
        )
    left = cpus - num_actors * cpus_per_actor
    if not compute.cpus_per_task:
        cpus_per_task = min(cpus_per_task, left / 2)  # one that reads and one that writes
    if not on_gpu and cpus_per_actor == cpus_per_task:
        # Ray Data fuses neighbours of equal resources, and would read inside the actor.
        cpus_per_task *= 0.99
    return Resources(num_actors, cpus_per_actor, gpus_per_actor, cpus_per_task, len(coming), left / cpus)


def coming_nodes(
    limits: AutoscalingConfig | None, nodes: Sequence[Mapping[str, float]]
) -> list[dict[str, float]]:
    """The nodes that an autoscaler may add to those that are there."""
    if limits is None:
        return []
    kind = {"CPU": limits.cpus, "GPU": limits.gpus}
    there = sum(all(node.get(name, 0.0) >= count for name, count in kind.items()) for node in nodes)
    return [kind] * max(0, limits.nodes - there)
