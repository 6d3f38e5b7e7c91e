"""How a cut-out lies on a normal: turned, scaled, bent, moved."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raygen.families.copy_paste.config import LatentConfig, VaryConfig
from raygen.families.copy_paste.cutouts import Cutout
from raygen.families.masks import Floats, Mask

_LATTICE = 4  # points a side of the lattice that a bend is drawn on
_BEYOND = 0.25  # how far, of its side, a cut-out that its photo cuts off is guessed to go on


@dataclass(frozen=True)
class Pose:
    """How a cut-out lies; `matrix` and `centre` as rows and columns of the normal."""

    matrix: NDArray[np.float64]  # (2, 2): from the cut-out's directions to the normal's
    centre: tuple[float, float]  # of the cut-out in the normal, in pixels
    shifts: Floats | None  # (lattice, lattice, 2): a bend, as shares of the cut-out's longer side

    def bend(self, latent: LatentConfig, random: np.random.Generator) -> "Pose":
        """Another shape at the same place: bent, turned and stretched, each side on its own."""
        stretch = np.exp(random.uniform(-1, 1, 2) * np.log(latent.scale))
        turn = rotation(random.uniform(-latent.rotation, latent.rotation))
        return replace(self, matrix=self.matrix @ turn * stretch, shifts=_bend(latent.bend, random))


class Warped(NamedTuple):
    """A cut-out as it lies on a normal."""

    box: tuple[slice, slice]  # rows and columns of the normal, within it
    residual: Floats  # (h, w, C)
    pixels: Floats  # (h, w, C)
    matte: Floats  # (h, w): 0 to 1
    mask: Mask  # (h, w)


def rotation(degrees: float) -> NDArray[np.float64]:
    """(2, 2), of rows and columns."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin], [sin, cos]])


def draw_pose(
    cutout: Cutout, side: int, vary: VaryConfig, turns: str, is_window: bool, random: np.random.Generator
) -> Pose:
    """Draws how a cut-out lies on a normal.

    Args:
        cutout: which.
        side: height and width of the normal, or of a window of it.
        vary: how.
        turns: how the product's defects may be turned, see `raygen.families.copy_paste.config.Turns`.
        is_window: whether the place of the cut-out in its photo says nothing, for the normal is a window.
        random: of the sample.
    """
    flips, quarter, angle = random.random(2) < 0.5, int(random.integers(4)), random.uniform(-1, 1)
    matrix = np.eye(2)
    if turns != "none":
        matrix = np.diag(np.where(flips, -1.0, 1.0))
    if turns == "quarters":
        matrix = np.rint(rotation(90 * quarter)) @ matrix
    degrees = angle * (180 if turns == "any" else vary.rotation)
    scale = float(np.exp(random.uniform(-1, 1) * np.log(vary.scale)))
    place = matrix @ (np.array(cutout.place) - 0.5) + 0.5
    matrix = scale * rotation(degrees) @ matrix
    height, width = (np.abs(matrix) @ cutout.mask.shape).tolist()
    moved = random.uniform(-1, 1, 2)
    room = np.array([max(0.0, side - height), max(0.0, side - width)])
    if is_window or vary.place == "anywhere":
        corner = (moved + 1) / 2 * room
    else:
        corner = (place + vary.jitter * moved) * side - np.array([height, width]) / 2
        # One that its photo cuts off may slide beyond the edge, and one that it shows whole stays whole.
        whole = not any(cutout.touches)
        corner = corner.clip(0, room) if whole else corner
    # To whole pixels, so that a cut-out that is only moved keeps its pixels.
    centre = np.rint(corner) + np.array([height, width]) / 2
    return Pose(matrix, (float(centre[0]), float(centre[1])), _bend(vary.bend, random))


def _bend(share: float, random: np.random.Generator) -> Floats | None:
    if not share:
        return None
    return random.uniform(-share, share, (_LATTICE, _LATTICE, 2)).astype(np.float32)


def warp(cutout: Cutout, pose: Pose, side: int) -> Warped:
    """Lays a cut-out on a normal of `side` × `side` pixels."""
    fields, start = _padded(cutout)
    height, width = cutout.mask.shape
    reach = np.abs(pose.matrix) @ (np.array(fields.shape[:2]) / 2)
    if pose.shifts is not None:
        reach = reach * (1 + 2 * float(np.abs(pose.shifts).max()))
    # The padded cut-out's centre is elsewhere than the cut-out's, where one side alone is padded.
    middle = np.array(fields.shape[:2]) / 2 - start - np.array([height, width]) / 2
    centre = np.array(pose.centre) + pose.matrix @ middle
    first = np.floor(centre - reach).clip(0, side).astype(int)
    last = np.ceil(centre + reach).clip(0, side).astype(int)
    box = (slice(first[0], last[0]), slice(first[1], last[1]))
    size = (last[0] - first[0], last[1] - first[1])
    channels = cutout.pixels.shape[2]
    if not all(size):
        nothing = np.zeros((*size, channels), np.float32)
        return Warped(box, nothing, nothing, nothing[..., 0], np.zeros(size, bool))
    inverse = np.linalg.inv(pose.matrix)
    y = np.arange(first[0], last[0], dtype=np.float32) + 0.5 - pose.centre[0]
    x = np.arange(first[1], last[1], dtype=np.float32) + 0.5 - pose.centre[1]
    offset = start + np.array([height, width]) / 2 - 0.5
    rows = (inverse[0, 0] * y)[:, None] + (inverse[0, 1] * x)[None] + offset[0]
    columns = (inverse[1, 0] * y)[:, None] + (inverse[1, 1] * x)[None] + offset[1]
    if pose.shifts is not None:
        shifts = cv2.resize(pose.shifts, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) * max(
            height, width
        )
        rows, columns = rows + shifts[..., 0], columns + shifts[..., 1]
    maps = columns.astype(np.float32), rows.astype(np.float32)
    first_part, rest = fields[..., : channels + 1], fields[..., channels + 1 :]
    seen: list[Floats] = [
        np.asarray(cv2.remap(np.ascontiguousarray(part), *maps, cv2.INTER_LINEAR), np.float32)
        for part in (first_part, rest)
    ]
    residual, pixels = seen[0][..., :channels], seen[1][..., :channels]
    matte, mask = seen[0][..., channels], seen[1][..., channels] > 0.5
    return Warped(box, residual, pixels, matte, mask)


def _padded(cutout: Cutout) -> tuple[Floats, NDArray[np.int64]]:
    """Residual, matte, pixels and mask as one, float32 (h, w, 2 C + 2), with a guess at what its photo cut off;
    and where the cut-out itself begins."""
    fields = np.concatenate(
        [
            cutout.residual,
            cutout.matte[..., None] / np.float32(255),
            cutout.pixels,
            cutout.mask[..., None],
        ],
        axis=2,
        dtype=np.float32,
    )
    height, width = cutout.mask.shape
    top, bottom, left, right = cutout.touches
    tall, wide = max(1, round(_BEYOND * height)), max(1, round(_BEYOND * width))
    pads = ((top * tall, bottom * tall), (left * wide, right * wide), (0, 0))
    return np.pad(fields, pads, mode="symmetric"), np.array([top * tall, left * wide])
