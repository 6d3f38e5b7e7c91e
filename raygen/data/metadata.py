"""A defect set's metadata.csv: splits and groups, as people and spreadsheets write them."""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from raygen import storage
from raygen.data.layouts import normal_or, split_of
from raygen.errors import UserError
from raygen.images import EXTENSIONS

METADATA = "metadata.csv"

_NAMES: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "file", "filename", "file_name", "image", "image_id", "path"),
    "product": ("product", "category", "object"),
    "domain": ("domain", "defect_type", "type", "class"),
    "split": ("split", "set", "subset"),
    "group": ("group",),
}
"""Column -> what it is called, the usual name first."""


class Key(NamedTuple):
    """What a row can know a photo by."""

    path: str  # below the set, without the extension
    product: str
    folder: str
    defect_type: str  # that it is read as


class Told(NamedTuple):
    """What the table says of a photo."""

    split: str
    group: str


class _Row(NamedTuple):
    number: int  # of its line
    id: str
    product: str | None
    kind: str | None
    told: Told


class Metadata(NamedTuple):
    """The table, row for photo."""

    told: list[Told]  # of each photo; ("", "") of those without a row
    num_others: int  # rows that name no photo


def read_metadata(uri: str, keys: Sequence[Key], need_rows: Sequence[bool]) -> Metadata | None:
    """Reads the table and finds each photo's row.

    An id is a photo's name, with or without extension or the folders above, in any case; where a spreadsheet has
    made a number of it, without its leading zeros. Separators may be `,`, `;` or tabs, columns be in capitals.

    Args:
        uri: of the table.
        keys: the photos.
        need_rows: whether each photo needs a row; those whose folders tell their split do not.

    Returns:
        What is told; None if the table is of neither splits nor groups.

    Raises:
        UserError: not a CSV file in UTF-8; splits without ids; a row that may mean several photos, or two that
            differ about one; photos without a row, or rows of other photos alone: a split that is lost is a test
            photo trained on.
    """
    columns, rows = _read(uri)
    if "split" not in columns and "group" not in columns:
        return None
    if "id" not in columns:
        if "split" not in columns:
            return None
        raise UserError(f"{uri}: has splits, but no column id; add it")
    found: list[Told | None] = [None] * len(keys)
    index = _Index(keys)
    unknown: list[_Row] = []
    for row in rows:
        places = index.find(row)
        if not places:
            unknown.append(row)
        elif len(places) > 1:
            some = " and ".join(keys[place].path for place in places[:2])
            raise UserError(
                f"{uri}: line {row.number}: id {row.id!r} may mean {some}; add columns product and domain, or "
                "write paths for ids"
            )
        else:
            (place,) = places
            if found[place] not in (None, row.told):
                raise UserError(
                    f"{uri}: line {row.number}: another row tells another split or group of {keys[place].path}; "
                    "keep one"
                )
            found[place] = row.told
    unnamed = [
        key.path for key, told, need in zip(keys, found, need_rows, strict=True) if need and told is None
    ]
    if unnamed or ("split" in columns and unknown and not any(found)):
        raise UserError(_mismatch(uri, len(rows), unknown, unnamed, len(keys)))
    return Metadata([told or Told("", "") for told in found], len(unknown))


def _mismatch(uri: str, count: int, unknown: Sequence[_Row], unnamed: Sequence[str], photos: int) -> str:
    told = []
    if unnamed:
        told.append(f"{len(unnamed):,} of {photos:,} photos have no row, such as {unnamed[0]}")
    if unknown:
        told.append(f"{len(unknown):,} of {count:,} rows name no photo, such as {unknown[0].id!r}")
    return f"{uri}: {'; '.join(told)}: their splits would be lost; write ids as the files are named, a row a photo"


class _Index:
    """Finds the photos that a row may mean."""

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = keys
        self.exact: dict[tuple[str, str, str], list[int]] = {}
        self.names: dict[str, list[int]] = {}
        for place, key in enumerate(keys):
            name = key.path.rpartition("/")[2].casefold()
            self.exact.setdefault((name, key.product.casefold(), key.folder), []).append(place)
            self.names.setdefault(name, []).append(place)

    @cached_property
    def numbers(self) -> dict[int, list[int]]:
        """Names that are numbers, as a spreadsheet has them."""
        found: dict[int, list[int]] = {}
        for name, places in self.names.items():
            if name.isdecimal():
                found.setdefault(int(name), []).extend(places)
        return found

    def find(self, row: _Row) -> Sequence[int]:
        name = _without_extension(row.id).casefold()
        if (
            row.product is not None
            and row.kind is not None
            and (found := self.exact.get((name, row.product, row.kind)))
        ):
            return found
        last = name.rpartition("/")[2]
        if last != name:
            ends = [place for place in self.names.get(last, ()) if self._path(place).endswith(f"/{name}")]
            exact = [place for place in ends if self._path(place) == f"/{name}"]
            return self._fitting(exact or ends, row)
        if found := self._fitting(self.names.get(name, ()), row):
            return found
        return self._fitting(self.numbers.get(int(name), ()), row) if name.isdecimal() else []

    def _path(self, place: int) -> str:
        return f"/{self.keys[place].path.casefold()}"

    def _fitting(self, places: Iterable[int], row: _Row) -> list[int]:
        places = [place for place in places if row.product in (None, self.keys[place].product.casefold())]
        if row.kind is None:
            return places
        for name in ("folder", "defect_type"):  # what a folder is called goes before what it is read as
            if found := [place for place in places if getattr(self.keys[place], name) == row.kind]:
                return found
        return []


def _without_extension(name: str) -> str:
    name = name.replace("\\", "/").strip("/")
    return name[: -len(PurePosixPath(name).suffix)] if name.lower().endswith(EXTENSIONS) else name


def _read(uri: str) -> tuple[set[str], list[_Row]]:
    """The columns that are there, by their usual names, and the rows."""
    try:
        text = storage.read(uri).decode("utf-8-sig")
        head = text.partition("\n")[0]
        separator = max(",;\t", key=head.count)
        table = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
        spelt = {name.strip().lower(): column for column, name in enumerate(next(table, []))}
        columns = {
            usual: spelt[next(name for name in names if name in spelt)]
            for usual, names in _NAMES.items()
            if any(name in spelt for name in names)
        }
        return set(columns), list(_rows(table, columns))
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{uri}: not a CSV file in UTF-8 ({error}); mend or remove it") from None


def _rows(table: Any, columns: Mapping[str, int]) -> Iterator[_Row]:
    product, domain, split, group = (columns.get(name) for name in ("product", "domain", "split", "group"))
    for cells in table:

        def cell(column: int | None, cells: Sequence[str] = cells) -> str:
            return cells[column].strip() if column is not None and column < len(cells) else ""

        if name := cell(columns.get("id")):
            yield _Row(
                table.line_num,
                name,
                None if product is None else cell(product).casefold(),
                None if domain is None else normal_or(cell(domain)),
                Told(split_of(cell(split)), cell(group)),
            )
