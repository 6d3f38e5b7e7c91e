"""Datumaro JSON: one file for each subset, called by its name."""

from collections import Counter
from typing import Any

from raygen.data.annotations.coco import class_name, told
from raygen.data.annotations.shapes import Item, Malformed, Shape, box, ellipse, polygon, ring, run_lengths

FORMAT = "Datumaro JSON"


def recognises(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("items"), list)
        and isinstance(document.get("categories"), dict)
    )


def parse(document: Any, notes: Counter[str]) -> list[Item]:
    """Reads a file's items. Raises Malformed; also KeyError, TypeError and the like."""
    labels = document["categories"].get("label", {}).get("labels", ())
    names = {number: str(label["name"]) for number, label in enumerate(labels)}
    items = []
    for item in document["items"]:
        objects = []
        for annotation in item["annotations"]:
            try:
                if shape := _shape(annotation, notes):
                    objects.append((class_name(names, annotation["label_id"], notes), shape))
            except (Malformed, KeyError) as error:
                raise Malformed(f"item {item['id']!r}: {told(error)}") from None
        image = item.get("image") or {}
        size = image.get("size")
        name = str(image.get("path") or item["id"]).replace("\\", "/")
        items.append(Item(name, (int(size[0]), int(size[1])) if size else None, tuple(objects)))
    return items


def _shape(annotation: dict[str, Any], notes: Counter[str]) -> Shape | None:
    match annotation["type"]:
        case "mask":
            return run_lengths(annotation["rle"])
        case "polygon":
            return polygon(ring(annotation["points"]), notes)
        case "bbox":
            x, y, width, height = annotation["bbox"]
            return box(x, y, x + width, y + height)
        case "ellipse":
            left, top, right, bottom = annotation["points"]
            return ellipse((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2)
        case other:
            notes[f"annotations of the kind {other}, left out"] += 1
            return None
