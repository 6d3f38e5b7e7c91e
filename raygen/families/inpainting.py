"""The background that would be there without a defect: ways to fill a hole in a photo."""

from collections.abc import Callable

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.linalg import splu

from raygen.families.masks import Floats, Mask

_RADIUS = 3  # of OpenCV's fills: how far they look
_RIM = 4  # pixels around a hole by which `match` knows its like

Fill = Callable[[NDArray[np.uint8], Mask], Floats]


def membrane(values: Floats, hole: Mask) -> Floats:
    """Spans a membrane over a hole: a pixel within it is the mean of its neighbours, four or as many as there are.

    Args:
        values: (H, W, C).
        hole: (H, W), not all of it.
    """
    number = np.full(hole.shape, -1)
    number[hole] = np.arange(hole.sum())
    # Each pixel of the hole with a neighbour below or to the right, and the other way round.
    below, right = (number[:-1], number[1:]), (number[:, :-1], number[:, 1:])
    pairs = np.concatenate([np.stack([one.ravel(), other.ravel()]) for one, other in (below, right)], axis=1)
    index = np.arange(hole.size).reshape(hole.shape)
    below, right = (index[:-1], index[1:]), (index[:, :-1], index[:, 1:])
    places = np.concatenate([np.stack([one.ravel(), other.ravel()]) for one, other in (below, right)], axis=1)
    pairs, places = (
        np.concatenate([pairs, pairs[::-1]], axis=1),
        np.concatenate([places, places[::-1]], axis=1),
    )
    pairs, places = pairs[:, pairs[0] >= 0], places[:, pairs[0] >= 0]
    own, other = pairs
    inner = other >= 0
    size = int(hole.sum())
    degree = np.bincount(own, minlength=size).astype(float)
    flat = values.reshape(-1, values.shape[2])
    known = np.zeros((size, values.shape[2]))
    np.add.at(known, own[~inner], flat[places[1, ~inner]])
    rows = np.concatenate([own[inner], np.arange(size)])
    columns = np.concatenate([other[inner], np.arange(size)])
    weights = np.concatenate([np.full(int(inner.sum()), -1.0), degree])
    system = coo_array((weights, (rows, columns)), shape=(size, size)).tocsc()
    filled = values.astype(np.float32, copy=True)
    filled[hole] = splu(system).solve(known)
    return filled


def match(photo: NDArray[np.uint8], hole: Mask) -> Floats:
    """Fills a hole from the place of the photo whose surroundings are most like the hole's, its seam evened out by
    a membrane; by a membrane alone where no place is free of the hole."""
    rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
    box = tuple(slice(max(0, edge[0] - _RIM), edge[-1] + 1 + _RIM) for edge in (rows, columns))
    wanted, inside = photo[box].astype(np.float32), hole[box]
    near = cv2.dilate(inside.astype(np.uint8), np.ones((2 * _RIM + 1,) * 2)).astype(bool)
    rim = np.repeat((near & ~inside)[..., None], photo.shape[2], axis=2).astype(np.float32)
    unlike = cv2.matchTemplate(photo.astype(np.float32), wanted, cv2.TM_SQDIFF, mask=rim)
    overlap = cv2.matchTemplate(hole.astype(np.float32), near.astype(np.float32), cv2.TM_CCORR)
    unlike[overlap > 0.5] = np.inf  # pixels that the place shares with the hole
    filled = photo.astype(np.float32)
    if not np.isfinite(unlike).any():
        return membrane(filled, hole)
    y, x = np.unravel_index(np.argmin(unlike), unlike.shape)
    found = photo[y : y + inside.shape[0], x : x + inside.shape[1]].astype(np.float32)
    seam = np.zeros_like(filled)
    seam[box] = wanted - found
    filled[box][inside] = (found + membrane(seam, hole)[box])[inside]
    return filled


def _opencv(method: int) -> Fill:
    def fill(photo: NDArray[np.uint8], hole: Mask) -> Floats:
        filled = cv2.inpaint(photo, hole.astype(np.uint8), _RADIUS, method)
        return filled.reshape(photo.shape).astype(np.float32)

    return fill


FILLS: dict[str, Fill] = {
    "telea": _opencv(cv2.INPAINT_TELEA),
    "navier-stokes": _opencv(cv2.INPAINT_NS),
    "membrane": lambda photo, hole: membrane(photo.astype(np.float32), hole),
    "match": match,
}
"""Ways to fill a hole: the photo, uint8 (H, W, C), and the hole, (H, W), to the photo without it, float32, in grey
levels."""
