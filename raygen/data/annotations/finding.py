"""Annotation files in a listing, and which of its photos they speak of."""

import posixpath
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

from raygen import images, storage
from raygen.data.annotations import label_studio, labelme, severstal, sources, voc, yolo
from raygen.data.annotations.paths import SPLITS, ends, nearness, plain, relative, split_of, stem, tails
from raygen.data.annotations.shapes import Item, Malformed, Polygon
from raygen.errors import UserError

_VOC_MASKS = re.compile("/segmentation(class|object)/")


class Place(NamedTuple):
    """Where an annotated image is."""

    name: str
    uri: str | None
    split: str


class Found(NamedTuple):
    """An annotation file, and what it says of which images."""

    uri: str
    etag: str | None
    format: str
    items: list[tuple[Item, Place]]


class _Listing:
    """A folder's files by their paths in it."""

    def __init__(self, base_uri: str, entries: Sequence[storage.Entry]) -> None:
        self.files = {relative(entry.uri, base_uri): entry for entry in entries}
        self.photos = [
            path
            for path in self.files
            if path.lower().endswith(images.EXTENSIONS) and not _VOC_MASKS.search(f"/{path.lower()}")
        ]

    @cached_property
    def _by_tail(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for path in self.photos:
            found[posixpath.basename(path)].append(path)
            found[posixpath.basename(stem(path))].append(path)
        return found

    def photo(self, folder: str, name: str, split: str = "") -> str | None:
        """The photo that a file in a folder calls so: from that folder on, else the one whose path ends so, or in
        as much of it as there is; of several the nearest, of these the one of the split."""
        if (beside := posixpath.normpath(posixpath.join(folder, name))) in self.files:
            return beside
        for tail in (*tails(name), *tails(label_studio.without_prefix(name))):
            known = [path for path in self._by_tail[posixpath.basename(tail)] if ends(path, tail)]
            if known:
                near = {path: nearness(path, folder) for path in known}
                best = [path for path in known if near[path] == max(near.values())]
                if len(best) > 1 and split:
                    best = [path for path in best if split_of(path) == split]
                return best[0] if len(best) == 1 else None
        return None


def find(base_uri: str, entries: Sequence[storage.Entry]) -> tuple[list[Found], Counter[str]]:
    """Reads every annotation file of a listing, several at a time.

    Raises:
        UserError: one that is damaged.
    """
    tables = [entry for entry in entries if entry.uri.lower().endswith((".json", ".xml", ".csv", ".txt"))]
    if all(entry.uri.endswith("metadata.csv") for entry in tables):
        return [], Counter()  # in most sets: no need to look further
    listing = _Listing(base_uri, entries)
    paths = [
        path
        for path in listing.files
        if path.lower().endswith((".json", ".xml", ".csv")) and posixpath.basename(path) != "metadata.csv"
    ]
    notes: Counter[str] = Counter()
    found = []
    with ThreadPoolExecutor(16) as threads:
        read = threads.map(lambda path: _read(listing.files[path]), paths)
        for path, data in zip(paths, read, strict=True):
            if source := sources.parse(listing.files[path].uri, data):
                notes += source.notes
                items = [(item, _place(listing, path, source.format, item)) for item in source.items.values()]
                entry = listing.files[path]
                found.append(Found(entry.uri, entry.etag, source.format, items))
        found += _find_yolo(listing, threads, notes)
        if found and all(source.format == voc.FORMAT for source in found):
            found = _voc_splits(listing, threads, found)
    if found and all(source.format == severstal.FORMAT for source in found):
        # The newer files have no row for an image without a defect.
        folders = {
            posixpath.dirname(relative(place.uri, base_uri))
            for s in found
            for _, place in s.items
            if place.uri
        }
        found += _unlabelled(listing, found, folders, severstal.FORMAT, notes)
    return found, notes


def _place(listing: _Listing, path: str, kind: str, item: Item) -> Place:
    folder, name = posixpath.dirname(path), plain(item.name)
    split = SPLITS.get(item.split.lower()) or split_of(path)
    photo = listing.photo(folder, item.name, split)
    if photo is None and kind in (voc.FORMAT, labelme.FORMAT):  # renamed, or with no extension there
        photo = listing.photo(folder, posixpath.basename(stem(path)), split)
    split = SPLITS.get(item.split.lower()) or split_of(photo or "") or split or split_of(name)
    # The photo's own path where that says the same and more: train/1.jpg and test/1.jpg may both be called 1.jpg.
    named = photo if photo and ends(photo, name) else name
    return Place(named, listing.files[photo].uri if photo else None, split)


def _voc_splits(listing: _Listing, threads: ThreadPoolExecutor, found: list[Found]) -> list[Found]:
    """What ImageSets/Main/{train,val,test}.txt say."""
    paths = [
        path
        for path in listing.files
        if re.search(r"(^|/)imagesets/main/(train|val|test)\.txt$", path, re.IGNORECASE)
    ]
    split: dict[str, str] = {}
    for path, data in zip(paths, threads.map(lambda path: _read(listing.files[path]), paths), strict=True):
        for line in data.decode("utf-8", "replace").split("\n"):
            if words := line.split():
                split[words[0]] = posixpath.basename(stem(path)).lower()

    def known(source: Found, place: Place) -> Place:
        return place._replace(split=split.get(posixpath.basename(stem(source.uri)), place.split))

    return [source._replace(items=[(i, known(source, p)) for i, p in source.items]) for source in found]


# ------------------------------------------------------------------------------------ YOLO


def _find_yolo(listing: _Listing, threads: ThreadPoolExecutor, notes: Counter[str]) -> list[Found]:
    if not any(path.lower().endswith(".txt") for path in listing.files):
        return []
    labels = {}  # path of a text file -> of its photo
    for photo in listing.photos:
        if there := next((path for path in yolo.label_paths(photo) if path in listing.files), None):
            labels[there] = photo
    if not labels:
        return []
    documents = _class_files(listing, threads)
    names = {path: named for path, (document, named) in documents.items() if named is not None}
    texts = [
        data.decode("utf-8-sig", "replace") for data in threads.map(lambda p: _read(listing.files[p]), labels)
    ]
    found = []
    for (path, photo), text in zip(labels.items(), texts, strict=True):
        entry = listing.files[path]
        nearest = _nearest(path, names)
        if nearest is None and text.strip() and not yolo.looks_like_it(text):
            continue  # notes beside a photo
        known = names.get(nearest or "", {})
        uri = yolo.with_names(entry.uri, text, known)
        source = sources.parse(uri, text.encode())
        assert source is not None
        notes += source.notes
        split = _yolo_split(documents.get(nearest or ""), photo) or split_of(photo) or split_of(path)
        (item,) = source.items.values()
        place = Place(photo, listing.files[photo].uri, split)
        found.append(Found(uri, entry.etag, yolo.FORMAT, [(item, place)]))
    shapes = [shape for source in found for item, _ in source.items for _, shape in item.objects]
    outlines = [shape for shape in shapes if isinstance(shape, Polygon) and not shape.is_box]
    if outlines and all(len(shape.rings[0]) == 4 for shape in outlines):
        notes[
            "outlines, every one of four corners: if they are turned boxes (YOLO-OBB), masks are rough"
        ] += len(outlines)
    if not shapes and not names:
        return []  # empty text files and no class: nobody says that they are labels
    folders = {posixpath.dirname(photo) for photo in labels.values()}
    more = _unlabelled(listing, found, folders, yolo.FORMAT, notes)
    for source in more:
        ((item, place),) = source.items
        split = _yolo_split(documents.get(_nearest(place.name, names) or ""), place.name) or place.split
        source.items[0] = (item, place._replace(split=split))
    return found + more


def _class_files(
    listing: _Listing, threads: ThreadPoolExecutor
) -> dict[str, tuple[Any, dict[int, str] | None]]:
    """Path -> document and class names, of every file that may name classes."""
    import yaml  # not where there is no such file

    paths = [
        path
        for path in listing.files
        if path.lower().endswith((".yaml", ".yml")) or posixpath.basename(path).lower() in yolo.LISTS
    ]
    documents = {}
    for path, data in zip(paths, threads.map(lambda path: _read(listing.files[path]), paths), strict=True):
        try:
            text = data.decode("utf-8-sig")
            is_list = posixpath.basename(path).lower() in yolo.LISTS
            try:
                document = text if is_list else yaml.safe_load(text)
            except yaml.YAMLError:
                if posixpath.basename(path).lower() != "data.yaml":
                    continue  # whatever else that is
                raise
            documents[path] = (document, yolo.class_names(path, document))
        except (yaml.YAMLError, UnicodeDecodeError, TypeError, Malformed, ValueError) as error:
            told = " ".join(str(error).split())
            raise UserError(
                f"{listing.files[path].uri}: names of classes that cannot be read ({told}); mend it"
            ) from None
    return documents


def _nearest(path: str, names: dict[str, Any]) -> str | None:
    """The file of class names that lies nearest: in the deepest folder above, or the only one there is."""
    above = [
        name for name in names if f"/{path}".startswith(f"/{posixpath.dirname(name)}/".replace("//", "/"))
    ]
    if above:
        return max(
            above, key=lambda name: (posixpath.dirname(name).count("/") + bool(posixpath.dirname(name)), name)
        )
    return next(iter(names)) if len(names) == 1 else None


def _yolo_split(document: tuple[Any, Any] | None, photo: str) -> str:
    folders = yolo.split_folders(document[0]) if document else {}
    within = [split for split, paths in folders.items() if yolo.in_folder(photo, paths)]
    return within[0] if len(within) == 1 else ""


def _unlabelled(
    listing: _Listing, found: list[Found], folders: set[str], kind: str, notes: Counter[str]
) -> list[Found]:
    """The photos of folders of which nothing is said: free of defects, as the format has it."""
    told = {place.uri for source in found for _, place in source.items}
    more = [
        Found("", None, kind, [(Item(path, None, ()), Place(path, listing.files[path].uri, split_of(path)))])
        for path in listing.photos
        if posixpath.dirname(path) in folders
        and listing.files[path].uri not in told
        and not stem(path).endswith("_mask")
    ]
    if more:
        notes[f"photos of which {kind} says nothing: free of defects"] += len(more)
    return more


def _read(entry: storage.Entry) -> bytes:
    try:
        return storage.read(entry.uri, entry.etag)
    except (storage.ObjectMissingError, storage.ObjectChangedError):
        raise UserError(f"{entry.uri}: gone or changed since it was listed; start again") from None
