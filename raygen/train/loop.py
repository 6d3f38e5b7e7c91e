"""The training loop: iterations to the end of the recipe. Knows nothing of Ray or of storage."""

import math
from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar

import torch

from raygen.families.recipes import TrainingConfig
from raygen.families.world import Terms, Training, World


class StoppedError(Exception):
    """A training that had better not go on; says why, and what to do."""


class DivergedError(StoppedError):
    """A loss, or a weight, is not finite any more."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"{cause}; lower the learning rates in another output")


class DeadError(StoppedError):
    """Its vital signs say that it will come to nothing."""

    def __init__(self, cause: str) -> None:
        super().__init__(f"{cause}, in another output; or go on with stop_when_dead = false")


T = TypeVar("T", bound=Training)
T_contra = TypeVar("T_contra", bound=Training, contravariant=True)
B = TypeVar("B")


class Watcher(Protocol[T_contra]):
    """Who is told how a training goes."""

    def note(self, training: T_contra, losses: dict[str, float]) -> None:
        """After every iteration: its losses by name, means over all processes."""
        ...

    def checkpoint(self, training: T_contra) -> str | None:
        """When a checkpoint is due, and at the end; returns why the training is dead, if it is."""
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
        DeadError: `stop_when_dead`, and the watcher of one process says so at a checkpoint; in all processes.
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
            cause = watcher.checkpoint(training)
            # One process may know: the others wait here until it has looked.
            if config.stop_when_dead and world.any(bool(cause), terms[next(iter(terms))].device):
                raise DeadError(cause or "another process says so")
