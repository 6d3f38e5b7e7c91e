"""Sizes of DT-GAN's networks: presets, and the rungs of the paper's ablation."""

from dataclasses import dataclass
from typing import Literal

from raygen.config import check_fields

NORMAL = 0
"""The foreground domain of defect-free images: the anchor, whose content is zero."""


BOTTLENECK = 16
"""Height and width of the bottleneck and of a content, whatever the image size."""


@dataclass(frozen=True)
class DTGANConfig:
    """Sizes of the four networks; the defaults are the paper's (SDI dataset, 128 × 128 × 3).

    At other image sizes the bottleneck stays 16 × 16: there are log2(image_size) - 4 resampling blocks.
    Channels belong to a resolution, not to a depth: the encoder and the background decoder have 512 at 16 and
    32, then 256, 128, 64, 32 at 64, 128, 256, 512; the foreground decoder and the stems of E and D have half
    of that. At 128 this gives the tables; elsewhere it is StarGAN v2's rule for the encoder, carried on.

    Attributes:
        image_size: height and width of an image, a power of two in 32..512.
        channels: of an image, 1 or 3.
        num_products: background domains (P), the classes of D's background classifier.
        num_domains: foreground domains (K ≥ 2); domain 0 is normal.
        width: factor on every channel count, in 1/32..4; counts are rounded to multiples of 8, at least 8.
        latent_dim: length of z.
        style_dim: length of a style code; not scaled by `width`.
        stem_kernel: of the stem convolutions: 1 as in the tables, or 3.
        background_out: last width of the background decoder, before `width` scales it. Table 9's 448 is odd,
            but agrees with its part (d); it makes two thirds of the generator's arithmetic.
        content_norm: norm of M's content branch: "pixel", or "literal" for Table 10's instance norm.
        shared_content_trunk: M has one content branch, not K; its last convolution alone is per domain.
        background_skip: the generator's output is the input image plus a correction that starts at zero. Not
            with joint decoders, which have no background of their own.
        fusion: "linear", the paper's x̃ = B(x) + F(s, c); or "alpha", x̃ = (1 - α(s, c)) · B(x) + F(s, c). Not with
            joint decoders, which have no defect layer.
        trunk_norm: norm in the trunks of E and D: "none" as in the paper, or "instance". Without one a small
            D needs tens of thousands of images to see that a photo has a scratch at all; with it, some thousands.
        content_map: M adds a fully connected map to its content: without it z can hardly say what is where.
        product_codes: M is told the product, too, and the code discriminator judges a code as of its product:
            defects of one product differ from another's in size and contrast. It wants `content`.
        content: False: style alone, as in StarGAN v2; contents are empty, (N, 0, 16, 16). It wants
            `decoders="joint"` and neither `anchor` nor `content_noise`.
        decoders: "separate" for background and foreground (`Generator`), or "joint" (`JointGenerator`).
        foreground_classifier: of D.
        background_classifier: of D.
        anchor: normal's content is zero; False: it has a content of its own, like any domain.
        content_noise: M's content branch adds noise.

    Raises:
        ValueError: a field is out of its range, or does not go with another.
    """

    image_size: int = 128
    channels: int = 3
    num_products: int = 3
    num_domains: int = 3
    width: float = 1.0
    latent_dim: int = 16
    style_dim: int = 64
    stem_kernel: int = 1
    background_out: int = 448
    content_norm: Literal["pixel", "literal"] = "pixel"
    shared_content_trunk: bool = False
    background_skip: bool = False
    fusion: Literal["linear", "alpha"] = "linear"
    trunk_norm: Literal["none", "instance"] = "none"
    content_map: bool = False
    product_codes: bool = False
    content: bool = True
    decoders: Literal["separate", "joint"] = "separate"
    foreground_classifier: bool = True
    background_classifier: bool = True
    anchor: bool = True
    content_noise: bool = True

    def __post_init__(self) -> None:
        def require(held: bool, name: str, want: str) -> None:
            if not held:
                raise ValueError(f"{name} must be {want}, not {getattr(self, name)!r}")

        check_fields(self)
        require(self.image_size in (32, 64, 128, 256, 512), "image_size", "a power of two in 32..512")
        require(self.channels in (1, 3), "channels", "1 or 3")
        require(self.num_products >= 1, "num_products", "at least 1")
        require(self.num_domains >= 2, "num_domains", "at least 2 (normal and a defect type)")
        require(1 / 32 <= self.width <= 4, "width", "in 1/32..4")
        require(self.latent_dim >= 1, "latent_dim", "at least 1")
        require(self.style_dim >= 1, "style_dim", "at least 1")
        require(self.stem_kernel in (1, 3), "stem_kernel", "1 or 3")
        require(self.background_out >= 1, "background_out", "at least 1")
        require(self.content_norm in ("pixel", "literal"), "content_norm", '"pixel" or "literal"')
        require(self.fusion in ("linear", "alpha"), "fusion", '"linear" or "alpha"')
        require(self.trunk_norm in ("none", "instance"), "trunk_norm", '"none" or "instance"')
        require(self.decoders in ("separate", "joint"), "decoders", '"separate" or "joint"')
        if not self.content:
            require(self.decoders == "joint", "decoders", '"joint" without content')
            require(not self.anchor, "anchor", "False without content")
            require(not self.content_noise, "content_noise", "False without content")
            require(not self.content_map, "content_map", "False without content")
            require(not self.product_codes, "product_codes", "False without content")
        if self.decoders == "joint":
            require(not self.background_skip, "background_skip", "False with joint decoders")
            require(self.fusion == "linear", "fusion", '"linear" with joint decoders')

    def scaled(self, channels: int) -> int:
        """The paper's channel count times `width`, as a multiple of 8, at least 8."""
        return max(8, 8 * round(channels * self.width / 8))

    def full_width(self, resolution: int) -> int:
        """Channels of the encoder and the background decoder at a resolution."""
        return self.scaled(min(512, 2**14 // resolution))

    def half_width(self, resolution: int) -> int:
        """Channels of the foreground decoder, and of the stems of E and D, at a resolution."""
        return self.scaled(min(512, 2**14 // resolution) // 2)

    @property
    def num_code_classes(self) -> int:
        """What the code discriminator tells apart: domains, or domains of each product."""
        return self.num_domains * (self.num_products if self.product_codes else 1)

    @property
    def content_channels(self) -> int:
        """Channels of a content (64; 0 without content); its shape is (content_channels, 16, 16)."""
        return self.scaled(64) if self.content else 0

    @property
    def content_size(self) -> int:
        """Numbers in a content."""
        return self.content_channels * BOTTLENECK**2

    @property
    def background_channels(self) -> int:
        """Channels of the background features at the bottleneck (448)."""
        return self.full_width(BOTTLENECK) - self.content_channels

    @property
    def noise_resolutions(self) -> tuple[int, ...]:
        """Of the noise maps of M, in the order of the convolutions they follow."""
        return (2, 2, 4, 4, 8, 8, 16, 16, 16) if self.content_noise else ()

    @property
    def noise_size(self) -> int:
        """How many N(0, 1) numbers M's noise for one sample takes (936; 0 without noise)."""
        return sum(r * r for r in self.noise_resolutions)

    @property
    def resolutions(self) -> list[int]:
        """Those above the bottleneck, rising: 32, 64, ... image_size."""
        return [2**i for i in range(5, self.image_size.bit_length())]


PRESETS: dict[str, DTGANConfig] = {
    "paper-128": DTGANConfig(),
    "small-128": DTGANConfig(
        channels=1, width=1 / 4, stem_kernel=3, shared_content_trunk=True, background_skip=True
    ),
    "small-64": DTGANConfig(
        image_size=64,
        channels=1,
        width=1 / 8,
        stem_kernel=3,
        background_out=128,  # with the skip, B only corrects
        shared_content_trunk=True,
        content_map=True,
        background_skip=True,
        trunk_norm="instance",
    ),
}


_STEPS: list[tuple[str, object]] = [
    ("content", False),  # (b) + style-content branches
    ("foreground_classifier", False),  # (c) + foreground classifier
    ("background_classifier", False),  # (d) + background classifier
    ("decoders", "joint"),  # (e) + separately decoding foreground and background in G
    ("anchor", False),  # (f) + anchor foreground domain
    ("content_noise", False),  # (g) + noise injection in mapping network
]


LADDER: dict[str, dict[str, object]] = {rung: dict(_STEPS[i:]) for i, rung in enumerate("abcdefg")}
"""The rungs of the paper's ablation (Table 15), from "a", StarGAN v2, to "g", the whole of DT-GAN.

A rung lists what it changes of the defaults: `replace(config, **LADDER["c"])`. Compare rungs without
`background_skip`, which the lower ones cannot have.
"""
