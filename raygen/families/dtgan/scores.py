"""What DT-GAN's own networks say of a sample: realism, defect type and product by D, novelty by contents."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from raygen import images
from raygen.checkpoint import JUDGE, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.families.blocks import linear_by_row, sent
from raygen.families.dtgan.folded import FoldedDiscriminator
from raygen.families.dtgan.networks import Discriminator
from raygen.families.dtgan.sizes import DTGANConfig
from raygen.families.inference import MicroBatches

TOLD = ("realism", "type_prob", "product_prob", "novelty")
"""The scores that a checkpoint's networks and codes tell, in the order in which they come."""


class Judge:
    """The trained discriminator with its classifiers (the judge of a checkpoint)."""

    def __init__(self, checkpoint: Checkpoint, sizes: DTGANConfig, batches: MicroBatches) -> None:
        network = Discriminator(sizes).eval()
        try:
            network.load_state_dict(checkpoint.tensors(JUDGE))
        except RuntimeError as error:
            first_line = str(error).splitlines()[0]
            raise UserError(f"{checkpoint.uri}/{JUDGE}: does not fit its sizes ({first_line})") from None
        self.network = batches.compiled(FoldedDiscriminator(network).to(batches.device))
        self.products = {name.casefold(): i for i, name in enumerate(checkpoint.config.products)}

    def __call__(self, pixels: Tensor, domain: int, products: Sequence[str]) -> Tensor:
        """Judges samples as they will be written, in 8 bits.

        Args:
            pixels: uint8 (M, H, W, C), on the judge's device; padded to M rows.
            domain: the wanted defect type's.
            products: of the first n ≤ M rows.

        Returns:
            Realism, type_prob and product_prob: (3, n); NaN where D has no such classifier.
        """
        out = self.network(images.to_model(pixels))
        num_rows = len(products)
        unknown = torch.full((len(pixels),), torch.nan, device=pixels.device)
        type_prob = unknown if out.foreground is None else out.foreground.float().softmax(1)[:, domain]
        product_prob = unknown[:, None]
        if out.background is not None:
            product_prob = torch.cat([out.background.float().softmax(1), product_prob], dim=1)
        # The last column stands for a product that D has not seen.
        numbers = [self.products.get(name.casefold(), product_prob.shape[1] - 1) for name in products]
        own = sent(torch.tensor(numbers), pixels.device)
        product_prob = product_prob[:num_rows].gather(1, own[:, None])[:, 0]
        return torch.stack([out.adversarial[:num_rows, domain].float(), type_prob[:num_rows], product_prob])


class Novelty:
    """How far contents are from those of the references: a check for copies."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device) -> None:
        self._contents: dict[str, Tensor] = {}  # (references, dimensions)
        self._scale: dict[str, float] = {}
        codes = checkpoint.tensors(REFERENCE_CODES)["content"] if checkpoint.references else torch.empty(0)
        for name in checkpoint.config.defect_types:
            rows = [i for i, item in enumerate(checkpoint.references) if item.defect_type == name]
            contents = codes[rows].flatten(1)
            if len(rows) > 1:
                self._contents[name] = contents.to(device)
                self._scale[name] = max(F.pdist(contents).median().item(), 1e-6)

    def __call__(self, contents: Tensor, defect_type: str) -> Tensor:
        """The distance of contents, (n, ...), to the nearest reference's of their type, over the median distance
        of two of these: (n,); NaN if there are fewer than two references."""
        if defect_type not in self._contents:
            return torch.full((len(contents),), torch.nan, device=contents.device)
        bank, rows = self._contents[defect_type], contents.flatten(1)
        nearest = (bank.square().sum(1) - 2 * linear_by_row(rows, bank, None)).argmin(1)
        return (rows - bank[nearest]).norm(dim=1).float() / self._scale[defect_type]
