"""What labelling tools export, read as it is: labels and outlines of the images of a folder.

A listing is looked through for annotation files, which are known by their content. datumaro 1.13 (22 packages, an
older pandas among them) reads none of LabelMe's JSON, Supervisely, Label Studio and Severstal, and drops YOLO's
outlines and CVAT's ellipses; supervision 0.31 (23) reads none of CVAT, Supervisely, Label Studio, Datumaro and
Severstal; both want local folders. So the formats are taken apart here, and pycocotools draws.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from raygen import storage
from raygen.data.annotations import finding, sources
from raygen.data.annotations.paths import plain, relative, stem, tails
from raygen.data.annotations.shapes import Item, Malformed
from raygen.errors import UserError


class AnnotatedImage(NamedTuple):
    """An image, as an export describes it."""

    name: (
        str  # a path in the folder where the export tells one, else as the export names it; "/" as separator
    )
    size: tuple[int, int] | None  # height, width, where the export says
    labels: dict[
        str, bool
    ]  # label -> whether it has an outline, or only boxes; none: annotated as free of defects
    split: str  # "train", "val" or "test"; "" where the export does not tell
    source_uri: str  # the annotation file, in YOLO's case with its classes' names behind a #; "" for none
    etag: str | None  # of it
    image_uri: str | None  # the photo in the listing; None: not there, or several could be it


class Annotations(NamedTuple):
    """What a folder's exports say."""

    format: str  # as raygen calls it
    images: list[AnnotatedImage]
    notes: list[str]  # what a user must know: "12 objects are boxes alone: no masks"


def read_annotations(base_uri: str, entries: Sequence[storage.Entry]) -> Annotations | None:
    """Finds annotation files in a listing, reads each of them once, and says what they annotate.

    Args:
        base_uri: the folder that was listed.
        entries: its files; nothing else is listed or looked for.

    Returns:
        The images, in the order of their sources and in theirs; None if nothing there is an annotation.

    Raises:
        UserError: an annotation file that is damaged; two formats side by side; an image that two files describe.
    """
    base_uri = storage.normalize(base_uri)
    found, notes = finding.find(base_uri, entries)
    if not found:
        return None
    formats = {source.format: source for source in reversed(found)}
    if len(formats) > 1:
        named = [f"{name} ({relative(source.uri, base_uri)})" for name, source in formats.items()]
        raise UserError(
            f"{base_uri}: annotations in {len(named)} formats, {' and '.join(named)}; keep one of them there"
        )
    images = [
        AnnotatedImage(
            place.name, item.size, _labels(item, notes), place.split, source.uri, source.etag, place.uri
        )
        for source in found
        for item, place in source.items
    ]
    _check_once(base_uri, images)
    if missing := sum(image.image_uri is None for image in images):
        notes["annotated images are not there, or could be one of several files"] += missing
    return Annotations(found[0].format, images, [f"{count} {what}" for what, count in notes.items()])


def draw_mask(
    source_uri: str,
    etag: str | None,
    image_name: str,
    label: str,
    height: int,
    width: int,
    boxes: bool = False,
) -> np.ndarray:
    """Draws a label's outlines on one image, united.

    Args:
        source_uri: the annotation file, as `read_annotations` has it; the last few are kept.
        etag: of it.
        image_name: the image's, as there.
        label: one of its labels.
        height: the image's own, as it is stored, before any turn by EXIF.
        width: likewise. The export's own size may be another of the same shape; the mask is scaled then.
        boxes: whether boxes alone are drawn, too, filled: a rough mask.

    Returns:
        bool (height, width). What lies outside the image is cut off.

    Raises:
        UserError: an image or label that is not there, a label of boxes alone, an outline that is malformed or
            wholly outside, an image of another shape.
    """
    source = sources.load(source_uri, etag)
    item = _item(source.items, image_name)
    where = f"{source_uri}: {image_name}"
    if item is None:
        raise UserError(f"{where}: no such image in this annotation file; list the folder again")
    shapes = [shape for name, shape in item.objects if name == label]
    drawn = [shape for shape in shapes if boxes or not shape.is_box]
    if not drawn:
        reason = (
            "has boxes alone, no outlines; draw boxes, or outline it" if shapes else "is not on this image"
        )
        raise UserError(f"{where}: {label!r} {reason}" + ("" if shapes else "; list the folder again"))
    rows, columns = item.size or (height, width)
    if abs(rows * width - columns * height) > max(rows, columns, height, width):  # more than by rounding
        turned = ", turned by its EXIF orientation?" if (rows > columns) != (height > width) else ""
        raise UserError(
            f"{where}: annotated at {columns} × {rows} pixels, and the photo has {width} × {height}{turned}; "
            "annotate the photo as it is stored"
        )
    try:
        mask = np.logical_or.reduce([shape.draw(rows, columns) for shape in drawn])
    except Malformed as error:
        raise UserError(
            f"{where}: {label!r}: {error}; mend it in the labelling tool and export again"
        ) from None
    if mask.shape != (height, width):
        mask = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    return mask


def _item(items: dict[str, Item], name: str) -> Item | None:
    """The image of the longest tail of a name that the file knows, with its extension or without."""
    for tail in tails(name):
        if tail in items:
            return items[tail]
    stems = {stem(plain(key)): item for key, item in items.items()}
    return next((stems[tail] for tail in tails(stem(name)) if tail in stems), None)


def _labels(item: Item, notes: Counter[str]) -> dict[str, bool]:
    """Label -> whether it has an outline; counts boxes."""
    outlined = {label for label, shape in item.objects if not shape.is_box}
    for label, shape in item.objects:
        if shape.is_box:
            beside = label in outlined
            notes[
                "boxes beside outlines of the same label on an image: not in its mask"
                if beside
                else "objects are boxes alone: no masks"
            ] += 1
    return {label: label in outlined for label, _ in item.objects}


def _check_once(base_uri: str, images: Sequence[AnnotatedImage]) -> None:
    seen: dict[str, AnnotatedImage] = {}
    for image in images:
        if image.image_uri:
            earlier = seen.setdefault(image.image_uri, image)
            if earlier is not image:
                raise UserError(
                    f"{image.image_uri}: annotated in {earlier.source_uri} and in {image.source_uri}; "
                    "keep one of them"
                )
