"""DFM-GAN's generator: a frozen StyleGAN2 that draws a normal, and residual blocks that put a defect on it.

Few-Shot Defect Image Generation via Defect-Aware Feature Manipulation (arXiv 2303.02389). From the resolution
`start` up, a residual block stands beside each block of the backbone, modulated by a latent of its own. The first
one also says where the defect is, as a mask; at every resolution the residual is added inside the mask only. So
the same latent gives a normal, its defect and the mask between them.

Decisions of ours:

* The defect mapping network takes the defect type as a label: one model of several types, one type is the special
  case.
* The backbone's work up to and with the block at `start` is the same for all defects of one normal, and is done
  once, see `begin`; what is above cannot be shared, for it starts from manipulated features.

In the comments on shapes: N defects, C channels, R a resolution, W = `w_dim`.
"""

import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.config import check_fields
from raygen.families.stylegan2.networks import (
    Backbone,
    Discriminator,
    EqualLinear,
    MappingNetwork,
    State,
    StyledConv,
    StyleGAN2Config,
    SynthesisBlock,
    ToImage,
    noise_maps,
    repeat_w,
    split_noise,
    upsample,
)

SHARPNESS = 10.0
"""Raw masks are shown to D_match as tanh(10 · mask)."""


@dataclass(frozen=True)
class DFMGANConfig:
    """Sizes of the networks.

    Attributes:
        backbone: of stage 1.
        num_types: defect types.
        start: resolution of the first residual block; 0 stands for a quarter of the image's size.
        match_channel_base: of the matching discriminator, see `StyleGAN2Config.channel_base`.
        match_channel_max: likewise.
        noise: whether residual blocks have noise maps, as the original's; without, a defect is its latent's alone.
        place_map: ours: a fully connected map by which a defect's style says what is where, added to the first
            convolution's noise. Styles scale whole channels, so that it is noise that decides otherwise.

    Raises:
        ValueError: a field is out of its range.
    """

    backbone: StyleGAN2Config = field(default_factory=StyleGAN2Config)
    num_types: int = 1
    start: int = 0
    match_channel_base: int = 4096
    match_channel_max: int = 128
    noise: bool = True
    place_map: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        if self.num_types < 1:
            raise ValueError(f"num_types must be at least 1, not {self.num_types}")
        if self.start and self.start not in self.backbone.resolutions[1:]:
            choices = ", ".join(map(str, self.backbone.resolutions[1:]))
            raise ValueError(
                f"start must be one of {choices}, or 0 for a quarter of the size, not {self.start}"
            )

    @classmethod
    def of(cls, model: dict[str, Any]) -> "DFMGANConfig":
        """From what `asdict` made of one, as it stands in a checkpoint."""
        return cls(**{**model, "backbone": StyleGAN2Config(**model["backbone"])})

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for a checkpoint; `of` is the inverse."""
        return asdict(self)

    @property
    def first(self) -> int:
        """Resolution of the first residual block, and of the raw mask."""
        return self.start or self.backbone.image_size // 4

    @property
    def resolutions(self) -> list[int]:
        """Those of the residual blocks."""
        return [size for size in self.backbone.resolutions if size >= self.first]

    @property
    def num_ws(self) -> int:
        """Styles of a defect: one for each convolution of the residual blocks, and one for the mask."""
        return 2 * len(self.resolutions) + 1

    @property
    def noise_size(self) -> int:
        """Numbers of noise that a defect takes."""
        return sum(size * size for size in noise_maps(self.resolutions)) if self.noise else 0


class Normals(NamedTuple):
    """The backbone's work that all defects of the same normals share; rows are normals."""

    below: State  # before the block at `first`: (N, C, first / 2, ·)
    features: Tensor  # of that block, (N, C, first, first)


class Defective(NamedTuple):
    """What the generator gives."""

    image: Tensor  # (N, channels, image_size, image_size), about [-1, 1]
    mask: Tensor  # (N, 1, first, first), raw: the defect is where it is ≥ 0


class ResidualBlock(nn.Module):
    """A defect's features at one resolution, shaped as the backbone's block there."""

    def __init__(self, config: StyleGAN2Config, resolution: int) -> None:
        super().__init__()
        wide = config.width(resolution)
        self.conv0 = StyledConv(config.width(resolution // 2), wide, config.w_dim, up=True)
        self.conv1 = StyledConv(wide, wide, config.w_dim)

    def forward(self, x: Tensor, ws: Tensor, maps: list[Tensor]) -> Tensor:
        """x (N, C, R / 2, R / 2), ws (N, 2, W), two noise maps (N, 1, R, R) to (N, C', R, R)."""
        return self.conv1(self.conv0(x, ws[:, 0], maps[0]), ws[:, 1], maps[1])


class Manipulation(nn.Module):
    """What stage 2 learns: the defect mapping network, the residual blocks, and the mask."""

    def __init__(self, config: DFMGANConfig) -> None:
        super().__init__()
        sizes = config.backbone
        self.mapping = MappingNetwork(sizes.latent_dim, config.num_types, sizes.w_dim, sizes.mapping_layers)
        self.blocks = nn.ModuleList(ResidualBlock(sizes, size) for size in config.resolutions)
        self.to_mask = ToImage(sizes.width(config.first), 1, sizes.w_dim)
        if config.place_map:
            self.place_map = EqualLinear(sizes.w_dim, (config.first // 2) ** 2)


class DFMGANGenerator(nn.Module):
    """Backbone and manipulation. The backbone is frozen: it gets no gradients."""

    def __init__(self, config: DFMGANConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = Backbone(config.backbone).requires_grad_(False)
        self.manipulation = Manipulation(config)

    def forward(self, ws: Tensor, noise: Tensor, defect_ws: Tensor, defect_noise: Tensor) -> Defective:
        """A defect on each of N normals.

        Args:
            ws: the normals' styles, (N, backbone.num_ws, W).
            noise: theirs, (N, backbone.noise_size).
            defect_ws: (N, num_ws, W).
            defect_noise: (N, noise_size).
        """
        return self.finish(self.begin(ws, noise), ws, noise, defect_ws, defect_noise)

    def normal(self, ws: Tensor, noise: Tensor) -> Tensor:
        """The normals themselves: the backbone's images, (N, channels, image_size, image_size)."""
        return self.backbone.synthesis(ws, noise)

    @torch.no_grad()
    def begin(self, ws: Tensor, noise: Tensor) -> Normals:
        """What all defects of the same normals have in common."""
        below = self.backbone.synthesis.run(ws, noise, self.config.first // 2)
        _, block, block_ws, maps, _ = next(self._upper(ws, noise))
        return Normals(below, block.features(below.x, block_ws, maps))

    def finish(
        self, normals: Normals, ws: Tensor, noise: Tensor, defect_ws: Tensor, defect_noise: Tensor
    ) -> Defective:
        """A defect on each row of `normals`; arguments as in `forward`."""
        residual_maps = self._residual_maps(defect_noise)
        x, image = normals.below
        raw = whole = None
        for index, (_, block, block_ws, maps, image_w) in enumerate(self._upper(ws, noise)):
            residual = self._residual(index, x, defect_ws, [next(residual_maps), next(residual_maps)])
            if whole is None:
                raw = self._mask(residual, defect_ws)  # float32
                whole = full_mask(raw, self.config.backbone.image_size)
                x = normals.features
            else:
                x = block.features(x, block_ws, maps)
            x = x + residual * gate(whole, x.shape[2]).to(residual.dtype)
            image = block.paint(image, x, image_w)
        assert image is not None
        assert raw is not None
        return Defective(image, raw)

    def plain(self, normals: Normals, ws: Tensor, noise: Tensor) -> Tensor:
        """The normals themselves, from where `begin` has come: what `normal` gives, at less cost."""
        image, x = normals.below.image, normals.features
        for index, (_, block, block_ws, maps, image_w) in enumerate(self._upper(ws, noise)):
            x = block.features(x, block_ws, maps) if index else x
            image = block.paint(image, x, image_w)
        assert image is not None
        return image

    def raw_mask(self, x: Tensor, defect_ws: Tensor, defect_noise: Tensor) -> Tensor:
        """The mask alone, as `finish` gives it, of features x that enter the block at `first`."""
        maps = self._residual_maps(defect_noise)
        return self._mask(self._residual(0, x, defect_ws, [next(maps), next(maps)]), defect_ws)

    def _residual_maps(self, noise: Tensor) -> Iterator[Tensor]:
        """The noise map of each convolution of the residual blocks."""
        if self.config.noise:
            return split_noise(noise, self.config.resolutions)
        return itertools.repeat(noise.new_zeros(()))

    def _residual(self, index: int, x: Tensor, defect_ws: Tensor, maps: list[Tensor]) -> Tensor:
        if index == 0 and self.config.place_map:
            place = self.manipulation.place_map(defect_ws[:, 0])  # (N, (first / 2)²)
            maps = [maps[0] + upsample(place.unflatten(1, (1, self.config.first // 2, -1))), maps[1]]
        return self.manipulation.blocks[index](x, defect_ws[:, 2 * index : 2 * index + 2], maps)

    def _mask(self, residual: Tensor, defect_ws: Tensor) -> Tensor:
        # In float32 at least, whatever autocast makes of the rest: it is thresholded.
        precise = torch.promote_types(residual.dtype, torch.float32)
        with torch.autocast(residual.device.type, enabled=False):
            return self.manipulation.to_mask(residual.to(precise), defect_ws[:, -1].to(precise))

    def _upper(
        self, ws: Tensor, noise: Tensor
    ) -> Iterator[tuple[int, SynthesisBlock, Tensor, list[Tensor], Tensor]]:
        """The backbone's parts from `first` up."""
        return (part for part in self.backbone.synthesis.parts(ws, noise) if part[0] >= self.config.first)

    def defect_ws(self, z: Tensor, defect_type: Tensor) -> Tensor:
        """z (N, latent_dim), defect_type (N,) long to (N, num_ws, W)."""
        return repeat_w(self.manipulation.mapping(z, defect_type), self.config.num_ws)


def full_mask(raw: Tensor, image_size: int) -> Tensor:
    """A raw mask, (N, 1, first, first), at the image's size, still raw; in float32 also under autocast."""
    with torch.autocast(raw.device.type, enabled=False):
        while raw.shape[2] < image_size:
            raw = upsample(raw)
    return raw


def gate(whole: Tensor, resolution: int) -> Tensor:
    """Where features are manipulated at a resolution, bool (N, 1, R, R): in the cells that a pixel of the whole
    mask, (N, 1, image_size, image_size), lies in.

    The paper thresholds the upsampled raw mask at each resolution by itself. A cell that stands alone then draws
    a defect, and is smoothed away on its way up: no mask shows it, and D_match does not see it. A small model
    learns to hide nearly all that it does in this way.
    """
    return F.max_pool2d(whole, whole.shape[2] // resolution) >= 0


def build_matcher(config: DFMGANConfig) -> Discriminator:
    """D_match: looks at an image and its mask together; its labels are the defect types."""
    sizes = config.backbone
    return Discriminator(
        sizes.image_size,
        sizes.channels + 1,
        config.num_types,
        config.match_channel_base,
        config.match_channel_max,
        sizes.group,
    )
