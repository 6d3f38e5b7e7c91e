"""What a look into a few photos of a defect set tells: whether they are masks, and how deep they are."""

from collections import Counter
from collections.abc import Sequence

from raygen import images, storage
from raygen.data.photo import Photo
from raygen.depth import Depth, PixelRange, choose_range
from raygen.errors import BadImageError, UserError
from raygen.records import NORMAL

_LOOKED_AT = 16  # photos of a product whose first ones are deep


def refuse_masks(photos: Sequence[Photo]) -> None:
    """Raises UserError where a folder of "photos" is one of masks, by its first one: it has two values, and the
    name of a photo elsewhere."""
    first: dict[tuple[str, str], Photo] = {}
    for photo in photos:
        if photo.defect_type != NORMAL and photo.mask_uri is None:
            first.setdefault((photo.product, photo.defect_type), photo)
    if not first:
        return
    stems = Counter((photo.product, _stem(photo)) for photo in photos)
    for (product, kind), photo in first.items():
        if stems[product, _stem(photo)] > 1 and _is_mask(photo):
            raise UserError(
                f"defect set: {photo.uri}: looks like a mask, with two grey values and the name of another photo; "
                f'call its folder masks/, or leave it out: types = {{{kind} = "-"}}'
            )


def find_ranges(photos: Sequence[Photo], wanted: PixelRange | str) -> tuple[list[Photo], list[str]]:
    """The photos with the pixel range of those of their product, where these have more than 8 bits.

    Args:
        photos: of a set.
        wanted: a range for all; or "auto": what the photos say, else what some of each product use.

    Returns:
        The photos, and a line for the user on each product that has a range.
    """
    if not isinstance(wanted, str):
        return [photo._replace(pixel_range=wanted) for photo in photos], []
    of_product: dict[str, list[Photo]] = {}
    for photo in photos:
        of_product.setdefault(photo.product, []).append(photo)
    ranges: dict[str, PixelRange] = {}
    notes: list[str] = []
    for product, own in sorted(of_product.items()):
        first = {photo.defect_type == NORMAL: photo for photo in reversed(own)}
        if any(_depth(photo) for photo in first.values()):
            some = own[:: max(1, len(own) // _LOOKED_AT)][:_LOOKED_AT]
            depths = [depth for photo in (*first.values(), *some) if (depth := _depth(photo))]
            ranges[product], how = choose_range(depths)
            notes.append(f"{product}: {how} (pixel_range = {list(ranges[product])})")
    if not ranges:
        return list(photos), []
    return [photo._replace(pixel_range=ranges.get(photo.product)) for photo in photos], notes


def _depth(photo: Photo) -> Depth | None:
    if photo.uri.lower().endswith(images.OF_8_BITS):
        return None
    try:
        return images.read_depth(storage.read(photo.uri), 2**28)
    except (BadImageError, storage.ObjectMissingError):
        return None  # whoever loads it will say so


def _stem(photo: Photo) -> str:
    return photo.uri.rpartition("/")[2].rpartition(".")[0].casefold()


def _is_mask(photo: Photo) -> bool:
    try:
        return images.decode_mask(storage.read(photo.uri)).num_values == 2
    except (BadImageError, storage.ObjectMissingError):
        return False  # whoever loads it will say so
