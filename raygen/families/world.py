"""What a training is to the loop, and the processes that share its work."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.distributed as dist

from raygen.families.recipes import TrainingConfig

Terms = dict[str, torch.Tensor]
"""Name of a loss term -> its value before it is weighted, ()."""


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

    def any(self, said: bool, device: torch.device) -> bool:
        """Whether one of the processes says so, the same on each."""
        return bool(self.mean(torch.tensor(float(said), device=device)) > 0)

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
