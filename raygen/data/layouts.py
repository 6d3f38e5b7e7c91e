"""Which folders of a defect set say what: product, defect type, split, masks. The decision is one for the whole
set, and has a name that a user is told."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from raygen.records import NORMAL

SPLITS: Mapping[str, str] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing", "test_public", "test_private", "test_private_mixed"), "test"),
}
"""Names of splits, as folders and tables have them -> as raygen has them. (MVTec AD 2 has three tests.)"""

_MASKS = frozenset(
    ("mask", "masks", "ground_truth", "groundtruth", "ground truth", "gt", "label", "labels", "segmentation")
)
_IMAGES = frozenset(("data", "image", "images", "img", "imgs", "jpegimages"))  # say nothing
_NORMALS = frozenset(("normal", "good", "ok", "defect_free", "defect-free", "no_defect"))

BY_MASK = "defect"
"""The defect type of photos of which no folder tells one, only a mask."""


class Folder(NamedTuple):
    """What the names of the folders above a file say of it."""

    names: tuple[str, ...]  # those that are neither of splits, nor of masks, nor say nothing
    split: str
    holds_masks: bool


class Cell(NamedTuple):
    """What the files of a folder are: photos of a product and type, or masks of such."""

    product: str  # "" of masks: of whichever
    kind: str  # the defect type's folder, in lower case, or "normal"; "": of masks whichever, of photos by masks
    split: str
    group: str  # what the photos show is one thing, say one part: never in two splits
    holds_masks: bool
    photo_id: str  # of a folder that holds the masks of one photo


class Layout(NamedTuple):
    """The decision."""

    name: str  # for a person
    cells: Mapping[str, Cell]  # folder below the set's root -> what its files are; others are left alone


def normal_or(name: str) -> str:
    """A defect type as raygen compares it: lower case, and one word for normals."""
    name = name.strip().lower()
    return NORMAL if name in _NORMALS else name


def split_of(name: str) -> str:
    """A split as raygen compares it; one that it does not know keeps its name, in lower case."""
    name = name.strip().lower()
    return SPLITS.get(name, name)


def one_product(root: str) -> str:
    """Name of the layout without folders of products."""
    return f"{{defect_type}}/ of one product, {root}"


def parse_folder(path: str) -> Folder:
    """Reads the folders above a file, `""` for none."""
    names: list[str] = []
    split, holds_masks = "", False
    for name in path.split("/") if path else ():
        lower = name.strip().lower()
        lower = lower.removesuffix("_images")  # train_images
        if lower in SPLITS:
            split = SPLITS[lower]
        elif lower in _MASKS:
            holds_masks = True
        elif lower not in _IMAGES:
            names.append(name)
    return Folder(tuple(names), split, holds_masks)


def recognise(root: str, photos: Iterable[str], masks: Iterable[str]) -> Layout | None:
    """Decides on the layout of a set; None if its folders tell nothing.

    Args:
        root: name of the set's own folder: the product, where no folder below tells one.
        photos: the folders that hold files which, by their own names, are no masks; `""` is the root.
        masks: those that hold files which by their names are masks.
    """
    paths = {path: parse_folder(path) for path in {*photos, *masks}}
    of_photos = {path: paths[path] for path in photos}
    if all(folder.holds_masks for folder in of_photos.values()):  # then it is a product that is named so
        paths = {path: _as_written(path, folder) for path, folder in paths.items()}
        of_photos = {path: paths[path] for path in photos}
    seen = [folder.names for folder in of_photos.values() if not folder.holds_masks]
    has_masks = any(folder.holds_masks for folder in paths.values()) or any(True for _ in masks)
    found = _choose(root, seen, has_masks)
    if found is None:
        return None
    name, read = found
    cells: dict[str, Cell] = {}
    for path, folder in paths.items():
        cell = read(folder)
        if cell is not None:
            cells[path] = cell
    return Layout(_with_splits(name, cells), _drop_idle_splits(cells))


def recognise_pool(root: str, folders: Iterable[str]) -> tuple[str, Callable[[str], Cell | None]] | None:
    """Whether a pool is a defect set, that holds more than normals.

    Args:
        root: name of the pool's own folder.
        folders: some of those below it.

    Returns:
        The layout's name, and what tells of a folder which files it holds; None for a pool of normals alone.
    """
    parsed = [parse_folder(path) for path in folders]
    found = _choose(root, [folder.names for folder in parsed if not folder.holds_masks], has_masks=False)
    if found is None:
        return None
    name, read = found
    kinds = {cell.kind for folder in parsed if (cell := read(folder)) and not cell.holds_masks}
    holds_more = len(kinds) > 1 or any(folder.split or folder.holds_masks for folder in parsed)
    return (name, lambda path: read(parse_folder(path))) if NORMAL in kinds and holds_more else None


_Read = Callable[[Folder], Cell | None]


def _choose(root: str, seen: Sequence[tuple[str, ...]], has_masks: bool) -> tuple[str, _Read] | None:
    """The layout's name, and how it reads a folder."""
    lower = {tuple(name.lower() for name in names) for names in seen}
    if any(names[:1] == ("mt_free",) for names in lower):
        return "the magnetic tile set (MT_{defect_type}/Imgs/)", lambda folder: _magnetic_tile(root, folder)
    if any(len(names) > 2 and names[1] == "ng" for names in lower):
        return "Real-IAD ({product}/NG/{defect_type}/, {product}/OK/)", _real_iad
    if lower and all(len(names) == 1 and re.fullmatch(r"kos\d+", names[0]) for names in lower):
        return "KolektorSDD (kos*/, a mask for each photo)", lambda folder: _by_mask(root, folder, True)
    if any(len(names) == 2 and names[1] in _NORMALS for names in lower):
        return "{product}/{defect_type}/", _two_names
    if any(len(names) == 1 and names[0] in _NORMALS for names in lower):
        return one_product(root), lambda folder: _one_name(root, folder)
    if any(len(names) == 2 for names in lower):
        return "{product}/{defect_type}/", _two_names
    if has_masks and lower:
        where = "{product}/" if any(lower) else f"photos of one product, {root}"
        return f"{where}, whose masks tell the defects", lambda folder: _by_mask(root, folder, False)
    if any(len(names) == 1 for names in lower):
        return one_product(root), lambda folder: _one_name(root, folder)
    return None


def _two_names(folder: Folder) -> Cell | None:
    names = folder.names
    if folder.holds_masks:
        product, kind, photo_id = (*names, "", "", "")[:3]
        return Cell(product, normal_or(kind), folder.split, "", True, photo_id) if len(names) <= 3 else None
    return Cell(names[0], normal_or(names[1]), folder.split, "", False, "") if len(names) == 2 else None


def _one_name(root: str, folder: Folder) -> Cell | None:
    if folder.holds_masks:
        kind, photo_id = (*folder.names, "", "")[:2]
        return (
            Cell(root, normal_or(kind), folder.split, "", True, photo_id) if len(folder.names) <= 2 else None
        )
    return (
        Cell(root, normal_or(folder.names[0]), folder.split, "", False, "")
        if len(folder.names) == 1
        else None
    )


def _by_mask(root: str, folder: Folder, name_is_group: bool) -> Cell | None:
    if len(folder.names) > 1:
        return None
    name = folder.names[0] if folder.names else ""
    product, group = (root, name) if name_is_group else (name or root, "")
    return Cell(product, "", folder.split, group, folder.holds_masks, "")


def _magnetic_tile(root: str, folder: Folder) -> Cell | None:
    if len(folder.names) != 1:
        return None
    kind = folder.names[0].lower().removeprefix("mt_")
    return Cell(root, NORMAL if kind == "free" else kind, folder.split, "", folder.holds_masks, "")


def _real_iad(folder: Folder) -> Cell | None:
    match folder.names:
        case (product, good, *part) if good.lower() == "ok" and len(part) <= 1:
            kind = NORMAL
        case (product, bad, kind, *part) if bad.lower() == "ng" and len(part) <= 1:
            kind = kind.lower()
        case _:
            return None
    group = "/".join((product, kind, part[0])) if part else ""
    return Cell(product, kind, folder.split, group, folder.holds_masks, "")


def _as_written(path: str, folder: Folder) -> Folder:
    names = [
        name
        for name in path.split("/")
        if name.strip().lower() not in SPLITS and name.strip().lower() not in _IMAGES
    ]
    return Folder(tuple(name for name in names if name), folder.split, False)


def _drop_idle_splits(cells: dict[str, Cell]) -> dict[str, Cell]:
    """Where all defects lie under test/, as in MVTec AD, that says nothing of a defect's split."""
    if not _are_idle(cells):
        return cells
    return {path: cell if cell.kind == NORMAL else cell._replace(split="") for path, cell in cells.items()}


def _are_idle(cells: Mapping[str, Cell]) -> bool:
    photos = [cell for cell in cells.values() if not cell.holds_masks]
    return {cell.split for cell in photos if cell.kind != NORMAL} == {"test"} and any(
        cell.split == "train" for cell in photos
    )


def _with_splits(name: str, cells: Mapping[str, Cell]) -> str:
    """The layout's name with what it says of splits."""
    if _are_idle(cells):
        return f"MVTec AD ({name} below train/ and test/, which says nothing of a defect's split)"
    return f"{name} with splits as folders" if any(cell.split for cell in cells.values()) else name
