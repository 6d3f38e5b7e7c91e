"""The training loop: iterations to the end of the recipe. Knows nothing of Ray or of storage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.distributed as dist

from raygen.train.batches import Batch
from raygen.train.config import TrainConfig
from raygen.train.dtgan import Networks, Training, iterate


class DivergedError(Exception):
    """A loss, or a weight, is not finite any more."""


@dataclass(frozen=True)
class World:
    """This process among those of a data-parallel training."""

    rank: int = 0
    size: int = 1

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """The mean over all processes, the same on each."""
        if self.size > 1:
            dist.all_reduce(values)
        return values / self.size

    def numbers(self, images_seen: int, config: TrainConfig) -> range:
        """The numbers of this process's images in the next iteration."""
        first = images_seen + self.rank * config.batch_per_worker
        return range(first, first + config.batch_per_worker)


class Watcher(Protocol):
    """Who is told how a training goes."""

    def note(self, training: Training, losses: dict[str, float]) -> None:
        """After every iteration: its losses by name, means over all processes."""
        ...

    def checkpoint(self, training: Training) -> None:
        """When a checkpoint is due, and at the end."""
        ...


def train(
    training: Training,
    wrapped: Networks,
    batches: Iterator[Batch],
    config: TrainConfig,
    world: World,
    watcher: Watcher,
) -> None:
    """Trains to the end of the recipe.

    Args:
        training: where it begins, or goes on.
        wrapped: its networks, wrapped for DDP where there are several processes.
        batches: this process's shares, from `training.images_seen` on.
        config: of the training.
        world: of the processes.
        watcher: is told how it goes.

    Raises:
        DivergedError: a term is not finite or, at a checkpoint, a weight; in all processes, at the same image.
    """
    batch_size = config.batch_per_worker * world.size
    device = next(training.networks.mapping.parameters()).device
    while training.images_seen < config.images:
        number = training.images_seen
        terms = iterate(training, wrapped, next(batches).to(device), config, batch_size)
        means = world.mean(torch.stack(list(terms.values()))).tolist()
        losses = dict(zip(terms, means, strict=True))
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(f"the loss {name} is {value} at image {number:,}")
        watcher.note(training, losses)
        seen, every = training.images_seen, config.checkpoint_every
        if seen // every > number // every or seen >= config.images:
            if not training.is_finite():
                raise DivergedError(f"a weight is not finite at image {seen:,}")
            watcher.checkpoint(training)
