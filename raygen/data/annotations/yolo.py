"""YOLO's boxes and outlines: a text file for each image, in `labels/` where that is in `images/`, or beside it.

A line is a class and, in fractions of the image's width and height, a box (centre and size) or the points of an
outline. What the classes are called stands in a data.yaml, or line by line in a classes.txt or obj.names. An image
without a text file is free of defects.
"""

import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote, unquote

from raygen.data.annotations.shapes import Item, Malformed, Polygon, Shape, box, ring

FORMAT = "YOLO"
LISTS = ("classes.txt", "obj.names")  # of class names, a line each


def label_paths(image: str) -> list[str]:
    """Where an image's text file may stand: beside it, or in the folder labels instead of the last images."""
    folder, stem = posixpath.split(posixpath.splitext(image)[0])
    parts = folder.split("/")
    places = [folder]
    for number in range(len(parts) - 1, -1, -1):
        if parts[number].lower() == "images":
            labels = {"images": "labels", "IMAGES": "LABELS"}.get(parts[number], "Labels")
            places.insert(0, "/".join([*parts[:number], labels, *parts[number + 1 :]]))
            break
    return [posixpath.join(place, f"{stem}.txt") for place in places]


def class_names(path: str, document: Any) -> dict[int, str] | None:
    """The names in a YAML document, or a list's text; None where there are none.

    Raises:
        Malformed: a set of poses, whose lines would look like outlines; names that are neither list nor table.
    """
    if isinstance(document, str) and posixpath.basename(path).lower() in LISTS:
        return {number: name.strip() for number, name in enumerate(document.strip().splitlines())}
    if not isinstance(document, dict) or "names" not in document:
        return None
    if "kpt_shape" in document:
        raise Malformed("a set of poses (kpt_shape), which has no outlines")
    names = document["names"]
    pairs = names.items() if isinstance(names, dict) else enumerate(names)
    return {int(number): str(name) for number, name in pairs}


def parse(text: str, names: Mapping[int, str], notes: Counter[str]) -> Item:
    """Reads a text file; the item has no name. Raises Malformed."""
    objects: list[tuple[str, Shape]] = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            first, *rest = line.split()
            kind, values = int(first), ring([float(value) for value in rest[: 4 if len(rest) == 5 else None]])
        except (ValueError, Malformed):
            raise Malformed(f"line {number}: not a class and pairs of numbers") from None
        if len(values) < 2 or abs(values - 0.5).max() > 2:
            raise Malformed(f"line {number}: neither a box nor an outline in fractions of the image's size")
        if kind not in names:
            notes[f"objects of the class {kind}, which has no name"] += 1
        if len(values) == 2:  # with a sixth number, the confidence of a prediction
            (x, y), (width, height) = values.tolist()
            shape = box(x - width / 2, y - height / 2, x + width / 2, y + height / 2, relative=True)
        else:
            shape = Polygon((values,), relative=True)
        objects.append((names.get(kind, str(kind)), shape))
    return Item("", None, tuple(objects))


def looks_like_it(text: str) -> bool:
    """Whether a text file that no class names stand by is of labels."""
    try:
        return bool(parse(text, {}, Counter()).objects)
    except Malformed:
        return False


def with_names(uri: str, text: str, names: Mapping[int, str]) -> str:
    """The URI of a text file with the names of its classes, so that who draws needs no other file."""
    first = {words[0] for line in text.splitlines() if (words := line.split())}
    used = sorted({int(number) for number in first if number.isdecimal()} & set(names))
    return f"{uri}#" + "&".join(f"{number}={quote(names[number], safe='')}" for number in used)


def without_names(uri: str) -> tuple[str, dict[int, str]]:
    """Takes apart what `with_names` made; other URIs stay as they are."""
    match = re.fullmatch(r"(.*\.txt)#((?:\d+=[^#/&]*)(?:&\d+=[^#/&]*)*)?", uri, re.DOTALL | re.IGNORECASE)
    if not match:
        return uri, {}
    pairs = (pair.split("=") for pair in (match[2] or "").split("&") if pair)
    return match[1], {int(number): unquote(name) for number, name in pairs}


def split_folders(document: Any) -> dict[str, list[str]]:
    """What a data.yaml says of splits: train, val and test -> paths, of folders or of lists of images."""
    if not isinstance(document, dict):
        return {}
    return {
        split: [str(path).replace("\\", "/") for path in (found if isinstance(found, list) else [found])]
        for split in ("train", "val", "test")
        if (found := document.get(split))
    }


def in_folder(image: str, paths: Iterable[str]) -> bool:
    """Whether an image's path lies in one of the folders, which may be written from another place: Roboflow's
    `../train/images`, or an absolute path of another machine."""
    folder = f"/{posixpath.dirname(image)}/"
    tails = (
        "/".join(posixpath.normpath(path).replace("../", "").strip("/").split("/")[-2:]) for path in paths
    )
    return any(f"/{tail}/" in folder for tail in tails)
