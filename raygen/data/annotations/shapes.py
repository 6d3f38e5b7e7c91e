"""Outlines as labelling tools store them, and how they become pixels.

Polygons are drawn by pycocotools: it sets the pixels whose centres lie within, so that an outline's area is that
of its pixels. OpenCV's and Pillow's polygons also set the pixels that edges touch: a spot of radius 10 is a tenth
larger with them, one of radius 2 two thirds.
"""

import io
import math
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from raygen.extras import require

EXTRA = "annotations"


class Malformed(ValueError):
    """An annotation that is not what its format says it is. The message names what, not where."""


class Shape(Protocol):
    """An object's outline, as its file stores it: decoded only when it is drawn."""

    @property
    def is_box(self) -> bool:
        """Whether it is a box alone, which says nothing of the object's outline."""
        ...

    def draw(self, height: int, width: int) -> np.ndarray:
        """bool (height, width). Raises Malformed."""
        ...


class Item(NamedTuple):
    """An image, as an annotation file describes it."""

    name: str  # as the file has it, with "/" as separator
    size: tuple[int, int] | None  # height, width, where the file says
    objects: tuple[tuple[str, Shape], ...]  # label and outline; none: free of defects
    split: str = ""


@dataclass(frozen=True, slots=True)
class Polygon:
    """A closed outline of straight lines, perhaps with holes; or a box, which is one of four corners."""

    rings: tuple[np.ndarray, ...]  # float64 (N, 2): x, y; the outer one, then holes
    relative: bool = False  # in fractions of the image's width and height, not in pixels
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        mask = self._fill(self.rings[0], height, width)
        for hole in self.rings[1:]:
            mask &= ~self._fill(hole, height, width)
        return mask

    def _fill(self, ring: np.ndarray, height: int, width: int) -> np.ndarray:
        points = ring * (width, height) if self.relative else ring
        low, high = points.min(axis=0), points.max(axis=0)
        if (low > (width, height)).any() or (high < 0).any():
            raise Malformed(
                f"an outline at x {low[0]:g}, y {low[1]:g} lies outside {width} × {height} pixels"
            )
        if np.abs(points).max() > 100 * max(height, width):  # its edges would be drawn point by point
            raise Malformed(f"an outline reaches to {np.abs(points).max():g} in {width} × {height} pixels")
        coco = require("pycocotools.mask", EXTRA)
        return run_lengths(coco.frPyObjects([points.ravel().tolist()], height, width)[0]).draw(height, width)


@dataclass(frozen=True, slots=True)
class Runs:
    """Run lengths, of zeros and ones in turn, over a whole image or a rectangle of it."""

    counts: np.ndarray  # int64 (N,), zeros first
    order: str  # "C": row by row; "F": column by column
    size: tuple[int, int] | None = None  # height, width of what they cover; None: the image
    corner: tuple[int, int] = (0, 0)  # x, y of its upper left pixel
    partial: bool = False  # whether zeros follow the last run
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        rows, columns = self.size or (height, width)
        total = int(self.counts.sum())
        if (self.counts < 0).any() or total > rows * columns or not (self.partial or total == rows * columns):
            raise Malformed(f"run lengths of {total} pixels in all, in {columns} × {rows}")
        flat = np.zeros(rows * columns, bool)
        flat[:total] = np.repeat(np.arange(len(self.counts)) % 2 == 1, self.counts)
        return _place(flat.reshape((rows, columns), order=self.order), self.corner, height, width)  # type: ignore[call-overload]


@dataclass(frozen=True, slots=True)
class CocoRuns:
    """Run lengths column by column, as numbers or as the compressed text of pycocotools.

    The text is taken apart here: pycocotools' `decode` takes one that is cut off for whole, and warns of NumPy 2.
    """

    counts: np.ndarray | str | bytes
    size: tuple[int, int]  # height, width
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        if self.size != (height, width):
            raise Malformed(f"run lengths for {self.size[1]} × {self.size[0]} pixels, not {width} × {height}")
        counts = self.counts
        numbers = _numbers(counts) if isinstance(counts, str | bytes) else counts
        return Runs(np.asarray(numbers, np.int64), "F").draw(height, width)


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A small image of an object, and where it lies: set where it is opaque or, without alpha, not 0."""

    png: bytes
    corner: tuple[int, int]  # x, y of its upper left pixel
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(self.png), formats=["PNG"])
            if image.width > width or image.height > height:
                raise Malformed(
                    f"a bitmap of {image.width} × {image.height} pixels in an image of {width} × {height}"
                )
            if image.has_transparency_data:
                image = image.convert("RGBA").getchannel("A")
            pixels = np.asarray(image)
        except (UnidentifiedImageError, OSError, SyntaxError, zlib.error) as error:
            raise Malformed(f"a bitmap that is no PNG ({error})") from None
        part = np.asarray(pixels.reshape(*pixels.shape[:2], -1).any(axis=2))
        return _place(part, self.corner, height, width)


def _place(part: np.ndarray, corner: tuple[int, int], height: int, width: int) -> np.ndarray:
    """Lays a part on an empty mask, what reaches beyond cut off."""
    x, y = corner
    if x >= width or y >= height or x + part.shape[1] <= 0 or y + part.shape[0] <= 0:
        raise Malformed(f"an outline at x {x}, y {y} lies outside {width} × {height} pixels")
    mask = np.zeros((height, width), bool)
    top, left = max(y, 0), max(x, 0)
    inside = part[top - y : height - y, left - x : width - x]
    mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return mask


def run_lengths(rle: dict[str, Any]) -> CocoRuns:
    """COCO's run lengths, of a list or of the compressed text of pycocotools."""
    height, width = (int(side) for side in rle["size"])
    counts = rle["counts"]
    if isinstance(counts, list):
        counts = np.asarray(counts, np.int64)
    return CocoRuns(counts, (height, width))


def _numbers(text: str | bytes) -> list[int]:
    """Five bits a character, the sixth says that more follow; from the third number on, the difference to the one
    before the last."""
    numbers: list[int] = []
    value = shift = 0
    for sign in text if isinstance(text, bytes) else text.encode("ascii", "replace"):
        bits = sign - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    return numbers


def ring(points: Sequence[Sequence[float]] | Sequence[float]) -> np.ndarray:
    """Points of an outline, in pairs or flat, as float64 (N, 2).

    Raises:
        Malformed: an odd count, or what is no finite number.
    """
    try:
        flat = np.asarray(points, np.float64).ravel()
    except (TypeError, ValueError):
        raise Malformed("an outline whose points are not pairs of numbers") from None
    if len(flat) % 2 or not np.isfinite(flat).all():
        raise Malformed("an outline whose points are not pairs of numbers")
    return flat.reshape(-1, 2)


def polygon(points: np.ndarray, notes: Counter[str], holes: Iterable[np.ndarray] = ()) -> Polygon | None:
    """An outline of points in pixels, float64 (N, 2); none, and a note, of fewer than three."""
    if len(points) < 3:
        notes["outlines of fewer than three points, left out"] += 1
        return None
    return Polygon((points, *(hole for hole in holes if len(hole) > 2)))


def box(left: float, top: float, right: float, bottom: float, angle: float = 0, **options: bool) -> Polygon:
    """A box alone, between its edges' coordinates, turned about its centre by degrees clockwise."""
    corners = ring([left, top, right, top, right, bottom, left, bottom])
    return Polygon((turned(corners, corners.mean(axis=0), angle),), is_box=True, **options)


def ellipse(x: float, y: float, radius_x: float, radius_y: float, angle: float = 0) -> Polygon:
    """An ellipse about a centre, turned by degrees clockwise: as a polygon so fine that no pixel tells."""
    corners = max(32, math.ceil(4 * math.sqrt(max(abs(radius_x), abs(radius_y), 1))) * 8)
    t = np.linspace(0, 2 * np.pi, min(corners, 2048), endpoint=False)
    centre = ring([x, y])[0]
    points = ring(np.stack([x + radius_x * np.cos(t), y + radius_y * np.sin(t)], axis=1).tolist())
    return Polygon((turned(points, centre, angle),))


def turned(points: np.ndarray, about: np.ndarray, angle: float) -> np.ndarray:
    """Points turned about one by degrees clockwise (y points down)."""
    if not angle:
        return points
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return (points - about) @ np.array([[cos, sin], [-sin, cos]]) + about
