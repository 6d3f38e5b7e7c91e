"""Scores that need no network: what a sample's pixels and mask tell."""

import numpy as np
from numpy.typing import NDArray

from raygen.families.masks import Floats, Mask, surroundings
from raygen.records import SCORES


def preservation(samples: NDArray[np.uint8], normals: NDArray[np.uint8], masks: Mask) -> Floats:
    """Mean absolute change outside the mask, in grey levels: (n, H, W, C) twice and (n, H, W) to (n,); NaN where
    the mask is all there is."""
    change = np.abs(samples.astype(np.int16) - normals).mean(axis=3, dtype=np.float32)
    return _mean(change, ~masks)


def contrast(samples: NDArray[np.uint8], masks: Mask) -> Floats:
    """Mean luminance inside the mask minus the mean in a band around it, a sixteenth of the image wide, in grey
    levels: (n, H, W, C) and (n, H, W) to (n,); NaN where there is no inside or no around."""
    luminance = samples.mean(axis=3, dtype=np.float32)
    around = surroundings(masks, max(2, samples.shape[1] // 16))
    return _mean(luminance, masks) - _mean(luminance, around)


def _mean(values: Floats, where: Mask) -> Floats:
    """The mean of each image's values where the mask is set: (n, H, W) twice to (n,); NaN where it nowhere is."""
    count = where.sum(axis=(1, 2))
    total = (values * where).sum(axis=(1, 2), dtype=np.float32)
    with np.errstate(invalid="ignore"):
        return (total / count).astype(np.float32)


def pixel_scores(samples: NDArray[np.uint8], normals: NDArray[np.uint8], masks: Mask) -> Floats:
    """All that can be told without a network, (n, scores) in the order of SCORES; NaN for the others."""
    known = {
        "preservation": preservation(samples, normals, masks),
        "mask_area": masks.mean(axis=(1, 2), dtype=np.float32),
        "contrast": contrast(samples, masks),
    }
    unknown = np.full(len(samples), np.nan, np.float32)
    return np.stack([known.get(name, unknown) for name in SCORES], axis=1)
