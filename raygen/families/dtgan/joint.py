"""The generator with one decoder, StarGAN v2's: rungs (a) to (d) of DT-GAN's ablation (Table 15).

StarGAN v2 is its own generator and the other networks beside it without content. From rung (b) on the
bottleneck is split as in DT-GAN, but background and target content go through the decoder together: what an image
is translated to depends on both, and there is no defect layer.
"""

from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn

from raygen.families.blocks import AdaIN, StyledResBlock, initialize
from raygen.families.dtgan.networks import Generator, GeneratorEncoder, instance_norm, norm_conv
from raygen.families.dtgan.sizes import DTGANConfig


class JointGenerator(GeneratorEncoder):
    """Translates an image into a style, and a content if there is one, with one decoder for all.

    The decoder mirrors the encoder, with AdaIN for instance norm: 512 → 512 → 512 (two at 16²), ↑512@32²,
    ↑256@64², ↑128@128². The output has no nonlinearity: values may leave [-1, 1].
    """

    def __init__(self, config: DTGANConfig) -> None:
        if config.decoders != "joint":
            raise ValueError(f"decoders must be 'joint' for a JointGenerator, not {config.decoders!r}")
        super().__init__(config)
        full = config.full_width
        block = partial(StyledResBlock, norm=partial(AdaIN, style_dim=config.style_dim), widen_first=True)
        self.decoder = nn.ModuleList([block(full(16), full(16)) for _ in range(2)])
        widths = [full(r) for r in (16, *config.resolutions)]
        self.decoder.extend([block(a, b, resample="up") for a, b in pairwise(widths)])
        self.output = norm_conv(widths[-1], config.channels, instance_norm)
        initialize(self)

    def forward(self, x: Tensor, style: Tensor, content: Tensor) -> Tensor:
        """The translated image x̃ = G(x, s, c).

        Args:
            x: images in [-1, 1], (N, channels, H, W).
            style: (N, style_dim).
            content: (N, content_channels, 16, 16); without content (N, 0, 16, 16).

        Returns:
            Images, unclamped, (N, channels, H, W).
        """
        features, _ = self.encode(x)
        return self.decode(features, style, content)

    def decode(self, features: Tensor, style: Tensor, content: Tensor) -> Tensor:
        """Images, (N, channels, H, W), from `encode`'s background features and a style and content."""
        h = torch.cat([features, content], dim=1)  # (N, 512, 16, 16)
        for block in self.decoder:
            h = block(h, style)
        return self.output(h)  # from (N, 128, H, W)


def build_generator(config: DTGANConfig) -> Generator | JointGenerator:
    """The generator that a config's `decoders` ask for."""
    return Generator(config) if config.decoders == "separate" else JointGenerator(config)
