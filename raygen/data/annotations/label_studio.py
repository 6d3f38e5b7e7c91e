"""Label Studio's JSON export: one file of many tasks, in percent of the image, with brushes as RGBA run lengths.

Images are named by where Label Studio has them: `/data/upload/1/ab12cd34-name.jpg` (the eight signs are its own),
`/data/local-files/?d=folder/name.jpg`, `s3://bucket/folder/name.jpg`.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

from raygen.data.annotations.shapes import Item, Malformed, Polygon, Shape, ellipse, polygon, ring, turned

FORMAT = "Label Studio"


@dataclass(frozen=True, slots=True)
class Brush:
    """What a brush has painted: thi.ng's rle-pack of the image's RGBA, of which alpha is the mask."""

    packed: bytes
    size: tuple[int, int]  # height, width
    is_box: bool = False

    def draw(self, height: int, width: int) -> np.ndarray:
        values = _unpack(self.packed)
        if self.size != (height, width) or len(values) != height * width * 4:
            raise Malformed(f"a brush of {len(values)} values, not 4 for each of {width} × {height} pixels")
        return values[3::4].reshape(height, width) > 0


def _unpack(packed: bytes) -> np.ndarray:
    """uint8 (N,). A head of 32 bits for N, 5 for the length of a value less 1, four times 4 for those of counts
    less 1; then blocks: a bit (is it one value, repeated?), 2 for which length its count has, the count less 1,
    and the value or values."""
    bits, place = "".join(f"{byte:08b}" for byte in packed), 0

    def take(number: int) -> int:
        nonlocal place
        place += number
        if place > len(bits):
            raise Malformed("a brush whose run lengths end too early")
        return int(bits[place - number : place], 2)

    total, word = take(32), take(5) + 1
    lengths = [take(4) + 1 for _ in range(4)]
    parts: list[np.ndarray] = []
    found = 0
    while found < total:
        repeated, count = take(1), take(lengths[take(2)]) + 1
        parts.append(np.full(count, take(word)) if repeated else np.array([take(word) for _ in range(count)]))
        found += count
    return np.concatenate(parts)[:total].astype(np.uint8) if parts else np.zeros(0, np.uint8)


def recognises(document: Any) -> bool:
    return (
        isinstance(document, list)
        and bool(document)
        and all(isinstance(task, dict) for task in document)
        and ("data" in document[0] and ("annotations" in document[0] or "completions" in document[0]))
    )


def parse(document: Any, notes: Counter[str]) -> list[Item]:
    """Reads a file's annotated tasks. Raises Malformed; also KeyError, TypeError and the like."""
    items = []
    for task in document:
        done = [
            found
            for found in task.get("annotations") or task.get("completions") or ()
            if not found.get("was_cancelled")
        ]
        if not done:
            notes["tasks that nobody has annotated, left out"] += 1
            continue
        if len(done) > 1:
            notes["tasks that several people annotated: their outlines are united"] += 1
        results = [result for annotation in done for result in annotation["result"]]
        try:
            items.append(_item(task, results, notes))
        except (Malformed, KeyError) as error:
            raise Malformed(f"task {task.get('id')}: {error}") from None
    return items


def image_name(address: str) -> str:
    """The path of an image in the storage that Label Studio has it from, as far as it tells.

    What is uploaded gets eight hexadecimal digits and a dash before its name (`without_prefix`).
    """
    parts = urlsplit(address.replace("\\", "/"))
    if parts.path.rstrip("/").endswith("/local-files"):
        return parse_qs(parts.query).get("d", [""])[0].strip("/")
    if parts.scheme:
        return unquote(parts.path).strip("/")
    path = unquote(parts.path).strip("/")
    if match := re.fullmatch(r"data/upload/(?:\d+/)?(.+)", path):
        return match[1]
    return path


def without_prefix(name: str) -> str:
    """The name of an upload without Label Studio's eight digits."""
    return re.sub(r"(^|/)[0-9a-f]{8}-([^/]+)$", r"\1\2", name)


def _item(task: dict[str, Any], results: list[dict[str, Any]], notes: Counter[str]) -> Item:
    # With a <Labels> of its own, a region's label stands in a result of the same id.
    labels: dict[Any, list[str]] = {}
    for result in results:
        value = result.get("value") or {}
        named = next((value[key] for key in value if key.endswith("labels") and value[key]), None)
        if named:
            labels[result.get("id")] = [str(name) for name in named]
    objects: list[tuple[str, Shape]] = []
    seen: set[Any] = set()
    size = None
    for result in results:
        value = result.get("value") or {}
        if not value.keys() & {"rle", "points", "radiusX", "height"}:
            if result.get("type") != "labels":
                notes[f"results of the kind {result.get('type')}, left out"] += 1
            continue
        if result.get("id") in seen and result.get("id") is not None:
            continue  # the region once more, with its label
        seen.add(result.get("id"))
        size = (int(result["original_height"]), int(result["original_width"]))
        if result.get("image_rotation"):
            notes["outlines on an image that was turned in Label Studio: check their masks"] += 1
        named = labels.get(result.get("id"))
        if not named:
            notes["outlines without a label, left out"] += 1
            continue
        objects += [(label, shape) for shape in _shapes(value, size, notes) for label in named]
    data = task["data"]
    key = next((result["to_name"] for result in results if result.get("to_name") in data), None)
    address = data[key] if key else next(text for text in data.values() if isinstance(text, str))
    return Item(image_name(str(address)), size, tuple(objects))


def _shapes(value: dict[str, Any], size: tuple[int, int], notes: Counter[str]) -> list[Shape]:
    height, width = size
    if "rle" in value:
        return [Brush(bytes(value["rle"]), size)]
    if "points" in value:
        outline = polygon(ring(value["points"]) * (width / 100, height / 100), notes)
        return [outline] if outline else []
    x, y, angle = value["x"] * width / 100, value["y"] * height / 100, value.get("rotation", 0)
    if "radiusX" in value:
        return [ellipse(x, y, value["radiusX"] * width / 100, value["radiusY"] * height / 100, angle)]
    right, bottom = x + value["width"] * width / 100, y + value["height"] * height / 100
    corners = ring([x, y, right, y, right, bottom, x, bottom])
    return [Polygon((turned(corners, corners[0], angle),), is_box=True)]  # about its first corner
