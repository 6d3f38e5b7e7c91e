"""From a photo and its mask to a cut-out: what a defect adds to its background, and where."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raygen.families.copy_paste.config import CutConfig
from raygen.families.inpainting import FILLS
from raygen.families.masks import Floats, Mask

_MARGIN = 32  # pixels around a hole that its background is guessed from


class Cutout(NamedTuple):
    """A defect without its background."""

    residual: NDArray[np.int16]  # (h, w, C): photo minus background, in grey levels; 0 outside the hole
    pixels: NDArray[np.uint8]  # (h, w, C): of the photo
    matte: NDArray[
        np.uint8
    ]  # (h, w): how much of it belongs to the defect: 255 in the mask, 0 outside the hole
    mask: NDArray[np.uint8]  # (h, w): 1 on the defect, else 0
    place: tuple[float, float]  # of the box's centre in the photo, y and x, 0 to 1
    touches: tuple[
        bool, bool, bool, bool
    ]  # whether the hole goes on beyond the photo's top, bottom, left, right
    strength: (
        float  # mean difference to the background in the mask, in grey levels; < 0 if darker on the whole
    )
    around: float  # mean grey level of the background in the mask
    look: tuple[float, float]  # of the photo without the defect: mean and standard deviation, in grey levels


class Refused(Exception):
    """A defect that cannot be cut out, and why."""


def cut(
    photo: NDArray[np.uint8], mask: Mask, config: CutConfig, *, fade_at_border: bool
) -> tuple[Cutout, NDArray[np.uint8]]:
    """Cuts a defect out.

    Args:
        photo: (H, W, C).
        mask: (H, W), of the defect.
        config: how.
        fade_at_border: whether the defect fades to nothing at the photo's border, too, where it will lie in the
            middle of another.

    Returns:
        The cut-out; and the background, uint8 (H, W, C), the photo without it.

    Raises:
        Refused: there is nothing to cut out, or what there is would look wrong elsewhere.
    """
    if not mask.any():
        raise Refused("its mask is empty; a mask is white on the defect")
    if mask.mean() > config.max_area:
        raise Refused(
            f"its mask covers {mask.mean():.0%} of the photo, more than cut.max_area = {config.max_area:g}; is it "
            "inverted?"
        )
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * config.grow + 1,) * 2)
    hole = cv2.dilate(mask.astype(np.uint8), kernel)
    if hole.all():
        raise Refused("its mask leaves no background")
    background = _background(photo, hole.astype(bool), config)
    residual = photo.astype(np.float32) - background
    difference = np.abs(residual).mean(axis=2)
    change = float(difference[mask].mean())
    if change < config.min_change:
        raise Refused(
            f"it differs from its background by {change:.1f} grey levels, less than cut.min_change = "
            f"{config.min_change:g}: it cannot be seen"
        )
    fringe = hole.astype(bool) & ~mask
    if fringe.any() and (leak := float(difference[fringe].mean()) / change) > config.max_leak:
        raise Refused(
            f"beside its mask it differs from its background by {leak:.1f} of what it does within, more than "
            f"cut.max_leak = {config.max_leak:g}: the mask misses part of it"
        )
    rows, columns = np.flatnonzero(hole.any(axis=1)), np.flatnonzero(hole.any(axis=0))
    height, width = mask.shape
    top, bottom = max(0, int(rows[0]) - 1), min(height, int(rows[-1]) + 2)  # with a rim, for blending
    left, right = max(0, int(columns[0]) - 1), min(width, int(columns[-1]) + 2)
    border = config.grow + 1
    padded = np.pad(hole, border, mode="constant" if fade_at_border else "edge")
    inside = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[border:-border, border:-border] / border
    matte = inside.clip(0, 1) if fade_at_border else np.maximum(mask, inside.clip(0, 1))
    box = np.s_[top:bottom, left:right]
    cutout = Cutout(
        residual=np.rint(residual).astype(np.int16)[box],
        pixels=photo[box],
        matte=np.rint(255 * matte).astype(np.uint8)[box],
        mask=mask.astype(np.uint8)[box],
        place=((top + bottom) / (2 * height), (left + right) / (2 * width)),
        touches=(False, False, False, False) if fade_at_border else _touches(hole > 0),
        strength=float(np.copysign(change, residual[mask].mean())),
        around=float(background[mask].mean()),
        look=look(photo[hole == 0]),
    )
    return cutout, np.rint(background.clip(0, 255)).astype(np.uint8)


def look(pixels: NDArray[Any]) -> tuple[float, float]:
    """Mean and standard deviation of an image's pixels, in grey levels."""
    return float(pixels.mean()), float(pixels.std())


def _touches(hole: Mask) -> tuple[bool, bool, bool, bool]:
    top, bottom, left, right = (bool(edge.any()) for edge in (hole[0], hole[-1], hole[:, 0], hole[:, -1]))
    return top, bottom, left, right


def _background(photo: NDArray[np.uint8], hole: Mask, config: CutConfig) -> Floats:
    """The photo without what is in the hole: (H, W, C), of its neighbourhood alone, for a photo may be large."""
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    first, last = (max(0, edge[0] - _MARGIN) for edge in (rows, columns)), (rows[-1], columns[-1])
    near = tuple(slice(start, stop + 1 + _MARGIN) for start, stop in zip(first, last, strict=True))
    background = photo.astype(np.float32)
    background[near] = FILLS[config.inpainting](np.ascontiguousarray(photo[near]), hole[near])
    return background
