"""What DT-GAN's own networks say of a sample: realism, defect type and product by D, novelty by contents."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from raygen import images
from raygen.checkpoint import JUDGE, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.families.dtgan.folded import FoldedDiscriminator
from raygen.families.dtgan.networks import Discriminator
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.masks import Floats


class Judgement(NamedTuple):
    """What D says of n samples; NaN where it has no such classifier."""

    realism: Floats  # (n,)
    type_prob: Floats  # (n,)
    product_prob: Floats  # (n,)


class Judge:
    """The trained discriminator with its classifiers (the judge of a checkpoint)."""

    def __init__(self, checkpoint: Checkpoint, sizes: DTGANConfig, device: torch.device) -> None:
        network = Discriminator(sizes).eval()
        try:
            network.load_state_dict(checkpoint.tensors(JUDGE))
        except RuntimeError as error:
            first_line = str(error).splitlines()[0]
            raise UserError(f"{checkpoint.uri}/{JUDGE}: does not fit its sizes ({first_line})") from None
        self.network = FoldedDiscriminator(network).to(device)
        self.products = {name.casefold(): i for i, name in enumerate(checkpoint.config.products)}

    def __call__(self, pixels: torch.Tensor, domain: int, products: Sequence[str]) -> Judgement:
        """Judges samples as they will be written, in 8 bits.

        Args:
            pixels: uint8 (M, H, W, C), on the judge's device; padded to M rows.
            domain: the wanted defect type's.
            products: of the first n ≤ M rows.
        """
        out = self.network(images.to_model(pixels))
        num_rows = len(products)
        unknown = torch.full((len(pixels),), torch.nan, device=pixels.device)
        type_prob = unknown if out.foreground is None else out.foreground.float().softmax(1)[:, domain]
        product_prob = torch.full((len(pixels), 1), torch.nan, device=pixels.device)
        if out.background is not None:
            product_prob = torch.cat([out.background.float().softmax(1), product_prob], dim=1)
        # The last column stands for a product that D has not seen.
        own = torch.tensor(
            [self.products.get(name.casefold(), -1) for name in products], device=pixels.device
        )
        product_prob = product_prob[torch.arange(num_rows, device=pixels.device), own]
        found = (out.adversarial[:num_rows, domain].float(), type_prob[:num_rows], product_prob)
        return Judgement(*torch.stack(found).cpu().numpy())


class Novelty:
    """How far contents are from those of the references: a check for copies."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._contents: dict[str, torch.Tensor] = {}  # (references, dimensions)
        self._scale: dict[str, float] = {}
        codes = checkpoint.tensors(REFERENCE_CODES)["content"] if checkpoint.references else torch.empty(0)
        for name in checkpoint.config.defect_types:
            rows = [i for i, item in enumerate(checkpoint.references) if item.defect_type == name]
            contents = codes[rows].flatten(1)
            if len(rows) > 1:
                self._contents[name] = contents.to(device)
                self._scale[name] = max(F.pdist(contents).median().item(), 1e-6)

    def __call__(self, contents: torch.Tensor, defect_type: str) -> Floats:
        """The distance of contents, (n, ...), to the nearest reference's of their type, over the median distance
        of two of these: (n,); NaN if there are fewer than two references."""
        if defect_type not in self._contents:
            return np.full(len(contents), np.nan, np.float32)
        bank = self._contents[defect_type]
        lengths = bank.square().sum(1)
        found = []
        for row in contents.flatten(1):  # one by one: the bits of a product of many depend on how many
            nearest = bank[(lengths - 2 * F.linear(row, bank)).argmin()]
            found.append((row - nearest).norm() / self._scale[defect_type])
        return torch.stack(found).float().cpu().numpy()
