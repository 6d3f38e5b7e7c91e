"""What is shown to a person: durations, sizes, sheets of images."""

import io
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

_MARGIN = 8
_CAPTION = 30  # height of a caption, pixels
_SMALLEST_CELL = 160  # smaller images are magnified by whole numbers
_INK, _PAPER = (30, 30, 30), (250, 250, 250)
_LINE = (225, 60, 40)  # around a mask


def duration(seconds: float) -> str:
    """Seconds for a person: `42 s`, `7 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def size(num_bytes: float) -> str:
    """Bytes for a person: `312 kB`, `4.2 GB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


class Counted:
    """A line now and then: `512 of 4,096 images; what came last`."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self.say, self.what, self.total = say, what, total
        self.count, self.told = 0, time.monotonic()

    def add(self, count: int, detail: str = "") -> None:
        """Counts; says so at the end, and else every ten seconds."""
        self.count += count
        now = time.monotonic()
        if self.count == self.total or now - self.told > 10:
            self.told = now
            self.say(f"{self.count:,} of {self.total:,} {self.what}" + (f"; {detail}" if detail else ""))


class Outlined(NamedTuple):
    """An image with a mask to draw around."""

    pixels: np.ndarray  # uint8 (H, W, 1 or 3)
    mask: np.ndarray  # (H, W), 0 outside


def draw_sheet(
    captions: Sequence[str],
    groups: Mapping[str, Sequence[Sequence[np.ndarray | Outlined | None]]],
    image_size: int,
    title: str = "",
) -> bytes:
    """Draws captioned columns of images, row under row, in named groups; returns a PNG.

    Args:
        captions: one a column.
        groups: name -> rows of images, uint8 (image_size, image_size, 1 or 3), a row at most as long as
            `captions`; None leaves a place empty.
        image_size: height and width of the images; small ones are magnified by a whole number.
        title: lines of text above all, broken where the sheet ends.
    """
    cell = -(-_SMALLEST_CELL // image_size) * image_size
    pitch = cell + _MARGIN
    num_rows = sum(map(len, groups.values()))
    width = _MARGIN + pitch * len(captions)
    font = ImageFont.load_default(size=15)
    lines = [
        line for text in title.splitlines() for line in _broken(text, width - 2 * _MARGIN, font.getlength)
    ]
    height = _CAPTION * (len(lines) + 1 + len(groups)) + num_rows * pitch + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, line in enumerate(lines):
        draw.text((_MARGIN, row * _CAPTION + _MARGIN), line, _INK, font)
    top = _CAPTION * len(lines)
    for column, caption in enumerate(captions):
        draw.text((_MARGIN + column * pitch, top + _MARGIN), caption, _INK, font)
    top += _CAPTION
    for name, rows in groups.items():
        draw.text((_MARGIN, top + _MARGIN), name, _INK, font)
        top += _CAPTION
        for row in rows:
            for column, image in enumerate(row):
                if image is not None:
                    sheet.paste(_magnified(image, cell), (_MARGIN + column * pitch, top))
            top += pitch
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _broken(text: str, width: float, length: Callable[[str], float]) -> Iterator[str]:
    """Text in lines of at most a width, if its words allow that."""
    line = ""
    for word in text.split(" "):
        longer = f"{line} {word}" if line else word
        if line and length(longer) > width:
            yield line
            longer = word
        line = longer
    yield line


def _magnified(image: np.ndarray | Outlined, size: int) -> Image.Image:
    """The image at the size of its cell, with a line around its mask."""

    def enlarge(pixels: np.ndarray) -> Image.Image:
        return Image.fromarray(pixels.squeeze()).resize((size, size), Image.Resampling.NEAREST)

    if not isinstance(image, Outlined):
        return enlarge(image).convert("RGB")
    mask = enlarge((image.mask > 0).astype(np.uint8) * np.uint8(255))
    line = ImageChops.difference(mask.filter(ImageFilter.MaxFilter(3)), mask)
    drawn = enlarge(image.pixels).convert("RGB")
    drawn.paste(_LINE, mask=line)
    return drawn
