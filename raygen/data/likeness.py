"""Whether two photographs show nearly the same picture, by their fine structure.

Copies that were encoded again, resized or brightened, and photographs of the same spot; not crops, nor mirror
images. Of 872 and 3,967 photographs of textures 198 and 26 pairs are beyond this likeness: 197 and 26 of them show
one thing. Of copies of 200 of each in JPEG of quality 50 it finds 100 and 89 %, brightened 100 and 98 %, of half
the size 100 and 98 % (tests/benchmarks/near_duplicates.py).
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
"""Pixels a side of a thumbnail."""

ALIKE = 0.8
"""Two thumbnails' product beyond which their photographs are nearly the same."""


SAME = 0.98
"""Likewise beyond which they are the same to the eye."""


def thumbnail(grey: NDArray[np.uint8]) -> NDArray[np.float16]:
    """A photograph's finer structure: small, of the same local contrast everywhere. (Else what all photos of one
    camera share, say a bright edge, would outweigh what is theirs alone.)

    Args:
        grey: uint8 (H, W).

    Returns:
        float16 (SIDE²,), of length 1, or 0 where the photograph is even.
    """
    from scipy.ndimage import gaussian_filter  # slow to import

    small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BOX)
    levels = np.asarray(small, np.float32)
    fine = levels - gaussian_filter(levels, 2)
    fine /= np.sqrt(gaussian_filter(fine * fine, 2)) + 0.5  # grey levels: what is even stays so
    fine = fine.ravel() - fine.mean()
    length = np.linalg.norm(fine)
    return (fine / length if length > 1e-3 else np.zeros_like(fine)).astype(np.float16)


def alike(thumbnails: NDArray[np.float16]) -> Iterator[tuple[int, int, float]]:
    """The pairs among thumbnails, (N, SIDE²), that are nearly the same: the later's number, the earlier's, and how
    alike they are, up to 1."""
    fine = thumbnails.astype(np.float32)
    for start in range(0, len(fine), 1024):  # not n² at once
        likeness = fine[start : start + 1024] @ fine[: start + 1024].T
        for row, column in np.argwhere(likeness > ALIKE):
            if column < start + row:
                yield int(start + row), int(column), float(likeness[row, column])
