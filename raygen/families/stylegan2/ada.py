"""Adaptive discriminator augmentation (ADA): D sees all images, real and generated, through random transforms.

Training Generative Adversarial Networks with Limited Data (Karras et al. 2020, arXiv 2006.06676), Appendix B:
its pipeline "bgc", pixel blitting, geometry and colour. Each transform applies with probability p, and
`Controller` moves p so that D does not overfit.

All that moves an image is one matrix, executed once. It acts on columns (x, y, 1), x to the right and y down,
in halves of the image from its centre: the image is [-1, 1] × [-1, 1] at any size. Decisions of ours:

* An image for which blits alone are drawn moves by exact copies, without any filter.
* Borders mirror with the edge pixel repeated, so that a flip or a quarter turn takes mirrors to mirrors.
* The filter's weight lies beside its middle (`ASIDE`), and with it the doubled image beside the image. Sampling
  allows for that: otherwise half a turn would move an image by 0.4 pixels.

In the comments on shapes: N images, C channels, W = height and width.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from raygen.config import check_fields
from raygen.families.blocks import sent

NUM_DRAWS = 21
"""Random numbers that one image needs of each kind; of the normal ones only the first seven are looked at."""

# The low-pass filter of the symlet with six vanishing moments, orthonormal.
SYM6 = (
    *(0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633),
    *(0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252),
    *(-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148),
)
# How far it reaches beyond the two pixels that it makes into one, and where its mean lies from its middle.
MARGIN = len(SYM6) // 2 - 1
ASIDE = sum(k * tap for k, tap in enumerate(SYM6)) / math.sqrt(2) - (MARGIN + 0.5)

BILINEAR, NEAREST, BORDER = 0, 1, 1  # torch's numbers for modes of sampling and of padding


@dataclass(frozen=True)
class AugmentConfig:
    """Which transforms there are, and how strong; the defaults are the paper's.

    On inspected surfaces some may be wrong: what makes a defect may be its direction, or that it is dark.

    Attributes:
        flip: left to right, half of the images that it applies to.
        rotate90: by 0 to 3 quarter turns.
        translate: by whole pixels in x and y, up to `translate_max` of the width.
        scale: by 2^s, s normal with `scale_std`.
        rotate: by up to ±`rotate_max` of π, before the stretch, after it, or both.
        stretch: by 2^s in x and 2^-s in y, s normal with `stretch_std`.
        shift: by fractions of pixels in x and y, normal with `shift_std` of the width.
        brightness: adds a number, normal with `brightness_std`.
        contrast: factor 2^s, s normal with `contrast_std`.
        luma_flip: half of the images that it applies to: gray v becomes -v; hue and saturation stay.
        hue: turns colours about the gray axis, by up to ±`hue_max` of π; nothing to gray images.
        saturation: scales their distance from that axis by 2^s, s normal with `saturation_std`; likewise.

    Raises:
        ValueError: a strength is negative.
    """

    flip: bool = True
    rotate90: bool = True
    translate: bool = True
    scale: bool = True
    rotate: bool = True
    stretch: bool = True
    shift: bool = True
    brightness: bool = True
    contrast: bool = True
    luma_flip: bool = True
    hue: bool = True
    saturation: bool = True
    translate_max: float = 0.125
    scale_std: float = 0.2
    rotate_max: float = 1.0
    stretch_std: float = 0.2
    shift_std: float = 0.125
    brightness_std: float = 0.2
    contrast_std: float = 0.5
    hue_max: float = 1.0
    saturation_std: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, value in asdict(self).items():
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, not {value!r}")


def augment(x: Tensor, uniforms: Tensor, normals: Tensor, p: Tensor | float, config: AugmentConfig) -> Tensor:
    """Augments a batch of images; differentiable by x as often as wanted, since R1 goes through it.

    An image's result depends on that image, its numbers and p alone, not on its neighbours. An image that no
    transform applies to comes back bit for bit. A switch changes nothing about what the other transforms do.

    Args:
        x: (N, C, W, W), in [-1, 1]; C is 1 or 3.
        uniforms: (N, NUM_DRAWS), in [0, 1), on the device of x or on the CPU.
        normals: (N, NUM_DRAWS), standard normal, there too.
        p: probability of each transform, in [0, 1]; a number, or a tensor of one or of N. With the number 0 the
            result is x itself.
        config: which transforms, and how strong.

    Returns:
        (N, C, W, W), not clipped to [-1, 1]; float64 as x, or else float32 also under autocast, since
        coordinates need the bits.

    Raises:
        ValueError: the images are not square, or the numbers are too few or too many.
    """
    if not isinstance(p, Tensor) and p == 0:
        return x
    n, channels, height, width = x.shape
    if height != width:
        raise ValueError(f"images must be square, not {height} × {width}")
    if not uniforms.shape == normals.shape == (n, NUM_DRAWS):
        raise ValueError(
            f"draws must be ({n}, {NUM_DRAWS}), not {(*uniforms.shape,)} and {(*normals.shape,)}"
        )
    draws = _Draws(uniforms, normals, p)
    blits = _blits(draws, config, width)
    geometry = _geometry(draws, config)
    colour = _colour(draws, config, channels)
    warped = _drawn(geometry)
    with torch.autocast(x.device.type, enabled=False):
        x = x if x.dtype == torch.float64 else x.float()
        x = _replace(x, _drawn(blits) & ~warped, blits, partial(_resample, mode=NEAREST))
        x = _replace(x, warped, geometry @ blits, _warp)
        return _replace(x, _drawn(colour), colour, _recolour)


# ------------------------------------------------------------------------------------------ transforms


class _Draws:
    """The numbers of N images, handed out in a fixed order: a transform's own, then the one that applies it.

    In float64, so that the rounding of a sine, which may depend on N, never shows in an image.
    """

    def __init__(self, uniforms: Tensor, normals: Tensor, p: Tensor | float) -> None:
        self.uniforms = iter(uniforms.double().unbind(1))
        self.normals = iter(normals.double().unbind(1))
        self.p = torch.as_tensor(p, dtype=torch.float64, device=uniforms.device)

    def below(self, count: int) -> Tensor:
        """(N,), integers in 0..count - 1."""
        return (next(self.uniforms) * count).floor()

    def within(self, limit: float) -> Tensor:
        """(N,), uniform in ±limit."""
        return (2 * next(self.uniforms) - 1) * limit

    def normal(self, std: float) -> Tensor:
        """(N,), normal."""
        return next(self.normals) * std

    def gated(self, on: bool, matrix: Tensor, p: Tensor | None = None) -> Tensor:
        """(N, D, D), the matrix with probability p where switched on, or else the identity."""
        applies = next(self.uniforms) < (self.p if p is None else p)
        return torch.where((applies & on)[:, None, None], matrix, _identity(matrix))


def _blits(draws: _Draws, config: AugmentConfig, size: int) -> Tensor:
    """What takes pixels of size × size images to pixels: (N, 3, 3)."""
    flip = draws.gated(config.flip, _matrix(3, {(0, 0): 1 - 2 * draws.below(2)}))
    turn = draws.gated(config.rotate90, _rotation(draws.below(4) * (math.pi / 2)))
    x, y = ((draws.within(config.translate_max) * size).round() for _ in range(2))
    translation = draws.gated(config.translate, _translation(x / size, y / size))
    return translation @ turn @ flip


def _geometry(draws: _Draws, config: AugmentConfig) -> Tensor:
    """What needs resampling: (N, 3, 3)."""
    either = 1 - (1 - draws.p).sqrt()  # of two rotations each, so that with p at least one applies
    factor = draws.normal(config.scale_std).exp2()
    scale = draws.gated(config.scale, _matrix(3, {(0, 0): factor, (1, 1): factor}))
    before = draws.gated(config.rotate, _rotation(draws.within(config.rotate_max * math.pi)), either)
    factor = draws.normal(config.stretch_std).exp2()
    stretch = draws.gated(config.stretch, _matrix(3, {(0, 0): factor, (1, 1): 1 / factor}))
    after = draws.gated(config.rotate, _rotation(draws.within(config.rotate_max * math.pi)), either)
    x, y = (draws.normal(config.shift_std) for _ in range(2))
    shift = draws.gated(config.shift, _translation(x, y))
    return shift @ after @ stretch @ before @ scale


def _colour(draws: _Draws, config: AugmentConfig, channels: int) -> Tensor:
    """What takes colours (r, g, b, 1) to colours: (N, 4, 4); for gray images only what keeps r = g = b."""
    amount = draws.normal(config.brightness_std)
    brightness = draws.gated(config.brightness, _matrix(4, {(0, 3): amount, (1, 3): amount, (2, 3): amount}))
    factor = draws.normal(config.contrast_std).exp2()
    contrast = draws.gated(config.contrast, _tone(factor, factor))
    one = torch.ones_like(factor)
    flip = draws.gated(config.luma_flip, _tone(1 - 2 * draws.below(2), one))
    angle = draws.within(config.hue_max * math.pi)
    hue = draws.gated(config.hue and channels == 3, _tone(one, angle.cos(), angle.sin()))
    factor = draws.normal(config.saturation_std).exp2()
    saturation = draws.gated(config.saturation and channels == 3, _tone(one, factor))
    return saturation @ hue @ flip @ contrast @ brightness


def _identity(like: Tensor) -> Tensor:
    """(D, D), for matrices (N, D, D)."""
    return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)


def _matrix(size: int, entries: dict[tuple[int, int], Tensor]) -> Tensor:
    """Identities with entries (N,) at (row, column) in place of theirs: (N, size, size)."""
    like = next(iter(entries.values()))
    matrix = torch.eye(size, dtype=like.dtype, device=like.device).repeat(len(like), 1, 1)
    for (row, column), entry in entries.items():
        matrix[:, row, column] = entry
    return matrix


def _rotation(angle: Tensor) -> Tensor:
    """From x towards y, which the eye sees as clockwise."""
    cos, sin = angle.cos(), angle.sin()
    return _matrix(3, {(0, 0): cos, (0, 1): -sin, (1, 0): sin, (1, 1): cos})


def _translation(x: Tensor, y: Tensor) -> Tensor:
    """By shares of the image's width."""
    return _matrix(3, {(0, 2): 2 * x, (1, 2): 2 * y})


def _tone(gray: Tensor, tint: Tensor, turn: Tensor | None = None) -> Tensor:
    """Scales a colour's part along the gray axis (1, 1, 1) and its part across, the tint: (N, 4, 4).

    With `turn` tints turn about the axis, by the angle whose cosine is `tint` and whose sine is `turn`.
    """
    turn = torch.zeros_like(tint) if turn is None else turn
    same, ahead, behind = (
        gray + 2 * tint,
        gray - tint - math.sqrt(3) * turn,
        gray - tint + math.sqrt(3) * turn,
    )
    circle = (same / 3, ahead / 3, behind / 3)  # to a channel from itself, from the next, and from the last
    return _matrix(4, {(i, j): circle[(j - i) % 3] for i in range(3) for j in range(3)})


# ------------------------------------------------------------------------------------------- execution


def _drawn(matrices: Tensor) -> Tensor:
    """(N,), True where not the identity."""
    return (matrices != _identity(matrices)).any(dim=(1, 2))


def _replace(x: Tensor, where: Tensor, matrices: Tensor, by: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """x with the images of a mask, (N,), replaced by a function of them and their matrices."""
    rows = where.nonzero().squeeze(1)
    if len(rows) == 0:
        return x
    matrices, rows = matrices[rows], sent(rows, x.device)
    return x.index_copy(0, rows, by(x[rows], matrices))


def _recolour(x: Tensor, matrices: Tensor) -> Tensor:
    """Images (N, C, W, W) with their colours taken through matrices (N, 4, 4)."""
    weight, offset = sent(matrices.to(x.dtype), x.device)[:, : x.shape[1]].split([3, 1], dim=2)
    if x.shape[1] == 1:
        weight = weight.sum(dim=2, keepdim=True)  # r = g = b
    return torch.baddbmm(offset, weight, x.flatten(2)).view_as(x)


def _warp(x: Tensor, matrices: Tensor) -> Tensor:
    """Images (N, C, W, W) taken through any matrices (N, 3, 3).

    As in the paper: filtered to twice the size, sampled there, and filtered back. Without the sampling the two
    filters cancel; of what it brings in, the second takes away the frequencies that W pixels cannot hold.
    """
    up, down = (sent(filters.to(x.dtype), x.device) for filters in lowpass(x.shape[2]))
    x = 2 * (up @ x @ up.T)  # (N, C, 2W, 2W); twice, since each pixel's weights sum to 1/√2 in x and in y
    x = _resample(x, matrices, BILINEAR, MARGIN, ASIDE)  # (N, C, 2W + 10, 2W + 10)
    return down @ x @ down.T / 2


def lowpass(size: int) -> tuple[Tensor, Tensor]:
    """SYM6 along a column of pixels, as matrices of float64: faster on a CPU than convolutions of one channel.

    Returns:
        to twice as many pixels, with mirrors beyond the borders: (2 · size, size);
        and back, from as many and MARGIN more at each end: (size, 2 · size + 2 · MARGIN).
    """
    reach = MARGIN // 2 + 1  # how far pixels beyond a border still count
    coarse = torch.arange(-reach, size + reach)[:, None]
    fine = torch.arange(-MARGIN, 2 * size + MARGIN)
    tap = fine - 2 * coarse + MARGIN
    weights = torch.tensor(SYM6, dtype=torch.float64)[tap.clamp(0, len(SYM6) - 1)]
    weights = weights.where((tap >= 0) & (tap < len(SYM6)), 0)
    up = weights.T[MARGIN:-MARGIN].clone()
    up[:, reach : 2 * reach] += up[:, :reach].flip(1)
    up[:, -2 * reach : -reach] += up[:, -reach:].flip(1)
    return up[:, reach:-reach], weights[reach:-reach]


def _resample(x: Tensor, matrices: Tensor, mode: int, margin: int = 0, aside: float = 0.0) -> Tensor:
    """Images (N, C, W, W) taken through matrices (N, 3, 3), with a margin around them: (N, C, W', W').

    Args:
        mode: NEAREST or BILINEAR.
        margin: in pixels, W' = W + 2 · margin.
        aside: pixel k stands for the place k - aside, before and after.
    """
    size = x.shape[2]
    place = torch.arange(-margin, size + margin, dtype=x.dtype, device=x.device) - aside
    column = (2 * place + 1) / size - 1
    row = column[:, None]
    # Where pixels come from. Sums are written out, since a matrix product's rounding may depend on N.
    back = sent(torch.linalg.inv(matrices).to(x.dtype), x.device)
    a, b, c, d, e, f = back[:, :2].flatten(1).T[:, :, None, None]
    grid = torch.stack([a * column + b * row + c, d * column + e * row + f], dim=3)
    grid = 1 - (grid.add_(1).remainder_(4) - 2).abs_()  # mirrored into [-1, 1]
    grid += 2 * aside / size
    return _Sampling.apply(x, grid, mode)


class _Sampling(Function):
    """`grid_sample`, differentiable by the image as often as wanted, where torch's own is so once.

    Sampling is linear in the image: its backward is its transpose, and the transpose's backward is sampling.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, grid: Tensor, mode: int) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.shape, ctx.mode = x.shape, mode
        return torch.grid_sampler(x, grid, mode, BORDER, False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (grid,) = ctx.saved_tensors
        return _Spreading.apply(gradients[0], grid, ctx.mode, ctx.shape), None, None


class _Spreading(Function):
    """The transpose of `_Sampling`: adds what was sampled to the pixels, (N, C, W, W), that it came from."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, grid: Tensor, mode: int, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(grid)
        ctx.mode = mode
        x = y.new_zeros(1).expand(shape)  # only its shape matters
        wanted = [True, False]  # the gradient by x, not by the grid
        return torch.ops.aten.grid_sampler_2d_backward(y, x, grid, mode, BORDER, False, wanted)[0]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (grid,) = ctx.saved_tensors
        return _Sampling.apply(gradients[0], grid, ctx.mode), None, None, None


# --------------------------------------------------------------------------------------- adaptation of p


@dataclass
class Controller:
    """Moves p to hold the mean sign of D(real), which grows as D overfits, at a target: the paper's r_t.

    Attributes:
        p: probability of each transform, in [0, 1].
        sign_sum: of D(real) since the last update; a tensor, (), stays on its device until it is asked for.
        num_images: real images since then.
    """

    p: float = 0.0
    sign_sum: float | Tensor = 0.0
    num_images: float = 0.0

    def observe(self, mean_sign: float | Tensor, num: int) -> None:
        """Takes in the mean sign of D over a number of real images."""
        if isinstance(mean_sign, Tensor):
            mean_sign = mean_sign.double()  # as Python would add
        self.sign_sum = self.sign_sum + mean_sign * num
        self.num_images += num

    def update(self, target: float = 0.6, images_for_full_range: float = 500_000) -> None:
        """Moves p up where the mean sign is above the target, else down; from 0 to 1 in so many images."""
        step = self.num_images / images_for_full_range
        up = float(self.sign_sum) > target * self.num_images
        self.p = min(max(self.p + (step if up else -step), 0.0), 1.0)
        self.sign_sum = self.num_images = 0.0

    def state_dict(self) -> dict[str, float]:
        """All of it, for a checkpoint, also between two updates."""
        return {"p": self.p, "sign_sum": float(self.sign_sum), "num_images": self.num_images}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on from a `state_dict`."""
        self.p, self.sign_sum, self.num_images = state["p"], state["sign_sum"], state["num_images"]
