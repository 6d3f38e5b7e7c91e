"""CVAT for images, XML: one file of many images, with polygons, run lengths, ellipses and boxes."""

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np

from raygen.data.annotations.shapes import Item, Malformed, Runs, Shape, box, ellipse, polygon, ring

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FORMAT = "CVAT for images"


def recognises(root: "Element") -> bool:
    return root.tag == "annotations" and root.find("track") is None and root.find("image") is not None


def parse(root: "Element", notes: Counter[str]) -> list[Item]:
    """Reads a file's images. The parts of a group are objects of one label here, which their mask unites.

    Raises:
        Malformed: what is not as the format has it; also KeyError and ValueError.
    """
    items = []
    for image in root.findall("image"):
        try:
            objects = [(found.get("label", ""), shape) for found in image if (shape := _shape(found, notes))]
        except (Malformed, KeyError, ValueError) as error:
            raise Malformed(f"image {image.get('name')!r}: {error}") from None
        size = (int(image.attrib["height"]), int(image.attrib["width"]))
        name = image.attrib["name"].replace("\\", "/")
        items.append(Item(name, size, tuple(objects), image.get("subset", "")))
    return items


def _shape(found: "Element", notes: Counter[str]) -> Shape | None:
    def numbers(*names: str) -> list[float]:
        return [float(found.attrib[name]) for name in names]

    angle = float(found.get("rotation", 0))
    match found.tag:
        case "polygon":
            pairs = [pair.split(",") for pair in found.attrib["points"].split(";")]
            return polygon(ring([[float(number) for number in pair] for pair in pairs]), notes)
        case "mask":  # rows of a rectangle
            counts = np.array([int(count) for count in found.attrib["rle"].split(",")], np.int64)
            x, y, width, height = (int(number) for number in numbers("left", "top", "width", "height"))
            return Runs(counts, "C", (height, width), (x, y))
        case "ellipse":
            x, y, radius_x, radius_y = numbers("cx", "cy", "rx", "ry")
            return ellipse(x, y, radius_x, radius_y, angle)
        case "box":
            left, top, right, bottom = numbers("xtl", "ytl", "xbr", "ybr")
            return box(left, top, right, bottom, angle)
        case other:
            notes[f"annotations of the kind {other}, left out"] += 1
            return None
