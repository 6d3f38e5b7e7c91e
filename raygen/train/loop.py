"""The training loop: iterations to the end of the recipe. Knows nothing of Ray or of storage."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

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

_FETCH_EVERY = 16  # iterations


class Watcher(Protocol[T_contra]):
    """Who is told how a training goes."""

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        """Of every iteration, in order: its losses by name, means over all processes; some iterations late."""
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
    fetch_every: int | None = None,
) -> None:
    """Trains to the end of the recipe.

    Args:
        training: where it begins, or goes on.
        step: moves `training` on by one batch of all processes, and returns this process's terms.
        batches: this process's shares, from `training.images_seen` on.
        config: of the training.
        world: of the processes.
        watcher: is told how it goes.
        fetch_every: so many iterations' losses are fetched at once, since each fetch waits until the device has
            done all that it was given. Default: 1 on a CPU, else 16.

    Raises:
        DivergedError: a term is not finite (seen when it is fetched) or, at a checkpoint, a weight; in all
            processes, at the same image.
        DeadError: `stop_when_dead`, and the watcher of one process says so at a checkpoint; in all processes.
    """
    waiting: list[_Iteration] = []
    while training.images_seen < config.images:
        number = training.images_seen
        terms = step(next(batches))
        means = world.mean(torch.stack(list(terms.values())))
        seen, every = training.images_seen, config.checkpoint_every
        is_due = seen // every > number // every or seen >= config.images
        waiting.append(_Iteration(number, seen, tuple(terms), means))
        if is_due or len(waiting) >= (fetch_every or (1 if means.device.type == "cpu" else _FETCH_EVERY)):
            _tell(waiting, watcher)
            waiting = []
        if is_due:
            if not training.is_finite():
                raise DivergedError(f"a weight is not finite at image {seen:,}")
            cause = watcher.checkpoint(training)
            # One process may know: the others wait here until it has looked.
            if config.stop_when_dead and world.any(bool(cause), terms[next(iter(terms))].device):
                raise DeadError(cause or "another process says so")


class _Iteration(NamedTuple):
    """Losses that have not been fetched yet."""

    number: int  # of its first image
    images_seen: int  # after it
    names: tuple[str, ...]
    means: torch.Tensor  # (names,), on the device


def _tell(iterations: Sequence[_Iteration], watcher: Watcher[Any]) -> None:
    """Fetches losses, all at once; raises DivergedError at the first that is not finite."""
    values = iter(torch.cat([one.means for one in iterations]).tolist())
    for one in iterations:
        losses = {name: next(values) for name in one.names}
        for name, value in losses.items():
            if not math.isfinite(value):
                raise DivergedError(f"the loss {name} is {value} at image {one.number:,}")
        watcher.note(one.images_seen, losses)
