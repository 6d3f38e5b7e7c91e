"""What the generators of trained checkpoints share: weights, micro-batches, and a seed's style and content."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from raygen.checkpoint import GENERATOR, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.models.dtgan import BOTTLENECK, DTGANConfig, MappingNetwork
from raygen.records import NORMAL

Network = TypeVar("Network", bound=torch.nn.Module)


class MicroBatches:
    """Runs networks on the GPU this process may use, else on the CPU.

    Every forward pass has M = `micro_batch` rows, the last ones padded, so that the kernels see one shape and a
    sample's bits do not depend on its neighbours.
    """

    def __init__(self, config: GenerateConfig) -> None:
        self.size = config.micro_batch
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = getattr(torch, config.precision)
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


class Codes:
    """Turns seeds into styles and contents: from the mapping network, or a row of the reference bank."""

    def __init__(
        self, checkpoint: Checkpoint, config: GenerateConfig, sizes: DTGANConfig, batches: MicroBatches
    ) -> None:
        self.batches = batches
        self.sizes = sizes
        self.mapping = load_weights(MappingNetwork(sizes), checkpoint, "mapping").to(batches.device)
        self.domains = {name: i for i, name in enumerate((NORMAL, *checkpoint.config.defect_types))}
        self.references = checkpoint.references
        self.reference_products = config.reference_products

    def draw(self, defect_type: str, seeds: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """Style and content, M rows each, from the mapping network; z and the per-pixel noise come from each
        seed's own stream (Philox: the same numbers on every machine)."""
        parts = [self.sizes.latent_dim, self.sizes.noise_size]
        drawn = np.stack([stream(seed).standard_normal(sum(parts), np.float32) for seed in seeds])
        z, noise = self.batches.pad(torch.from_numpy(drawn).to(self.batches.device)).split(parts, dim=1)
        with self.batches.autocast():
            return self.mapping.for_domain(z, self.domains[defect_type], noise)

    def choose(
        self, defect_type: str, seeds: NDArray[np.int64], products: Sequence[str]
    ) -> NDArray[np.int64]:
        """Rows of the reference bank, (n,), one for each seed and the product of its normal."""
        banks = {product: self._bank(defect_type, product) for product in set(products)}
        return np.array(
            [
                banks[product][int(stream(seed).integers(len(banks[product])))]
                for seed, product in zip(seeds, products, strict=True)
            ]
        )

    def _bank(self, defect_type: str, product: str) -> list[int]:
        """The references that may guide a sample on a normal of a product."""
        wanted = self.reference_products
        allowed = None if wanted == "any" else {product} if wanted == "same" else set(wanted)
        names = None if allowed is None else {name.casefold() for name in allowed}
        return [
            row
            for row, item in enumerate(self.references)
            if item.defect_type == defect_type and (names is None or item.product.casefold() in names)
        ]


def read_sizes(checkpoint: Checkpoint) -> DTGANConfig:
    """The sizes of a checkpoint's networks; raises UserError if they are none."""
    try:
        return DTGANConfig(**checkpoint.config.model)
    except (TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.uri}: its sizes are not DT-GAN's ({error})") from None


def load_weights(network: Network, checkpoint: Checkpoint, name: str) -> Network:
    """Gives a network, ready for inference, the weights that a checkpoint has of it.

    Args:
        network: takes them.
        checkpoint: has them.
        name: "generator" or "mapping".

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


def read_bank(checkpoint: Checkpoint, sizes: DTGANConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Styles, (references, style_dim), and contents, (references, content_channels, 16, 16), of the bank."""
    if not checkpoint.references:
        content = torch.empty(0, sizes.content_channels, BOTTLENECK, BOTTLENECK)
        return torch.empty(0, sizes.style_dim), content
    codes = checkpoint.tensors(REFERENCE_CODES)
    return codes["style"], codes["content"]


def stream(seed: int) -> np.random.Generator:
    """A seed's own stream of numbers: Philox, the same on every machine."""
    return np.random.Generator(np.random.Philox(key=int(seed)))
