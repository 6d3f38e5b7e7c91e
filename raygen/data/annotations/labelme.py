"""LabelMe JSON: a file beside each image."""

import base64
import math
from collections import Counter
from typing import Any

from raygen.data.annotations.shapes import (
    Bitmap,
    Item,
    Malformed,
    Polygon,
    Shape,
    box,
    ellipse,
    polygon,
    ring,
)

FORMAT = "LabelMe"


def recognises(document: Any) -> bool:
    return isinstance(document, dict) and isinstance(document.get("shapes"), list) and "imagePath" in document


def parse(document: Any, notes: Counter[str]) -> list[Item]:
    """Reads the one image of a file. Raises Malformed; also KeyError, TypeError and the like."""
    objects = []
    for shape in document["shapes"]:
        if drawn := _shape(shape, notes):
            objects.append((str(shape["label"]), drawn))
    height, width = document.get("imageHeight"), document.get("imageWidth")
    size = (int(height), int(width)) if height and width else None
    return [Item(str(document["imagePath"]).replace("\\", "/"), size, tuple(objects))]


def _shape(shape: dict[str, Any], notes: Counter[str]) -> Shape | None:
    points = ring(shape["points"])
    match shape.get("shape_type") or "polygon":
        case "polygon":
            return polygon(points, notes)
        case "rectangle":
            return box(*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        case "oriented_rectangle" if len(points) == 4:
            return Polygon((points,), is_box=True)
        case "circle" if len(points) == 2:  # the centre, and a point of the rim
            (x, y), rim = points.tolist()
            radius = math.dist((x, y), rim)
            return ellipse(x, y, radius, radius)
        case "mask":  # of the pixels from the first point to the second, both included
            left, top = points[0].astype(int).tolist()
            return Bitmap(base64.b64decode(shape["mask"], validate=True), (left, top))
        case "circle" | "oriented_rectangle" as other:
            raise Malformed(f"a {other} of {len(points)} points")
        case other:
            notes[f"shapes of the kind {other}, left out"] += 1
            return None
