"""DT-GAN's losses, one pure function each: the paper's equations 2 to 7 (1 and R1: raygen.families.losses).

|·| is the mean absolute value, over the batch and everything in a sample; every loss is a mean over the batch, so
that the gradients of equal parts of a batch average to the whole batch's. Logits are raw. For ladder (a), which
has no content, contents are empty tensors, and their terms are zero. Sums are in float32 also under mixed
precision.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


def style_content(
    style: Tensor, content: Tensor, recovered_style: Tensor, recovered_content: Tensor
) -> Tensor:
    """Equation 2: |s̃ - E^s(x̃)| + |c̃ - E^c(x̃)|, the codes of a translation against what E reads off it.

    Args:
        style, recovered_style: (N, style_dim).
        content, recovered_content: (N, content_channels, 16, 16).
    """
    return _distance(style, recovered_style) + _distance(content, recovered_content)


def diversity(translations: Sequence[Tensor], reduction: Literal["sum", "mean"] = "sum") -> Tensor:
    """Equation 3: the distances |G_a - G_b| among the translations of one image to several styles and contents,
    of which G wants as much as it can get.

    All images carry gradient: with one of them detached, as in StarGAN v2, the background would be pushed away
    from its own copy; so it cancels exactly.

    Args:
        translations: of (N, C, H, W); the paper's four are G(x, s_i, c_j), i and j in 1, 2, its pairs six.
        reduction: "sum" over the pairs as in the paper, or their "mean".
    """
    pairs = [_distance(a, b) for a, b in combinations(translations, 2)]
    total = torch.stack(pairs).sum()
    return total if reduction == "sum" else total / len(pairs)


def cycle(x: Tensor, back: Tensor) -> Tensor:
    """Equation 4: |x - G(x̃, ŝ, ĉ)|, an image against its translation back.

    Args:
        x, back: (N, C, H, W).
    """
    return _distance(x, back)


def content_consistency(
    popped: Tensor, content: Tensor, popped_translation: Tensor, target_content: Tensor
) -> Tensor:
    """Equation 5: |FG_G(x) - ĉ| + |FG_G(x̃) - c̃|, the contents that G's encoder pops out against E's and the
    wanted ones. With the anchor, a normal image's content is zero: this is its penalty.

    Args:
        popped, content, popped_translation, target_content: (N, content_channels, 16, 16).
    """
    return _distance(popped, content) + _distance(popped_translation, target_content)


def at_defect(made: Tensor, wanted: Tensor, mask: Tensor, taught: Tensor) -> Tensor:
    """|made - wanted|, on the defect as much as beside it, however small it is.

    Args:
        made, wanted: (N, C, H, W).
        mask: (N, 1, H, W), 1 on the defect.
        taught: (N,), 1 where `wanted` is known, else 0.
    """
    off = (made - wanted).float().abs().mean(dim=1, keepdim=True)
    of_each = sum((off * part).sum((1, 2, 3)) / part.sum((1, 2, 3)).clamp(min=1) for part in (mask, 1 - mask))
    return (of_each * taught).sum() / taught.sum().clamp(min=1)


def classification(logits: Tensor, wanted: Tensor) -> Tensor:
    """Equations 6 and 7: cross-entropy of D's foreground or background classifier.

    Args:
        logits: (N, K) or (N, P).
        wanted: (N,), long.
    """
    return F.cross_entropy(logits.float(), wanted)


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """|a - b|; zero, not NaN, of empty tensors."""
    return (a - b).float().abs().sum() / max(1, a.numel())
