"""Which file is whose mask: by the names that data sets and labelling tools give them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from raygen import images, storage
from raygen.data.layouts import Cell
from raygen.errors import UserError

_SUFFIX = re.compile(r"[-_. ]+(masks?|gt|labels?|bm|seg|ground_?truth)(?:[-_. ]?(\d{1,4}))?$", re.IGNORECASE)
_LOSSLESS = (".png", ".bmp", ".tif", ".tiff")
_FEW_VALUES = 16  # of a file that looks like a mask: background and classes


class File(NamedTuple):
    """An image file of a defect set."""

    uri: str
    etag: str
    folder: str  # below the set, "" for its root
    stem: str
    extension: str  # lower case


class Mask(NamedTuple):
    """A file that is a mask, by its name or its folder's."""

    uri: str
    id: str  # of the photo
    number: str  # of the mask, where a photo may have several
    way: tuple[
        str, str, str
    ]  # folder, suffix and extension: masks of one photo that are united have it in common


def suffix_of(stem: str) -> "re.Match[str] | None":
    """What follows a photo's id in the name of its mask: `_mask`, `_GT`, `-label`, `.bm`, `_mask_2` …"""
    return _SUFFIX.search(stem)


def as_mask(file: File, cell: Cell) -> Mask:
    """A file that is one by its suffix, or its folder."""
    suffix = suffix_of(file.stem)
    if cell.photo_id:
        return Mask(file.uri, cell.photo_id, file.stem, (file.folder, "", file.extension))
    if suffix:
        way = (file.folder, suffix[1].lower(), file.extension)
        return Mask(file.uri, file.stem[: suffix.start()], suffix[2] or "", way)
    return Mask(file.uri, file.stem, "", (file.folder, "", file.extension))


class Masks:
    """The masks of a set, to be found by photo."""

    def __init__(self, masks: Iterable[tuple[Mask, Cell]]) -> None:
        self._found: dict[tuple[str, str, str], list[tuple[Mask, Cell]]] = defaultdict(list)
        for mask, cell in masks:
            self._found[cell.product, cell.kind, mask.id.casefold()].append((mask, cell))
        self._products = {product for product, _, _ in self._found}
        self._kinds = {kind for _, kind, _ in self._found}
        self._unused = {mask.uri for entries in self._found.values() for mask, _ in entries}

    def of(self, file: File, cell: Cell) -> tuple[str, ...]:
        """The URIs of a photo's mask, of its several masks in their order, or of none.

        Raises:
            UserError: there are two candidates.
        """
        found: list[Mask] = []
        for product in {cell.product, ""} & self._products:
            for kind in {cell.kind, ""} & self._kinds:
                for mask, of in self._found.get((product, kind, file.stem.casefold()), ()):
                    if of.split in ("", cell.split) and of.group in ("", cell.group):
                        found.append(mask)
        found = [mask for mask in found if mask.id == file.stem] or found  # "A" and "a" may be two photos
        found.sort(key=lambda mask: (len(mask.number), mask.number))
        are_parts = len({mask.way for mask in found}) == 1 and len({mask.number for mask in found}) == len(
            found
        )
        if len(found) > 1 and not are_parts:
            raise UserError(
                f"{file.uri}: two files may be its mask, {found[0].uri} and {found[1].uri}; keep one, or "
                "number the parts of one mask: {id}_mask_1, {id}_mask_2"
            )
        uris = tuple(mask.uri for mask in found)
        self._unused.difference_update(uris)
        return uris

    @property
    def unused(self) -> list[str]:
        """Those of no photo that was asked for."""
        return sorted(self._unused)


def split_pairs(files: Sequence[File]) -> tuple[list[File], list[File]]:
    """Tells photos from masks that have but another extension, as a .png beside a .jpg: by what is in them.

    Returns:
        Photos, masks.

    Raises:
        UserError: files of one name of which not just one can be the photo.
    """
    named: dict[tuple[str, str], list[File]] = {}
    for file in files:
        named.setdefault((file.folder, file.stem), []).append(file)
    if len(named) == len(files):
        return list(files), []
    masks: set[str] = set()
    for pair in named.values():
        if len(pair) > 1:
            candidates = [file for file in pair if file.extension in _LOSSLESS]
            looking = {file.uri for file in candidates if looks_like_mask(file.uri)}
            if len(looking) != len(pair) - 1 or len(pair) > 2:
                some = " and ".join(file.uri for file in pair[:2])
                raise UserError(
                    f"{some}: one name, and it cannot be told which is photo, which mask; keep one"
                )
            masks |= looking
    return [file for file in files if file.uri not in masks], [file for file in files if file.uri in masks]


def looks_like_mask(uri: str) -> bool:
    """Whether a file has no more values than a mask of a few classes."""
    try:
        return images.decode_mask(storage.read(uri)).num_values <= _FEW_VALUES
    except (images.BadImageError, storage.ObjectMissingError):
        return False


def values_of(named: Mapping[str, str]) -> Mapping[str, str]:
    """Checks `mask_values`: a value, 1 or #ff0000, -> the defect type that it stands for.

    Raises:
        UserError: a key that is no value.
    """
    for key in named:
        if not re.fullmatch(r"\d{1,8}|#[0-9a-f]{6}", key):
            raise UserError(f"mask_values: {key!r} is no value of a mask; write 1, or a colour as #ff0000")
    return named
