"""The only place where pixels change form: file bytes <-> uint8 HWC <-> float NCHW in [-1, 1]."""

import functools
import io
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from raygen.depth import Depth, Levels, PixelRange, is_dicom, is_tiff, read_levels, to_8_bits
from raygen.errors import BadImageError
from raygen.quiet import silent_stderr

if TYPE_CHECKING:
    import torch

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".dcm", ".dicom")

OF_8_BITS = (".jpg", ".jpeg", ".bmp", ".webp")
"""Of those, the ones that hold no more."""

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # and not all of Pillow's: its EPS would start Ghostscript

# The size is checked from the header before any pixel is decoded (see decode), by the caller's own limit.
Image.MAX_IMAGE_PIXELS = None


REASONS = {
    "empty": "the file has no bytes",
    "not_an_image": "no known image format",
    "truncated": "the file ends, or is damaged, before its last pixel",
    "too_many_pixels": "more pixels than `max_pixels`",
    "wrong_size": "not of the model's size, with `resize = false`",
    "unsupported": "a pixel type without a fixed range (32-bit integer or float), or of a rare kind",
    "no_range": "16 bits, of which the lowest alone are used, and nothing says how many: set `pixel_range`",
    "several_pages": "several pages or frames in one file: a volume or a film, no photograph",
    "too_small": "smaller than a window, with `native = true`",
    "missing": "planned, and gone when it was read",
    "changed": "planned, and another content when it was read",
    "unreadable": "storage refuses this one (permission, archived, a damaged Parquet page)",
}
"""Why a normal is rejected. The first nine are found from its bytes, the others by the reader."""


P = ParamSpec("P")
R = TypeVar("R")


def _quiet(read: Callable[Concatenate[bytes, P], R]) -> Callable[Concatenate[bytes, P], R]:
    """Damage is said by BadImageError; of a TIFF its decoders would write lines of their own besides."""

    @functools.wraps(read)
    def wrapped(data: bytes, *args: P.args, **options: P.kwargs) -> R:
        with silent_stderr() if is_tiff(data) else nullcontext():
            return read(data, *args, **options)

    return wrapped


def decode(
    data: bytes,
    size: int,
    channels: int,
    *,
    resize: bool,
    max_pixels: int,
    pixel_range: PixelRange | None = None,
) -> np.ndarray:
    """Decodes a file to the model's form.

    Grey, RGB, palette, CMYK, alpha (dropped) and deeper files are all converted; a camera's EXIF orientation is
    applied. With `resize`, an image of another size
    is scaled and cropped about its centre, so that shapes keep their proportions.

    Args:
        data: the file's bytes.
        size: height and width of the result.
        channels: 1 (luminance) or 3 (RGB).
        resize: whether another size than `size` × `size` is brought to it, or is an error.
        max_pixels: the largest width × height that is decoded at all.
        pixel_range: the levels of a file of more than 8 bits that become black and white. Without, those that it
            tells itself or, of 16 bits, all there are.

    Returns:
        uint8, (size, size, channels).

    Raises:
        BadImageError: for any file that cannot be used.
    """
    image = _open(data, max_pixels, pixel_range)
    if image.size != (size, size):
        if not resize:
            raise BadImageError("wrong_size", f"{image.width}×{image.height}, not {size}×{size}")
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(size, size, channels)


def decode_photo(
    data: bytes, max_pixels: int, *, deep: bool = False, pixel_range: PixelRange | None = None
) -> np.ndarray:
    """Decodes a file at its own size, else as `decode` does: uint8, (H, W, 1) for grey ones, (H, W, 3) for others.

    Args:
        data: the file's bytes.
        max_pixels: the largest width × height that is decoded at all.
        deep: whether grey ones of 16 bits stay so: uint16, (H, W, 1), their levels as they are.
        pixel_range: as for `decode`.

    Raises:
        BadImageError: for any file that cannot be used.
    """
    pixels = np.asarray(_open(data, max_pixels, pixel_range, deep=deep))
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


def fit(photo: np.ndarray, size: int) -> np.ndarray:
    """Brings a photo, uint8 (H, W, C), to `size` × `size` as `decode` does: scaled, cropped about its centre."""
    if photo.shape[:2] == (size, size):
        return photo
    image = Image.fromarray(photo[:, :, 0] if photo.shape[2] == 1 else photo)
    fitted = np.asarray(ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS))
    return fitted.reshape(size, size, photo.shape[2])


def fit_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Likewise a mask, bool (H, W), to a width and a height. A pixel is set where a quarter of it is: at half, a
    crack of two pixels would vanish from a mask that is scaled down by four."""
    if mask.shape == size[::-1]:
        return mask
    grey = Image.fromarray(mask.astype(np.uint8) * np.uint8(255))
    return np.asarray(ImageOps.fit(grey, size, Image.Resampling.LANCZOS)) > 63


def to_channels(photo: np.ndarray, channels: int) -> np.ndarray:
    """A photo, uint8 (H, W, 1 or 3), in grey (1) or RGB (3)."""
    if photo.shape[2] == channels:
        return photo
    image = Image.fromarray(photo[:, :, 0] if photo.shape[2] == 1 else photo)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(*photo.shape[:2], channels)


def resize_window(photo: np.ndarray, box: tuple[int, int, int, int], size: int, channels: int) -> np.ndarray:
    """Brings a part of a photograph to the model's form.

    Args:
        photo: uint8 (H, W, 1 or 3).
        box: left, upper, right and lower edge.
        size: height and width of the result; a part of that size is taken as it is.
        channels: 1 (luminance) or 3.

    Returns:
        uint8 (size, size, channels).
    """
    left, upper, right, lower = box
    part = photo[upper:lower, left:right]
    image = Image.fromarray(part[:, :, 0] if part.shape[2] == 1 else part)
    if image.size != (size, size):
        image = image.resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(image.convert("L" if channels == 1 else "RGB")).reshape(size, size, channels)


def resize_field(field: np.ndarray, size: int) -> np.ndarray:
    """Brings a map of numbers, float32 (H, W), to (size, size), bilinearly."""
    return np.asarray(Image.fromarray(field).resize((size, size), Image.Resampling.BILINEAR))


def resize_mask(mask: np.ndarray, size: int) -> np.ndarray:
    """Brings a mask, uint8 (H, W), to (size, size) without new values: each pixel is that of its nearest."""
    return np.asarray(Image.fromarray(mask).resize((size, size), Image.Resampling.NEAREST))


@_quiet
def _open(
    data: bytes, max_pixels: int, pixel_range: PixelRange | None = None, *, deep: bool = False
) -> Image.Image:
    """An upright image with its pixels loaded, of 8 bits; or of 16 if it has them, is grey and `deep`."""
    image = _open_header(data, max_pixels)
    levels = _levels_of(data, image, max_pixels)
    if levels is not None:
        keep = (
            deep and levels.pixels.ndim == 2 and levels.pixels.dtype == np.uint16 and not levels.is_inverted
        )
        pixels = levels.pixels if keep else to_8_bits(levels, pixel_range)
        return Image.fromarray(turn(pixels, _orientation(image) if image is not None else levels.orientation))
    assert image is not None
    _load(image)
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # Pillow's parsers raise nearly anything on damaged data
        raise BadImageError("truncated", str(error)) from None
    # A palette must become colours before it is resized, and "1" grey.
    return image.convert("RGB") if image.mode not in ("L", "RGB") else image


def _levels_of(data: bytes, image: Image.Image | None, max_pixels: int) -> Levels | None:
    if image is not None and _has_pages(image):
        raise BadImageError("several_pages", f"{getattr(image, 'n_frames', 2)} in one file")
    try:
        return read_levels(data, image, max_pixels)
    except BadImageError:
        raise
    except Exception as error:  # as above
        raise BadImageError("truncated", str(error)) from None


def _has_pages(image: Image.Image) -> bool:
    """Whether a file holds more than one picture; smaller copies of it, as a TIFF may have, do not count."""
    if image.format not in ("TIFF", "WEBP", "PNG") or getattr(image, "n_frames", 1) == 1:
        return False
    if image.format != "TIFF":
        return True
    try:
        for page in range(1, image.n_frames):  # pyright: ignore
            image.seek(page)
            if not image.tag_v2.get(254, 0) & 1:  # pyright: ignore
                return True
        return False
    except Exception as error:  # as above
        raise BadImageError("truncated", str(error)) from None
    finally:
        image.seek(0)


@_quiet
def read_depth(data: bytes, max_pixels: int) -> Depth | None:
    """What a file of more than 8 bits tells of its depth; None for others.

    Raises:
        BadImageError: for any file that cannot be used.
    """
    levels = _levels_of(data, _open_header(data, max_pixels), max_pixels)
    return Depth.of(levels) if levels is not None else None


def _orientation(image: Image.Image | None) -> int:
    if image is None:
        return 1
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception as error:  # of a PNG without EXIF Pillow loads the pixels
        raise BadImageError("truncated", str(error)) from None


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except Exception as error:  # as above
        raise BadImageError("truncated", str(error)) from None


def _open_header(data: bytes, max_pixels: int) -> Image.Image | None:
    """An image by its header alone; None for those that only other libraries may know."""
    if not data:
        raise BadImageError("empty", "0 bytes")
    if is_dicom(data):
        return None
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        if is_tiff(data):
            return None
        raise BadImageError("not_an_image", f"{len(data)} bytes of no known format") from None
    except Exception as error:  # as above
        raise BadImageError("truncated", str(error)) from None
    if image.width * image.height > max_pixels:
        raise BadImageError("too_many_pixels", f"{image.width}×{image.height} > {max_pixels} pixels")
    return image


def encode_png(pixels: np.ndarray) -> bytes:
    """Encodes uint8 (H, W, 1 or 3), or uint16 (H, W, 1), as PNG; the same pixels give the same bytes.

    By OpenCV: a third (grey) or half (RGB) of the time that Pillow takes at level 1, for 0.9 (grey) to 1.04 (RGB)
    times the bytes. In grey photographs a search for runs of equal bytes finds as much as one for repetitions;
    in RGB the channels repeat one another.
    """
    import cv2  # planning needs none of it, and it is slow to import

    is_grey = pixels.shape[2] == 1
    ordered = pixels if is_grey else cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    strategy = cv2.IMWRITE_PNG_STRATEGY_RLE if is_grey else cv2.IMWRITE_PNG_STRATEGY_DEFAULT
    return _encode(ordered, cv2.IMWRITE_PNG_FILTER_UP, strategy)


def encode_mask(mask: np.ndarray) -> bytes:
    """Encodes a mask, uint8 (H, W) of few values, as PNG: of 8 bits, since a reader may ask for more than 127."""
    import cv2

    return _encode(mask, cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_STRATEGY_RLE)


def _encode(ordered: np.ndarray, row_filter: int, strategy: int) -> bytes:
    import cv2

    # The level comes first: it sets the strategy to the default.
    options = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, strategy]
    done, data = cv2.imencode(".png", ordered, [*options, cv2.IMWRITE_PNG_FILTER, row_filter])
    assert done
    return data.tobytes()


def to_model(pixels: "torch.Tensor") -> "torch.Tensor":
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def from_model(x: "torch.Tensor") -> "torch.Tensor":
    """float (N, C, H, W), clamped to [-1, 1] -> uint8 (N, H, W, C)."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous()


class MaskImage(NamedTuple):
    """A mask as its file has it."""

    on: np.ndarray  # bool (H, W): where the defect is
    values: np.ndarray  # int64 (H, W): grey level, palette index, or 0xRRGGBB
    is_colour: bool  # whether `values` are colours
    num_values: int  # how many there are
    orientation: int  # EXIF's, 1 for none; not applied


@_quiet
def decode_mask(data: bytes, max_pixels: int = 2**28) -> MaskImage:
    """Decodes a mask at its own size, in whatever form tools write them.

    Whatever is not background is defect: any value but 0, any colour but black (of a palette without black, but
    the most frequent); where all is one colour, and the opacity is not, what is opaque. Where levels are many, as
    in a mask with soft edges, and in a JPEG, those above the middle.

    Raises:
        BadImageError: for any file that cannot be used.
    """
    image = _open_header(data, max_pixels)
    if image is None:
        raise BadImageError("unsupported", "a mask of a rare kind; save it as PNG")
    if _has_pages(image):
        raise BadImageError("several_pages", "a mask has one; number the files of its parts")
    _load(image)
    orientation = _orientation(image)
    alpha = np.asarray(image.getchannel("A")) if image.mode in ("LA", "RGBA") else None
    if image.mode == "P":
        values, is_colour = np.asarray(image).astype(np.int64), False
        on = np.asarray(image.convert("RGB")).any(axis=2)
        if on.all():
            on = values != np.bincount(values.ravel()).argmax()
        num_values = len(np.unique(values))
    else:
        levels = _levels(image)
        is_colour = levels.ndim == 3
        values = levels @ np.array([65536, 256, 1]) if is_colour else levels
        grey = levels.max(axis=2) if is_colour else levels
        num_values = len(np.unique(values))
        middle = 127 if image.format == "JPEG" else grey.max() / 2 if num_values > _SOFT else 0
        on = grey > middle
    if alpha is not None and (alpha != alpha.flat[0]).any():
        on = alpha > 127 if num_values == 1 else np.logical_and(on, alpha > 0)
        num_values = max(num_values, len(np.unique(alpha)))
    return MaskImage(np.asarray(on), values, is_colour, num_values, orientation)


_SOFT = 16  # more values than these are no classes, but the shades of a soft edge


def _levels(image: Image.Image) -> np.ndarray:
    """int64 (H, W), or (H, W, 3) of one in colours that are not all grey."""
    if image.mode in ("1", "L", "I", "LA") or image.mode.startswith("I;16"):
        return np.asarray(image.getchannel("L") if image.mode == "LA" else image).astype(np.int64)
    if image.mode == "F":
        raise BadImageError("unsupported", f"pixel mode {image.mode}")
    colours = np.asarray(image.convert("RGB")).astype(np.int64)
    is_grey = (colours == colours[:, :, :1]).all()
    return colours[:, :, 0] if is_grey else colours


def turn(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turns pixels (H, W) or (H, W, C) upright, as a camera's EXIF orientation (1 to 8) says."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    upside_down, mirrored = orientation in (3, 4, 7, 8), orientation in (2, 3, 6, 7)
    return np.ascontiguousarray(pixels[:: -1 if upside_down else 1, :: -1 if mirrored else 1])


def describe(data: bytes, max_pixels: int) -> str:
    """A file's format, depth and channels, for a person: `PNG, 8 bits, grey`.

    Raises:
        BadImageError: for any file that cannot be used.
    """
    image = _open_header(data, max_pixels)
    if image is None:
        return "DICOM" if is_dicom(data) else "TIFF of a rare kind"
    tags: Any = image
    bits = {"PNG": lambda: data[24], "TIFF": lambda: max(tags.tag_v2.get(258, (1,)))}
    depth = bits.get(image.format or "", lambda: 8)()
    kinds = {"L": "grey", "LA": "grey", "1": "black and white", "P": "palette", "I": "grey", "F": "floats"}
    return (
        f"{image.format}, {depth} bits, {kinds.get(image.mode, 'grey' if image.mode[0] == 'I' else 'colour')}"
    )


def stored_size(data: bytes, max_pixels: int) -> tuple[int, int, int]:
    """Height and width of a photo as stored, and its EXIF orientation (1 for none); mostly by its header alone."""
    image = _open_header(data, max_pixels)
    if image is None:
        height, width, _ = decode_photo(data, max_pixels, pixel_range=(0, 1)).shape
        return height, width, 1
    return image.height, image.width, _orientation(image)
