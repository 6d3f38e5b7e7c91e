"""The blocks of DT-GAN's networks: pre-activation residual units with instance norm, AdaIN, noise or no norm."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def leaky(h: Tensor) -> Tensor:
    """LeakyReLU of slope 0.2, as everywhere in the four networks."""
    return F.leaky_relu(h, 0.2)


def upsample(h: Tensor) -> Tensor:
    """Nearest ×2."""
    return F.interpolate(h, scale_factor=2, mode="nearest")


def linear_by_row(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """A linear layer that gives a row of x, (N, in), the same bits whatever rows stand beside it: (N, out).

    A matrix product's kernels, and with them its rounding, depend on the number of rows and on a row's place
    (seen with MKL: two threads and 5 to 7 rows; narrow outputs of rows that are not aligned alike). One row at a
    time, in memory of its own, they cannot. A GPU, which would wait for the host to start so many small products,
    makes one of each row in a single kernel.
    """
    if x.device.type != "cpu":
        return linear_of_each(x, weight, bias)
    return torch.cat([F.linear(row.clone(), weight, bias) for row in x.split(1)])


def linear_of_each(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`linear_by_row` as a batch of products of one row each."""
    kernels = weight.T.expand(len(x), -1, -1)  # (N, in, out), N times the same memory
    if bias is None:
        return torch.bmm(x[:, None], kernels)[:, 0]
    return torch.baddbmm(bias.expand(len(x), 1, -1), x[:, None], kernels)[:, 0]


class Linear(nn.Linear):
    """A linear layer that in eval mode goes row by row, see `linear_by_row`; a thousandth of all the work.

    Convolutions were found to need no such care.
    """

    def forward(self, input: Tensor, rows: slice = slice(None)) -> Tensor:
        """Of all outputs, or of some of them."""
        linear = F.linear if self.training else linear_by_row
        return linear(input, self.weight[rows], None if self.bias is None else self.bias[rows])


def pooled_kernel(weight: Tensor) -> Tensor:
    """One 4×4 convolution (stride 2, padding 1) for a 3×3 convolution (padding 1) and a 2×2 average after it.

    Args:
        weight: (out, in, 3, 3).

    Returns:
        (out, in, 4, 4), differentiable.
    """
    return _spread(weight) / 4


def upsampled_kernel(weight: Tensor) -> Tensor:
    """One 4×4 transposed convolution (stride 2, padding 1) for nearest ×2 and a 3×3 convolution (padding 1).

    Args:
        weight: (out, in, 3, 3).

    Returns:
        (in, out, 4, 4), as transposed convolutions want it, differentiable.
    """
    return _spread(weight.flip(2, 3)).transpose(0, 1)


def _spread(weight: Tensor) -> Tensor:
    """The full convolution of 3×3 kernels with a 2×2 kernel of ones: (.., 3, 3) to (.., 4, 4)."""
    shifts = [(0, 1, 0, 1), (1, 0, 0, 1), (0, 1, 1, 0), (1, 0, 1, 0)]
    return torch.stack([F.pad(weight, shift) for shift in shifts]).sum(dim=0)


class PixelNorm(nn.Module):
    """Brings each pixel's channel vector to a mean square of one."""

    def forward(self, h: Tensor) -> Tensor:
        return h * torch.rsqrt(h.square().mean(dim=1, keepdim=True) + 1e-8)


class AdaIN(nn.Module):
    """Adaptive instance norm: (1 + γ(s)) · IN(h) + β(s)."""

    def __init__(self, channels: int, style_dim: int) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.affine = Linear(style_dim, 2 * channels)

    def forward(self, h: Tensor, style: Tensor) -> Tensor:
        gamma, beta = self.affine(style)[:, :, None, None].chunk(2, dim=1)  # (N, C, 1, 1) each
        return (1 + gamma) * self.norm(h) + beta


class Noise(nn.Module):
    """Adds one map of noise times a learned strength per channel.

    Strengths start at 0.1: from 0, with M's learning rate of 1e-6, they would never grow.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.strength = nn.Parameter(torch.full((channels,), 0.1))

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        return h + self.strength[:, None, None] * noise  # (N, C, R, R); noise is (N, 1, R, R)


class ResidualUnit(nn.Module):
    """What all residual blocks share; a subclass's `forward` says what else goes in.

    Pre-activation: norm, LeakyReLU, (nearest ×2), conv 3×3, (2×2 average), norm, LeakyReLU, conv 3×3; a 1×1
    convolution without bias on the skip where the width changes; the sum is divided by √2. In encoders the
    second convolution changes the width, in decoders (`widen_first`) the first.

    With `composed` set (see `compose_resampling`), convolution and resampling are one kernel, and a skip's
    convolution runs where the image is small: the same function of the same weights but for rounding, its
    gradients included, from less than half the arithmetic.
    """

    composed = False

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: Callable[[int], nn.Module],
        resample: Literal["up", "down"] | None = None,
        widen_first: bool = False,
    ) -> None:
        super().__init__()
        hidden = out_channels if widen_first else in_channels
        self.resample = resample
        self.norm1 = norm(in_channels)
        self.conv1 = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.norm2 = norm(hidden)
        self.conv2 = nn.Conv2d(hidden, out_channels, 3, padding=1)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels:
            self.skip = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def first(self, h: Tensor) -> Tensor:
        """From the first norm's output to the second norm's input: (N, C, R, R) to (N, C', R', R')."""
        h = leaky(h)
        if self.composed and self.resample == "up":
            kernel = upsampled_kernel(self.conv1.weight)
            return F.conv_transpose2d(h, kernel, self.conv1.bias, stride=2, padding=1)
        if self.composed and self.resample == "down":
            return F.conv2d(h, pooled_kernel(self.conv1.weight), self.conv1.bias, stride=2, padding=1)
        if self.resample == "up":
            return self.conv1(upsample(h))
        h = self.conv1(h)
        return F.avg_pool2d(h, 2) if self.resample == "down" else h

    def second(self, h: Tensor) -> Tensor:
        """From the second norm's output to the end of the residual."""
        return self.conv2(leaky(h))

    def join(self, x: Tensor, h: Tensor) -> Tensor:
        """The skip of the block's input x plus the residual h, over √2."""
        if self.composed and self.resample == "up":
            x = upsample(self.skip(x))
        elif self.composed and self.resample == "down":
            x = self.skip(F.avg_pool2d(x, 2))
        elif self.resample == "up":
            x = self.skip(upsample(x))
        else:
            x = self.skip(x)
            x = F.avg_pool2d(x, 2) if self.resample == "down" else x
        return (x + h) / math.sqrt(2)


class ResBlock(ResidualUnit):
    """Residual unit with norms that need nothing but the features: instance norm, or none."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(self.norm1(x))
        h = self.second(self.norm2(h))
        return self.join(x, h)


class StyledResBlock(ResidualUnit):
    """Residual unit with AdaIN (Table 9 (c))."""

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        h = self.first(self.norm1(x, style))
        h = self.second(self.norm2(h, style))
        return self.join(x, h)


class NoisyResBlock(ResidualUnit):
    """Residual unit with noise after each 3×3 convolution (Table 10 (c))."""

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__(in_channels, out_channels, norm, "up", widen_first=True)
        self.noise1 = Noise(out_channels)
        self.noise2 = Noise(out_channels)

    def forward(self, x: Tensor, noise1: Tensor, noise2: Tensor) -> Tensor:
        h = self.noise1(self.first(self.norm1(x)), noise1)
        h = self.noise2(self.second(self.norm2(h)), noise2)
        return self.join(x, h)


def compose_resampling(network: nn.Module) -> None:
    """Makes all resampling units of a network compute with composed kernels, see `ResidualUnit`."""
    for module in network.modules():
        if isinstance(module, ResidualUnit):
            module.composed = True


def channels_last(network: nn.Module) -> None:
    """Brings a network's kernels into the order that pays on CPUs and on GPUs."""
    for parameter in network.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def initialize(network: nn.Module) -> None:
    """He initialization of every convolution and linear layer, zero biases."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def one_hot(labels: Tensor, num: int, dtype: torch.dtype) -> Tensor:
    """Labels, (N,), long, in 0..num-1, to (N, num), 1 where a label is. (Torch's own may look at the labels first,
    for which the host would wait.)"""
    return (labels[:, None] == torch.arange(num, device=labels.device)).to(dtype)


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; from pinned memory to a GPU, so that the host need not wait until it is there."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


@contextmanager
def frozen(*networks: nn.Module) -> Iterator[None]:
    """Networks that take part, but get no gradients."""
    parameters = [p for network in networks for p in network.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
