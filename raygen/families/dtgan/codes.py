"""A seed's style and content: drawn by the mapping network, or taken from the reference bank."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raygen.checkpoint import REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.families.blocks import sent
from raygen.families.dtgan.networks import MappingNetwork
from raygen.families.dtgan.sizes import BOTTLENECK, DTGANConfig
from raygen.families.family import stream
from raygen.families.inference import MicroBatches, load_weights
from raygen.families.recipes import SamplingConfig
from raygen.families.references import choose_products, choose_references
from raygen.records import NORMAL


class Codes:
    """Turns seeds into styles and contents: from the mapping network, or a row of the reference bank."""

    def __init__(
        self, checkpoint: Checkpoint, config: SamplingConfig, sizes: DTGANConfig, batches: MicroBatches
    ) -> None:
        self.batches = batches
        self.sizes = sizes
        self.mapping = load_weights(MappingNetwork(sizes), checkpoint, "mapping").to(batches.device)
        self.products = checkpoint.config.products
        self.domains = {name: i for i, name in enumerate((NORMAL, *checkpoint.config.defect_types))}
        self.references = checkpoint.references
        self.config = config

    def draw(
        self, defect_type: str, seeds: Sequence[int], products: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Style and content, M rows each, from the mapping network, for normals of some products; z and the
        per-pixel noise come from each seed's own stream (Philox: the same numbers on every machine)."""
        parts = [self.sizes.latent_dim, self.sizes.noise_size]
        drawn = np.stack([stream(seed).standard_normal(sum(parts), np.float32) for seed in seeds])
        z, noise = self.batches.pad(sent(torch.from_numpy(drawn), self.batches.device)).split(parts, dim=1)
        with self.batches.autocast():
            return self.mapping.for_domain(
                z, self.domains[defect_type], noise, self._product_numbers(defect_type, seeds, products)
            )

    def _product_numbers(
        self, defect_type: str, seeds: Sequence[int], products: Sequence[str]
    ) -> torch.Tensor | None:
        """What M is told of the products, M rows: (micro_batch,), long; nothing if it does not listen."""
        if not self.sizes.product_codes:
            return None
        numbers = choose_products(self.products, self.references, defect_type, seeds, products)
        return self.batches.pad(sent(torch.from_numpy(numbers), self.batches.device))

    def draw_style(self, defect_type: str, seeds: Sequence[int], products: Sequence[str]) -> torch.Tensor:
        """A style alone, for a reference's content. Its stream is that of bit 63, which no seed has: by the seed's
        own, which chooses the reference, each reference would have styles of its own."""
        return self.draw(defect_type, [int(seed) | 1 << 63 for seed in seeds], products)[0]

    def choose(
        self, defect_type: str, seeds: NDArray[np.int64], products: Sequence[str]
    ) -> NDArray[np.int64]:
        """Rows of the reference bank, (n,), one for each seed and the product of its normal."""
        return choose_references(self.references, self.config, defect_type, seeds, products)


def read_sizes(checkpoint: Checkpoint) -> DTGANConfig:
    """The sizes of a checkpoint's networks; raises UserError if they are none."""
    try:
        return DTGANConfig(**checkpoint.config.model)
    except (TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.uri}: its sizes are not DT-GAN's ({error})") from None


def read_bank(checkpoint: Checkpoint, sizes: DTGANConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """Styles, (references, style_dim), and contents, (references, content_channels, 16, 16), of the bank."""
    if not checkpoint.references:
        content = torch.empty(0, sizes.content_channels, BOTTLENECK, BOTTLENECK)
        return torch.empty(0, sizes.style_dim), content
    codes = checkpoint.tensors(REFERENCE_CODES)
    return codes["style"], codes["content"]
