"""What is in a defect set: one listing of its folder, read as whatever layout it has, and said to the user."""

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raygen import images, storage
from raygen.data.annotated import is_drawn, label_photos, unite
from raygen.data.annotations import read_annotations
from raygen.data.folders import Found, check_products, list_images, read_folders, read_mask_file
from raygen.data.layouts import normal_or
from raygen.data.looks import find_ranges, refuse_masks
from raygen.data.mask_files import values_of
from raygen.data.metadata import METADATA, Key, Told, read_metadata
from raygen.data.photo import Photo
from raygen.data.table17 import TABLE_17, type_by_table
from raygen.depth import PixelRange
from raygen.errors import UserError
from raygen.records import NORMAL, check_name

Kind = Literal["normals", "defects"]
KINDS: tuple[Kind, ...] = ("normals", "defects")


def kind_of(defect_type: str) -> Kind:
    return "normals" if defect_type == NORMAL else "defects"


Types = Mapping[str, str] | Literal["dt-gan-table-17"]
"""Folder or label -> defect type, "" or "-" to leave it out; or the DT-GAN paper's choice of MVTec AD's photos."""

AS_NAMED: Types = {}


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
    needed: Sequence[Kind] | None = None,
    mask_values: Mapping[str, str] = {},
    box_masks: bool = False,
    pixel_range: PixelRange | str = "auto",
) -> Survey:
    """Lists a defect set, with one listing of its folder and a look into a few photos of each product.

    Where a labelling tool's export lies in it, that tells the defects, see `raygen.data.annotations`. Else its
    layout is recognised by its folders' names, see `raygen.data.layouts`, masks by theirs, see
    `raygen.data.mask_files`; masks are read only where no folder tells a photo's type, or `mask_values` is given.
    A `metadata.csv` may tell splits and groups. What is none of these is left alone, and counted in a note.

    Args:
        uri: a folder or an s3:// prefix.
        types: a folder or label that this does not name is a defect type of its own name, in lower case.
        products: the products wanted; all without.
        kinds: what is wanted of normals and defects.
        needed: what of these must be there; default: all.
        mask_values: value of a mask, 1 or #ff0000 -> its defect type, "-" to leave it out; where masks tell types.
        box_masks: whether an annotated box alone is a mask, if a rough one.
        pixel_range: of photos of more than 8 bits. "auto": what they say, else what some of each product use.

    Raises:
        UserError: no photos, none of a wanted kind there, a product that is not there; two candidates for one
            mask, or one mask of two photos; photos that are masks; a metadata.csv or annotations that do not fit.
    """
    uri = storage.normalize(uri)
    entries = list(storage.list_files(uri))
    files = list_images(uri, entries)
    annotations = read_annotations(uri, entries)
    if annotations is not None:
        found, notes = label_photos(storage.folder_name(uri), files, annotations, box_masks)
        check_products(uri, products, {row.cell.product for row in found})
        found = [row for row in found if not products or row.cell.product in products]
    else:
        found, notes = read_folders(uri, files, len(entries), products)
    named = [(row, _type_of(row, types)) for row in found]
    if annotations is not None:
        named = _united(named)
    dropped = {f"{row.cell.product}/{row.cell.kind}" for row, kind in named if not kind}
    named = [(row, kind) for row, kind in named if kind]
    told = _read_told(uri, entries, named, notes)
    listed = [
        Photo(
            row.file.uri,
            row.cell.product,
            kind,
            row.masks[0] if row.masks and kind != NORMAL else None,
            row.cell.split or of.split,
            row.file.etag,
            row.masks[1:] if kind != NORMAL else (),
            row.part,
            group=row.cell.group or of.group,
        )
        for (row, kind), of in zip(named, told, strict=True)
    ]
    _refuse_shared_masks(listed)
    if mask_values:
        listed = _by_values(listed, values_of(mask_values), types)
    _check_names(listed)
    listed = [photo for photo in listed if kind_of(photo.defect_type) in kinds]
    _check_kinds(uri, listed, dropped, kinds if needed is None else needed)
    refuse_masks(listed)
    listed, on_ranges = find_ranges(listed, pixel_range)
    listed.sort(key=lambda photo: (photo.uri, photo.defect_type))  # storage lists in an order of its own
    return Survey(tuple(listed), (*notes, *on_ranges, *_notes_on_splits(listed)))


def _united(named: Sequence[tuple[Found, str]]) -> list[tuple[Found, str]]:
    """Labels of a photo that are one defect type are one photo of it."""
    rows: dict[tuple[str, str], Found] = {}
    for row, kind in named:
        known = rows.setdefault((row.file.uri, kind), row)
        if known is not row and row.masks:
            rows[row.file.uri, kind] = known._replace(masks=row.masks, part=unite(known.part, row.part))
    return [(row, kind) for (_, kind), row in rows.items()]


def _type_of(row: Found, types: Types) -> str:
    """The photo's defect type; "" for one to leave out."""
    cell = row.cell
    if types == TABLE_17:
        return cell.kind if cell.kind == NORMAL else type_by_table(cell.product, cell.kind, row.file.stem)
    return _renamed(cell.kind, types)


def _renamed(kind: str, types: Types) -> str:
    if isinstance(types, str):
        return kind
    for name, wanted in types.items():
        if normal_or(name) == kind:
            return "" if wanted == "-" else normal_or(wanted)
    return kind


def _by_values(photos: Sequence[Photo], named: Mapping[str, str], types: Types) -> list[Photo]:
    """The photos as their masks' values tell types: each as often as it shows some."""

    def values(photo: Photo) -> set[str]:
        if is_drawn(photo.mask_part):
            raise UserError(f"mask_values: {photo.mask_uri} tells types itself; leave mask_values out")
        return {key for uri in photo.mask_uris for key in _values_in(read_mask_file(uri))}

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


def _values_in(mask: images.MaskImage) -> list[str]:
    """The values of a mask's defects as `mask_values` names them."""
    return [f"#{value:06x}" if mask.is_colour else str(value) for value in np.unique(mask.values[mask.on])]


def _read_told(
    uri: str, entries: Sequence[storage.Entry], named: Sequence[tuple[Found, str]], notes: list[str]
) -> list[Told]:
    """What metadata.csv, if there is one, tells of each photo."""
    nothing = [Told("", "")] * len(named)
    metadata_uri = METADATA if uri == "." else f"{uri}/{METADATA}"
    if not any(entry.uri == metadata_uri for entry in entries):
        return nothing
    keys = [
        Key(f"{row.file.folder}/{row.file.stem}".lstrip("/"), row.cell.product, row.cell.kind, kind)
        for row, kind in named
    ]
    metadata = read_metadata(metadata_uri, keys, [not row.cell.split for row, _ in named])
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
        for uri in () if is_drawn(photo.mask_part) else photo.mask_uris:
            if uri in owners:
                raise UserError(
                    f"defect set: {uri} may be the mask of {owners[uri]} and of {photo.uri}; put masks "
                    "beside their photos, as {id}_mask.png, or into ground_truth/{defect_type}/"
                )
            owners[uri] = photo.uri


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
