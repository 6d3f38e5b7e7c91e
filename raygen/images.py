"""The only place where pixels change form: file bytes <-> uint8 HWC <-> float NCHW in [-1, 1]."""

import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

if TYPE_CHECKING:
    import torch

EXTENSIONS = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")

_FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")  # and not all of Pillow's: its EPS would start Ghostscript

# The size is checked from the header before any pixel is decoded (see decode), by the caller's own limit.
Image.MAX_IMAGE_PIXELS = None


class BadImageError(Exception):
    """A file that is no usable image. `reason` is one of REASONS, `detail` says it for a person."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


REASONS = {
    "empty": "the file has no bytes",
    "not_an_image": "no known image format",
    "truncated": "the file ends, or is damaged, before its last pixel",
    "too_many_pixels": "more pixels than `max_pixels`",
    "wrong_size": "not of the model's size, with `resize = false`",
    "unsupported": "a pixel type without a fixed range (32-bit integer or float)",
    "too_small": "smaller than a window, with `native = true`",
    "missing": "planned, and gone when it was read",
    "changed": "planned, and another content when it was read",
    "unreadable": "storage refuses this one (permission, archived, a damaged Parquet page)",
}
"""Why a normal is rejected. The first seven are found from its bytes, the others by the reader."""


def decode(data: bytes, size: int, channels: int, *, resize: bool, max_pixels: int) -> np.ndarray:
    """Decodes a file to the model's form.

    Grey, RGB, palette, CMYK, alpha (dropped) and 16-bit files (scaled linearly over their full range, never
    clipped) are all converted; a camera's EXIF orientation is applied. With `resize`, an image of another size
    is scaled and cropped about its centre, so that shapes keep their proportions.

    Args:
        data: the file's bytes.
        size: height and width of the result.
        channels: 1 (luminance) or 3 (RGB).
        resize: whether another size than `size` × `size` is brought to it, or is an error.
        max_pixels: the largest width × height that is decoded at all.

    Returns:
        uint8, (size, size, channels).

    Raises:
        BadImageError: for any file that cannot be used.
    """
    image = _open(data, max_pixels)
    if image.size != (size, size):
        if not resize:
            raise BadImageError("wrong_size", f"{image.width}×{image.height}, not {size}×{size}")
        image = ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)
    image = image.convert("L" if channels == 1 else "RGB")
    return np.asarray(image).reshape(size, size, channels)


def decode_photo(data: bytes, max_pixels: int, *, deep: bool = False) -> np.ndarray:
    """Decodes a file at its own size, else as `decode` does: uint8, (H, W, 1) for grey ones, (H, W, 3) for others.

    Args:
        data: the file's bytes.
        max_pixels: the largest width × height that is decoded at all.
        deep: whether grey ones of 16 bits stay so: uint16, (H, W, 1).

    Raises:
        BadImageError: for any file that cannot be used.
    """
    pixels = np.asarray(_open(data, max_pixels, deep=deep))
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


def _open(data: bytes, max_pixels: int, *, deep: bool = False) -> Image.Image:
    """An upright image with its pixels loaded, of 8 bits; or of 16 if it has them, is grey and `deep`."""
    if not data:
        raise BadImageError("empty", "0 bytes")
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
    except UnidentifiedImageError:
        raise BadImageError("not_an_image", f"{len(data)} bytes of no known format") from None
    except Exception as error:  # Pillow's parsers raise nearly anything on a damaged header
        raise BadImageError("truncated", str(error)) from None
    if image.width * image.height > max_pixels:
        raise BadImageError("too_many_pixels", f"{image.width}×{image.height} > {max_pixels} pixels")
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # as above: a damaged body
        raise BadImageError("truncated", str(error)) from None
    if image.mode.startswith("I;16"):
        levels = np.asarray(image).astype(np.uint16)
        return Image.fromarray(levels if deep else to_8_bits(levels))
    if image.mode in ("I", "F"):
        raise BadImageError("unsupported", f"pixel mode {image.mode}")
    # A palette must become colours before it is resized, and "1" grey.
    return image.convert("RGB") if image.mode not in ("L", "RGB") else image


def to_8_bits(levels: np.ndarray) -> np.ndarray:
    """uint16 -> uint8, linearly over the full range."""
    return np.rint(levels.astype(np.float32) / 257).astype(np.uint8)  # 65535 / 257 = 255


def encode_png(pixels: np.ndarray, compress_level: int = 1) -> bytes:
    """Encodes uint8 (H, W, 1 or 3), or uint16 (H, W, 1), as PNG; the same pixels give the same bytes.

    Level 1 costs a third of Pillow's default's time for about a tenth more bytes on photographs of surfaces.
    """
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(
        buffer, "PNG", compress_level=compress_level
    )
    return buffer.getvalue()


def to_model(pixels: "torch.Tensor") -> "torch.Tensor":
    """uint8 (N, H, W, C) -> float32 (N, C, H, W) in [-1, 1]."""
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def from_model(x: "torch.Tensor") -> "torch.Tensor":
    """float (N, C, H, W), clamped to [-1, 1] -> uint8 (N, H, W, C)."""
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).contiguous()
