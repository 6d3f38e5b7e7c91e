"""What is in a defect set: one listing of its folder, read as whatever layout it has, and said to the user."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from raygen import images, storage
from raygen.data.layouts import BY_MASK, Cell, Layout, normal_or, one_product, recognise
from raygen.data.mask_files import File, Masks, as_mask, split_pairs, suffix_of, values_of
from raygen.data.metadata import METADATA, Key, Told, read_metadata
from raygen.data.table17 import TABLE_17, type_by_table
from raygen.depth import Depth, PixelRange, choose_range
from raygen.errors import BadImageError, UserError
from raygen.records import NORMAL, check_name

Kind = Literal["normals", "defects"]
KINDS: tuple[Kind, ...] = ("normals", "defects")

Types = Mapping[str, str] | Literal["dt-gan-table-17"]
"""Folder or label -> defect type, "" or "-" to leave it out; or the DT-GAN paper's choice of MVTec AD's photos."""

AS_NAMED: Types = {}

_EXPECTED = (
    "expected {product}/{defect_type}/{id}.png and {product}/normal/{id}.png, the folders of MVTec AD, or another "
    "layout of jobs/README.md"
)


class Photo(NamedTuple):
    """One photograph of a defect set as a photo of one defect type; one that shows two stands there twice."""

    uri: str
    product: str
    defect_type: str  # "normal" for a defect-free one
    mask_uri: str | None  # of its pixel mask, where there is one; or of the annotations that draw it
    split: str  # "train", "val", "test" …; "" where nobody says
    etag: str | None
    more_masks: tuple[str, ...] = ()  # of the mask's other parts
    mask_part: str = ""  # which values of the mask are its own, "1,2"; "" for all
    pixel_range: PixelRange | None = (
        None  # of a file of more than 8 bits: the levels that are black and white
    )
    group: str = ""  # what is shown, where the set tells: photos of one group never belong into two splits

    def row(self) -> list[Any]:
        """Its fields for JSON, without those at the end that have their defaults. (A group decides nothing.)"""
        fields, defaults = list(self[:-1]), self._field_defaults
        while len(fields) > 6 and fields[-1] == defaults[self._fields[len(fields) - 1]]:
            fields.pop()
        return fields

    @classmethod
    def of_row(cls, row: Sequence[Any]) -> "Photo":
        """The inverse."""
        fields: list[Any] = [tuple(field) if isinstance(field, list) else field for field in row]
        return cls(*fields)

    @property
    def mask_uris(self) -> tuple[str, ...]:
        """All parts of its mask."""
        return (self.mask_uri, *self.more_masks) if self.mask_uri else ()


@dataclass(frozen=True)
class Survey:
    """The photos, in the order of their URIs, and what a user must know of how they were read."""

    photos: tuple[Photo, ...]
    notes: tuple[str, ...]


def survey(
    uri: str,
    *,
    types: Types = AS_NAMED,
    products: Sequence[str] = (),
    kinds: Sequence[Kind] = KINDS,
    mask_values: Mapping[str, str] = {},
    pixel_range: PixelRange | str = "auto",
) -> Survey:
    """Lists a defect set, with one listing of its folder and a look into a few photos of each product.

    Its layout is recognised by its folders' names, see `raygen.data.layouts`, masks by theirs, see
    `raygen.data.mask_files`; masks are read only where no folder tells a photo's type, or `mask_values` is given.
    A `metadata.csv` may tell splits and groups. What is none of these is left alone, and counted in a note.

    Args:
        uri: a folder or an s3:// prefix.
        types: a folder that this does not name is a defect type of its own name, in lower case.
        products: the products wanted; all without.
        kinds: what is wanted of normals and defects.
        mask_values: value of a mask, 1 or #ff0000 -> its defect type, "-" to leave it out; where masks tell types.
        pixel_range: of photos of more than 8 bits. "auto": what they say, else what some of each product use.

    Raises:
        UserError: no photos, none of a wanted kind there, a product that is not there; two candidates for one
            mask, or one mask of two photos; photos that are masks; a metadata.csv that does not fit.
    """
    uri = storage.normalize(uri)
    entries = list(storage.list_files(uri))
    files = _images(uri, entries)
    layout, photos, masks, notes = _place(uri, files, len(entries))
    _check_products(uri, products, {cell.product for _, cell in photos})
    found = [
        (file, cell, masks.of(file, cell))
        for file, cell in photos
        if not products or cell.product in products
    ]
    name = layout.name
    if any(not cell.kind for _, cell, _ in found):
        found = _by_masks(found)
        if all(cell.kind == BY_MASK and file.folder for file, cell, _ in found):  # then folders tell types
            name = one_product(storage.folder_name(uri))
            found = [
                (file, cell._replace(product=storage.folder_name(uri), kind=normal_or(cell.product)), uris)
                for file, cell, uris in found
            ]
    named = [(file, cell, uris, _type_of(file, cell, types)) for file, cell, uris in found]
    dropped = {f"{cell.product}/{cell.kind}" for _, cell, _, kind in named if not kind}
    named = [row for row in named if row[3]]
    told = _read_told(uri, entries, named, notes)
    listed = [
        Photo(
            file.uri,
            cell.product,
            kind,
            uris[0] if uris and kind != NORMAL else None,
            cell.split or row.split,
            file.etag,
            uris[1:] if kind != NORMAL else (),
            group=cell.group or row.group,
        )
        for (file, cell, uris, kind), row in zip(named, told, strict=True)
    ]
    _refuse_shared_masks(listed)
    if mask_values:
        listed = _by_values(listed, values_of(mask_values), types)
    _check_names(listed)
    listed = [photo for photo in listed if ("normals" if photo.defect_type == NORMAL else "defects") in kinds]
    _check_kinds(uri, listed, dropped, kinds)
    _refuse_masks(listed)
    listed = _with_ranges(listed, pixel_range, notes)
    listed.sort(key=lambda photo: (photo.uri, photo.defect_type))  # storage lists in an order of its own
    if not products and tuple(kinds) == KINDS and masks.unused:
        notes.append(_such(len(masks.unused), "file", "names a mask, but no photo is there", masks.unused[0]))
    return Survey(tuple(listed), (f"read as {name}", *notes, *_notes_on_splits(listed)))


def _images(uri: str, entries: Iterable[storage.Entry]) -> list[File]:
    files = []
    start = len(uri) + 1 if uri != "." else 0
    for entry in entries:
        path, dot, extension = entry.uri[start:].rpartition(".")
        if dot and (extension := f".{extension.lower()}") in images.EXTENSIONS:
            folder, _, stem = path.rpartition("/")
            files.append(File(entry.uri, entry.etag, folder, stem, extension))
    return files


def _place(
    uri: str, files: Sequence[File], num_files: int
) -> tuple[Layout, list[tuple[File, Cell]], Masks, list[str]]:
    """Decides on the layout, and tells photos from masks."""
    by_name: list[File] = []
    others: list[File] = []
    for file in files:
        (by_name if suffix_of(file.stem) else others).append(file)
    layout = recognise(
        storage.folder_name(uri), {file.folder for file in others}, {file.folder for file in by_name}
    )
    cells = layout.cells if layout else {}
    others, pairs = split_pairs(others)
    photos: list[tuple[File, Cell]] = []
    masks = [
        (as_mask(file, cells[file.folder]), cells[file.folder]) for file in by_name if file.folder in cells
    ]
    masks += [
        (as_mask(file, cells[file.folder]), cells[file.folder]) for file in pairs if file.folder in cells
    ]
    elsewhere: list[str] = []
    for file in others:
        cell = cells.get(file.folder)
        if cell is None:
            elsewhere.append(file.uri)
        elif cell.holds_masks:
            masks.append((as_mask(file, cell), cell))
        else:
            photos.append((file, cell))
    if not layout or not photos:
        there = f"no photos among the {num_files} files" if num_files else "nothing"
        raise UserError(f"defect set {uri}: {there} there; {_EXPECTED}")
    notes = [_such(len(elsewhere), "image", "lies elsewhere", min(elsewhere))] if elsewhere else []
    return layout, photos, Masks(masks), notes


def _such(count: int, noun: str, what: str, example: str) -> str:
    return f"WARNING: {count:,} {noun}{'s' * (count > 1)}: {what}, such as {example}: left alone"


_Found = tuple[File, Cell, tuple[str, ...]]


def _by_masks(found: Sequence[_Found]) -> list[_Found]:
    """Photos of which no folder tells a type: normal without a mask, or with one that marks nothing."""

    def is_defect(row: _Found) -> bool:
        return any(_read_mask(uri).on.any() for uri in row[2])

    with ThreadPoolExecutor(16) as threads:
        defects = list(threads.map(is_defect, found))
    return [
        (file, cell._replace(kind=cell.kind or (BY_MASK if is_one else NORMAL)), uris)
        for (file, cell, uris), is_one in zip(found, defects, strict=True)
    ]


def _by_values(photos: Sequence[Photo], named: Mapping[str, str], types: Types) -> list[Photo]:
    """The photos as their masks' values tell types: each as often as it shows some."""

    def values(photo: Photo) -> set[str]:
        return {key for uri in photo.mask_uris for key in value_keys(_read_mask(uri))}

    split: list[Photo] = []
    with ThreadPoolExecutor(16) as threads:
        for photo, keys in zip(photos, threads.map(values, photos), strict=True):
            if not photo.mask_uris:
                split.append(photo)
                continue
            if unknown := keys - set(named):
                raise UserError(
                    f"mask_values: {photo.mask_uri} has the value {min(unknown)}, which it does not name; add "
                    f'it, or "{min(unknown)}" = "-" to leave it out'
                )
            parts: dict[str, list[str]] = {}
            for key in sorted(keys):
                kind = _renamed(named[key].strip().lower(), types)
                if kind not in ("", "-"):
                    parts.setdefault(kind, []).append(key)
            split += [photo._replace(defect_type=kind, mask_part=",".join(of)) for kind, of in parts.items()]
    return split


def value_keys(mask: images.MaskImage) -> list[str]:
    """The values of a mask's defects as `mask_values` names them."""
    return [f"#{value:06x}" if mask.is_colour else str(value) for value in np.unique(mask.values[mask.on])]


def _read_mask(uri: str) -> images.MaskImage:
    try:
        return images.decode_mask(storage.read(uri))
    except BadImageError as error:
        raise UserError(f"defect set: {uri}: {error}; repair or remove it") from None
    except storage.ObjectMissingError:
        raise UserError(f"defect set: {uri}: gone since it was listed; start again") from None


def _type_of(file: File, cell: Cell, types: Types) -> str:
    """The photo's defect type; "" for one to leave out."""
    if types == TABLE_17:
        return cell.kind if cell.kind == NORMAL else type_by_table(cell.product, cell.kind, file.stem)
    return _renamed(cell.kind, types)


def _renamed(kind: str, types: Types) -> str:
    if isinstance(types, str):
        return kind
    for name, wanted in types.items():
        if normal_or(name) == kind:
            wanted = normal_or(wanted)
            return "" if wanted == "-" else wanted
    return kind


def _read_told(
    uri: str,
    entries: Sequence[storage.Entry],
    named: Sequence[tuple[File, Cell, tuple[str, ...], str]],
    notes: list[str],
) -> list[Told]:
    """What metadata.csv, if there is one, tells of each photo."""
    nothing = [Told("", "")] * len(named)
    metadata_uri = METADATA if uri == "." else f"{uri}/{METADATA}"
    if not any(entry.uri == metadata_uri for entry in entries):
        return nothing
    keys = [
        Key(f"{file.folder}/{file.stem}".lstrip("/"), cell.product, cell.kind, kind)
        for file, cell, _, kind in named
    ]
    metadata = read_metadata(metadata_uri, keys, [not cell.split for _, cell, _, _ in named])
    if metadata is None:
        return nothing
    if metadata.num_others:
        notes.append(f"{metadata.num_others:,} rows of {metadata_uri} name no photo that is wanted here")
    return metadata.told


def _check_names(photos: Iterable[Photo]) -> None:
    known: set[tuple[str, str]] = set()
    for photo in photos:
        if (photo.product, photo.defect_type) not in known:
            known.add((photo.product, photo.defect_type))
            check_name("product", photo.product, photo.uri)
            check_name("defect type", photo.defect_type, photo.uri)


def _refuse_shared_masks(photos: Iterable[Photo]) -> None:
    owners: dict[str, str] = {}
    for photo in photos:
        for uri in photo.mask_uris:
            if uri in owners:
                raise UserError(
                    f"defect set: {uri} may be the mask of {owners[uri]} and of {photo.uri}; put masks "
                    "beside their photos, as {id}_mask.png, or into ground_truth/{defect_type}/"
                )
            owners[uri] = photo.uri


def _refuse_masks(photos: Sequence[Photo]) -> None:
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


def _with_ranges(photos: Sequence[Photo], wanted: PixelRange | str, notes: list[str]) -> list[Photo]:
    """The photos with the pixel range of those of their product, where these have more than 8 bits."""
    if not isinstance(wanted, str):
        return [photo._replace(pixel_range=wanted) for photo in photos]
    of_product: dict[str, list[Photo]] = {}
    for photo in photos:
        of_product.setdefault(photo.product, []).append(photo)
    ranges: dict[str, PixelRange] = {}
    for product, own in sorted(of_product.items()):
        first = {photo.defect_type == NORMAL: photo for photo in reversed(own)}
        if any(_depth(photo) for photo in first.values()):
            some = own[:: max(1, len(own) // _LOOKED_AT)][:_LOOKED_AT]
            depths = [depth for photo in (*first.values(), *some) if (depth := _depth(photo))]
            ranges[product], how = choose_range(depths)
            notes.append(f"{product}: {how} (pixel_range = {list(ranges[product])})")
    return [
        photo._replace(pixel_range=ranges[photo.product]) if photo.product in ranges else photo
        for photo in photos
    ]


_LOOKED_AT = 16  # photos of a product


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


def _notes_on_splits(photos: Sequence[Photo]) -> list[str]:
    splits: dict[str, set[str]] = {}
    for photo in photos:
        if photo.group:
            splits.setdefault(photo.group, set()).add(photo.split)
    torn = sorted(group for group, names in splits.items() if len(names) > 1)
    if not torn:
        return []
    return [
        f"WARNING: {len(torn):,} groups stand in several splits, such as {torn[0]}: tested is what was learned"
    ]


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
