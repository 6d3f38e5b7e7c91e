"""Supervisely JSON: a file for each image, `ann/1.jpg.json` beside `img/1.jpg`."""

import base64
import zlib
from collections import Counter
from typing import Any

from raygen.data.annotations.shapes import Bitmap, Item, Malformed, Shape, box, polygon, ring

FORMAT = "Supervisely"


def recognises(document: Any) -> bool:
    return (
        isinstance(document, dict)
        and isinstance(document.get("objects"), list)
        and isinstance(document.get("size"), dict)
    )


def parse(document: Any, notes: Counter[str]) -> list[Item]:
    """Reads the one image of a file, which does not name it. Raises Malformed; also KeyError, TypeError, …"""
    objects = []
    for found in document["objects"]:
        if shape := _shape(found, notes):
            objects.append((str(found["classTitle"]), shape))
    size = (int(document["size"]["height"]), int(document["size"]["width"]))
    return [Item("", size, tuple(objects))]


def _shape(found: dict[str, Any], notes: Counter[str]) -> Shape | None:
    kind = found.get("geometryType") or ("bitmap" if found.get("bitmap") else "polygon")
    match kind:
        case "bitmap":
            try:
                png = zlib.decompress(base64.b64decode(found["bitmap"]["data"], validate=True))
            except (ValueError, zlib.error) as error:
                raise Malformed(f"a bitmap's data cannot be unpacked ({error})") from None
            x, y = found["bitmap"]["origin"]
            return Bitmap(png, (int(x), int(y)))
        case "polygon":
            holes = map(ring, found["points"].get("interior") or ())
            return polygon(ring(found["points"]["exterior"]), notes, holes)
        case "rectangle":
            points = ring(found["points"]["exterior"])
            return box(*points.min(axis=0).tolist(), *points.max(axis=0).tolist())
        case other:
            notes[f"objects of the kind {other}, left out"] += 1
            return None
