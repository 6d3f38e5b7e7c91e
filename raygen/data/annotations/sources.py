"""An annotation file: which format it is of, read and taken apart, by its content alone."""

import json
import threading
from collections import Counter
from functools import lru_cache
from typing import Any, NamedTuple

from raygen import storage
from raygen.data.annotations import (
    coco,
    cvat,
    datumaro,
    label_studio,
    labelme,
    severstal,
    supervisely,
    voc,
    yolo,
)
from raygen.data.annotations.paths import stem
from raygen.data.annotations.shapes import EXTRA, Item, Malformed
from raygen.errors import UserError
from raygen.extras import require

_JSON = (coco, datumaro, labelme, supervisely, label_studio)
_XML = (cvat, voc)
_BROKEN = (Malformed, KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError)


class Source(NamedTuple):
    """What an annotation file says."""

    format: str
    items: dict[str, Item]  # by their names
    notes: Counter[str]


def parse(uri: str, data: bytes) -> Source | None:
    """Takes a JSON, XML, CSV or (YOLO's) text file apart; None for one that is no annotation.

    Args:
        uri: where it stands, in YOLO's case with the names of its classes (`yolo.with_names`).
        data: its bytes.

    Raises:
        UserError: damaged, or not as its format has it.
    """
    plain_uri, names = yolo.without_names(uri)
    suffix = plain_uri.lower().rpartition(".")[2]
    notes: Counter[str] = Counter()
    name, found = "file", None
    try:
        if suffix == "json":
            name = "JSON file"
            document = json.loads(data)
            _refuse_relatives(uri, document)
            if found := next((kind for kind in _JSON if kind.recognises(document)), None):
                name = found.FORMAT
                return _source(uri, name, found.parse(document, notes), notes)
        elif suffix == "xml":
            name = "XML file"
            root = _xml(data)
            if root.tag == "annotations" and root.find("track") is not None:
                raise UserError(f"{uri}: CVAT for video; export it as CVAT for images")
            if found := next((kind for kind in _XML if kind.recognises(root)), None):
                name = found.FORMAT
                return _source(uri, name, found.parse(root, notes), notes)
        elif suffix == "csv":
            text = data.decode("utf-8-sig", "replace")
            if severstal.recognises(text.partition("\n")[0]):
                name = severstal.FORMAT
                return _source(uri, name, severstal.parse(text, notes), notes)
        else:
            name = yolo.FORMAT
            return _source(uri, name, [yolo.parse(data.decode("utf-8-sig"), names, notes)], notes)
    except _BROKEN as error:
        told = " ".join(coco.told(error).split())
        line = f"{plain_uri}: not a {name} that can be read ({told}); export it again, mend or remove it"
        raise UserError(line) from None
    return None


def load(uri: str, etag: str | None) -> Source:
    """Reads and takes apart an annotation file, and keeps the last few: who draws asks for the same ones again.

    Raises:
        UserError: as `parse`; gone, changed, or no annotation.
    """
    with _locks[hash(uri) % len(_locks)]:  # or threads that begin together would each read it
        return _load(uri, etag)


_locks = [threading.Lock() for _ in range(64)]


@lru_cache(maxsize=16)
def _load(uri: str, etag: str | None) -> Source:
    plain, _ = yolo.without_names(uri)
    try:
        data = storage.read(plain, etag)
    except (storage.ObjectMissingError, storage.ObjectChangedError):
        raise UserError(f"{plain}: gone or changed since it was listed; start again") from None
    source = parse(uri, data)
    if source is None:
        raise UserError(f"{plain}: no annotations in a format that raygen reads; list the folder again")
    return source


def _source(uri: str, name: str, items: list[Item], notes: Counter[str]) -> Source:
    by_name: dict[str, Item] = {}
    for item in items:
        if not item.name:  # of its file alone: Supervisely's 1.jpg.json, YOLO's 1.txt
            item = item._replace(name=stem(yolo.without_names(uri)[0]).rpartition("/")[2])
        if earlier := by_name.get(item.name):
            notes["images that stand twice in a file: their outlines are united"] += 1
            item = item._replace(objects=earlier.objects + item.objects)
        by_name[item.name] = item
    return Source(name, by_name, notes)


def _xml(data: bytes) -> Any:
    """The root of an XML document. defusedxml, since the standard library's parser expands entities."""
    tree = require("defusedxml.ElementTree", EXTRA)
    try:
        return tree.fromstring(data, forbid_dtd=False)
    except tree.ParseError as error:
        raise Malformed(str(error)) from None


def _refuse_relatives(uri: str, document: Any) -> None:
    """Says how to get what raygen reads, for exports that are nearly that."""
    first = document[0] if isinstance(document, list) and document else None
    if isinstance(first, dict) and "annotation_id" in first and "data" not in first:
        raise UserError(f"{uri}: Label Studio's JSON-MIN; export it as JSON")
    if isinstance(document, dict) and "_via_img_metadata" in document:
        raise UserError(f"{uri}: a project of VIA; export it as COCO")
