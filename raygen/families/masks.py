"""A defect's mask, read off its layer: weak labels in, pixel masks out.

DT-GAN's image is x̃ = B(x) + F(s, c). What F(s, c) adds beyond a *bare* layer, one that draws no defect, is the
defect without its background. The mask is where that is strong.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raygen.families.recipes import MaskConfig

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]

_EDGE = 3  # pixels over which a defect fades towards the edge of its window
_IN_PLANE = np.zeros((3, 3, 3), bool)
_IN_PLANE[1] = True  # neighbours in an image, diagonals too, and never in the next one


class Defects(NamedTuple):
    """Where defects are."""

    masks: Mask  # (N, H, W)
    weights: (
        Floats  # (N, H, W): how much of each is put on a pixel by a residual composition; 0 outside its mask
    )


def find_defects(strength: Floats, config: MaskConfig) -> Defects:
    """Reads masks off defect layers.

    A pixel belongs to a defect if its change exceeds `spread` × T and it hangs together, gaps closed, with one
    that exceeds T = max(threshold, noise_factor × σ, peak_share × the strongest change). σ is the noise of the
    layer: 1.48 × the median change, which a defect, being small, does not move. Weights rise from 0 where the
    change is `spread` × T, so that a defect that is put on an image has no edge.

    Args:
        strength: change by the defect in grey levels, ≥ 0, (N, H, W), N ≥ 1.
        config: thresholds and smallest sizes.
    """
    noise = 1.4826 * np.median(strength, axis=(1, 2), keepdims=True)
    peak = strength.max(axis=(1, 2), keepdims=True)
    threshold = np.maximum(
        config.threshold, np.maximum(config.noise_factor * noise, config.peak_share * peak)
    )
    edge = config.spread * threshold
    parts, num_parts = _label(_close(strength > edge, config.close), _IN_PLANE)
    areas = np.bincount(parts.ravel(), minlength=num_parts + 1)
    strong = np.bincount(parts[strength > threshold], minlength=num_parts + 1) > 0
    kept = strong & (areas >= config.min_area * strength[0].size)
    kept[0] = False  # the background
    masks = kept[parts]
    weights = ((strength - edge) / (config.fade * edge)).clip(0, 1) * masks
    return Defects(masks, weights.astype(np.float32))


def confine(defects: Defects, allowed: Mask | None, *, fade_edges: bool) -> Defects:
    """Keeps defects where they may lie.

    Args:
        defects: of N windows.
        allowed: (N, H, W); None for anywhere.
        fade_edges: whether they also fade to nothing towards the edge of the window, since it is part of a larger
            image.
    """
    masks, weights = defects
    if allowed is not None:
        masks, weights = masks & allowed, weights * allowed
    if fade_edges:
        height, width = masks.shape[1:]
        ramps = (np.minimum(np.arange(n), np.arange(n)[::-1]) / _EDGE for n in (height, width))
        inside = np.minimum.outer(*(ramp.clip(0, 1).astype(np.float32) for ramp in ramps))
        masks, weights = masks & (inside > 0), weights * inside
    return Defects(masks, weights)


def boxes(mask: Mask, top: int = 0, left: int = 0) -> list[dict[str, int]]:
    """The connected parts of a mask, (H, W), from the top: `x`, `y`, `width`, `height`, and `area` in pixels.

    `top` and `left` say where it lies in a larger one.
    """
    import cv2  # as below: planning needs none of it, and it is slow to import

    pixels = mask.astype(np.uint8)
    x, y, width, height = cv2.boundingRect(pixels)
    if not width:
        return []
    held = pixels[y : y + height, x : x + width]
    _, _, parts, _ = cv2.connectedComponentsWithStats(held, connectivity=8)
    names = ("x", "y", "width", "height", "area")
    moved = parts[1:] + np.array([left + x, top + y, 0, 0, 0])  # without the background
    found: list[dict[str, int]] = [dict(zip(names, part, strict=True)) for part in moved.tolist()]
    return sorted(found, key=lambda box: (box["y"], box["x"], box["area"]))


def surroundings(masks: Mask, reach: int) -> Mask:
    """The band of `reach` pixels around masks, (N, H, W)."""
    return _dilate(masks, reach) & ~masks


def _close(masks: Mask, reach: int) -> Mask:
    """Fills gaps of up to 2 `reach` pixels; the edge of the image counts as neither."""
    return ~_dilate(~_dilate(masks, reach), reach) if reach else masks


def _dilate(masks: Mask, reach: int) -> Mask:
    """Each pixel with one of the mask no farther than `reach` in rows and in columns."""
    from scipy.ndimage import maximum_filter

    return np.asarray(maximum_filter(masks, (1, 2 * reach + 1, 2 * reach + 1)), bool)


def _label(masks: Mask, neighbours: Mask) -> tuple[NDArray[np.int32], int]:
    """The number of the connected part that each pixel belongs to, 0 for none, and how many parts there are."""
    from scipy.ndimage import label

    parts = np.empty(masks.shape, np.int32)
    return parts, int(label(masks, neighbours, parts))  # pyright: ignore[reportArgumentType]
