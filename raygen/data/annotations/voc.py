"""Pascal VOC XML: a file for each image, with boxes; its masks (SegmentationClass/) are not read."""

from collections import Counter
from typing import TYPE_CHECKING

from raygen.data.annotations.shapes import Item, Malformed, box

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

FORMAT = "Pascal VOC"


def recognises(root: "Element") -> bool:
    return root.tag == "annotation"


def parse(root: "Element", notes: Counter[str]) -> list[Item]:
    """Reads the one image of a file; its name may lack an extension, as in some of NEU-DET's. Raises Malformed."""
    objects = []
    for found in root.findall("object"):
        if found.find("bndbox") is None:
            notes["objects without a bndbox, left out"] += 1
            continue
        left, top, right, bottom = (
            _number(found, f"bndbox/{edge}") for edge in ("xmin", "ymin", "xmax", "ymax")
        )
        # Pixels count from 1, and those of both edges belong to the box.
        objects.append(((found.findtext("name") or "").strip(), box(left - 1, top - 1, right, bottom)))
    height, width = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("height", "width"))
    name = (root.findtext("filename") or "").strip().replace("\\", "/")
    return [Item(name, (height, width) if height and width else None, tuple(objects))]


def _number(found: "Element", path: str) -> float:
    try:
        return float(found.findtext(path) or "")
    except ValueError:
        raise Malformed(f"an object's {path} is no number") from None
