"""A defect set as a pool: its normals, but those that are held out."""

from collections.abc import Callable, Iterator

from raygen import storage
from raygen.data.layouts import Cell, parse_folder, recognise_pool
from raygen.data.mask_files import suffix_of
from raygen.data.metadata import METADATA
from raygen.data.survey import survey
from raygen.images import EXTENSIONS
from raygen.records import NORMAL

_DEEP, _SOME = 4, 8  # levels of folders, and folders of a level, that are looked into

CellOf = Callable[[str], Cell | None]
"""Tells of a folder which files it holds."""


def recognise_set(pool_uri: str) -> tuple[str, CellOf] | None:
    """Whether a folder is a defect set, by its folders alone, in a few requests.

    Returns:
        The layout's name, and what tells of a folder which files it holds; None for a pool of normals alone.
    """
    found: list[str] = []
    level = [""]
    for depth in range(_DEEP):
        below: list[str] = []
        for path in level:
            uri = storage.join(pool_uri, path) if path else pool_uri
            below += [f"{path}/{name}".lstrip("/") for name in storage.list_folders(uri)]
        found += below
        # Products are many and alike; below them, only folders without a meaning of their own are looked into.
        level = [path for path in below if depth == 0 or len(parse_folder(path).names) < 2][:_SOME]
    return recognise_pool(storage.folder_name(pool_uri), found)


def list_normals(
    pool_uri: str, name: str, cell_of: CellOf, say: Callable[[str], None]
) -> Iterator[tuple[storage.Entry, str]]:
    """Streams the normals of a set that are not held out, with their products; then says how many."""
    told = {}
    if storage.exists(f"{pool_uri}/{METADATA}"):
        # It is listed whole then: whoever wrote a row for each photo has not millions.
        told = {photo.uri: photo.split for photo in survey(pool_uri, kinds=["normals"]).photos}
    cells: dict[str, Cell | None] = {}
    taken, held_out, others = 0, 0, 0
    before = ""
    for entry in storage.list_files(pool_uri):
        if not entry.uri.lower().endswith(EXTENSIONS):
            continue
        path, _, _ = entry.uri.removeprefix(f"{pool_uri}/").rpartition(".")
        folder, _, stem = path.rpartition("/")
        if folder not in cells:
            cells[folder] = cell_of(folder)
        cell = cells[folder]
        is_mask = suffix_of(stem) or path == before  # "7.png" after "7.jpg"
        before = path
        if cell is None or cell.holds_masks or cell.kind != NORMAL or is_mask:
            others += 1
        elif (cell.split or told.get(entry.uri, "")) in ("val", "test"):
            held_out += 1
        else:
            taken += 1
            yield entry, cell.product
    say(
        f"pool {pool_uri}: read as {name}: {taken:,} normals are taken; {held_out:,} of val and test, and "
        f"{others:,} other images, are left alone"
    )
