"""The defect set: a few real photographs, normal and defective, of which the models learn."""

import csv
import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np

from raygen import images, storage
from raygen.errors import UserError
from raygen.records import NORMAL, digest

MVTEC_TYPES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "carpet": {
        "color": {"scratches": "011 012 014 016 017", "spots": "000 003 004 007 015 018"},
        "thread": {"scratches": "000-018"},
        "hole": {"spots": "000-016"},
    },
    "leather": {
        "color": {
            "scratches": "001 003 005 007 009 011 013 015 018",
            "spots": "000 002 006 008 010 012 014",
        },
        "cut": {"scratches": "000-018"},
        "fold": {"scratches": "000-006 009-016"},
        # The table has 009 in both columns; a photo has one type here, the first.
        "glue": {"scratches": "003 009 010 016 017", "spots": "000-002 005-009 011-015 018"},
        "poke": {"spots": "000-017"},
    },
    "tile": {"crack": {"scratches": "000-016"}},
    "wood": {
        "color": {"scratches": "003 005"},
        # The table also prints 000-016 under spots here; its own sum of spots, 12, is without them.
        "scratch": {"scratches": "001-006 008-010 013-016 018-020"},
        "hole": {"spots": "000-004 006-009"},
        "combined": {"scratches": "008", "spots": "001 002 009"},
    },
}
"""DT-GAN's Table 17: category of MVTec AD -> its defect folder -> defect type -> ids of the photos taken."""

_SECTIONS = ("train", "test", "ground_truth")  # of MVTec AD
_MAX_PIXELS = 64_000_000
_COLUMNS = ("id", "product", "domain", "split")  # of metadata.csv


class Photo(NamedTuple):
    """One photograph of a defect set."""

    uri: str
    product: str
    defect_type: str  # "normal" for a defect-free one
    mask_uri: str | None  # of its pixel mask, where there is one
    split: str  # "train", "val", "test" …; "" where nobody says
    etag: str | None


class _Image(NamedTuple):
    """An image file, photo or mask, as its place tells it."""

    uri: str
    etag: str
    product: str
    section: str  # train, test or ground_truth in MVTec AD; "" in our layout
    folder: str  # lower case; "normal" also for "good"
    id: str
    is_mask: bool

    @property
    def key(self) -> tuple[str, str, str]:
        """What a photo, its mask and its row in metadata.csv have in common."""
        return self.product, self.folder, self.id


Kind = Literal["normals", "defects"]
KINDS: tuple[Kind, ...] = ("normals", "defects")


def list_defect_set(
    uri: str, *, types: Mapping[str, str] = {}, products: Sequence[str] = (), kinds: Sequence[Kind] = KINDS
) -> tuple[Photo, ...]:
    """Lists the photos of a defect set, in the order of their URIs, with one listing of its folder.

    Two layouts are known by their folders' names; images elsewhere are left alone:

    - `{product}/{defect_type}/{id}.png` with `{id}_mask.png` beside, and `{product}/normal/{id}.png`; folders of
      defect types in any case. A `metadata.csv` with `id, product, domain, split` may tell splits.
    - MVTec AD, as a whole or one category of it: `train/good`, `test/{defect}`, `ground_truth/{defect}`. It
    keeps
      all defects under test, so that folder says nothing of a defect's split. Of the categories in `MVTEC_TYPES`
      the photos named there are taken, and no other defects.

    Args:
        uri: a folder or an s3:// prefix.
        types: defect folder -> defect type, or "" or "-" to leave it out; goes before `MVTEC_TYPES`. A folder
            that neither names is a defect type of its own name, in lower case.
        products: the products wanted; all without.
        kinds: what is wanted of normals and defects.

    Raises:
        UserError: no images, none of a wanted kind there, a product that is not there, a defect under MVTec
            AD's train/, a metadata.csv that cannot be read.
    """
    uri = storage.normalize(uri)
    entries = list(storage.list_files(uri))
    found = list(_place(uri, entries))
    masks = {image.key: image.uri for image in found if image.is_mask}
    photographs = [image for image in found if not image.is_mask]
    if not photographs:
        there = f"no photos among the {len(entries)} files" if entries else "nothing"
        raise UserError(
            f"defect set {uri}: {there} there; expected {{product}}/{{defect_type}}/{{id}}.png and "
            "{product}/normal/{id}.png, or the folders of MVTec AD"
        )
    _check_products(uri, products, {image.product for image in photographs})
    splits = _read_splits(uri, entries, strict=not any(image.section for image in photographs))
    types = {_folder(name): "" if kind == "-" else _folder(kind) for name, kind in types.items()}
    photos, dropped = [], set()
    for image in photographs:
        if products and image.product not in products:
            continue
        defect_type = _defect_type(image, types)
        if defect_type:
            split = _split(uri, image, defect_type) or splits.get(image.key, "")
            mask_uri = masks.get(image.key)
            photos.append(Photo(image.uri, image.product, defect_type, mask_uri, split, image.etag))
        else:
            dropped.add(f"{image.product}/{image.folder}")
    photos = [photo for photo in photos if ("normals" if photo.defect_type == NORMAL else "defects") in kinds]
    _check_kinds(uri, photos, dropped, kinds)
    return tuple(sorted(photos))  # storage lists in an order of its own


def keep_defects(photos: Sequence[Photo], counts: Mapping[str, int]) -> tuple[Photo, ...]:
    """Leaves products so many defects of each type: the paper's 20A is {"A": 20}. Which ones depends on their
    names alone, so that a training and the evaluation of it keep the same.

    Args:
        photos: in the order to keep.
        counts: product -> defects of each type that stay; products that it does not name keep all.

    Raises:
        UserError: there are no photos of such a product.
    """
    products = {photo.product for photo in photos}
    for product in counts:
        if product not in products:
            raise UserError(
                f"keep_defects: no product {product!r}; choose from {', '.join(sorted(products))}"
            )
    kept = set(photos)
    for (product, defect_type), rows in group_by_cell(photos).items():
        if product in counts and defect_type != NORMAL:
            order = sorted(rows, key=lambda row: digest(*PurePosixPath(photos[row].uri).parts[-2:]))
            kept -= {photos[row] for row in order[counts[product] :]}
    return tuple(photo for photo in photos if photo in kept)


def load_photos(photos: Sequence[Photo], size: int, channels: int, num_threads: int = 8) -> np.ndarray:
    """Reads and decodes photos, in their order; those of another size are scaled and cropped about their centre.

    Returns:
        uint8, (len(photos), size, size, channels).

    Raises:
        UserError: a photo that is gone, changed since it was listed, or no usable image. The set is small and
            chosen by hand: learning from less of it without a word would be wrong.
    """

    def load(photo: Photo) -> np.ndarray:
        return _load(photo.uri, photo.etag, size, channels)

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
        mask = (_load(photo.mask_uri, None, size, 1) > 63) * np.uint8(255)
        if not mask.any():
            raise UserError(
                f"defect set: {photo.mask_uri}: empty when brought to {size} × {size}; a mask is white (255) on "
                "the defect, and the defect within the square about the photo's centre"
            )
        return mask

    return _load_all(load, photos, (size, size, 1), num_threads)


def read_photo(photo: Photo) -> np.ndarray:
    """A photo at its own size: uint8 (H, W, 1) for a grey one, (H, W, 3) for others.

    Raises:
        UserError: it is gone, changed since it was listed, or no usable image.
    """
    return _read(photo.uri, photo.etag, lambda data: images.decode_photo(data, _MAX_PIXELS))


def read_mask(photo: Photo) -> np.ndarray:
    """The mask of a photo that has one, at its own size, bool (H, W): set where it is brighter than 127 or, in one
    that is nowhere so bright, where it is not 0.

    Raises:
        UserError: it is gone, or no usable image.
    """
    assert photo.mask_uri is not None
    grey = _read(photo.mask_uri, None, lambda data: images.decode_photo(data, _MAX_PIXELS)).max(axis=2)
    return grey > (127 if grey.max() > 127 else 0)


def _load(uri: str, etag: str | None, size: int, channels: int) -> np.ndarray:
    return _read(
        uri, etag, lambda data: images.decode(data, size, channels, resize=True, max_pixels=_MAX_PIXELS)
    )


def _read(uri: str, etag: str | None, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
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


def group_by_cell(photos: Iterable[Photo]) -> dict[tuple[str, str], list[int]]:
    """(product, defect type) -> indices of its photos; by product, normal first, then by defect type."""
    cells: dict[tuple[str, str], list[int]] = {}
    for index, photo in enumerate(photos):
        cells.setdefault((photo.product, photo.defect_type), []).append(index)
    return dict(sorted(cells.items(), key=lambda cell: (cell[0][0], cell[0][1] != NORMAL, cell[0][1])))


def _place(uri: str, entries: Iterable[storage.Entry]) -> Iterator[_Image]:
    """Reads every image's product, folder and id off its path."""
    parts = [
        (entry, entry.uri.removeprefix(f"{uri}/").split("/"))
        for entry in entries
        if entry.uri.lower().endswith(images.EXTENSIONS)
    ]
    if any([folder.lower() for folder in folders] == ["train", "good"] for _, (*folders, _) in parts):
        category = Path(uri).absolute().name  # of one category of MVTec AD: also where it is called "."
        parts = [(entry, [category, *names]) for entry, names in parts]
    for entry, (*folders, name) in parts:
        match folders:
            case [product, section, folder] if section.lower() in _SECTIONS:
                section = section.lower()
            case [product, folder] if folder.lower() not in _SECTIONS:
                section = ""
            case _:
                continue
        stem = PurePosixPath(name).stem
        photo_id = stem.removesuffix("_mask")
        is_mask = photo_id != stem or section == "ground_truth"
        yield _Image(entry.uri, entry.etag, product, section, _folder(folder), photo_id, is_mask)


def _folder(name: str) -> str:
    name = name.strip().lower()
    return NORMAL if name == "good" else name


def _defect_type(image: _Image, types: Mapping[str, str]) -> str:
    """The photo's defect type; "" for one to leave out."""
    if image.folder in types:
        return types[image.folder]
    table = MVTEC_TYPES.get(image.product.lower())
    if not image.section or image.folder == NORMAL or table is None:
        return image.folder
    for defect_type, ids in table.get(image.folder, {}).items():
        for run in ids.split():
            first, _, last = run.partition("-")
            if first <= image.id <= (last or first):
                return defect_type
    return ""


def _split(uri: str, image: _Image, defect_type: str) -> str:
    """What the folders of MVTec AD say of a photo's split."""
    if defect_type == NORMAL:
        return image.section
    if image.section == "train":
        raise UserError(
            f"defect set {uri}: {image.uri} is a defect under train/, where MVTec AD has none; move it to test/, "
            "or use {product}/{defect_type}/ with splits in a metadata.csv"
        )
    return ""


def _read_splits(uri: str, entries: Iterable[storage.Entry], strict: bool) -> dict[tuple[str, str, str], str]:
    """Key of a photo -> its split, from the set's metadata.csv if there is one of splits. `strict`: one that
    cannot say whose splits they are is an error."""
    there = (entry.uri for entry in entries if entry.uri.removeprefix(f"{uri}/") == "metadata.csv")
    metadata_uri = next(there, None)
    if metadata_uri is None:
        return {}
    try:
        rows = csv.DictReader(io.StringIO(storage.read(metadata_uri).decode("utf-8-sig"), newline=""))
        missing = [name for name in _COLUMNS if name not in (rows.fieldnames or ())]
        if missing:
            if strict and "split" not in missing:
                raise UserError(f"{metadata_uri}: has splits, but no column {missing[0]}; add it")
            return {}
        return {(row["product"], _folder(row["domain"] or ""), row["id"]): row["split"] or "" for row in rows}
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{metadata_uri}: not a CSV file in UTF-8 ({error}); mend or remove it") from None


def _check_products(uri: str, wanted: Iterable[str], there: set[str]) -> None:
    for product in wanted:
        if product not in there:
            raise UserError(
                f"defect set {uri}: no product {product!r} there; choose from {', '.join(sorted(there))}"
            )


def _check_kinds(uri: str, photos: Iterable[Photo], dropped: Iterable[str], wanted: Sequence[Kind]) -> None:
    left_out = f" (left out: {', '.join(sorted(dropped))})" if dropped else ""
    are_normal = {photo.defect_type == NORMAL for photo in photos}
    if "normals" in wanted and True not in are_normal:
        raise UserError(f"defect set {uri}: no normals there{left_out}; put some into {{product}}/normal/")
    if "defects" in wanted and False not in are_normal:
        raise UserError(
            f"defect set {uri}: no defects there{left_out}; put some into {{product}}/{{defect_type}}/, "
            "or name their folders in `types`"
        )
