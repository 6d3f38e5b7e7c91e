"""Photographs of more than 8 bits: the levels that a file stores, and which range of them is the picture.

A camera's 10, 12 or 14 bits mostly lie in the lower part of 16, and few files say so. Scaled over all 16 bits such
a photograph is nearly black.
"""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from raygen.errors import BadImageError
from raygen.extras import require

PixelRange = tuple[float, float]
"""The levels that become black and white; those beyond are clipped."""

FULL: PixelRange = (0, 65535)
_UNCLEAR = 2**14  # 16 bits whose highest level is below this may be those of a camera with fewer
_DEPTHS = (10, 12, 14, 16)


class Levels(NamedTuple):
    """The pixels of a file of more than 8 bits, as stored and not turned upright."""

    pixels: np.ndarray  # (H, W), or (H, W, 3): RGB; uint16, another integer, or float
    stated: PixelRange | None  # the range that the file itself tells
    is_inverted: bool = False  # whether low levels are white
    orientation: int = 1  # EXIF's, of a file that Pillow does not know

    @property
    def extent(self) -> PixelRange:
        """The lowest and the highest level."""
        return float(self.pixels.min()), float(self.pixels.max())


def to_8_bits(levels: Levels, pixel_range: PixelRange | None) -> np.ndarray:
    """Levels in 8 bits, uint8, linearly over a range: the one given, else the one that the file tells or, of 16
    bits, all there are.

    Raises:
        BadImageError: there is no range to go by.
    """
    if levels.pixels.dtype == np.uint8:
        pixel_range = (0, 255)  # of a kind of file that mostly has more: it is as 8 bits are
    low, high = pixel_range or levels.stated or _of_type(levels)
    if (low, high) == FULL and levels.pixels.dtype == np.uint16:
        scaled = np.rint(levels.pixels.astype(np.float32) / 257)  # 65535 / 257 = 255
    else:
        values = levels.pixels.astype(np.float64)
        scaled = np.rint((np.nan_to_num(values, nan=low) - low) * (255 / (high - low))).clip(0, 255)
    grey = scaled.astype(np.uint8)
    return np.uint8(255) - grey if levels.is_inverted else grey


def _of_type(levels: Levels) -> PixelRange:
    low, high = levels.extent
    if levels.pixels.dtype != np.uint16:
        what = f"{levels.pixels.dtype} from {low:g} to {high:g}"
        raise BadImageError(
            "unsupported", f"{what}, and nothing says what is black and white: set pixel_range"
        )
    if high < _UNCLEAR:
        raise BadImageError("no_range", f"values up to {high:,.0f} of 65,535: set pixel_range, say [0, 4095]")
    return FULL


# ------------------------------------------------------------------------------------------ what a file holds


def read_levels(data: bytes, image: Image.Image | None, max_pixels: int) -> Levels | None:
    """The levels of a file of more than 8 bits; None for one of 8.

    Args:
        data: the file.
        image: as Pillow opened it, not loaded; None where it could not.
        max_pixels: the largest width × height that is decoded at all.

    Raises:
        BadImageError: it cannot be read, or is no single photograph.
    """
    if is_dicom(data):
        return _read_dicom(data, max_pixels)
    if image is None:
        return _read_tiff(data, max_pixels)
    if image.format == "PNG":
        return _read_png(data, image) if data[24] == 16 else None
    if image.format != "TIFF":
        return None
    tags: Any = image
    if 50706 in tags.tag_v2:  # a DNG's first page is a preview
        raise BadImageError("unsupported", "a DNG: develop it first")
    bits = max(tags.tag_v2.get(258, (1,)))
    if bits <= 8:
        return None
    if image.mode.startswith("I;16"):  # of others Pillow may swap bytes or signs
        is_inverted = tags.tag_v2.get(262) == 0  # which Pillow applies to 8 bits alone
        pixels = _native(image)
        return Levels(pixels, _stated(tags.tag_v2, bits, pixels), is_inverted)
    return _read_tiff(data, max_pixels)


def is_dicom(data: bytes) -> bool:
    """Whether a file is one of DICOM, or DICONDE."""
    return data[128:132] == b"DICM"


def is_tiff(data: bytes) -> bool:
    """Whether a file is a TIFF, of whatever kind."""
    return data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


def _native(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image)
    return pixels.astype(np.uint16) if image.mode.startswith("I;16") else pixels


def _stated(tags: Any, bits: int, pixels: np.ndarray) -> PixelRange | None:
    """The range that a TIFF tells: by its samples' least and greatest value, or by an odd number of bits. Values
    that are those of this picture alone, or all of 16 bits (a default), tell nothing of a camera."""
    for low, high in ((340, 341), (280, 281)):  # SMin- and SMaxSampleValue; MinSampleValue and MaxSampleValue
        if high in tags:
            top, bottom = (float(np.ravel(tags.get(tag, 0))[0]) for tag in (high, low))
            is_own = (bottom, top) == (pixels.min(), pixels.max()) and not _is_of_bits(bottom, top)
            if top > bottom and not is_own and (bottom, top) != FULL:
                return bottom, top
    return (0, 2**bits - 1) if bits < 16 and pixels.dtype.kind != "f" else None


def _is_of_bits(low: float, high: float) -> bool:
    """Whether a range is all of some number of bits."""
    return low == 0 and float(np.log2(high + 1)).is_integer()


def _read_png(data: bytes, image: Image.Image) -> Levels:
    if image.mode.startswith("I;16"):
        pixels = _native(image)
    else:  # in colours, Pillow keeps but 8 of the 16 bits
        import cv2

        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        if decoded is None or decoded.dtype != np.uint16:
            raise BadImageError("truncated", "its 16-bit pixels cannot be decoded")
        pixels = decoded[:, :, 2::-1]
        if data[25] == 4:  # grey with opacity
            pixels = pixels[:, :, 0]
    bits = _significant_bits(data)
    # The format wants such bits scaled up to all 16; there are writers that leave them where they were.
    if bits is None or bits == 16:
        return Levels(pixels, None)
    return Levels(pixels, (0, 2**bits - 1) if pixels.max() < 2**bits else FULL)


def _significant_bits(data: bytes) -> int | None:
    """What a PNG's sBIT says, which stands before its pixels."""
    place = 8
    while place + 8 <= len(data):
        length, name = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        if name == b"sBIT" and length:
            return max(data[place + 8 : place + 8 + min(length, 3)])
        if name == b"IDAT":
            return None
        place += 12 + length
    return None


def _read_tiff(data: bytes, max_pixels: int) -> Levels:
    """TIFFs that Pillow does not know: 10 or 14 packed bits, 16 in colours, floats of other sizes, mosaics."""
    import tifffile

    try:
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page: Any = file.pages[0]
            height, width = page.imagelength, page.imagewidth
            if height * width > max_pixels:
                raise BadImageError("too_many_pixels", f"{width}×{height} > {max_pixels} pixels")
            others: list[Any] = list(file.pages)[1:]
            if any(not other.is_reduced for other in others):
                raise BadImageError("several_pages", f"{len(file.pages)} in one file")
            if page.photometric not in (0, 1, 2, 32803):
                raise BadImageError("unsupported", f"photometric interpretation {page.photometric}")
            pixels = page.asarray().squeeze()
            tags = {tag.code: tag.value for tag in page.tags.values()}
            planes_first = page.planarconfig == 2 and pixels.ndim == 3
    except BadImageError:
        raise
    except ValueError as error:  # a codec that is not installed, or damage
        line = str(error).splitlines()[0]
        hint = "; pip install 'raygen[formats]'" if "imagecodecs" in line else ""
        raise BadImageError("unsupported" if hint else "truncated", line + hint) from None
    except Exception as error:  # its parsers raise nearly anything on damaged data
        raise BadImageError("truncated", str(error)) from None
    bits = int(np.max(page.bitspersample))
    if page.photometric == 32803:
        pixels = _demosaic(pixels, tags)
    if planes_first:
        pixels = np.moveaxis(pixels, 0, -1)
    if pixels.ndim == 3 and pixels.shape[2] in (2, 4):  # the last is opacity
        pixels = pixels[:, :, 0] if pixels.shape[2] == 2 else pixels[:, :, :3]
    if pixels.ndim != 2 and (pixels.ndim != 3 or pixels.shape[2] != 3):
        raise BadImageError("unsupported", f"pixels of shape {pixels.shape}")
    turned = int(tags.get(274, 1))
    return Levels(
        pixels, _stated(tags, bits, pixels), page.photometric == 0, turned if 1 <= turned <= 8 else 1
    )


def _demosaic(pixels: np.ndarray, tags: dict[int, Any]) -> np.ndarray:
    """A raw mosaic of a colour sensor as RGB; the pattern of its upper left 2 × 2 pixels is the file's."""
    import cv2

    pattern = "".join("RGB"[value] for value in np.ravel(list(tags.get(33422, ())))[:4])
    code = getattr(cv2, f"COLOR_Bayer{pattern}2RGB", None)
    if code is None or tuple(tags.get(33421, ())) != (2, 2) or pixels.dtype not in (np.uint8, np.uint16):
        raise BadImageError("unsupported", "a raw mosaic of an unknown pattern: develop it first")
    return cv2.demosaicing(pixels, code)


def _read_dicom(data: bytes, max_pixels: int) -> Levels:
    """DICOM and DICONDE, by their window or the bits that they say are stored."""
    pydicom: Any = require("pydicom", "formats")
    from pydicom.pixels.processing import apply_modality_lut

    try:
        file = pydicom.dcmread(io.BytesIO(data))
        if int(file.get("NumberOfFrames") or 1) > 1:
            raise BadImageError("several_pages", f"{file.NumberOfFrames} frames")
        if file.Rows * file.Columns > max_pixels:
            raise BadImageError("too_many_pixels", f"{file.Columns}×{file.Rows} > {max_pixels} pixels")
        stored = file.pixel_array
        pixels = apply_modality_lut(stored, file) if stored.ndim == 2 else stored
    except BadImageError:
        raise
    except Exception as error:  # as above; and transfer syntaxes that want another package
        raise BadImageError("unsupported", str(error).splitlines()[0]) from None
    signed = file.get("PixelRepresentation") == 1
    bits = int(file.get("BitsStored") or file.BitsAllocated)
    ends = np.array([-(2 ** (bits - 1)), 2 ** (bits - 1) - 1] if signed else [0, 2**bits - 1])
    low, high = (float(value) for value in (apply_modality_lut(ends, file) if stored.ndim == 2 else ends))
    if "WindowCenter" in file and "WindowWidth" in file:
        centre, width = (float(np.ravel(file[name].value)[0]) for name in ("WindowCenter", "WindowWidth"))
        if width > 1:  # the standard's linear function
            low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    # All of 16 bits is what is written where nobody knows.
    stated = None if (low, high) == FULL and pixels.dtype == np.uint16 else (low, high)
    return Levels(pixels, stated, file.get("PhotometricInterpretation") == "MONOCHROME1")


# ------------------------------------------------------------------------------------------ what a pool holds


class Depth(NamedTuple):
    """What is known of one file's depth, without its pixels."""

    stated: PixelRange | None
    extent: PixelRange
    is_16_bits: bool  # unsigned, as cameras store fewer in

    @property
    def is_clear(self) -> bool:
        """Whether the file can be decoded by itself."""
        return self.stated is not None or (self.is_16_bits and self.extent[1] >= _UNCLEAR)

    @classmethod
    def of(cls, levels: Levels) -> "Depth":
        return cls(levels.stated, levels.extent, levels.pixels.dtype == np.uint16)


def choose_range(depths: Sequence[Depth]) -> tuple[PixelRange, str]:
    """The range of photographs of one camera, by some of them: what all files tell alike, else by what they hold.

    Returns:
        The range, and how it was found, for the user: `values up to 4,012: read as 12 bits`.
    """
    stated = {depth.stated for depth in depths}
    if len(stated) == 1 and (told := next(iter(stated))) is not None:
        return told, "as the files say"
    low, high = min(depth.extent[0] for depth in depths), max(depth.extent[1] for depth in depths)
    if all(depth.is_16_bits for depth in depths):
        depth = next(bits for bits in _DEPTHS if high < 2**bits)
        return (0, 2**depth - 1), f"values up to {high:,.0f}: read as {depth} bits"
    if low >= 0 and high <= 1:
        return (0, 1), f"values from {low:g} to {high:g}: read as 0 to 1"
    return (low, max(high, low + 1)), f"values from {low:g} to {high:g}: these are black and white"
