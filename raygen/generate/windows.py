"""Windows: the parts of full-size photographs that the model sees, placed by seed inside regions of interest."""

import functools
import hashlib
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raygen import images, storage
from raygen.depth import FULL, PixelRange
from raygen.errors import UserError

_GRID = 512  # a region is searched for places on at most so many cells a side
_PLACES = 1 << 64  # Philox keys beyond a seed's 63 bits: a stream of its own


class Window(NamedTuple):
    """Where the model looks: a square of a photograph, in its pixels."""

    y: int
    x: int
    size: int


@dataclass(frozen=True, eq=False)
class Region:
    """A product's region of interest, stretched over each of its photographs."""

    mask: NDArray[np.bool_]  # (H, W): where defects may lie


def window_size(image_size: int, scale: float) -> int:
    """Side of a window in pixels of the photograph, for a model of `image_size`."""
    return max(1, round(image_size * scale))


@functools.lru_cache(maxsize=64)
def read_region(uri: str, sha256: str) -> Region:
    """Reads a region of interest: an image, white where defects may lie.

    Args:
        uri: of the image.
        sha256: of the file as it was when the run began.

    Raises:
        UserError: missing, no image, all black, or changed.
    """
    try:
        data = storage.read(uri)
        grey = images.decode_photo(data, max_pixels=2**28).max(axis=2)
    except storage.ObjectMissingError:
        raise UserError(f"roi {uri}: gone since the run began; put it back, or begin a new output") from None
    except images.BadImageError as error:
        raise UserError(f"roi {uri}: {error}; put a black and white image there") from None
    if hashlib.sha256(data).hexdigest() != sha256:
        raise UserError(
            f"roi {uri}: changed since the run began; put the old one back, or begin a new output"
        )
    if not (grey > 127).any():
        raise UserError(f"roi {uri}: all black; paint white where defects may lie")
    return Region(grey > 127)


def place_window(seed: int, height: int, width: int, size: int, region: Region | None = None) -> Window:
    """Draws a window: anywhere in the photograph or, with a region, among those that lie wholly in it; if there
    are none, among those whose centre does.

    Args:
        seed: of the sample; the window has a stream of its own.
        height: of the photograph, at least `size`.
        width: likewise.
        size: side of the window.
        region: where defects may lie.
    """
    rng = np.random.Generator(np.random.Philox(key=seed + _PLACES))
    if region is None:
        return Window(int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1)), size)
    corners = _corners(region, height, width, size)
    y, x = corners[rng.integers(len(corners))]
    return Window(int(y), int(x), size)


def cut_region(region: Region, window: Window, height: int, width: int, side: int) -> NDArray[np.bool_]:
    """Where in a window defects may lie: the region under it, (side, side)."""

    def under(first: int, in_region: int, in_photo: int) -> NDArray[np.int64]:
        centres = first + (np.arange(side) + 0.5) * window.size / side
        return (centres * in_region / in_photo).astype(np.int64)

    rows, columns = under(window.y, len(region.mask), height), under(window.x, region.mask.shape[1], width)
    return region.mask[np.ix_(rows, columns)]


def put_defect(
    photo: NDArray[np.uint8] | NDArray[np.uint16],
    window: Window,
    layer: NDArray[np.float32],
    mask: NDArray[np.uint8],
    pixel_range: PixelRange | None = None,
) -> tuple[NDArray[Any], NDArray[np.uint8]]:
    """Puts a defect on a photograph, whose pixels outside the mask stay as they are.

    Args:
        photo: uint8 (H, W, 1 or 3), or uint16 (H, W, 1); not changed.
        window: where.
        layer: the defect, already weighted, in the model's range of 2, (C or C + 1, side, side), C = 1 or 3; one
            beyond C is the opacity. A single channel is added to all of the photograph's.
        mask: where it is, 255, else 0, (side, side).
        pixel_range: of a photograph of 16 bits, the levels that are black and white to the model; default: all.

    Returns:
        The photograph with the defect, (H, W, 1 or 3; 3 if C is, and then uint8), and the mask at its size.
    """
    num_painted = 3 if len(layer) >= 3 else 1
    if num_painted == 3 and photo.dtype == np.uint16:
        photo = images.to_8_bits(images.Levels(photo, None), pixel_range or FULL)
    low, high = (0, 255) if photo.dtype == np.uint8 else pixel_range or FULL
    levels = (high - low) / 255  # for one of 8 bits
    full = np.repeat(photo, 3, axis=2) if num_painted > photo.shape[2] else photo.copy()
    y, x, size = window
    seen = full[y : y + size, x : x + size]
    large = np.stack([images.resize_field(channel, size) for channel in layer], axis=2)  # (size, size, ·)
    paint, opacity = large[:, :, :num_painted] * 127.5, large[:, :, num_painted:]
    grey = (seen - low) / levels
    changed = grey if not opacity.size else (grey - 127.5) * (1 - opacity) + 127.5
    inside = images.resize_mask(mask, size)
    full_mask = np.zeros(full.shape[:2], np.uint8)
    full_mask[y : y + size, x : x + size] = inside
    put = np.rint((changed + paint).clip(0, 255) * levels + low).astype(photo.dtype)
    seen[inside > 0] = put[inside > 0]
    return full, full_mask


@functools.lru_cache(maxsize=256)
def _corners(region: Region, height: int, width: int, size: int) -> NDArray[np.int64]:
    """Upper left corners of the windows that `place_window` draws from, (windows, 2): y and x."""
    rows, columns = min(_GRID, height), min(_GRID, width)
    cells = _reduce(region.mask, rows, columns)
    # Where a cell is not a pixel, a window's edge may be one pixel off the cell's.
    tall = -(-size * rows // height) + (rows != height)
    wide = -(-size * columns // width) + (columns != width)
    sums = np.pad(cells.astype(np.int64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    inside = sums[tall:, wide:] - sums[:-tall, wide:] - sums[tall:, :-wide] + sums[:-tall, :-wide]
    corners = np.argwhere(inside == tall * wide) * (height / rows, width / columns)
    if not len(corners):
        centres = (np.argwhere(region.mask) + 0.5) / region.mask.shape * (height, width)
        corners = centres - size / 2
    return np.ceil(corners).astype(np.int64).clip(0, (height - size, width - size))


def _reduce(mask: NDArray[np.bool_], rows: int, columns: int) -> NDArray[np.bool_]:
    """A grid of cells over the mask: which lie wholly in it."""
    for axis, count in ((0, rows), (1, columns)):
        size = mask.shape[axis]
        if size >= count:
            mask = np.logical_and.reduceat(mask, np.arange(count) * size // count, axis=axis)
        else:
            mask = np.take(mask, np.arange(count) * size // count, axis=axis)
    return mask
