"""Traditional augmentation of one photograph, for the probe."""

import cv2
import numpy as np
from numpy.typing import NDArray


def augment_photo(
    pixels: NDArray[np.uint8], random: np.random.Generator, mask: NDArray[np.bool_] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
    """Mirrored or not, either way; turned by up to 10 degrees, scaled by up to 10 % and moved by up to 6 % of its
    side; its contrast changed by up to 15 % and its brightness by up to 12 grey levels.

    Args:
        pixels: uint8 (H, W, 1 or 3), H = W.
        random: of the draws, as many with a mask as without.
        mask: bool (H, W), moved alike.

    Returns:
        The photograph, and its mask if one was given.
    """
    side = len(pixels)
    flips = np.s_[:: random.choice([1, -1]), :: random.choice([1, -1])]
    centre = ((side - 1) / 2, (side - 1) / 2)
    matrix = cv2.getRotationMatrix2D(centre, random.uniform(-10, 10), random.uniform(0.9, 1.1))
    matrix[:, 2] += random.uniform(-0.06, 0.06, 2) * side

    def move(image: NDArray[np.uint8], how: int) -> NDArray[np.uint8]:
        flipped = np.ascontiguousarray(image[flips])
        moved = cv2.warpAffine(flipped, matrix, (side, side), flags=how, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(moved, np.uint8)

    moved = move(pixels, cv2.INTER_LINEAR)
    mean = moved.mean()
    changed = (moved - mean) * random.uniform(0.85, 1.15) + mean + random.uniform(-12, 12)
    photo = np.rint(changed.clip(0, 255)).astype(np.uint8).reshape(pixels.shape)
    return photo, None if mask is None else move(mask.astype(np.uint8), cv2.INTER_NEAREST) > 0
