"""No split is lost, however people and spreadsheets write a metadata.csv."""

import pytest
from test_layouts import MARKED, write

from raygen import storage
from raygen.data.defects import list_defect_set
from raygen.data.survey import survey
from raygen.errors import UserError

PHOTOS = {f"steel/{kind}/{i:03}.png": None for kind in ("normal", "scratch") for i in range(1, 7)}
ROWS = [
    (f"{i:03}", "steel", kind, "test" if i > 4 else "train")
    for kind in ("normal", "scratch")
    for i in range(1, 7)
]
HEAD = "id,product,domain,split"


def table(rows, head: str = HEAD) -> str:
    return "\n".join([head, *(",".join(map(str, row)) for row in rows)]) + "\n"


def splits(uri: str, text: str | bytes, photos=PHOTOS) -> set[tuple[str, str]]:
    """Of each photo its id and split."""
    write(uri, photos)
    storage.put(storage.join(uri, "metadata.csv"), text if isinstance(text, bytes) else text.encode())
    return {(photo.uri[-7:-4], photo.split) for photo in list_defect_set(uri)}


RIGHT = {(f"{i:03}", "test" if i > 4 else "train") for i in range(1, 7)}

WRITTEN = {
    "as it should be": table(ROWS),
    "ids with their extension": table((f"{i}.PNG", *row) for i, *row in ROWS),
    "ids as numbers": table((int(i), *row) for i, *row in ROWS),
    "paths for ids": table([(f"steel/{kind}/{i}.png", split) for i, _, kind, split in ROWS], "path,split"),
    "paths with backslashes": table([(f"steel\\{kind}\\{i}.png", s) for i, _, kind, s in ROWS], "File,Split"),
    "ends of paths": table([(f"{kind}/{i}", split) for i, _, kind, split in ROWS], "image,split"),
    "capitals": table(((i, "Steel", kind.title(), split.upper()) for i, _, kind, split in ROWS), HEAD.upper()),
    "blanks": table(((f" {i} ", " steel", f"{kind} ", f"{s} ") for i, _, kind, s in ROWS), HEAD.title()),
    "good for normal": table((i, p, kind.replace("normal", "good"), split) for i, p, kind, split in ROWS),
    "semicolons": table(ROWS).replace(",", ";"),
    "tabs": table(ROWS).replace(",", "\t"),
    "a byte order mark": table(ROWS).encode("utf-8-sig"),
    "lines as Windows ends them": table(ROWS).replace("\n", "\r\n"),
    "quotes": table((f'"{i}"', *row) for i, *row in ROWS),
    "other columns": table(((x, "y", *row) for x, row in enumerate(ROWS)), f"number,note,{HEAD}"),
    "training and testing": table((*row, {"train": "training", "test": "testing"}[split]) for *row, split in ROWS),
}  # fmt: skip


@pytest.mark.parametrize("name", WRITTEN)
def test_however_it_is_written(tmp_path, name: str) -> None:
    assert splits(str(tmp_path), WRITTEN[name]) == RIGHT


def test_on_s3_too(s3_uri: str) -> None:
    assert splits(s3_uri, WRITTEN["as it should be"]) == RIGHT


def test_ids_without_product_or_type_must_be_unique(tmp_path) -> None:
    photos = {f"steel/normal/n0{i}.png": None for i in range(3)} | {
        f"steel/cut/c0{i}.png": None for i in range(3)
    }
    rows = [(f"{kind}0{i}", "val") for kind in "nc" for i in range(3)]
    assert {split for _, split in splits(str(tmp_path / "unique"), table(rows, "id,split"), photos)} == {
        "val"
    }
    with pytest.raises(
        UserError, match=r"line 2: id '001' may mean .*/001 and .*/001; add columns product and dom"
    ):
        splits(str(tmp_path / "not"), table([(f"{i:03}", "val") for i in range(1, 7)], "id,split"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (table((f"x{i}", *row) for i, *row in ROWS), r"12 of 12 photos have no row, such as steel/\w+/00\d; 12"),
        (table(ROWS[1:]), "1 of 12 photos have no row, such as steel/normal/001: their splits would be lost"),
        (table(ROWS, "id,thing,kind,split"), r"line 2: id '001' may mean"),
        (table([*ROWS, ("001", "steel", "normal", "test")]), "line 14: another row tells another split"),
        (table(ROWS, "number,product,domain,split"), "has splits, but no column id; add it"),
        (b"id,product,domain,split\n\xff\xfe,,,\n", "not a CSV file in UTF-8"),
    ],
)  # fmt: skip
def test_what_cannot_be_matched_is_an_error(tmp_path, text, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        splits(str(tmp_path), text)
    assert "metadata.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rows_of_photos_that_are_not_here_are_counted(tmp_path) -> None:
    more = table([*ROWS, ("999", "steel", "normal", "train")])
    assert splits(str(tmp_path), more) == RIGHT
    assert [note for note in survey(str(tmp_path)).notes if note.startswith("1 rows of")]


def test_a_table_of_something_else_tells_nothing(tmp_path) -> None:
    assert {split for _, split in splits(str(tmp_path), "file_name,text\na.png,x\n")} == {""}


def test_groups_are_kept_and_torn_ones_said(tmp_path) -> None:
    rows = [
        (*row, f"part{int(row[0]) // 4}") for row in ROWS
    ]  # 001 to 003, 004 to 006; 005 and 006 are for testing
    splits(str(tmp_path), table(rows, f"{HEAD},group"))
    found = survey(str(tmp_path))
    assert {photo.group for photo in found.photos} == {"part0", "part1"}
    assert [
        note
        for note in found.notes
        if note.startswith("WARNING: 1 groups stand in several splits, such as part1")
    ]


def test_folders_tell_more_than_tables_and_need_no_row(tmp_path) -> None:
    files = {
        f"{split}/{kind}/{i}.png": None
        for split in ("train", "test")
        for kind in ("ok", "cut")
        for i in range(2)
    }
    write(
        str(tmp_path),
        files | {"train/cut/0_mask.png": MARKED, "metadata.csv": "path,split\ntrain/ok/0,test\n"},
    )
    found = {
        (photo.uri.removeprefix(f"{tmp_path}/")[:4], photo.split) for photo in list_defect_set(str(tmp_path))
    }
    assert found == {("trai", "train"), ("test", "test")}
