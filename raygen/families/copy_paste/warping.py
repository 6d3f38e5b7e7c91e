"""How a cut-out lies on a normal: turned, scaled, bent, moved."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np

from raygen.families.copy_paste.config import LatentConfig, Turns, VaryConfig
from raygen.families.copy_paste.cutouts import Cutout
from raygen.families.masks import Floats, Mask

_KNOTS, _POINTS = 4, 256  # of a bend, and of the curve through them
_BEYOND = 0.25  # how far, of its side, a cut-out that its photo cuts off is guessed to go on

Matrix = tuple[tuple[float, float], tuple[float, float]]
"""From a cut-out's rows and columns to the normal's."""


class Piece(NamedTuple):
    """A cut-out ready to be laid on normals."""

    difference: Floats  # (h, w, C + 1): residual, and matte, 0 to 1
    look: Floats  # (h, w, C + 1): pixels, and mask, 0 or 1
    start: tuple[int, int]  # where in them the cut-out itself begins: the rest is guessed
    size: tuple[int, int]  # of the cut-out itself


@dataclass(frozen=True)
class Pose:
    """How a cut-out lies."""

    matrix: Matrix
    centre: tuple[float, float]  # of the cut-out in the normal, in pixels
    bends: (
        Floats | None
    )  # (2, knots): how far rows move along columns, and columns along rows, as shares of the
    # cut-out's longer side; never back over one another, as they might if rows moved along rows

    def vary(self, latent: LatentConfig, random: np.random.Generator) -> "Pose":
        """Another shape at the same place: turned and stretched, each side on its own, and bent."""
        angle, tall, wide = random.uniform(-1, 1, 3).tolist()
        stretch = ((latent.scale**tall, 0.0), (0.0, latent.scale**wide))
        matrix = _times(_times(self.matrix, _rotation(angle * latent.rotation)), stretch)
        return replace(self, matrix=matrix, bends=_draw_bends(latent.bend, random))


class Warped(NamedTuple):
    """A cut-out as it lies on a normal."""

    box: tuple[slice, slice]  # rows and columns of the normal, within it
    residual: Floats  # (h, w, C)
    pixels: Floats  # (h, w, C)
    matte: Floats  # (h, w): 0 to 1
    mask: Mask  # (h, w)


def prepare(cutout: Cutout) -> Piece:
    """Guesses how a defect goes on where its photo cuts it off, by its mirror image, so that it does not end there
    when it is moved."""
    height, width = cutout.mask.shape
    top, bottom, left, right = cutout.touches
    tall, wide = max(1, round(_BEYOND * height)), max(1, round(_BEYOND * width))
    pads = ((top * tall, bottom * tall), (left * wide, right * wide), (0, 0))
    pairs = (cutout.residual, cutout.matte / np.float32(255)), (cutout.pixels, cutout.mask)
    fields = (np.concatenate([one, other[..., None]], axis=2, dtype=np.float32) for one, other in pairs)
    difference, look = (np.pad(field, pads, mode="symmetric") for field in fields)
    return Piece(difference, look, (top * tall, left * wide), (height, width))


def draw_pose(
    cutout: Cutout, side: int, vary: VaryConfig, turns: Turns, is_window: bool, random: np.random.Generator
) -> Pose:
    """Draws how a cut-out lies on a normal.

    Args:
        cutout: which.
        side: height and width of the normal, or of the window of it.
        vary: how.
        turns: how the product's defects may be turned.
        is_window: whether the place of the cut-out in its photo says nothing, for the normal is a window.
        random: of the sample.
    """
    up, left, quarter, angle, scale, down, across = random.random(7).tolist()
    matrix: Matrix = ((1.0, 0.0), (0.0, 1.0))
    if turns != "none":
        matrix = ((-1.0 if up < 0.5 else 1.0, 0.0), (0.0, -1.0 if left < 0.5 else 1.0))
    if turns == "quarters" and quarter < 0.5:  # with the mirrorings, all eight
        matrix = _times(((0.0, 1.0), (1.0, 0.0)), matrix)
    place = _apply(matrix, cutout.place[0] - 0.5, cutout.place[1] - 0.5)
    degrees = (2 * angle - 1) * (180 if turns == "any" else vary.rotation)
    if degrees:
        matrix = _times(_rotation(degrees), matrix)
    if vary.scale > 1:
        factor = vary.scale ** (2 * scale - 1)
        matrix = _times(((factor, 0.0), (0.0, factor)), matrix)
    size = _reach(matrix, *cutout.mask.shape)
    centre = []
    for at, length, drawn in zip(place, size, (down, across), strict=True):
        room = max(0.0, side - length)
        if is_window or vary.place == "anywhere":
            corner = drawn * room
        else:
            corner = (at + 0.5 + vary.jitter * (2 * drawn - 1)) * side - length / 2
            # One that its photo cuts off may slide over the edge by half, and one that it shows whole stays whole.
            over = length / 2 if any(cutout.touches) else 0.0
            corner = min(max(corner, -over), room + over)
        # By whole pixels, so that a cut-out that is only moved keeps its pixels.
        centre.append(round(corner) + length / 2)
    return Pose(matrix, (centre[0], centre[1]), _draw_bends(vary.bend, random))


def warp(piece: Piece, pose: Pose, side: int) -> Warped:
    """Lays a cut-out on a normal of `side` × `side` pixels."""
    (height, width), (tall, wide) = piece.size, piece.difference.shape[:2]
    longer = max(height, width)
    # Where what is to be laid comes to lie: its middle, and how far it reaches.
    y, x = tall / 2 - piece.start[0] - height / 2, wide / 2 - piece.start[1] - width / 2
    moved = _apply(pose.matrix, y, x)
    middle = pose.centre[0] + moved[0], pose.centre[1] + moved[1]
    down, across = (0.0, 0.0) if pose.bends is None else (np.abs(pose.bends).max(axis=1) * longer).tolist()
    reach = _reach(pose.matrix, tall / 2 + down, wide / 2 + across)
    first = math.floor(middle[0] - reach[0]), math.floor(middle[1] - reach[1])
    last = math.ceil(middle[0] + reach[0]), math.ceil(middle[1] + reach[1])
    top, left = (max(0, min(side, edge)) for edge in first)
    bottom, right = (max(0, min(side, edge)) for edge in last)
    box = slice(top, bottom), slice(left, right)
    if top == bottom or left == right:  # beyond the edge
        difference, look = (field[:0, :0] for field in (piece.difference, piece.look))
        box = slice(top, top), slice(left, left)
    elif pose.bends is None and _is_turn(pose.matrix):
        seen = slice(top - first[0], bottom - first[0]), slice(left - first[1], right - first[1])
        difference, look = (_turned(field, pose.matrix)[seen] for field in (piece.difference, piece.look))
    else:
        (a, b), (c, d) = _inverse(pose.matrix)
        ys = np.arange(top, bottom, dtype=np.float32)[:, None] + np.float32(0.5 - pose.centre[0])
        xs = np.arange(left, right, dtype=np.float32) + np.float32(0.5 - pose.centre[1])
        rows = np.asarray(a * ys + b * xs + (height - 1) / 2, np.float32)
        columns = np.asarray(c * ys + d * xs + (width - 1) / 2, np.float32)
        if pose.bends is not None:
            along_columns, along_rows = pose.bends * np.float32(longer)
            shifts = _curve(along_columns, columns, width), _curve(along_rows, rows, height)
            rows, columns = rows + shifts[0], columns + shifts[1]
        maps = columns + np.float32(piece.start[1]), rows + np.float32(piece.start[0])
        difference, look = (
            cv2.remap(field, *maps, cv2.INTER_LINEAR) for field in (piece.difference, piece.look)
        )
    difference, look = np.asarray(difference, np.float32), np.asarray(look, np.float32)
    return Warped(box, difference[..., :-1], look[..., :-1], difference[..., -1], look[..., -1] > 0.5)


def _is_turn(matrix: Matrix) -> bool:
    """Whether it maps pixels to pixels: right angles and mirrorings."""
    (a, b), (c, d) = matrix
    return (abs(a), abs(b), abs(c), abs(d)) in ((1, 0, 0, 1), (0, 1, 1, 0))


def _turned(field: Floats, matrix: Matrix) -> Floats:
    (a, b), (c, d) = matrix
    if a == 0:
        field, a, d = field.transpose(1, 0, 2), b, c
    return field[:: int(a), :: int(d)]


def _draw_bends(share: float, random: np.random.Generator) -> Floats | None:
    return random.uniform(-share, share, (2, _KNOTS)).astype(np.float32) if share else None


def _curve(knots: Floats, along: Floats, length: int) -> Floats:
    """A smooth curve through knots that are spread over a length, at each of some places along it."""
    fine = cv2.resize(knots[None], (_POINTS, 1), interpolation=cv2.INTER_CUBIC)[0]
    return fine[(along * np.float32(_POINTS / length)).astype(np.int32).clip(0, _POINTS - 1)]


def _rotation(degrees: float) -> Matrix:
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return (cos, -sin), (sin, cos)


def _times(one: Matrix, other: Matrix) -> Matrix:
    (a, b), (c, d) = one
    (e, f), (g, h) = other
    return (a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h)


def _apply(matrix: Matrix, y: float, x: float) -> tuple[float, float]:
    (a, b), (c, d) = matrix
    return a * y + b * x, c * y + d * x


def _reach(matrix: Matrix, y: float, x: float) -> tuple[float, float]:
    """How far a box of y × x reaches in rows and columns."""
    (a, b), (c, d) = matrix
    return abs(a) * y + abs(b) * x, abs(c) * y + abs(d) * x


def _inverse(matrix: Matrix) -> Matrix:
    (a, b), (c, d) = matrix
    by = 1 / (a * d - b * c)
    return (by * d, -by * b), (-by * c, by * a)
