"""What a model family brings to a training; loop, folder, recorder and Ray Train are the same for all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
from torch import Tensor, device

from raygen.checkpoint import Reference
from raygen.train.folder import TrainingRun
from raygen.train.loop import Terms, Training, World
from raygen.train.photos import DefectSet

Fields = dict[str, np.ndarray]
"""A process's share of a batch, before it becomes tensors."""

MakeBatch = Callable[[Sequence[int]], Fields]
"""Numbers of images -> what the networks see of them; can be pickled."""

T = TypeVar("T", bound=Training)


@dataclass(frozen=True)
class Contents:
    """What a family puts into a checkpoint."""

    model: dict[str, Any]  # its sizes
    image_size: int
    channels: int
    tensors: Mapping[str, Mapping[str, Tensor]]  # file name -> tensors
    references: tuple[Reference, ...] = ()


class Family(Protocol[T]):
    """One family at work on one training; made of its recipe and what the folder says it is."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The losses that a progress line shows."""
        ...

    def __init__(self, config: Any, run: TrainingRun) -> None: ...

    @staticmethod
    def draft(config: Any) -> tuple[dict[str, Any], DefectSet]:
        """The sizes of the networks that a recipe asks for, and the photos to learn from and to validate on.

        Raises:
            UserError: no such photos, or wrong sizes.
        """
        ...

    def describe(self) -> str:
        """The sizes for a person: `64 px, 1 channel, width 0.125`."""
        ...

    def start(self, on: device) -> T:
        """A training at its first image."""
        ...

    def warm(self, training: T) -> None:
        """Brings a training to where its steps cost what most of them do."""
        ...

    def stepper(self, training: T, world: World) -> Callable[[Fields], Terms]:
        """One iteration on this process's share of a batch: moves `training` on by the whole batch, and returns
        this process's terms by name, without gradients. They may be non-finite."""
        ...

    def maker(self, learning: DefectSet, in_memory: bool) -> MakeBatch:
        """Draws, loads and augments images by number; photos are decoded now, or when they are wanted."""
        ...

    def validate(self, training: T, judged: DefectSet) -> dict[str, float]:
        """How good the averaged weights are, by name; `objective` is what the best checkpoint has least of."""
        ...

    def sheet(self, training: T, judged: DefectSet) -> bytes:
        """A PNG that shows what the averaged weights do."""
        ...

    def contents(self, training: T, learning: DefectSet) -> Contents:
        """The checkpoint."""
        ...
