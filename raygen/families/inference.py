"""What the generators of trained checkpoints share: weights, micro-batches, and a seed's own numbers."""

import os
import shutil
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
from numpy.typing import NDArray

from raygen.checkpoint import GENERATOR, Checkpoint
from raygen.errors import UserError
from raygen.families.recipes import SamplingConfig

Network = TypeVar("Network", bound=torch.nn.Module)
Function = TypeVar("Function", bound=Callable[..., Any])


class MicroBatches:
    """Runs networks on the GPU this process may use, else on the CPU.

    Every forward pass has M = `micro_batch` rows, the last ones padded, so that the kernels see one shape and a
    sample's bits do not depend on its neighbours.
    """

    def __init__(self, config: SamplingConfig) -> None:
        self.size = config.micro_batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = getattr(torch, config.precision)
        self.compiles = config.compile
        # A rerun must give the same bits, whatever the actor's share of a machine: on CPUs the number of threads
        # decides which kernels run (and two actors of one thread beat one of two). float32 is meant as such.
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False

    @torch.inference_mode()
    def run(self, function: Callable[..., torch.Tensor], *tensors: torch.Tensor) -> torch.Tensor:
        """Applies a function of M rows to all rows of tensors: (n, …) each to float32 (n, …)."""
        found = []
        for start in range(0, max(1, len(tensors[0])), self.size):  # of no rows once, for the shape
            some = [tensor[start : start + self.size].to(self.device) for tensor in tensors]
            with self.autocast():
                found.append(function(*map(self.pad, some))[: len(some[0])].float())
        return torch.cat(found)

    def pad(self, rows: torch.Tensor) -> torch.Tensor:
        """Appends zeros up to M rows."""
        missing = self.size - len(rows)
        return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows

    def autocast(self) -> torch.autocast:
        """The precision of the config."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def compiled(self, function: Function) -> Function:
        """A function of M rows; with `compile`, its element-wise work fused into few kernels at the first call.

        Raises:
            UserError: there is no compiler.
        """
        if not self.compiles:
            return function
        named = (os.environ.get("CXX"), os.environ.get("CC"), "g++", "gcc", "clang++", "clang", "cc")
        if not any(shutil.which(name) for name in named if name):
            raise UserError("compile = true wants a C++ compiler, say g++, on every node that generates")
        return cast(Function, torch.compile(function, dynamic=False))


def fetched(*tensors: torch.Tensor) -> list[NDArray[Any]]:
    """Tensors as arrays. All are on their way from a GPU, to pinned memory, before the host waits, once."""
    arrived = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    if any(tensor.is_cuda for tensor in tensors):
        torch.cuda.current_stream().synchronize()
    return [tensor.numpy() for tensor in arrived]


def load_weights(network: Network, checkpoint: Checkpoint, name: str) -> Network:
    """Gives a network, ready for inference, the weights that a checkpoint has of it.

    Args:
        network: takes them.
        checkpoint: has them.
        name: of the network in the checkpoint, say "generator".

    Raises:
        UserError: they do not fit.
    """
    prefix = f"{name}."
    weights = checkpoint.tensors(GENERATOR)
    try:
        network.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{checkpoint.uri}: its weights do not fit its sizes ({first_line})") from None
    return network.eval()
