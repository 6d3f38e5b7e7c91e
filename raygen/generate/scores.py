"""How good a sample is: the columns of `raygen.records.SCORES`, from what an actor holds anyway."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import JUDGE, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.generate.masks import Mask, surroundings
from raygen.models.dtgan import Discriminator, DTGANConfig
from raygen.models.dtgan_folded import FoldedDiscriminator

Floats = NDArray[np.float32]


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


def preservation(samples: NDArray[np.uint8], normals: NDArray[np.uint8], masks: Mask) -> Floats:
    """Mean absolute change outside the mask, in grey levels: (n, H, W, C) twice and (n, H, W) to (n,); NaN where
    the mask is all there is."""
    change = np.abs(samples.astype(np.int16) - normals).mean(axis=3, dtype=np.float32)
    return _mean(change, ~masks)


def contrast(samples: NDArray[np.uint8], masks: Mask) -> Floats:
    """Mean luminance inside the mask minus the mean in a band around it, a sixteenth of the image wide, in grey
    levels: (n, H, W, C) and (n, H, W) to (n,); NaN where there is no inside or no around."""
    luminance = samples.mean(axis=3, dtype=np.float32)
    around = surroundings(masks, max(2, samples.shape[1] // 16))
    return _mean(luminance, masks) - _mean(luminance, around)


def _mean(values: Floats, where: Mask) -> Floats:
    """The mean of each image's values where the mask is set: (n, H, W) twice to (n,); NaN where it nowhere is."""
    count = where.sum(axis=(1, 2))
    total = (values * where).sum(axis=(1, 2), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)
