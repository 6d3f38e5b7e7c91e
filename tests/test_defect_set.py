"""A run's defects, written as a defect set, are what a training reads of it, and stay inside their folder."""

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import write_pool, write_run

from raygen import storage
from raygen.data.runs import read_manifest, read_shard
from raygen.data.survey import survey
from raygen.demo import CHECKPOINT
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.defect_set import write_defect_set


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run in one shard."""
    base = tmp_path_factory.mktemp("defects")
    write_pool(str(base / "pool"), 1)
    write_run(GenerateConfig(pool=str(base / "pool"), output=str(base / "run"), checkpoint=CHECKPOINT))
    return base / "run"


def test_it_is_read_as_it_was_written(run: Path, folder_uri: str) -> None:
    said: list[str] = []
    count = write_defect_set(str(run), folder_uri, said.append)
    photos = survey(folder_uri, kinds=["defects"]).photos
    assert len(photos) == count > 0
    assert all(photo.split == "train" and photo.mask_uri for photo in photos)
    assert said == [f"{folder_uri}: {count} synthetic defects ({_cells(photos)})"]


def _cells(photos) -> str:
    cells = sorted({(photo.product, photo.defect_type) for photo in photos})
    count = {cell: sum((photo.product, photo.defect_type) == cell for photo in photos) for cell in cells}
    return ", ".join(f"{product}/{kind} {n}" for (product, kind), n in count.items())


@pytest.mark.parametrize("column", ["product", "defect_type", "sample_id"])
@pytest.mark.parametrize("name", ["../outside", "/outside", "", "..", "a/b", "a\0b", "a\nb"])
def test_a_name_with_a_path_in_it_writes_nothing_elsewhere(
    run: Path, tmp_path: Path, column: str, name: str
) -> None:
    """A shard that another hand has changed."""
    copy = tmp_path / "run"
    for entry in storage.list_files(str(run)):
        storage.put(str(copy / entry.uri.removeprefix(f"{run}/")), storage.read(entry.uri))
    manifest = read_manifest(str(copy))
    assert manifest is not None
    [stats] = manifest.shards
    rows = read_shard(str(copy), stats)
    names = pa.array([name] * rows.num_rows)
    file = io.BytesIO()
    pq.write_table(rows.set_column(rows.column_names.index(column), column, names), file)
    storage.put(str(copy / stats.file), file.getvalue())
    before = {entry.uri for entry in storage.list_files(str(tmp_path))}
    with pytest.raises(UserError, match="is no name of a"):
        write_defect_set(str(copy), str(tmp_path / "out"))
    after = {entry.uri for entry in storage.list_files(str(tmp_path))}
    assert all(uri.startswith(f"{tmp_path}/out/") for uri in after - before)


@pytest.mark.parametrize("name", ["masks", "test", "GT", "images"])
def test_a_type_that_would_be_read_as_something_else_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    from raygen.generate.defect_set import _folders

    sample = {"product": "steel", "defect_type": name, "sample_id": "0"}
    with pytest.raises(UserError, match=f"folders called steel/{name} would be read as splits or masks"):
        _folders(sample, str(run))
