"""A defect set whose defects a labelling tool's export tells: its photos, one for each label that they have."""

import json
from collections.abc import Sequence

import numpy as np

from raygen.data.annotations import Annotations, draw_mask
from raygen.data.folders import Found
from raygen.data.layouts import Cell, normal_or, parse_folder
from raygen.data.mask_files import File
from raygen.records import NORMAL


def label_photos(
    root: str, files: Sequence[File], annotations: Annotations, box_masks: bool
) -> tuple[list[Found], list[str]]:
    """Brings photos and their annotations together.

    A photo that the export does not name is left alone, since nobody has looked at it; but in a folder of normals
    it is one.

    Args:
        root: name of the set's own folder: the product, where no folder below tells one.
        files: the images of the set.
        annotations: its export.
        box_masks: whether a box alone is a mask, if a rough one.

    Returns:
        The photos, and what a user must know: first, how the set was read.
    """
    by_uri = {file.uri: file for file in files}
    named = {image.image_uri: image for image in annotations.images if image.image_uri in by_uri}
    labels = {label.casefold() for image in annotations.images for label in image.labels}
    found: list[Found] = []
    unknown: list[str] = []
    for uri, file in by_uri.items():
        image = named.get(uri)
        folder = parse_folder(file.folder)
        if image is None and not any(normal_or(name) == NORMAL for name in folder.names):
            unknown.append(uri)
            continue
        # Folders may be products, or say once more what the labels say.
        names = [name for name in folder.names if not _is_kind(name, labels)]
        split = (image.split if image else "") or folder.split
        cell = Cell(names[0] if names else root, NORMAL, split, "", False, "")
        if image is None or not image.labels:
            found.append(Found(file, cell))
            continue
        for label, is_outlined in image.labels.items():
            part = json.dumps([image.name, [label], box_masks])
            has_mask = is_outlined or box_masks
            kind = cell._replace(kind=normal_or(label))
            found.append(Found(file, kind, (image.source_uri,), part) if has_mask else Found(file, kind))
    notes = [f"read as {annotations.format}", *(f"WARNING: {note}" for note in annotations.notes)]
    if unknown:
        notes.append(
            f"WARNING: {len(unknown):,} images are not annotated, such as {min(unknown)}: left alone; put normals "
            "into a folder called normal, or annotate them as without defects"
        )
    return found, notes


def _is_kind(name: str, labels: set[str]) -> bool:
    return normal_or(name) == NORMAL or name.casefold() in labels or name.isdecimal()


def draw(mask_uri: str, part: str, height: int, width: int) -> np.ndarray:
    """The mask of a labelled photo, bool (height, width), as the photo is stored.

    Raises:
        UserError: the annotation does not fit.
    """
    name, labels, box_masks = json.loads(part)
    drawn = [draw_mask(mask_uri, None, name, label, height, width, box_masks) for label in labels]
    return np.logical_or.reduce(drawn)


def unite(part: str, other: str) -> str:
    """The part of two labels of one photo that are one defect type."""
    name, labels, box_masks = json.loads(part or other)
    return json.dumps([name, [*labels, *(json.loads(other)[1] if part and other else [])], box_masks])


def is_drawn(part: str) -> bool:
    """Whether a mask's part is one of an annotation file, and not values of an image."""
    return part.startswith("[")
