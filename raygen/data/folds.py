"""A defect set in folds: every photo is tested once, by what has not learned from a photo of the same thing."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from raygen import images
from raygen.data.defects import group_by_cell, read_photo
from raygen.data.likeness import ALIKE, SAME, alike, thumbnail
from raygen.data.photo import Photo
from raygen.errors import UserError

TEST, VAL, TRAIN = "test", "val", "train"


@dataclass(frozen=True)
class Folds:
    """The photos of a set, each with its group, and the fold that it is tested in; arrays are (N,)."""

    photos: tuple[Photo, ...]
    tested: NDArray[np.int64]  # 0 … num_folds - 1
    may_validate: NDArray[np.bool_]  # whether it chooses, rather than teaches, in the fold before its own
    num_folds: int

    @classmethod
    def deal(cls, photos: Sequence[Photo], num_folds: int) -> "Folds":
        """Deals whole groups out, so that the folds have alike shares of every product and type. Photos without a
        group are read, and those that are nearly the same picture become one.

        Args:
            photos: all of a set; whatever splits they have count for nothing.
            num_folds: at least 3: one to test, one of which a half validates, others to learn from.

        Raises:
            UserError: fewer groups than folds, or a photo that cannot be read.
        """
        photos = with_groups(photos)
        names, members = np.unique([photo.group for photo in photos], return_inverse=True)
        if len(names) < num_folds:
            raise UserError(
                f"folds = {num_folds}: the set has {len(names)} groups of photos; ask for fewer folds, or leave "
                "them out"
            )
        cells = np.empty(len(photos), int)
        for number, rows in enumerate(group_by_cell(photos).values()):
            cells[rows] = number
        tested = deal(members, cells, num_folds)
        may_validate = np.zeros(len(photos), bool)
        for fold in range(num_folds):
            own = np.flatnonzero(tested == fold)
            may_validate[own] = deal(members[own], cells[own], 2) == 1
            _let_each_type_validate(own, [photo.defect_type for photo in photos], members, may_validate)
        return cls(tuple(photos), tested, may_validate, num_folds)

    def split(self, fold: int) -> list[Photo]:
        """The photos with the splits of a fold: its own are tested, half of the next one's validate, all others
        are learned from."""
        validates = (self.tested == (fold + 1) % self.num_folds) & self.may_validate
        splits = np.where(self.tested == fold, TEST, np.where(validates, VAL, TRAIN))
        return [photo._replace(split=str(split)) for photo, split in zip(self.photos, splits, strict=True)]


def _let_each_type_validate(
    own: NDArray[np.int64], types: list[str], members: NDArray[np.int64], may_validate: NDArray[np.bool_]
) -> None:
    """Where the photos of a fold that validate, `own`, hold none of a type: its smallest group does, too."""
    of_row: dict[int, str] = {int(row): types[int(row)] for row in own}
    for kind in sorted(set(of_row.values())):
        rows = np.array([row for row, of in of_row.items() if of == kind])
        if not may_validate[rows].any():
            groups, sizes = np.unique(members[rows], return_counts=True)
            may_validate[own[members[own] == groups[sizes.argmin()]]] = True


def deal(members: NDArray[np.int64], cells: NDArray[np.int64], num_parts: int) -> NDArray[np.int64]:
    """Deals whole groups out into parts of alike composition: those first that are the largest share of a cell,
    each to where it evens the parts out most.

    Args:
        members: the group of each of N photos, (N,).
        cells: the cell of each, (N,).
        num_parts: how many.

    Returns:
        The part of each photo, (N,).
    """
    names, members = np.unique(members, return_inverse=True)
    kinds, cells = np.unique(cells, return_inverse=True)
    shares = np.zeros((len(names), len(kinds)))
    np.add.at(shares, (members, cells), 1)
    shares /= shares.sum(axis=0)
    held, parts = np.zeros((num_parts, len(kinds))), np.zeros(len(names), np.int64)
    for group in np.argsort(-shares.max(axis=1), kind="stable"):
        costs = np.square(held + shares[group]).sum(axis=1) - np.square(held).sum(axis=1)
        parts[group] = np.argmin(costs)
        held[parts[group]] += shares[group]
    return parts[members]


def with_groups(photos: Sequence[Photo]) -> list[Photo]:
    """The photos, those without a group in one that is found: with all that are nearly the same picture, and named
    by what they look like, wherever the set lies. One that shows two types stands there twice, in one group."""
    unknown = list({photo.uri: photo for photo in photos if not photo.group}.values())
    with ThreadPoolExecutor(8) as threads:
        thumbnails = list(threads.map(_thumbnail, unknown))
    of_product: dict[str, list[int]] = {}
    for number, photo in enumerate(unknown):
        of_product.setdefault(photo.product, []).append(number)
    found: dict[str, str] = {}
    for rows in of_product.values():
        names = _name_alike(np.stack([thumbnails[row] for row in rows]))
        found |= {unknown[row].uri: f"found-{name}" for row, name in zip(rows, names, strict=True)}
    return [photo if photo.group else photo._replace(group=found[photo.uri]) for photo in photos]


def _name_alike(thumbnails: NDArray[np.float16]) -> list[str]:
    """The group of each photo of a product. Parts before a fixed camera are all alike: where a tenth of the photos
    or more would be one group, only those are one that are the same to the eye; if that is no help, equal ones."""
    pairs = list(alike(thumbnails))
    for limit in (ALIKE, SAME, 2.0):
        roots = list(range(len(thumbnails)))

        def root(number: int, roots: list[int] = roots) -> int:
            while roots[number] != number:
                number = roots[number]
            return number

        for later, earlier, likeness in pairs:
            if likeness > limit or np.array_equal(thumbnails[later], thumbnails[earlier]):
                roots[max(root(later), root(earlier))] = min(root(later), root(earlier))
        groups = [root(number) for number in range(len(thumbnails))]
        if np.bincount(groups).max() < max(10, len(groups) / 10):
            break
    contents = [hashlib.sha256(one.tobytes()).hexdigest()[:12] for one in thumbnails]
    members: dict[int, list[str]] = {}
    for group, content in zip(groups, contents, strict=True):
        members.setdefault(group, []).append(content)
    return [min(members[group]) for group in groups]


def _thumbnail(photo: Photo) -> NDArray[np.float16]:
    return thumbnail(images.to_channels(read_photo(photo), 1)[:, :, 0])
