"""The training loop: iterations to the end of the recipe. Knows nothing of Ray or of storage."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist

from raygen.train.config import TrainingConfig

Terms = dict[str, torch.Tensor]
"""Name of a loss term -> its value before it is weighted, ()."""


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

    def average_gradients(self, parameters: Iterable[torch.Tensor]) -> None:
        """Gives every process the mean of all processes' gradients, as DDP does, by one exchange.

        For steps that leave parameters out (R1 does not reach D's last bias), on which DDP's own wrapper fails.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if self.size == 1 or not gradients:
            return
        flat = self.mean(torch.cat([gradient.flatten() for gradient in gradients]))
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def share(self, networks: Iterable[torch.nn.Module]) -> None:
        """Gives every process the first one's weights and buffers, as DDP does when it begins: what is drawn from
        one seed on two kinds of CPU may differ in its last bit, and would for ever."""
        if self.size > 1:
            for network in networks:
                for tensor in (*network.parameters(), *network.buffers()):
                    dist.broadcast(tensor.data, src=0)

    def numbers(self, images_seen: int, config: TrainingConfig) -> range:
        """The numbers of this process's images in the next iteration."""
        first = images_seen + self.rank * config.batch_per_worker
        return range(first, first + config.batch_per_worker)


class Training(Protocol):
    """All that changes while a training runs."""

    images_seen: int

    def state_dict(self) -> dict[str, Any]:
        """All of it, as tensors and plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        ...

    def is_finite(self) -> bool:
        """Whether all weights are."""
        ...


T = TypeVar("T", bound=Training)
T_contra = TypeVar("T_contra", bound=Training, contravariant=True)
B = TypeVar("B")


class Watcher(Protocol[T_contra]):
    """Who is told how a training goes."""

    def note(self, training: T_contra, losses: dict[str, float]) -> None:
        """After every iteration: its losses by name, means over all processes."""
        ...

    def checkpoint(self, training: T_contra) -> None:
        """When a checkpoint is due, and at the end."""
        ...


def train(
    training: T,
    step: Callable[[B], Terms],
    batches: Iterator[B],
    config: TrainingConfig,
    world: World,
    watcher: Watcher[T],
) -> None:
    """Trains to the end of the recipe.

    Args:
        training: where it begins, or goes on.
        step: moves `training` on by one batch of all processes, and returns this process's terms.
        batches: this process's shares, from `training.images_seen` on.
        config: of the training.
        world: of the processes.
        watcher: is told how it goes.

    Raises:
        DivergedError: a term is not finite or, at a checkpoint, a weight; in all processes, at the same image.
    """
    while training.images_seen < config.images:
        number = training.images_seen
        terms = step(next(batches))
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
