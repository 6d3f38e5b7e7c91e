"""What bounds a run, and how it is best spread: a small model of what a normal costs in each stage.

Stages overlap, so a run is as fast as the scarcest of accelerators, cores and the storage's answers. An actor
works in turns on its core and on its accelerator; several share an accelerator that one alone would leave idle.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from raygen.checkpoint import Checkpoint
from raygen.families import family_of
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.show import duration

ENOUGH = 0.95
"""Share of its time that an accelerator shall work."""
_MOST_ACTORS = 8  # on one accelerator: each holds a replica of the model
_MOST_FOR_ACTORS = 0.8  # of the cores: the others read and write
_STEP = 0.05  # of logical CPUs
_SHARD_SECONDS = 5.0  # of a core's work in a shard
_SHARD_BYTES = 2**27  # of a shard at rest, at most
_SHARDS_PER_CORE = 8


class Costs(NamedTuple):
    """What one normal and its samples take, in seconds."""

    read: float
    """Of a core: to fetch, hash and decode."""
    generate: float
    """Of a core, in the actor: all that is not the accelerator's work."""
    accelerator: float
    """Of an accelerator; 0 where there is none."""
    write: float
    """Of a core: to encode, hash and pack."""
    wait: float = 0.0
    """For storage, of one task that reads: neither a core nor an accelerator works."""

    @property
    def core(self) -> float:
        """Of a core, all stages together."""
        return self.read + self.generate + self.write


@dataclass(frozen=True)
class Sizing:
    """How fast so many cores and accelerators are, at most, and what holds them back."""

    costs: Costs
    num_cores: float
    num_accelerators: float
    smallest_task: float = _STEP  # logical CPUs: the recipe's, or as little as a task that waits may reserve

    @property
    def by_cores(self) -> float:
        """Normals a second that the cores can read, generate and write."""
        return self.num_cores / self.costs.core

    @property
    def by_accelerators(self) -> float:
        """Normals a second that the accelerators can compute; infinite without any."""
        return self.num_accelerators / self.costs.accelerator if self.costs.accelerator else math.inf

    @property
    def by_storage(self) -> float:
        """Normals a second that as many tasks as can be read at once, each waiting as long as the one that was
        measured; infinite where none waits. The storage may have less to give."""
        waits = self.costs.read + self.costs.wait
        return self.num_cores / self.smallest_task / waits if self.costs.wait else math.inf

    @property
    def rate(self) -> float:
        """Normals a second."""
        return min(self.by_cores, self.by_accelerators, self.by_storage)

    @property
    def knee(self) -> float:
        """The number of accelerators beyond which the cores cannot keep them busy."""
        return self.by_cores * self.costs.accelerator

    @property
    def bound(self) -> str:
        """What more of would help first: accelerators, storage, or the stage that takes most of the cores."""
        if self.by_accelerators == self.rate:
            return "accelerators"
        if self.by_storage == self.rate:
            return "storage"
        stages = {
            "decoding": self.costs.read,
            "generating": self.costs.generate,
            "encoding": self.costs.write,
        }
        return f"cores, most of all for {max(stages, key=lambda name: stages[name])}"

    @property
    def actors_per_accelerator(self) -> int:
        """So many that one works while others are on their cores."""
        own, computing = self.costs.generate, self.costs.accelerator
        if not computing or computing / (own + computing) >= ENOUGH:
            return 1
        return min(_MOST_ACTORS, math.ceil((own + computing) / computing))

    def normals_per_shard(self, num_normals: int, num_bytes: float) -> int:
        """How many make a good shard, as a power of two: work enough that Ray's and the storage's share of it is
        small, little enough that a lost one costs little, a reader can hold a file, and all cores have some to do
        until the end.

        Args:
            num_normals: of the run.
            num_bytes: of one normal's samples at rest.
        """
        by_work = _SHARD_SECONDS / self.costs.core
        by_size = _SHARD_BYTES / num_bytes
        by_share = num_normals / (_SHARDS_PER_CORE * self.num_cores)
        return 2 ** max(0, math.floor(math.log2(max(1.0, min(by_work, by_size, by_share)))))

    def compute(self, given: ComputeConfig) -> ComputeConfig:
        """A recipe's wishes, and the best of what they leave open.

        Args:
            given: what it sets, stays.
        """
        cores_for_actors = self.rate * self.costs.generate
        gpus_per_actor = given.gpus_per_actor
        if not self.costs.accelerator:
            wanted = math.ceil(cores_for_actors - _STEP)  # an actor computes on one thread
            gpus_per_actor = gpus_per_actor or 0.0
        elif gpus_per_actor:
            wanted = math.floor(self.num_accelerators / gpus_per_actor)
        else:
            wanted = math.floor(self.num_accelerators) * self.actors_per_accelerator
            if gpus_per_actor is None:
                share = min(1.0, self.num_accelerators / (given.num_actors or wanted))
                gpus_per_actor = math.floor(100 * share) / 100
        if given.cpus_per_actor:
            room = (self.num_cores - (given.cpus_per_task or _STEP)) / given.cpus_per_actor
            wanted = min(wanted, math.floor(room))
        num_actors = given.num_actors or max(1, wanted)
        per_actor = given.cpus_per_actor or _rounded(
            min(
                1.0,
                _MOST_FOR_ACTORS * self.num_cores / num_actors,
                cores_for_actors / num_actors,
                (self.num_cores - (given.cpus_per_task or _STEP)) / num_actors,
            )
        )
        # As many tasks as cores: more would crowd them. One that waits for storage leaves its core to others.
        left = max(0.0, self.num_cores - num_actors * per_actor)
        busy = self.costs.read + self.costs.write
        share = busy / (busy + self.costs.wait)
        per_task = given.cpus_per_task or _rounded(min(1.0, left / self.num_cores * share))
        proposed = {
            "num_actors": num_actors,
            "gpus_per_actor": gpus_per_actor,
            "cpus_per_actor": per_actor,
            "cpus_per_task": per_task,
        }
        return given.model_copy(update=proposed)

    def describe(self, num_normals: int, num_samples: int) -> list[str]:
        """Lines for the user.

        Args:
            num_normals: of the run.
            num_samples: of one normal.
        """
        costs, cores = self.costs, f"{self.num_cores:g} cores"
        stages = {"read": costs.read, "generate": costs.generate, "write": costs.write}
        text = ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in stages.items())
        lines = [f"one normal takes of a core: {text}, with all of the machine at work"]
        if costs.wait > 0.1 * costs.core:
            lines.append(f"and {1000 * costs.wait:.2f} ms of waiting for storage, of a task that reads")
        if costs.accelerator:
            lines.append(
                f"and {1000 * costs.accelerator:.2f} ms of an accelerator: {cores} keep {self.knee:.1f} busy, "
                f"each wants {costs.core / costs.accelerator:.1f} cores"
            )
        have = f"{cores}, {self.num_accelerators:g} accelerators" if costs.accelerator else cores
        lines.append(
            f"so {have}: {self.rate:,.0f} normals ({self.rate * num_samples:,.0f} samples) a second, "
            f"{duration(num_normals / self.rate)} in all; the bound: {self.bound}"
        )
        return lines


def wishes(config: GenerateConfig, checkpoint: Checkpoint) -> ComputeConfig:
    """What the recipe wishes; and no GPUs, where it does not say, for a family that would leave them idle."""
    leaves_gpus = not family_of(checkpoint).uses_gpus and not config.gate.judge
    if config.compute.gpus_per_actor is None and leaves_gpus:
        return config.compute.model_copy(update={"gpus_per_actor": 0.0})
    return config.compute


def _rounded(cpus: float) -> float:
    """Down to whole steps, of which Ray can add up many; at least one."""
    return max(_STEP, round(math.floor(cpus / _STEP + 1e-9) * _STEP, 2))
