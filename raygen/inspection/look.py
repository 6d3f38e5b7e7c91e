"""A look into one photo: what its file is, what its pixels are like, and its mask."""

import hashlib
from typing import NamedTuple

import numpy as np

from raygen import images
from raygen.data.defects import MaskError, read_file, read_mask
from raygen.data.likeness import thumbnail
from raygen.data.photo import Photo
from raygen.data.pool import read_normals
from raygen.errors import BadImageError, UserError

_RING = 4  # pixels around a mask


class Seen(NamedTuple):
    """What was seen of a photo; what cannot be told is None."""

    uri: str
    product: str
    defect_type: str
    split: str
    group: str
    error: str | None = None  # why it cannot be read
    sha256: str | None = None
    num_bytes: int | None = None
    kind: str | None = None  # "PNG, 8 bits, grey"
    width: int | None = None
    height: int | None = None
    mean: float | None = None  # grey levels, 0 to 255
    deviation: float | None = None
    num_values: int | None = None  # grey levels that there are
    has_mask: bool = False
    mask_error: str | None = None
    mask_share: float | None = None  # of the photo
    mask_parts: int | None = None
    contrast: float | None = None  # mean inside the mask minus mean around it
    roughness: float | None = None  # deviation inside minus deviation around
    thumbnail: bytes | None = None  # float16, see raygen.data.likeness


def look(photo: Photo, max_pixels: int, in_pool: bool) -> Seen:
    """Reads a photo and its mask, and says what they are. Storage that does not answer raises."""
    seen = Seen(photo.uri, photo.product, photo.defect_type, photo.split, photo.group)
    try:
        data = _read_normal(photo) if in_pool else read_file(photo)
        seen = seen._replace(sha256=hashlib.sha256(data).hexdigest(), num_bytes=len(data))
        seen = seen._replace(kind=images.describe(data, max_pixels))
        pixels = images.decode_photo(data, max_pixels, pixel_range=photo.pixel_range)
    except BadImageError as error:
        return seen._replace(error=str(error))
    except UserError as error:
        return seen._replace(error=str(error).removeprefix(f"defect set: {photo.uri}: "))
    grey = images.to_channels(pixels, 1)[:, :, 0]
    seen = seen._replace(
        width=grey.shape[1],
        height=grey.shape[0],
        mean=float(grey.mean()),
        deviation=float(grey.std()),
        num_values=int(np.count_nonzero(np.bincount(grey.ravel(), minlength=256))),
        thumbnail=thumbnail(grey).tobytes(),
    )
    if photo.mask_uri is None:
        return seen
    try:
        return _with_mask(seen, grey, read_mask(photo))
    except MaskError as error:
        return seen._replace(has_mask=True, mask_error=error.what)
    except UserError as error:
        return seen._replace(has_mask=True, mask_error=str(error))


def _read_normal(photo: Photo) -> bytes:
    (raw,) = read_normals([photo.uri], [photo.etag], 1)
    if raw.error:
        raise raw.error
    assert raw.data is not None
    return raw.data


def _with_mask(seen: Seen, grey: np.ndarray, mask: np.ndarray) -> Seen:
    from scipy import ndimage  # slow to import

    near, wide = (np.asarray(ndimage.binary_dilation(mask, iterations=n), bool) for n in (1, _RING))
    ring = wide & ~near
    inside, around = grey[mask], grey[ring]
    _, parts = ndimage.label(mask, np.ones((3, 3)))  # pyright: ignore
    seen = seen._replace(has_mask=True, mask_share=float(mask.mean()), mask_parts=parts)
    if not len(around):
        return seen
    return seen._replace(
        contrast=float(inside.mean() - around.mean()), roughness=float(inside.std() - around.std())
    )
