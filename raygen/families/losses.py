"""Losses that several GANs share, means over the batch; logits are raw, sums in float32."""

import torch
import torch.nn.functional as F
from torch import Tensor


def adversarial(logits: Tensor, real: bool) -> Tensor:
    """Equation 1: binary cross-entropy of D's logits for the wanted domain.

    Args:
        logits: (N,), D_y(x) or D_ỹ(x̃).
        real: what D is asked to say; True as well for what G wants D to say of its images.
    """
    logits = logits.float()
    return F.softplus(-logits if real else logits).mean()


def r1(logits: Tensor, x: Tensor) -> Tensor:
    """R1: half the squared gradient of D_y(x) by the real image, summed over all of it, a mean over the batch.

    Args:
        logits: (N,), computed from x.
        x: (N, ...), with `requires_grad`.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return 0.5 * gradient.square().flatten(1).sum(dim=1).mean()
