"""StyleGAN2's networks: mapping, synthesis (skip generator), discriminator (residual).

Analyzing and Improving the Image Quality of StyleGAN (arXiv 1912.04958), with the sizes of StyleGAN2-ADA
(arXiv 2006.06676). Written for R from 4 to `image_size`, grey or RGB, in plain PyTorch operations that can be
differentiated twice (R1, path lengths).

Decisions of ours:

* A discriminator has one output for each label (product, or product × defect type), and the one that is asked for
  is taken, as DT-GAN's does; so a discriminator of more labels can go on from one of fewer, see `widen`.
* Groups of the minibatch standard deviation are neighbours in the batch, so that two processes of batch B see what
  one of 2 B sees (B a multiple of the group).
* Noise is an argument, one flat row an image, so that an image is a function of its latent and its noise alone.

In the comments on shapes: N images, C channels, R a resolution, W = `w_dim`, L = `num_ws` styles an image.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.config import check_fields
from raygen.families.blocks import linear_by_row, one_hot

FILTER = (1 / 8, 3 / 8, 3 / 8, 1 / 8)
"""The resampling filter [1, 3, 3, 1], normalized; it is symmetric, so that convolution is correlation."""

_SMALLEST = 4  # resolution of the constant that synthesis begins with, and of D's last block


@dataclass(frozen=True)
class StyleGAN2Config:
    """Sizes of the networks; the defaults are StyleGAN2-ADA's at 256 px, with DFM-GAN's short mapping network.

    Attributes:
        image_size: height and width of an image, a power of two in 32..512.
        channels: of an image, 1 or 3.
        num_products: labels of the mapping network and the discriminator.
        latent_dim: length of z.
        w_dim: length of w.
        mapping_layers: fully connected layers of the mapping network.
        channel_base: a resolution R has min(channel_base / R, channel_max) channels.
        channel_max: see there.
        group: images of one group of the minibatch standard deviation, at most.

    Raises:
        ValueError: a field is out of its range.
    """

    image_size: int = 256
    channels: int = 3
    num_products: int = 1
    latent_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 2
    channel_base: int = 16_384
    channel_max: int = 512
    group: int = 4

    def __post_init__(self) -> None:
        check_fields(self)
        if self.image_size not in (32, 64, 128, 256, 512):
            raise ValueError(f"image_size must be a power of two in 32..512, not {self.image_size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        for name in ("num_products", "latent_dim", "w_dim", "mapping_layers", "channel_max", "group"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.channel_base < self.image_size:
            raise ValueError(f"channel_base must be at least the image's size, not {self.channel_base}")

    @property
    def resolutions(self) -> list[int]:
        """4, 8, …, image_size."""
        return [2**power for power in range(2, int(math.log2(self.image_size)) + 1)]

    def width(self, resolution: int) -> int:
        """Channels at a resolution."""
        return min(self.channel_base // resolution, self.channel_max)

    @property
    def num_ws(self) -> int:
        """Styles of an image: one for each convolution, and one for the last ToRGB."""
        return 2 * len(self.resolutions)

    @property
    def noise_size(self) -> int:
        """Numbers of noise that an image takes: one map for each convolution."""
        return sum(size * size for size in noise_maps(self.resolutions))


def noise_maps(resolutions: Sequence[int]) -> list[int]:
    """Side of the noise map of each convolution: one at 4 × 4, two at every other resolution."""
    return [size for size in resolutions for _ in range(1 if size == _SMALLEST else 2)]


def split_noise(noise: Tensor, resolutions: Sequence[int]) -> Iterator[Tensor]:
    """Flat noise, (N, noise_size), as maps, (N, 1, R, R) each."""
    maps = noise_maps(resolutions)
    for size, flat in zip(maps, noise.split([size * size for size in maps], dim=1), strict=True):
        yield flat.reshape(-1, 1, size, size)


# ----------------------------------------------------------------------------------------------- operations


def upfirdn(x: Tensor, pad: tuple[int, int], up: int = 1, down: int = 1) -> Tensor:
    """Puts `up` - 1 zeros after every pixel, pads, filters with `FILTER` along both axes, takes every `down`-th.

    The filter's gain is up², so that a constant stays what it is.

    Args:
        x: (N, C, R, R).
        pad: pixels added before and after, along both axes.
        up: factor of upsampling.
        down: factor of downsampling.
    """
    channels = x.shape[1]
    if up > 1:
        n, _, height, width = x.shape
        x = F.pad(x.reshape(n, channels, height, 1, width, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(n, channels, height * up, width * up)
    kernel = _kernel(up, x.dtype, x.device).expand(channels, 1, -1, -1)
    # channels_last: several times faster than the default on CPUs, for kernels of one channel each.
    x = F.pad(x, (*pad, *pad)).contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, kernel, stride=down, groups=channels)


@functools.cache
def _kernel(up: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(4, 4). Kept, since a copy to a GPU would wait for it at every call."""
    with torch.inference_mode(False):
        taps = torch.tensor(FILTER, dtype=dtype, device=device) * up
        return torch.outer(taps, taps)


def upsample(x: Tensor) -> Tensor:
    """(N, C, R, R) to (N, C, 2 R, 2 R)."""
    return upfirdn(x, (2, 1), up=2)


def downsample(x: Tensor) -> Tensor:
    """(N, C, R, R) to (N, C, R / 2, R / 2)."""
    return upfirdn(x, (1, 1), down=2)


def modulated_conv(
    x: Tensor,
    weight: Tensor,
    style: Tensor,
    *,
    demodulate: bool = True,
    up: bool = False,
    per_sample: bool = False,
    by_row: bool = False,
) -> Tensor:
    """Convolves each image with weights of its own: scaled by its style and, if demodulated, brought to norm 1 for
    each output (equations 1 and 3).

    Args:
        x: (N, C, R, R).
        weight: (C', C, k, k), k odd; 3 with `up`.
        style: (N, C), the scale of every input channel.
        demodulate: whether outputs are brought to a variance of one.
        up: whether the resolution is doubled: zeros between the pixels, then the convolution, then the filter.
        per_sample: build the weights of each image and convolve in groups, as the equations say; else scale the
            images before and after one common convolution, the same but for rounding and faster.
        by_row: whether the norms of one image must not depend, in the last bit, on which others stand beside it.

    Returns:
        (N, C', R or 2 R, R or 2 R).
    """
    if per_sample:
        own = weight[None] * style[:, None, :, None, None]  # (N, C', C, k, k)
        if demodulate:
            own = own * torch.rsqrt(own.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8)
        n, outputs, inputs, *kernel = own.shape
        x = x.reshape(1, n * inputs, *x.shape[2:])
        if up:
            own = own.transpose(1, 2).reshape(n * inputs, outputs, *kernel)
            x = _filtered(F.conv_transpose2d(x, own, stride=2, groups=n))
        else:
            x = F.conv2d(x, own.reshape(n * outputs, inputs, *kernel), padding=kernel[0] // 2, groups=n)
        return x.reshape(n, outputs, *x.shape[2:])
    x = x * style[:, :, None, None]
    if up:
        x = _filtered(F.conv_transpose2d(x, weight.transpose(0, 1), stride=2))
    else:
        x = F.conv2d(x, weight, padding=weight.shape[2] // 2)
    if demodulate:
        energy = weight.square().sum(dim=(2, 3))  # (C', C)
        norms = (linear_by_row if by_row else F.linear)(style.square(), energy, None)
        x = x * torch.rsqrt(norms + 1e-8)[:, :, None, None]
    return x


def _filtered(x: Tensor) -> Tensor:
    """After a transposed convolution of stride 2: (N, C, 2 R + 1, ·) to (N, C, 2 R, ·), with its gain of 4."""
    return upfirdn(x, (1, 1)) * 4


def activate(x: Tensor) -> Tensor:
    """Leaky ReLU of slope 0.2, times √2, which keeps the variance."""
    return F.leaky_relu(x, 0.2) * math.sqrt(2)


def pixel_norm(x: Tensor) -> Tensor:
    """Brings rows, (N, D), to a mean square of one."""
    return x * torch.rsqrt(x.square().mean(dim=1, keepdim=True) + 1e-8)


def minibatch_std(x: Tensor, group: int) -> Tensor:
    """Appends one channel: the standard deviation over groups of neighbours, averaged over channels and pixels.

    Args:
        x: (N, C, R, R).
        group: images of a group, at most; the largest divisor of N up to it is taken.

    Returns:
        (N, C + 1, R, R).
    """
    n, _, height, width = x.shape
    size = max(divisor for divisor in range(1, min(group, n) + 1) if n % divisor == 0)
    groups = x.unflatten(0, (-1, size))  # (N / size, size, C, R, R)
    deviation = (groups.var(dim=1, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (N / size,)
    channel = deviation.repeat_interleave(size).reshape(n, 1, 1, 1).expand(n, 1, height, width)
    return torch.cat([x, channel], dim=1)


# --------------------------------------------------------------------------------------------------- layers


class EqualLinear(nn.Module):
    """A linear layer with an equalized learning rate: weights of variance 1 / rate², scaled when they are used.

    In eval mode it goes row by row, so that a row's bits do not depend on its neighbours.
    """

    def __init__(self, inputs: int, outputs: int, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) / rate)
        self.bias = nn.Parameter(torch.full((outputs,), bias / rate))
        self.gain, self.rate = rate / math.sqrt(inputs), rate

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight * self.gain, self.bias * self.rate
        return F.linear(x, weight, bias) if self.training else linear_by_row(x, weight, bias)


class EqualConv(nn.Module):
    """A convolution with an equalized learning rate, downsampled if asked for, activated unless it is a skip."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, down: bool = False, is_skip: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs, kernel, kernel))
        self.bias = None if is_skip else nn.Parameter(torch.zeros(outputs))
        self.gain, self.down = 1 / math.sqrt(inputs * kernel**2), down

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight * self.gain
        kernel = weight.shape[2]
        if self.down and kernel == 1:
            x = F.conv2d(downsample(x), weight, self.bias)
        elif self.down:
            x = F.conv2d(upfirdn(x, (2, 2)), weight, self.bias, stride=2)
        else:
            x = F.conv2d(x, weight, self.bias, padding=kernel // 2)
        return x if self.bias is None else activate(x)


class StyledConv(nn.Module):
    """Modulated 3×3 convolution, noise, bias, activation."""

    def __init__(self, inputs: int, outputs: int, w_dim: int, up: bool = False) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 3, 3))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.strength = nn.Parameter(torch.zeros(()))  # of the noise
        self.gain, self.up = 1 / math.sqrt(inputs * 9), up

    def forward(self, x: Tensor, w: Tensor, noise: Tensor) -> Tensor:
        """x (N, C, R, R), w (N, W), noise (N, 1, R', R') to (N, C', R', R'), R' = R or 2 R."""
        style, weight = self.affine(w), self.weight * self.gain
        x = modulated_conv(x, weight, style, up=self.up, by_row=not self.training)
        return activate(x + self.strength * noise + self.bias[:, None, None])


class ToImage(nn.Module):
    """Modulated 1×1 convolution without demodulation, and bias: features to an image, or to a mask."""

    def __init__(self, inputs: int, outputs: int, w_dim: int) -> None:
        super().__init__()
        self.affine = EqualLinear(w_dim, inputs, bias=1.0)
        self.weight = nn.Parameter(torch.randn(outputs, inputs, 1, 1))
        self.bias = nn.Parameter(torch.zeros(outputs))
        self.gain = 1 / math.sqrt(inputs)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """x (N, C, R, R), w (N, W) to (N, C', R, R)."""
        x = modulated_conv(x, self.weight, self.affine(w) * self.gain, demodulate=False)
        return x + self.bias[:, None, None]


# ------------------------------------------------------------------------------------------------- networks


class MappingNetwork(nn.Module):
    """z and a label to w; with several labels, a learned vector of the label stands beside z.

    `average` is the moving average of w, which whoever trains keeps (see `track`).
    """

    average: Tensor  # (W,)

    def __init__(self, latent_dim: int, num_labels: int, w_dim: int, num_layers: int) -> None:
        super().__init__()
        self.num_labels = num_labels
        inputs = latent_dim
        if num_labels > 1:
            self.label = EqualLinear(num_labels, w_dim)
            inputs += w_dim
        widths = [inputs] + [w_dim] * num_layers
        self.layers = nn.ModuleList(EqualLinear(wide, w_dim, rate=0.01) for wide in widths[:-1])
        self.register_buffer("average", torch.zeros(w_dim))

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """z (N, latent_dim), label (N,) long to w (N, W)."""
        h = pixel_norm(z)
        if self.num_labels > 1:
            known = one_hot(label, self.num_labels, h.dtype)
            h = torch.cat([h, pixel_norm(self.label(known))], dim=1)
        for layer in self.layers:
            h = activate(layer(h))
        return h

    def track(self, mean_w: Tensor, keep: float = 0.998) -> None:
        """Moves the average towards the mean of w, (W,), over the batch of all processes."""
        self.average.lerp_(mean_w.to(self.average.dtype), 1 - keep)


class SynthesisBlock(nn.Module):
    """One resolution: the convolutions, and what they add to the image. `conv0` doubles the resolution; the block
    at 4 × 4 has none, and takes a learned constant."""

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        wide = config.width(resolution)
        self.conv0: StyledConv | None = None
        if resolution > _SMALLEST:
            self.conv0 = StyledConv(config.width(resolution // 2), wide, config.w_dim, up=True)
        self.conv1 = StyledConv(wide, wide, config.w_dim)
        self.to_image = ToImage(wide, config.channels, config.w_dim)

    def features(self, x: Tensor, ws: Tensor, maps: Sequence[Tensor]) -> Tensor:
        """x (N, C, R / 2, R / 2), or R at 4 × 4; ws (N, 1 or 2, W) and a noise map for each convolution; to
        (N, C', R, R)."""
        if self.conv0 is not None:
            x = self.conv0(x, ws[:, 0], maps[0])
        return self.conv1(x, ws[:, -1], maps[-1])

    def paint(self, image: Tensor | None, x: Tensor, w: Tensor) -> Tensor:
        """Adds what features say to the image so far: (N, channels, R / 2, R / 2) to (N, channels, R, R)."""
        painted = self.to_image(x, w)
        return painted if image is None else upsample(image) + painted


class State(NamedTuple):
    """Synthesis under way: between two resolutions."""

    x: Tensor  # (N, C, R, R)
    image: Tensor | None  # (N, channels, R, R); None before the first


class Synthesis(nn.Module):
    """w to an image, block by block."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.constant = nn.Parameter(torch.randn(config.width(_SMALLEST), _SMALLEST, _SMALLEST))
        self.blocks = nn.ModuleList(SynthesisBlock(config, size) for size in config.resolutions)

    def forward(self, ws: Tensor, noise: Tensor) -> Tensor:
        """ws (N, L, W) and noise (N, noise_size) to an image, about [-1, 1], (N, channels, image_size, ·)."""
        image = self.run(ws, noise, self.config.image_size).image
        assert image is not None
        return image

    def run(self, ws: Tensor, noise: Tensor, end: int) -> State:
        """Up to and with the resolution `end`."""
        x = self.constant.expand(len(ws), -1, -1, -1)
        image = None
        for size, block, block_ws, maps, w in self.parts(ws, noise):
            if size > end:
                break
            x = block.features(x, block_ws, maps)
            image = block.paint(image, x, w)
        return State(x, image)

    def parts(
        self, ws: Tensor, noise: Tensor
    ) -> Iterator[tuple[int, SynthesisBlock, Tensor, list[Tensor], Tensor]]:
        """Of every block: its resolution, itself, the styles of its convolutions, (N, 1 or 2, W), their noise
        maps, and the style of its ToImage, (N, W): that of the next block's first convolution."""
        maps = split_noise(noise, self.config.resolutions)
        first = 0
        for size, block in zip(self.config.resolutions, self.blocks, strict=True):
            assert isinstance(block, SynthesisBlock)
            num = 1 if size == _SMALLEST else 2
            yield (
                size,
                block,
                ws[:, first : first + num],
                [next(maps) for _ in range(num)],
                ws[:, first + num],
            )
            first += num


class DiscriminatorBlock(nn.Module):
    """Two convolutions and a skip, at half the resolution, over √2."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv0 = EqualConv(inputs, inputs, 3)
        self.conv1 = EqualConv(inputs, outputs, 3, down=True)
        self.skip = EqualConv(inputs, outputs, 1, down=True, is_skip=True)

    def forward(self, x: Tensor) -> Tensor:
        return (self.skip(x) + self.conv1(self.conv0(x))) / math.sqrt(2)


class Discriminator(nn.Module):
    """An image, or an image with its mask, and a label to a logit: > 0 looks real.

    Args:
        image_size: height and width of an image.
        channels: of what it looks at.
        num_labels: its outputs.
        channel_base: see `StyleGAN2Config`.
        channel_max: likewise.
        group: likewise.
    """

    def __init__(
        self,
        image_size: int,
        channels: int,
        num_labels: int,
        channel_base: int,
        channel_max: int,
        group: int,
    ) -> None:
        super().__init__()
        self.group = group
        sizes = [image_size // 2**i for i in range(int(math.log2(image_size // _SMALLEST)) + 1)]
        widths = [min(channel_base // size, channel_max) for size in sizes]
        self.from_image = EqualConv(channels, widths[0], 1)
        self.blocks = nn.Sequential(*(DiscriminatorBlock(wide, narrow) for wide, narrow in pairwise(widths)))
        self.last = EqualConv(widths[-1] + 1, widths[-1], 3)
        self.hidden = EqualLinear(widths[-1] * _SMALLEST**2, widths[-1])
        self.out = EqualLinear(widths[-1], num_labels)

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """x (N, channels, image_size, image_size), label (N,) long to (N,)."""
        h = self.blocks(self.from_image(x))
        h = self.last(minibatch_std(h, self.group))
        logits = self.out(activate(self.hidden(h.flatten(1))))  # (N, num_labels)
        return logits.gather(1, label[:, None])[:, 0]

    @torch.no_grad()
    def widen(self, parents: Sequence[int]) -> None:
        """Gives it another number of labels: label i goes on as label `parents[i]`."""
        self.out.weight = nn.Parameter(self.out.weight[list(parents)].clone())
        self.out.bias = nn.Parameter(self.out.bias[list(parents)].clone())


def build_discriminator(config: StyleGAN2Config, num_labels: int | None = None) -> Discriminator:
    """The discriminator of images; by default its labels are the products."""
    return Discriminator(
        config.image_size,
        config.channels,
        num_labels or config.num_products,
        config.channel_base,
        config.channel_max,
        config.group,
    )


class Backbone(nn.Module):
    """The generator of normals: mapping and synthesis."""

    def __init__(self, config: StyleGAN2Config) -> None:
        super().__init__()
        self.config = config
        self.mapping = MappingNetwork(
            config.latent_dim, config.num_products, config.w_dim, config.mapping_layers
        )
        self.synthesis = Synthesis(config)

    def forward(self, z: Tensor, product: Tensor, noise: Tensor) -> Tensor:
        """z (N, latent_dim), product (N,) long, noise (N, noise_size) to an image (N, channels, H, W)."""
        return self.synthesis(repeat_w(self.mapping(z, product), self.config.num_ws), noise)


def repeat_w(w: Tensor, num_ws: int) -> Tensor:
    """(N, W) to (N, num_ws, W): the same style everywhere."""
    return w[:, None].expand(-1, num_ws, -1)


def mix_styles(w: Tensor, other: Tensor, uniforms: Tensor, num_ws: int, share: float) -> Tensor:
    """Style mixing: of a share of the images, the styles from a random layer on are another latent's.

    Args:
        w: (N, W).
        other: (N, W).
        uniforms: (N, 2) in [0, 1): whether, and from which layer on (1..num_ws - 1).
        num_ws: styles of an image.
        share: of the images that are mixed.

    Returns:
        (N, num_ws, W).
    """
    first = 1 + (uniforms[:, 1] * (num_ws - 1)).long()
    first = first.where(uniforms[:, 0] < share, num_ws)  # (N,)
    is_other = torch.arange(num_ws, device=w.device)[None] >= first[:, None]  # (N, num_ws)
    return torch.where(is_other[:, :, None], other[:, None], w[:, None])
