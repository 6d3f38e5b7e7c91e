"""DT-GAN's generator and discriminator converted for inference: the same images from an eighth of the arithmetic.

The generator is x̃ = B(x) + F(s, c) (see `Generator` in the networks beside it): B is computed once for a normal,
F once for a defect. On top of that, what stands next to each other and is linear becomes one convolution:

* *fusion*: the last convolution and skip of both decoders take in the 1×1 fusion, so that their 448 and 64
  output channels become the image's 3;
* *resampling*: conv 3×3 after nearest ×2 is one transposed convolution, 4×4 of stride 2 (9 → 4 products an
  output); conv 3×3 before a 2×2 average is one convolution, 4×4 of stride 2 (36 → 16);
* skips run at the lower resolution, and the 1/√2 of each block goes into its weights.

All of it is exact but for rounding: about 1e-6 of the image range in float32.

*Same bits.* With a fixed number of rows and of threads, a row's bits depend on that row alone, not on the other
rows nor on its place (CPU, float32; the tests hold it). This rules out matrix products over several rows, see
`blocks.linear_by_row`, and torch's group norm on channels_last, which cuts an image's sums where the work of two
threads meets. The number of rows and the number of threads do change bits: oneDNN picks its kernels by them.
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.families.blocks import (
    AdaIN,
    Linear,
    ResidualUnit,
    linear_by_row,
    pooled_kernel,
    upsample,
    upsampled_kernel,
)
from raygen.families.dtgan.networks import Discriminator, DiscriminatorOutput, Generator


def fused_kernel(fusion: Tensor, weight: Tensor) -> Tensor:
    """One convolution for a convolution and a 1×1 convolution after it.

    Args:
        fusion: (out, hidden, 1, 1).
        weight: (hidden, in, k, k).

    Returns:
        (out, in, k, k).
    """
    return torch.einsum("oh,hikl->oikl", fusion[:, :, 0, 0], weight)


def normalize(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """Instance norm, scale and shift, LeakyReLU of slope 0.2, without gradients.

    Made of element-wise operations and means, whose order of summation depends on nothing but C and R.

    Args:
        h: (N, C, R, R).
        scale: (N or 1, C, 1, 1).
        shift: (N or 1, C, 1, 1).

    Returns:
        (N, C, R, R).
    """
    h = h - h.mean(dim=(2, 3), keepdim=True)
    variance = h.square().mean(dim=(2, 3), keepdim=True)  # (N, C, 1, 1)
    h = torch.addcmul(shift, h, scale * torch.rsqrt(variance + 1e-5))
    return F.leaky_relu_(h, 0.2)


class FoldedBlock(nn.Module):
    """A residual unit with what is linear in it drawn together.

    Scales and shifts of both norms are one vector: `affine`, plus `affine_map` times the style for AdaIN; without
    norms there is none.
    """

    kernel1: Tensor
    bias1: Tensor
    kernel2: Tensor
    bias2: Tensor
    skip: Tensor | None
    affine: Tensor | None
    affine_map: Tensor | None

    def __init__(
        self, unit: ResidualUnit, *, fusion: Tensor | None = None, fold_resampling: bool = True
    ) -> None:
        super().__init__()
        self.resample = unit.resample
        self.composed = fold_resampling and unit.resample is not None

        kernel1 = unit.conv1.weight
        if self.composed:
            kernel1 = upsampled_kernel(kernel1) if unit.resample == "up" else pooled_kernel(kernel1)
        kernel2, bias2 = unit.conv2.weight / math.sqrt(2), _bias(unit.conv2) / math.sqrt(2)
        skip = unit.skip.weight / math.sqrt(2) if isinstance(unit.skip, nn.Conv2d) else None
        if fusion is not None:
            kernel2, bias2 = fused_kernel(fusion, kernel2), fusion[:, :, 0, 0] @ bias2
            skip = fusion / math.sqrt(2) if skip is None else fused_kernel(fusion, skip)
        _keep(self, kernel1=kernel1, bias1=_bias(unit.conv1), kernel2=kernel2, bias2=bias2, skip=skip)

        if isinstance(unit.norm1, nn.Identity):
            _keep(self, affine=None, affine_map=None)
            return
        map1, affine1 = _affine(unit.norm1)
        map2, affine2 = _affine(unit.norm2)
        both = None if map1 is None or map2 is None else torch.cat([map1, map2])
        _keep(self, affine=torch.cat([affine1, affine2]), affine_map=both)

    def forward(self, x: Tensor, style: Tensor | None = None) -> Tensor:
        if self.affine is None:
            h = F.leaky_relu_(self._first(F.leaky_relu(x, 0.2)), 0.2)
        else:
            affine = self.affine[None]  # (1 or N, 2 C + 2 C')
            if self.affine_map is not None and style is not None:
                affine = linear_by_row(style, self.affine_map, self.affine)
            widths = [x.shape[1]] * 2 + [len(self.bias1)] * 2
            scale1, shift1, scale2, shift2 = affine[:, :, None, None].split(widths, dim=1)
            h = normalize(self._first(normalize(x, scale1, shift1)), scale2, shift2)
        h = F.conv2d(h, self.kernel2, self.bias2, padding=1)
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        x = x / math.sqrt(2) if self.skip is None else F.conv2d(x, self.skip)
        if self.resample == "up":
            x = upsample(x)
        return h.add_(x)

    def _first(self, h: Tensor) -> Tensor:
        """First convolution and resampling: (N, C, R, R) to (N, C', R', R')."""
        if self.composed and self.resample == "up":
            return F.conv_transpose2d(h, self.kernel1, self.bias1, stride=2, padding=1)
        if self.composed:
            return F.conv2d(h, self.kernel1, self.bias1, stride=2, padding=1)
        h = upsample(h) if self.resample == "up" else h
        h = F.conv2d(h, self.kernel1, self.bias1, padding=1)
        return F.avg_pool2d(h, 2) if self.resample == "down" else h


def _fold(units: nn.Module, *, fusion: Tensor | None = None, fold_resampling: bool = True) -> nn.ModuleList:
    """Converts residual units that follow one another; the last one takes in the fusion."""
    blocks = [unit for unit in units.children() if isinstance(unit, ResidualUnit)]
    fusions = [None] * (len(blocks) - 1) + [fusion]
    return nn.ModuleList(
        FoldedBlock(block, fusion=last, fold_resampling=fold_resampling)
        for block, last in zip(blocks, fusions, strict=True)
    )


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _affine(norm: nn.Module) -> tuple[Tensor | None, Tensor]:
    """How a norm's scale and shift, (2 C,), come about: a map from the style, if any, and a constant."""
    if isinstance(norm, AdaIN):
        one = torch.ones_like(norm.affine.bias)
        one[len(one) // 2 :] = 0
        return norm.affine.weight, norm.affine.bias + one
    assert isinstance(norm, nn.InstanceNorm2d)
    return None, torch.cat([norm.weight, norm.bias])


def _keep(module: nn.Module, **tensors: Tensor | None) -> None:
    """Registers copies as buffers, kernels in channels_last, which the convolutions then pass on."""
    for name, tensor in tensors.items():
        if tensor is not None:
            layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
            tensor = tensor.detach().clone(memory_format=layout)
        module.register_buffer(name, tensor)


class FoldedGenerator(nn.Module):
    """A generator converted for inference; later changes of the original do not reach it.

    All its state are buffers, at first on the device and of the type of the original; it moves and casts as any
    module does. `generator(x, s, c) == compose(background(x), defect_layer(s, c))` to 1e-4 of the image range.
    """

    stem: Tensor
    stem_bias: Tensor
    fusion_bias: Tensor
    background_fusion: Tensor | None
    defect_fusion: Tensor | None
    opacity_bias: Tensor | None

    @torch.no_grad()
    def __init__(
        self, generator: Generator, *, fold_fusion: bool = True, fold_resampling: bool = True
    ) -> None:
        """Converts a generator.

        Args:
            generator: the trained network; it is not changed.
            fold_fusion: the 1×1 fusion goes into the last convolution and skip of both decoders.
            fold_resampling: convolutions take in the resampling next to them.
        """
        super().__init__()
        self.config = generator.config

        split = self.config.scaled(self.config.background_out)
        background, defect = generator.fusion.weight[:, :split], generator.fusion.weight[:, split:]
        has_opacity = self.config.fusion == "alpha"
        if has_opacity:
            defect = torch.cat([defect, generator.opacity.weight])
        fold = partial(_fold, fold_resampling=fold_resampling)
        self.encoder = fold(generator.encoder)
        self.background_decoder = fold(
            generator.background_decoder, fusion=background if fold_fusion else None
        )
        self.foreground_decoder = fold(generator.foreground_decoder, fusion=defect if fold_fusion else None)
        _keep(self, stem=generator.stem.weight, stem_bias=_bias(generator.stem))
        _keep(self, fusion_bias=_bias(generator.fusion))
        _keep(self, background_fusion=None if fold_fusion else background)
        _keep(self, defect_fusion=None if fold_fusion else defect)
        _keep(self, opacity_bias=_bias(generator.opacity) if has_opacity else None)

    @torch.no_grad()
    def background(self, x: Tensor) -> Tensor:
        """B(x): what all translations of x have in common.

        Args:
            x: images in [-1, 1], (N, channels, H, W).

        Returns:
            (N, channels, H, W).
        """
        h = x.contiguous(memory_format=torch.channels_last)
        h = F.conv2d(h, self.stem, self.stem_bias, padding=self.config.stem_kernel // 2)  # (N, 128, H, W)
        for block in self.encoder:
            h = block(h)
        h = h[:, : self.config.background_channels]  # (N, 448, 16, 16)
        for block in self.background_decoder:
            h = block(h)
        if self.background_fusion is not None:
            h = F.conv2d(h, self.background_fusion)
        h = h + self.fusion_bias[:, None, None]  # (N, channels, H, W)
        return (x + h if self.config.background_skip else h).contiguous()

    @torch.no_grad()
    def defect_layer(self, style: Tensor, content: Tensor) -> Tensor:
        """What a style and content put on any background.

        Args:
            style: (N, style_dim).
            content: (N, content_channels, 16, 16); zeros for normal.

        Returns:
            F(s, c), (N, channels, H, W); with `fusion="alpha"` (N, channels + 1, H, W), the last the opacity.
        """
        h = content.contiguous(memory_format=torch.channels_last)
        for block in self.foreground_decoder:
            h = block(h, style)
        if self.defect_fusion is not None:
            h = F.conv2d(h, self.defect_fusion)
        if self.opacity_bias is not None:
            channels = self.config.channels
            h = torch.cat([h[:, :channels], (h[:, channels:] + self.opacity_bias).sigmoid()], dim=1)
        return h.contiguous()  # (N, channels or channels + 1, H, W)


class FoldedDiscriminator(nn.Module):
    """A discriminator converted for inference; the logits are the original's but for rounding, about 1e-5 of their
    range in float32."""

    stem: Tensor
    stem_bias: Tensor
    content: Tensor
    content_bias: Tensor
    pooled: Tensor
    pooled_bias: Tensor

    @torch.no_grad()
    def __init__(self, discriminator: Discriminator) -> None:
        """Converts a discriminator, which is not changed."""
        super().__init__()
        self.config = discriminator.config
        trunk, pooled = discriminator.trunk, discriminator.pooled
        self.trunk = _fold(trunk.blocks)
        self.pooled_blocks = _fold(pooled.blocks)
        _keep(self, stem=trunk.stem.weight, stem_bias=_bias(trunk.stem))
        _keep(self, pooled=pooled.conv.weight, pooled_bias=_bias(pooled.conv))
        heads = {"adversarial": discriminator.adversarial}
        if self.config.background_classifier:
            heads["background"] = discriminator.background
        if self.config.foreground_classifier:
            heads["foreground"] = discriminator.foreground
            self.foreground_blocks = _fold(discriminator.foreground_blocks)
            _keep(self, content=discriminator.content.weight, content_bias=_bias(discriminator.content))
        self.heads = nn.ModuleDict(heads).requires_grad_(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Judges images.

        Args:
            x: images in [-1, 1], (N, channels, H, W).
        """
        h = x.contiguous(memory_format=torch.channels_last)
        h = F.conv2d(h, self.stem, self.stem_bias, padding=self.config.stem_kernel // 2)
        h = _through(self.trunk, h)  # (N, 512, 16, 16)
        pooled = F.leaky_relu_(_through(self.pooled_blocks, h), 0.2)  # (N, 512, 4, 4)
        pooled = F.leaky_relu_(F.conv2d(pooled, self.pooled, self.pooled_bias), 0.2).flatten(1)  # (N, 512)
        foreground = background = None
        if self.config.foreground_classifier:
            h = F.conv2d(F.leaky_relu_(h, 0.2), self.content, self.content_bias)  # (N, K * 64, 16, 16)
            h = F.leaky_relu_(_through(self.foreground_blocks, h), 0.2).flatten(1)  # (N, 512)
            foreground = self._head("foreground", h)
        if self.config.background_classifier:
            background = self._head("background", pooled)
        return DiscriminatorOutput(self._head("adversarial", pooled), foreground, background)

    def _head(self, name: str, h: Tensor) -> Tensor:
        head = self.heads[name]
        assert isinstance(head, Linear)
        return linear_by_row(h, head.weight, head.bias)


def _through(blocks: nn.ModuleList, h: Tensor) -> Tensor:
    for block in blocks:
        h = block(h)
    return h
