"""COCO JSON: one file of many images, with polygons of several parts, run lengths, crowds and boxes."""

from collections import Counter, defaultdict
from typing import Any

from raygen.data.annotations.shapes import Item, Malformed, Shape, box, polygon, ring, run_lengths

FORMAT = "COCO JSON"


def recognises(document: Any) -> bool:
    return isinstance(document, dict) and all(
        isinstance(document.get(key), list) for key in ("images", "annotations")
    )


def parse(document: Any, notes: Counter[str]) -> list[Item]:
    """Reads a file's images, those without an object among them.

    Raises:
        Malformed: what is not as the format has it; also KeyError, TypeError and the like.
    """
    names = {category["id"]: str(category["name"]) for category in document.get("categories") or ()}
    objects: dict[Any, list[tuple[str, Shape]]] = defaultdict(list)
    for annotation in document["annotations"]:
        try:
            label = class_name(names, annotation["category_id"], notes)
            objects[annotation["image_id"]] += [(label, shape) for shape in _shapes(annotation, notes)]
        except (Malformed, KeyError) as error:
            raise Malformed(f"annotation {annotation.get('id')}: {told(error)}") from None
    items = []
    for image in document["images"]:
        size = (int(image["height"]), int(image["width"])) if image.get("height") else None
        name = str(image["file_name"]).replace("\\", "/")
        items.append(Item(name, size, tuple(objects.pop(image["id"], ()))))
    if objects:
        raise Malformed(f"annotations of an image {next(iter(objects))!r} that it does not list")
    return items


def class_name(names: dict[Any, str], number: Any, notes: Counter[str]) -> str:
    """The name of a class; one without is called by its number."""
    if number not in names:
        notes[f"objects of the class {number}, which has no name"] += 1
    return names.get(number, str(number))


def told(error: Exception) -> str:
    """What a person must know of an error in a file's structure."""
    return f"no {error.args[0]!r}" if isinstance(error, KeyError) else str(error)


def _shapes(annotation: dict[str, Any], notes: Counter[str]) -> list[Shape]:
    segmentation = annotation.get("segmentation")
    if annotation.get("iscrowd"):
        notes["crowds: several objects with one outline"] += 1
    if isinstance(segmentation, dict):
        return [run_lengths(segmentation)]
    parts = segmentation or ()
    parts = [parts] if parts and not isinstance(parts[0], list) else parts
    rings = [ring(part) for part in parts]
    if outlines := [shape for points in rings if len(points) and (shape := polygon(points, notes))]:
        return list(outlines)
    x, y, width, height = annotation["bbox"]
    return [box(x, y, x + width, y + height)]
