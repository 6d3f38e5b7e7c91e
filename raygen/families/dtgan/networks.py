"""DT-GAN's four networks: generator, mapping network, style-content encoder, discriminator.

Defect Transfer GAN (under review at ICLR 2022), section 3 and Tables 9, 10 and 11. A generator G translates
an image x into a foreground domain (a defect type, or normal). Its encoder's features are split into
background and foreground, the foreground is dropped and a target *content* c stands in its place, and the two
go through decoders of their own that meet only in the last 1×1 convolution. Style s and content come from the
mapping network M (from a latent z) or from the encoder E (from a reference image).

What the paper's ablation takes away are options of `DTGANConfig`, and `LADDER` names its rungs. The generator of
the rungs with one decoder stands in `raygen.families.dtgan.joint`, where `build_generator` chooses.

Decisions where the paper is silent or cannot be taken literally:

* Domain 0 is normal, the *anchor*: its content is zero in M and in E. The foreground decoder is *not* skipped
  for it: G(x, s, 0) still adds the layer that AdaIN's shifts draw, which the losses see and train.
* M's content branch uses pixel norm, see `MappingNetwork`.
* `background_skip` adds the input image to the output, so that training starts from a perfect background.
* `fusion="alpha"` is ours: a defect layer has an opacity besides, x̃ = (1 - α) · B(x) + F, so that a defect can
  cover a texture, where the paper's can only add to it. It costs one channel, and the algebra stays.

In the comments on shapes: N samples, K foreground domains, P products, C channels, R a resolution,
H = W = `image_size`; numbers are the paper's, at 128 × 128 and width 1.
"""

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.families.blocks import (
    AdaIN,
    Linear,
    Noise,
    NoisyResBlock,
    PixelNorm,
    ResBlock,
    StyledResBlock,
    initialize,
    leaky,
    one_hot,
)
from raygen.families.dtgan.sizes import BOTTLENECK, NORMAL, DTGANConfig

# The option that each rung of the ladder from (b) on turns on, and its value on the rungs below.


# -------------------------------------------------- G: generator (Table 9)


class GeneratorEncoder(nn.Module):
    """What generators share: the encoder and the split of its features (Table 9 (a))."""

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        self.config = config
        full, kernel = config.full_width, config.stem_kernel
        block = partial(ResBlock, norm=instance_norm)
        self.stem = nn.Conv2d(config.channels, full(config.image_size), kernel, padding=kernel // 2)
        self.encoder = nn.Sequential(
            *[block(full(r), full(r // 2), resample="down") for r in reversed(config.resolutions)],
            *[block(full(16), full(16)) for _ in range(2)],
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Splits an image's features.

        Args:
            x: images in [-1, 1], (N, channels, H, W).

        Returns:
            Background features (N, background_channels, 16, 16), and the popped-out foreground content
            FG_G(x), (N, content_channels, 16, 16), which equation 5 compares with E's.
        """
        h = self.encoder(self.stem(x))  # (N, 512, 16, 16)
        background = self.config.background_channels
        return h[:, :background], h[:, background:]  # (N, 448, 16, 16), (N, 64, 16, 16)


class Generator(GeneratorEncoder):
    """Translates an image into a style and content (Table 9).

    The last convolution is linear and the background decoder sees neither style nor content, so
    `forward(x, s, c) == compose(background(x), defect_layer(s, c))`: k defects on one image need one background
    and k defect layers. `raygen.families.dtgan.folded` makes more of this for inference.

    The output has no nonlinearity: values may leave [-1, 1].
    """

    def __init__(self, config: DTGANConfig) -> None:
        if config.decoders != "separate":
            raise ValueError(f"decoders must be 'separate' for a Generator, not {config.decoders!r}")
        super().__init__(config)  # (a) Encoder
        full, half, rising = config.full_width, config.half_width, config.resolutions
        content = config.content_channels

        # (b) Background decoder
        block = partial(ResBlock, norm=instance_norm, widen_first=True)
        widths = [config.background_channels, config.background_channels, full(16), full(16)]
        self.background_decoder = nn.Sequential(*[block(a, b) for a, b in pairwise(widths)])
        widths = [full(16), *[full(r) for r in rising[:-1]], config.scaled(config.background_out)]
        self.background_decoder.extend([block(a, b, resample="up") for a, b in pairwise(widths)])
        background_out = widths[-1]

        # (c) Foreground decoder
        block = partial(StyledResBlock, norm=partial(AdaIN, style_dim=config.style_dim), widen_first=True)
        widths = [content, content, half(16), half(16)]
        self.foreground_decoder = nn.ModuleList([block(a, b) for a, b in pairwise(widths)])
        widths = [half(r) for r in (16, *rising)]
        self.foreground_decoder.extend([block(a, b, resample="up") for a, b in pairwise(widths)])

        # (d) Fusion
        self.fusion = nn.Conv2d(background_out + widths[-1], config.channels, 1)
        if config.fusion == "alpha":
            self.opacity = nn.Conv2d(widths[-1], 1, 1)

        initialize(self)
        if config.background_skip:
            # Of F's columns a tenth is left: with none of them no gradient would reach F, nor M through it.
            with torch.no_grad():
                self.fusion.weight[:, :background_out] = 0
                self.fusion.weight[:, background_out:] *= 0.1
        if config.fusion == "alpha":  # nearly transparent at first: α = 0.02
            nn.init.zeros_(self.opacity.weight)
            self.opacity.bias = nn.Parameter(torch.full((1,), -4.0))

    def forward(self, x: Tensor, style: Tensor, content: Tensor) -> Tensor:
        """The translated image x̃ = G(x, s, c).

        Args:
            x: images in [-1, 1], (N, channels, H, W).
            style: (N, style_dim).
            content: (N, content_channels, 16, 16); zeros for normal.

        Returns:
            Images, unclamped, (N, channels, H, W).
        """
        if self.config.fusion == "alpha":
            return compose(self.background(x), self.defect_layer(style, content))
        background, _ = self.encode(x)
        background = self.background_decoder(background)  # (N, 448, H, W)
        foreground = self.decode_foreground(style, content)  # (N, 64, H, W)
        out = self.fusion(torch.cat([background, foreground], dim=1))  # (N, channels, H, W)
        return x + out if self.config.background_skip else out

    def decode_background(self, features: Tensor, x: Tensor) -> Tensor:
        """The background image from `encode`'s background features and, for `background_skip`, x itself."""
        h = self.background_decoder(features)  # (N, 448, H, W)
        out = F.conv2d(h, self.fusion.weight[:, : h.shape[1]], self.fusion.bias)  # (N, channels, H, W)
        return x + out if self.config.background_skip else out

    def decode_foreground(self, style: Tensor, content: Tensor) -> Tensor:
        """The foreground decoder's features (Table 9 (c)): (N, 64, H, W)."""
        h = content
        for block in self.foreground_decoder:
            h = block(h, style)
        return h

    def background(self, x: Tensor) -> Tensor:
        """B(x): what all translations of x have in common, (N, channels, H, W)."""
        features, _ = self.encode(x)
        return self.decode_background(features, x)

    def defect_layer(self, style: Tensor, content: Tensor) -> Tensor:
        """What a style and content put on any background.

        Args:
            style: (N, style_dim).
            content: (N, content_channels, 16, 16); zeros for normal.

        Returns:
            F(s, c), (N, channels, H, W); with `fusion="alpha"` (N, channels + 1, H, W), the last the opacity
            α(s, c) in (0, 1).
        """
        h = self.decode_foreground(style, content)  # (N, 64, H, W)
        layer = F.conv2d(h, self.fusion.weight[:, -h.shape[1] :])  # (N, channels, H, W)
        if self.config.fusion == "linear":
            return layer
        return torch.cat([layer, self.opacity(h).sigmoid()], dim=1)  # (N, channels + 1, H, W)


def compose(background: Tensor, layer: Tensor) -> Tensor:
    """Puts defect layers on backgrounds: B + F, or (1 - α) · B + F where the layer has an opacity.

    Args:
        background: B(x), or an image itself, (..., N, channels, H, W).
        layer: F, (..., N, channels, H, W); or F and α, (..., N, channels + 1, H, W).

    Returns:
        (..., N, channels, H, W).
    """
    channels = background.shape[-3]
    paint, opacity = layer[..., :channels, :, :], layer[..., channels:, :, :]
    return (1 - opacity) * background + paint if opacity.shape[-3] else background + paint


def instance_norm(channels: int) -> nn.Module:
    """Instance norm with a scale and a shift per channel."""
    return nn.InstanceNorm2d(channels, affine=True)


def norm_conv(in_channels: int, out_channels: int, norm: Callable[[int], nn.Module]) -> nn.Sequential:
    """Norm, LeakyReLU, 1×1 convolution."""
    return nn.Sequential(norm(in_channels), nn.LeakyReLU(0.2), nn.Conv2d(in_channels, out_channels, 1))


# -------------------------------------------------- M: mapping network (Table 10)


class NoisyConv(nn.Module):
    """Norm, LeakyReLU, 1×1 convolution, noise: the last row of Table 10 (c)."""

    def __init__(self, in_channels: int, out_channels: int, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.norm = norm(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, 1)
        self.noise = Noise(out_channels)

    def forward(self, h: Tensor, noise: Tensor) -> Tensor:
        return self.noise(self.conv(leaky(self.norm(h))), noise)


class MappingNetwork(nn.Module):
    """Maps a latent z to a style and a content of a domain (Table 10).

    *Pixel norm.* Table 10's instance norm, taken literally, cuts the content from z: at 1 × 1 it leaves
    nothing but its bias, and what z leaves in the skip is constant in space, so that the next norm removes
    it. Hence pixel norm; `content_norm="literal"` keeps the instance norms and leaves out the one at 1 × 1.

    *Noise.* One N(0, 1) map after each convolution, times a strength per channel. The maps can be given, so
    that a sample depends on its own seed alone.

    *Place.* What z leaves at 1 × 1 is copied to all pixels by every upsampling; only the padding at the borders
    tells one place from another. Trained, such a branch draws all its defects in one place or follows its noise;
    `content_map` adds a fully connected map to the content, by which z says what is where.

    *Product.* Table 10 knows the domain alone, so that all products get the defects of all. With `product_codes`
    the product stands beside z, one-hot.

    *Normal* has zero content (`anchor`). Its content branch is one of the table's K, but decides nothing.
    """

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        self.config = config
        domains, hidden = range(config.num_domains), config.scaled(512)
        widths = [config.scaled(c) for c in (512, 512, 512, 256, 128)]  # at 1, 2, 4, 8, 16

        # (a) Shared layers
        inputs = config.latent_dim + (config.num_products if config.product_codes else 0)
        self.shared = _perceptron([inputs] + [hidden] * 4)

        # (b) Style code
        self.style_branches = nn.ModuleList(
            nn.Sequential(_perceptron([hidden] * 4), Linear(hidden, config.style_dim)) for _ in domains
        )

        # (c) Content
        norm = instance_norm if config.content_norm == "literal" else lambda _: PixelNorm()
        block = NoisyResBlock if config.content_noise else partial(ResBlock, resample="up", widen_first=True)
        head = NoisyConv if config.content_noise else norm_conv
        num_trunks = 1 if config.shared_content_trunk else config.num_domains
        self.content_trunks = nn.ModuleList(
            nn.ModuleList(block(widths[i], widths[i + 1], norm) for i in range(4))
            for _ in range(num_trunks if config.content else 0)
        )
        self.content_heads = nn.ModuleList(
            head(widths[-1], config.content_channels, norm) for _ in (domains if config.content else ())
        )

        if config.content_map:
            self.content_map = Linear(hidden, config.num_domains * config.content_size)

        initialize(self)
        if config.content_norm == "literal":
            for trunk in self.content_trunks:
                trunk.get_submodule("0").norm1 = nn.Identity()

    @property
    def noise_size(self) -> int:
        """How many N(0, 1) numbers the noise of one sample takes (936; 0 without noise)."""
        return self.config.noise_size

    def forward(
        self, z: Tensor, domain: Tensor, noise: Tensor | None = None, product: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Style and content of each row's own domain: all branches are computed, then picked from.

        Args:
            z: (N, latent_dim), from N(0, 1).
            domain: (N,), long, in 0..K-1.
            noise: (N, noise_size) from N(0, 1); None draws it from torch's generator.
            product: (N,), long, in 0..P-1; wanted with `product_codes`, else not looked at.

        Returns:
            Style (N, style_dim) and content (N, content_channels, 16, 16), which is zero for the anchor.
        """
        h = self._hidden(z, product)  # (N, 512)
        styles = torch.stack([branch(h) for branch in self.style_branches], dim=1)  # (N, K, style_dim)
        if not self.config.content:
            return _own(styles, domain), _zero_content(h, self.config)
        maps = self._noise_maps(h, noise)
        features = [self._trunk(h, maps, k) for k in range(len(self.content_trunks))]  # one or K
        heads = enumerate(self.content_heads)
        contents = [head(features[k % len(features)], *maps[-1:]) for k, head in heads]
        contents = torch.stack(contents, dim=1)  # (N, K, 64, 16, 16)
        if self.config.content_map:
            contents = contents + self.content_map(h).view_as(contents)
        return _own(styles, domain), _own(contents, domain, self.config.anchor)

    def for_domain(
        self, z: Tensor, domain: int, noise: Tensor | None = None, product: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As `forward` with one domain for all rows, computing that domain's branches only."""
        h = self._hidden(z, product)  # (N, 512)
        style = self.style_branches[domain](h)  # (N, style_dim)
        if not self.config.content or (self.config.anchor and domain == NORMAL):
            return style, _zero_content(h, self.config)
        maps = self._noise_maps(h, noise)
        features = self._trunk(h, maps, domain % len(self.content_trunks))
        content = self.content_heads[domain](features, *maps[-1:])
        if self.config.content_map:
            size = self.config.content_size
            rows = slice(domain * size, (domain + 1) * size)
            content = content + self.content_map(h, rows).view_as(content)
        return style, content

    def _hidden(self, z: Tensor, product: Tensor | None) -> Tensor:
        """The shared layers: (N, latent_dim) and (N,) to (N, 512)."""
        if self.config.product_codes:
            assert product is not None, "with product_codes M is told the product"
            z = torch.cat([z, one_hot(product, self.config.num_products, z.dtype)], dim=1)
        return self.shared(z)

    def _trunk(self, h: Tensor, maps: list[Tensor], index: int) -> Tensor:
        """A content branch without its last convolution: (N, 512) to (N, 128, 16, 16)."""
        h = h[:, :, None, None]  # (N, 512, 1, 1)
        for i, block in enumerate(self.content_trunks[index].children()):
            h = block(h, *maps[2 * i : 2 * i + 2])  # (N, 512 | 512 | 256 | 128, 2 | 4 | 8 | 16, same)
        return h

    def _noise_maps(self, like: Tensor, noise: Tensor | None) -> list[Tensor]:
        """Cuts rows of noise into maps (N, 1, R, R), one for each convolution; none without noise."""
        if noise is None:
            noise = torch.randn(len(like), self.noise_size, dtype=like.dtype, device=like.device)
        areas = [r * r for r in self.config.noise_resolutions]
        return [
            part.reshape(-1, 1, r, r)
            for part, r in zip(noise.split(areas, dim=1), self.config.noise_resolutions, strict=True)
        ]


def _own(branches: Tensor, domain: Tensor, anchor: bool = False) -> Tensor:
    """Of what all domains give, each row's own, (N, K, …) to (N, …); zero for normal if it is the anchor."""
    own = branches[torch.arange(len(domain), device=branches.device), domain]
    return own.masked_fill((domain == NORMAL)[:, None, None, None], 0.0) if anchor else own


def _zero_content(like: Tensor, config: DTGANConfig) -> Tensor:
    """Zeros, a content for each row of `like`; empty without content: (N, content_channels, 16, 16)."""
    return like.new_zeros(len(like), config.content_channels, BOTTLENECK, BOTTLENECK)


def _perceptron(widths: list[int]) -> nn.Sequential:
    """Linear layers between the widths, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers)


# -------------------------------------------------- E: style-content encoder, D: discriminator (Table 11)


class Trunk(nn.Module):
    """Table 11 (a): image (N, channels, H, W) to features (N, 512, 16, 16)."""

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        top, kernel = config.half_width(config.image_size), config.stem_kernel
        widths = [top] + [config.full_width(r // 2) for r in reversed(config.resolutions)]
        self.stem = nn.Conv2d(config.channels, top, kernel, padding=kernel // 2)
        self.blocks = _encoder_blocks(widths, instance_norm if config.trunk_norm == "instance" else no_norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.stem(x))


class Pooled(nn.Module):
    """Table 11 (b) up to its reshape: features (N, 512, 16, 16) to a vector (N, 512)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.blocks = _encoder_blocks([channels] * 3)
        self.conv = nn.Conv2d(channels, channels, 4)

    def forward(self, h: Tensor) -> Tensor:
        h = self.blocks(h)  # (N, 512, 4, 4)
        h = leaky(self.conv(leaky(h)))  # (N, 512, 1, 1)
        return h.flatten(1)  # (N, 512)


def no_norm(channels: int) -> nn.Module:
    """What stands for a norm where there is none."""
    return nn.Identity()


def _encoder_blocks(widths: list[int], norm: Callable[[int], nn.Module] = no_norm) -> nn.Sequential:
    """Down-sampling residual blocks between the widths."""
    return nn.Sequential(*[ResBlock(a, b, norm, resample="down") for a, b in pairwise(widths)])


class StyleContentEncoder(nn.Module):
    """Reads the style and content of a domain off an image (Table 11 with D = style_dim)."""

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.full_width(BOTTLENECK)
        self.trunk = Trunk(config)
        self.pooled = Pooled(width)
        self.style = Linear(width, config.num_domains * config.style_dim)
        if config.content:
            self.content = nn.Conv2d(width, config.num_domains * config.content_channels, 1)
        initialize(self)

    def forward(self, x: Tensor, domain: Tensor) -> tuple[Tensor, Tensor]:
        """Style and content of each row's own domain.

        Args:
            x: images in [-1, 1], (N, channels, H, W).
            domain: (N,), long, in 0..K-1.

        Returns:
            Style (N, style_dim) and content (N, content_channels, 16, 16), which is zero for the anchor.
        """
        h = self.trunk(x)  # (N, 512, 16, 16)
        styles = self.style(self.pooled(h)).unflatten(1, (self.config.num_domains, -1))  # (N, K, style_dim)
        if not self.config.content:
            return _own(styles, domain), _zero_content(h, self.config)
        contents = self.content(leaky(h)).unflatten(1, (self.config.num_domains, -1))  # (N, K, 64, 16, 16)
        return _own(styles, domain), _own(contents, domain, self.config.anchor)


class CodeDiscriminator(nn.Module):
    """Tells codes that E read off real defects from those that M drew; not the paper's.

    It has 16 × 16 pixels to judge where D has all of an image, and judges what M is to learn alone.
    """

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        self.config = config
        width = config.scaled(512)
        self.content = nn.Conv2d(config.content_channels, width, 3, padding=1)
        self.style = nn.Linear(config.style_dim, width)
        self.blocks = _encoder_blocks([width] * 3)
        self.hidden = nn.Linear(16 * width + 1, width)
        self.logits = nn.Linear(width, config.num_code_classes)
        initialize(self)

    def forward(self, codes: Tensor, domain: Tensor, product: Tensor | None = None) -> Tensor:
        """Real (positive) or drawn, the logit of each row's own domain (and product, with `product_codes`): (N,).

        Args:
            codes: styles and contents, flat, (N, style_dim + content_channels · 16 · 16).
            domain: (N,), long.
            product: (N,), long; wanted with `product_codes`, else not looked at.
        """
        style, content = codes[:, : self.config.style_dim], codes[:, self.config.style_dim :]
        h = self.content(content.unflatten(1, (-1, BOTTLENECK, BOTTLENECK)))  # (N, 512, 16, 16)
        h = leaky(self.blocks(h + self.style(style)[:, :, None, None])).flatten(1)  # from (N, 512, 4, 4)
        # Codes that are all alike are told by what a batch has of them (as in progressive GANs).
        spread = h.std(dim=0, correction=0).mean().expand(len(h), 1)
        h = leaky(self.hidden(torch.cat([h, spread], dim=1)))  # (N, 512)
        own = domain
        if self.config.product_codes:
            assert product is not None, "with product_codes codes are of a product"
            own = domain + self.config.num_domains * product
        return self.logits(h).gather(1, own[:, None])[:, 0]


class DiscriminatorOutput(NamedTuple):
    """Logits of D."""

    adversarial: Tensor
    """Real (positive) or fake, one for each foreground domain: (N, K)."""
    foreground: Tensor | None
    """Which foreground domain: (N, K); None without the foreground classifier."""
    background: Tensor | None
    """Which product: (N, P); None without the background classifier."""


class Discriminator(nn.Module):
    """Real or fake per domain, and classifiers of foreground and background (Table 11 with D = 1)."""

    def __init__(self, config: DTGANConfig) -> None:
        super().__init__()
        self.config = config
        width, num_domains = config.full_width(BOTTLENECK), config.num_domains
        self.trunk = Trunk(config)
        self.pooled = Pooled(width)
        self.adversarial = Linear(width, num_domains)
        if config.background_classifier:
            self.background = Linear(width, config.num_products)
        if config.foreground_classifier:
            # These contents are D's own: K · 64 channels, whether or not the other networks have contents.
            widths = [num_domains * config.scaled(64)]  # at 16
            widths += [config.scaled(c) for c in (128, 256, 512, 512)]  # at 8, 4, 2, 1
            self.content = nn.Conv2d(width, widths[0], 1)
            self.foreground_blocks = _encoder_blocks(widths)
            self.foreground = Linear(widths[-1], num_domains)
        initialize(self)

    def forward(self, x: Tensor) -> DiscriminatorOutput:
        """Judges images.

        Args:
            x: images in [-1, 1], (N, channels, H, W).
        """
        h = self.trunk(x)  # (N, 512, 16, 16)
        pooled = self.pooled(h)  # (N, 512)
        return DiscriminatorOutput(
            adversarial=self.adversarial(pooled),
            foreground=self._classify_foreground(h) if self.config.foreground_classifier else None,
            background=self.background(pooled) if self.config.background_classifier else None,
        )

    def _classify_foreground(self, h: Tensor) -> Tensor:
        """Features (N, 512, 16, 16) to logits (N, K)."""
        content = self.content(leaky(h))  # (N, K * 64, 16, 16)
        return self.foreground(leaky(self.foreground_blocks(content)).flatten(1))
