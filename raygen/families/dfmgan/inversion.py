"""Finding a photograph among what a backbone draws."""

import torch
import torch.nn.functional as F

from raygen.families.recipes import InvertConfig
from raygen.families.stylegan2.networks import Synthesis


def invert(
    synthesis: Synthesis, average_w: torch.Tensor, x: torch.Tensor, config: InvertConfig
) -> torch.Tensor:
    """Searches for the styles that draw given images, by Adam from the average w on, without noise.

    The distance is the mean absolute one at every scale from the image's to 8 × 8: coarse scales lead it to the
    right place, fine ones to the texture. Every image is searched for on its own.

    Args:
        synthesis: of the backbone; gets no gradients.
        average_w: (W,), where to begin.
        x: (N, C, H, W) in [-1, 1].
        config: how long.

    Returns:
        (N, num_ws, W).
    """
    noise = x.new_zeros(len(x), synthesis.config.noise_size)
    with torch.inference_mode(False), torch.enable_grad():
        start = average_w.clone().expand(len(x), synthesis.config.num_ws, -1)
        ws = start.clone().requires_grad_()
        optimizer = torch.optim.Adam([ws], config.lr)
        for number in range(config.steps):
            for group in optimizer.param_groups:
                group["lr"] = config.lr * min(
                    1.0, 4 * (1 - number / config.steps)
                )  # down over the last quarter
            (ws.grad,) = torch.autograd.grad(_distance(synthesis(ws, noise), x), ws)
            optimizer.step()
    return ws.detach()


def _distance(image: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The sum over images, so that one does not weigh on another."""
    total = (image - x).abs().mean(dim=(1, 2, 3)).sum()
    while x.shape[2] > 8:
        image, x = F.avg_pool2d(image, 2), F.avg_pool2d(x, 2)
        total = total + (image - x).abs().mean(dim=(1, 2, 3)).sum()
    return total
