"""Severstal's train.csv: a row for each image and class, with starts and lengths of runs down the columns, from 1.

`ImageId,ClassId,EncodedPixels` has rows of defects alone, the older `ImageId_ClassId,EncodedPixels` one for every
image and class.
"""

import csv
import io
from collections import Counter
from dataclasses import dataclass

import numpy as np

from raygen.data.annotations.shapes import Item, Malformed, Runs, Shape

FORMAT = "Severstal's CSV"


@dataclass(frozen=True, slots=True)
class Pixels:
    """Starts and lengths of runs, as the file has them."""

    text: str
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        numbers = np.array(self.text.split(), np.int64)
        starts, lengths = numbers[::2] - 1, numbers[1::2]
        gaps = starts - np.concatenate([[0], (starts + lengths)[:-1]])
        return Runs(np.stack([gaps, lengths], axis=1).ravel(), "F", partial=True).draw(height, width)


def recognises(head: str) -> bool:
    columns = {name.strip() for name in head.split(",")}
    return "EncodedPixels" in columns and bool({"ImageId", "ImageId_ClassId"} & columns)


def parse(text: str, notes: Counter[str]) -> list[Item]:
    """Reads a file's images. Raises Malformed; also KeyError, TypeError and the like."""
    images: dict[str, list[tuple[str, Shape]]] = {}
    for row in csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True):
        if "ImageId_ClassId" in row:
            name, _, label = row["ImageId_ClassId"].rpartition("_")
        else:
            name, label = row["ImageId"], row.get("ClassId") or "defect"
        pixels = (row["EncodedPixels"] or "").split()
        objects = images.setdefault(name.replace("\\", "/"), [])
        if pixels:
            if len(pixels) % 2 or not all(number.isdecimal() for number in pixels):
                raise Malformed(f"{name}: EncodedPixels that are not pairs of start and length")
            objects.append((label, Pixels(" ".join(pixels))))
    return [Item(name, None, tuple(objects)) for name, objects in images.items()]
