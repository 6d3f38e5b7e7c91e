"""What the folders of a defect set tell: which file is a photo of what, and which its mask."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

from raygen import images, storage
from raygen.data.layouts import BY_MASK, Cell, Layout, normal_or, one_product, recognise
from raygen.data.mask_files import File, Masks, as_mask, split_pairs, suffix_of
from raygen.errors import BadImageError, UserError
from raygen.records import NORMAL


class Found(NamedTuple):
    """A photo, its mask, and what it is a photo of."""

    file: File
    cell: Cell
    masks: tuple[str, ...] = ()
    part: str = ""  # of the mask, see `raygen.data.photo.Photo`


def read_folders(
    uri: str, files: Sequence[File], num_files: int, products: Sequence[str]
) -> tuple[list[Found], list[str]]:
    """Reads a set as whatever layout it has.

    Args:
        uri: of the set.
        files: its images.
        num_files: of all kinds, for the user.
        products: the products wanted; all without.

    Returns:
        The photos, and what a user must know: first, how the set was read.

    Raises:
        UserError: no photos, or a product that is not there; two candidates for one mask.
    """
    layout, photos, masks, notes = _place(uri, files, num_files)
    check_products(uri, products, {cell.product for _, cell in photos})
    found = [
        Found(file, cell, masks.of(file, cell))
        for file, cell in photos
        if not products or cell.product in products
    ]
    name = layout.name
    if any(not row.cell.kind for row in found):
        found = _by_masks(found)
        if all(row.cell.kind == BY_MASK and row.file.folder for row in found):  # then folders tell types
            root = storage.folder_name(uri)
            name = one_product(root)
            found = [
                row._replace(cell=row.cell._replace(product=root, kind=normal_or(row.cell.product)))
                for row in found
            ]
    if masks.unused and not products:
        notes.append(left_alone(len(masks.unused), "file", "names a mask of no photo here", masks.unused[0]))
    return found, [f"read as {name}", *notes]


def check_products(uri: str, wanted: Iterable[str], there: Iterable[str]) -> None:
    """Raises UserError for a product that a set does not have."""
    for product in wanted:
        if product not in there:
            raise UserError(
                f"defect set {uri}: no product {product!r} there; choose from {', '.join(sorted(there))}"
            )


def list_images(uri: str, entries: Sequence[storage.Entry]) -> list[File]:
    """The images among a set's files."""
    files = []
    start = len(uri) + 1 if uri != "." else 0
    for entry in entries:
        path, dot, extension = entry.uri[start:].rpartition(".")
        if dot and (extension := f".{extension.lower()}") in images.EXTENSIONS:
            folder, _, stem = path.rpartition("/")
            files.append(File(entry.uri, entry.etag, folder, stem, extension))
    return files


def left_alone(count: int, noun: str, what: str, example: str) -> str:
    """A line for the user on files that are not read."""
    return f"WARNING: {count:,} {noun}{'s' * (count > 1)}: {what}, such as {example}: left alone"


def read_mask_file(uri: str) -> images.MaskImage:
    """A mask as its file has it.

    Raises:
        UserError: it is gone, or no usable image.
    """
    try:
        return images.decode_mask(storage.read(uri))
    except BadImageError as error:
        raise UserError(f"defect set: {uri}: {error}; repair or remove it") from None
    except storage.ObjectMissingError:
        raise UserError(f"defect set: {uri}: gone since it was listed; start again") from None


def _place(
    uri: str, files: Sequence[File], num_files: int
) -> tuple[Layout, list[tuple[File, Cell]], Masks, list[str]]:
    """Decides on the layout, and tells photos from masks."""
    by_name: list[File] = []
    others: list[File] = []
    for file in files:
        (by_name if suffix_of(file.stem) else others).append(file)
    root = storage.folder_name(uri)
    layout = recognise(root, {file.folder for file in others}, {file.folder for file in by_name})
    cells = layout.cells if layout else {}
    others, pairs = split_pairs(others)
    masks = [(file, cells[file.folder]) for file in (*by_name, *pairs) if file.folder in cells]
    photos: list[tuple[File, Cell]] = []
    elsewhere: list[str] = []
    for file in others:
        cell = cells.get(file.folder)
        if cell is None:
            elsewhere.append(file.uri)
        else:
            (masks if cell.holds_masks else photos).append((file, cell))
    if not layout or not photos:
        there = f"no photos among the {num_files} files" if num_files else "nothing"
        raise UserError(
            f"defect set {uri}: {there} there; expected {{product}}/{{defect_type}}/{{id}}.png and "
            "{product}/normal/{id}.png, the folders of MVTec AD, or another layout of jobs/README.md"
        )
    notes = [left_alone(len(elsewhere), "image", "lies elsewhere", min(elsewhere))] if elsewhere else []
    return layout, photos, Masks((as_mask(file, cell), cell) for file, cell in masks), notes


def _by_masks(found: Sequence[Found]) -> list[Found]:
    """Photos of which no folder tells a type: normal without a mask, or with one that marks nothing."""

    def is_defect(row: Found) -> bool:
        return any(read_mask_file(uri).on.any() for uri in row.masks)

    with ThreadPoolExecutor(16) as threads:
        defects = threads.map(is_defect, found)
        return [
            row._replace(cell=row.cell._replace(kind=row.cell.kind or (BY_MASK if is_one else NORMAL)))
            for row, is_one in zip(found, defects, strict=True)
        ]
