"""The defect set: a few real photographs, normal and defective, of which the models learn."""

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import PurePosixPath
from typing import Any, TypeVar

import numpy as np

from raygen import images, storage
from raygen.data.annotated import draw, is_drawn
from raygen.data.photo import Photo
from raygen.data.survey import survey
from raygen.errors import UserError
from raygen.records import NORMAL, digest

_MAX_PIXELS = 64_000_000
R = TypeVar("R")


def list_defect_set(uri: str, **options: Any) -> tuple[Photo, ...]:
    """The photos of `raygen.data.survey.survey`, whose options these are."""
    return survey(uri, **options).photos


EVERY = "*"
"""What stands for every product that is not named."""


def keep_defects(photos: Sequence[Photo], counts: Mapping[str, int], draw: int = 0) -> tuple[Photo, ...]:
    """Leaves products so many defects of each type: the paper's 20A is {"A": 20}. Which ones depends on their
    names and `draw` alone, so that a training and the evaluation of it keep the same; fewer are among more.

    Args:
        photos: in the order to keep.
        counts: product, or EVERY -> defects of each type that stay; products that it does not name keep all.
        draw: a number of another choice; a training's is 0.

    Raises:
        UserError: there are no photos of such a product.
    """
    products = {photo.product for photo in photos}
    for product in counts:
        if product not in {*products, EVERY}:
            raise UserError(
                f"keep_defects: no product {product!r}; choose from {', '.join(sorted(products))}"
            )
    kept = set(photos)
    for (product, defect_type), rows in group_by_cell(photos).items():
        most = counts.get(product, counts.get(EVERY))
        if most is not None and defect_type != NORMAL:
            of_draw = (draw,) if draw else ()
            order = sorted(rows, key=lambda row: digest(*PurePosixPath(photos[row].uri).parts[-2:], *of_draw))
            kept -= {photos[row] for row in order[most:]}
    return tuple(photo for photo in photos if photo in kept)


def group_by_cell(photos: Iterable[Photo]) -> dict[tuple[str, str], list[int]]:
    """(product, defect type) -> indices of its photos; by product, normal first, then by defect type."""
    cells: dict[tuple[str, str], list[int]] = {}
    for index, photo in enumerate(photos):
        cells.setdefault((photo.product, photo.defect_type), []).append(index)
    return dict(sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] != NORMAL, cell[0][1])))


def load_photos(photos: Sequence[Photo], size: int, channels: int, num_threads: int = 8) -> np.ndarray:
    """Reads and decodes photos, in their order; those of another size are scaled and cropped about their centre.

    Returns:
        uint8, (len(photos), size, size, channels).

    Raises:
        UserError: a photo that is gone, changed since it was listed, or no usable image. The set is small and
            chosen by hand: learning from less of it without a word would be wrong.
    """

    def load(photo: Photo) -> np.ndarray:
        return _read(
            photo.uri,
            photo.etag,
            lambda data: images.decode(
                data, size, channels, resize=True, max_pixels=_MAX_PIXELS, pixel_range=photo.pixel_range
            ),
        )

    return _load_all(load, photos, (size, size, channels), num_threads)


def load_masks(photos: Sequence[Photo], size: int, num_threads: int = 8) -> np.ndarray:
    """Reads and decodes the masks of photos, scaled and cropped as `load_photos` does.

    A pixel is set where a quarter of it is: at half, a crack of two pixels would vanish from a mask that is scaled
    down by four.

    Returns:
        uint8, 0 or 255, (len(photos), size, size, 1).

    Raises:
        UserError: a photo without a mask, or one that is of no use.
    """

    def load(photo: Photo) -> np.ndarray:
        if photo.mask_uri is None:
            raise UserError(f"defect set: {photo.uri}: has no mask; put one beside it, as {{id}}_mask.png")
        mask = images.fit_mask(read_mask(photo), (size, size))
        if not mask.any():
            raise UserError(
                f"defect set: {photo.mask_uri}: empty when brought to {size} × {size}; the defect lies "
                "outside the square about the photo's centre, or is too small"
            )
        return mask[:, :, None] * np.uint8(255)

    return _load_all(load, photos, (size, size, 1), num_threads)


def read_photo(photo: Photo) -> np.ndarray:
    """A photo at its own size: uint8 (H, W, 1) for a grey one, (H, W, 3) for others.

    Raises:
        UserError: it is gone, changed since it was listed, or no usable image.
    """
    return _read(
        photo.uri,
        photo.etag,
        lambda data: images.decode_photo(data, _MAX_PIXELS, pixel_range=photo.pixel_range),
    )


def read_file(photo: Photo) -> bytes:
    """A photo's bytes.

    Raises:
        UserError: it is gone, or changed since it was listed.
    """
    return _read(photo.uri, photo.etag, lambda data: data)


class MaskError(UserError):
    """A mask that cannot be its photo's; `what` says why."""

    def __init__(self, uri: str, what: str) -> None:
        super().__init__(f"defect set: {uri}: {what}")
        self.what = what


def read_mask(photo: Photo) -> np.ndarray:
    """The mask of a photo that has one, at the photo's own size, bool (H, W), upright as the photo is.

    What is defect in it, `raygen.images.decode_mask` says, or the photo's `mask_part`; its parts are united. A
    mask of another size is brought to the photo's, if that has the same shape. Where the photo is turned by EXIF
    and the mask is not, the mask is turned likewise if their sizes say that it was drawn on the photo as stored.

    Raises:
        MaskError: of another shape; empty; inverted, or marking nearly all; of a turned photo whose size does not
            tell whether the mask was turned.
        UserError: it is gone, or no usable image.
    """
    assert photo.mask_uri is not None

    def size(data: bytes) -> tuple[int, int, int]:
        return images.stored_size(data, _MAX_PIXELS)

    height, width, orientation = _read(photo.uri, photo.etag, size)
    upright = (width, height) if orientation > 4 else (height, width)
    found = np.zeros(upright, bool)
    for uri in photo.mask_uris:
        if is_drawn(photo.mask_part):
            found |= images.turn(_draw(photo, height, width), orientation)
            continue
        mask = _read(uri, None, images.decode_mask)
        on = mask.on & _of_part(mask, photo.mask_part) if photo.mask_part else mask.on
        on = images.turn(on, mask.orientation)
        if mask.orientation == 1 and orientation > 1:
            on = _turned(on, (height, width), orientation, uri)
        if not _same_shape(on.shape, upright):
            sizes = f"its mask is {on.shape[1]}×{on.shape[0]} px, the photo {upright[1]}×{upright[0]}"
            raise MaskError(uri, f"{sizes}; a mask has the shape of its photo")
        found |= images.fit_mask(on, (upright[1], upright[0]))
    if not found.any():
        raise MaskError(
            photo.mask_uri, "its mask is empty; a mask is white on the defect, or has its class there"
        )
    share, border = found.mean(), np.concatenate([found[0], found[-1], found[:, 0], found[:, -1]]).mean()
    if share > 0.95 or (share > 0.5 and border > 0.95):
        what = f"its mask marks {share:.0%} of the photo: is it inverted? A mask is black but for the defect"
        raise MaskError(photo.mask_uri, what)
    return found


def mask_content(photo: Photo) -> str:
    """What decides a photo's mask, for keys: its files' bytes, and what of them is its own."""
    if photo.mask_uri is None:
        return ""
    return " ".join([photo.mask_part, *(_sha256_of(uri) for uri in photo.mask_uris)])


@cache  # annotations are one file of many photos
def _sha256_of(uri: str) -> str:
    return hashlib.sha256(_read(uri, None, lambda data: data)).hexdigest()


def _draw(photo: Photo, height: int, width: int) -> np.ndarray:
    assert photo.mask_uri is not None
    try:
        return draw(photo.mask_uri, photo.mask_part, height, width)
    except UserError as error:
        raise MaskError(photo.mask_uri, str(error).removeprefix(f"{photo.mask_uri}: ")) from None


def _of_part(mask: images.MaskImage, part: str) -> np.ndarray:
    values = [int(key.removeprefix("#"), 16 if mask.is_colour else 10) for key in part.split(",")]
    return np.isin(mask.values, values)


def _same_shape(mask: tuple[int, ...], photo: tuple[int, ...]) -> bool:
    """Whether their aspect is the same, but for a rounded pixel."""
    return abs(mask[1] * photo[0] - mask[0] * photo[1]) <= max(photo)


def _turned(mask: np.ndarray, stored: tuple[int, int], orientation: int, uri: str) -> np.ndarray:
    """Turns a mask without an orientation of its own as its photo, if it was drawn on the photo as stored."""
    if orientation > 4 and not _same_shape(stored, stored[::-1]):
        return images.turn(mask, orientation) if _same_shape(mask.shape, stored) else mask
    what = f"its photo is turned by EXIF orientation {orientation}, and sizes do not tell whether the mask is"
    raise MaskError(uri, f"{what}; save the photo upright")


def _read(uri: str, etag: str | None, decode: Callable[[bytes], R]) -> R:
    try:
        return decode(storage.read(uri, etag))
    except images.BadImageError as error:
        raise UserError(f"defect set: {uri}: {error}; repair or remove it") from None
    except (storage.ObjectMissingError, storage.ObjectChangedError):
        raise UserError(f"defect set: {uri}: gone or changed since it was listed; start again") from None


def _load_all(
    load: Callable[[Photo], np.ndarray], photos: Sequence[Photo], shape: tuple[int, ...], num_threads: int
) -> np.ndarray:
    pixels = np.empty((len(photos), *shape), np.uint8)
    with ThreadPoolExecutor(num_threads) as threads:
        for row, image in enumerate(threads.map(load, photos)):
            pixels[row] = image
    return pixels
