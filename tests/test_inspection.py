"""An inspection says what is there, and names whatever is suspicious about it."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from factories import write_pool, write_split_set
from PIL import Image

from raygen import images, storage
from raygen.cli import main
from raygen.errors import UserError
from raygen.inspection.config import InspectConfig
from raygen.inspection.job import PHOTOS, SHEET, inspect
from raygen.inspection.suspicion import REASONS

SIZE = 64


def run(uri: str, output: str, **options: Any) -> tuple[list[str], dict[str, set[str]]]:
    """Inspects a place; what was said, and each kind of suspicion's photos below it."""
    said: list[str] = []
    found = inspect(InspectConfig(defects=uri, output=output, **options), said.append)
    table = pq.read_table(io.BytesIO(storage.read(storage.join(output, PHOTOS)))).to_pylist()
    kinds: dict[str, set[str]] = {}
    for one in found:
        kinds.setdefault(one.kind, set()).add(table[one.photo]["uri"].removeprefix(f"{uri}/"))
    assert sum(len(row["suspicions"]) for row in table) == len(found)
    assert images.decode_photo(storage.read(storage.join(output, SHEET)), 2**28).std() > 0
    return said, kinds


@pytest.fixture
def clean(folder_uri: str) -> str:
    uri = storage.join(folder_uri, "set")
    write_split_set(uri, {"train": (5, 5), "test": (2, 2)}, SIZE)
    return uri


def photo(seed: int = 99) -> np.ndarray:
    return np.random.default_rng(seed).integers(90, 160, (SIZE, SIZE, 1), dtype=np.uint8)


def test_a_clean_set_is_told_and_not_suspected(clean: str, folder_uri: str) -> None:
    said, kinds = run(clean, storage.join(folder_uri, "out"))
    assert kinds == {}
    assert said[0] == "read as {product}/{defect_type}/"
    assert any(line.split()[:5] == ["brushed_metal", "scratches", "train", "5", "5"] for line in said)
    assert "files: 105 × PNG, 8 bits, grey" in said[-5:] or any(
        "× PNG, 8 bits, grey" in line for line in said
    )
    assert said[-1] == "0 of 63 photos are suspicious"


def test_every_suspicion_is_found_and_named(tmp_path: Path) -> None:
    uri = str(tmp_path / "set")
    write_split_set(uri, {"train": (6, 8), "test": (2, 2)}, SIZE)
    metal = f"{uri}/brushed_metal"
    rows = []

    def put(name: str, pixels: np.ndarray | bytes, kind: str = "spots", split: str = "train") -> str:
        data = pixels if isinstance(pixels, bytes) else images.encode_png(pixels)
        storage.put(f"{metal}/{kind}/{name}", data)
        if "_mask" not in name:
            rows.append(f"{name.rpartition('.')[0]},brushed_metal,{kind},{split}")
        return f"brushed_metal/{kind}/{name}"

    square = np.zeros((SIZE, SIZE, 1), np.uint8)
    square[20:30, 20:30] = 255
    old = storage.read(f"{metal}/normal/train-000000.png")
    pixels = images.decode_photo(old, 2**20)
    again = io.BytesIO()
    Image.fromarray(np.clip(pixels[:, :, 0] * 1.1 + 5, 0, 255).astype(np.uint8)).save(
        again, "JPEG", quality=80
    )

    def masked(name: str, own: np.ndarray, mask: np.ndarray) -> str:
        put(name.replace(".png", "_mask.png"), mask)
        return put(name, own)

    large, tiny = np.zeros_like(square), np.zeros_like(square)
    large[:50, 3:60], tiny[30, 30:33] = 255, 255
    marked = photo(1)
    marked[tiny > 0] = marked[large > 0][0] = 250
    planted = {
        "unreadable": {put("broken.png", images.encode_png(photo(2))[:500], "normal")},
        "same file, other split": {put("stolen.png", old, "normal", "test")},
        "same file, other type": {put("both.png", storage.read(f"{metal}/normal/train-000001.png"))},
        "bad mask": {masked("inverted.png", photo(3), 255 - square)},
        "nearly the same, other split": {put("again.jpg", again.getvalue(), "normal", "test")},
        "looks like a mask": {put("binary.png", square, "normal")},
        "nearly black": {put("dark.png", photo(4) // 20, "normal")},
        "nearly white": {put("white.png", 255 - photo(5) // 20, "normal")},
        "cannot be seen": {masked("unseen.png", np.full_like(square, 120), square)},
        "large mask": {masked("large.png", photo(6) // 2 + (large > 0) * np.uint8(60), large)},
        "tiny mask": {masked("tiny.png", marked, tiny)},
        "other size": {put("small.png", photo(7)[:40, :40], "normal")},
        "other kind": {put("deep.png", photo(8) * np.uint16(257), "normal"), "brushed_metal/normal/again.jpg"},
        "same file": {put("train-copy.png", storage.read(f"{metal}/normal/train-000002.png"), "normal")},
        "no mask": {"brushed_metal/spots/both.png"},
    }  # fmt: skip
    text = storage.read(f"{uri}/metadata.csv").decode()
    storage.put(f"{uri}/metadata.csv", "\n".join([text, *rows]).encode())
    said, kinds = run(uri, str(tmp_path / "out"))
    # Of two that are one file, the later is named.
    copies = {"same file, other split", "same file, other type", "same file", "nearly the same, other split"}
    for kind, names in planted.items():
        if kind in copies:
            assert kinds[kind], kind
        else:
            assert kinds[kind] == names, kind
    assert set(kinds) == set(REASONS)
    lines = [line.partition(":")[0] for line in said if line.partition(":")[0] in REASONS]
    assert lines == list(REASONS)  # the worst first


def test_a_pool_is_sampled_and_told(folder_uri: str) -> None:
    pool = storage.join(folder_uri, "pool")
    write_pool(pool, 5)
    storage.put(storage.join(pool, "brushed_metal/broken.png"), b"no image")
    deep = np.random.default_rng(0).integers(1000, 4000, (64, 64, 1)).astype(np.uint16)
    storage.put(storage.join(pool, "steel/deep.png"), images.encode_png(deep))
    said, kinds = run(pool, storage.join(folder_uri, "out"))
    assert any(line.startswith("a pool of 17 normals: brushed_metal 6, ") for line in said)
    assert any("steel: values up to 3,9" in line and "read as 12 bits" in line for line in said)
    assert kinds == {"unreadable": {"brushed_metal/broken.png"}}
    said, _ = run(pool, storage.join(folder_uri, "out"), sample=4)
    assert "looked into: 4 of them, at random" in said
    assert said[-1].endswith("of 4 photos are suspicious")


def test_a_manifest_is_a_pool(tmp_path: Path) -> None:
    uris = write_pool(str(tmp_path / "pool"), 2)
    storage.put(
        str(tmp_path / "pool.csv"), "\n".join(["uri,product", *(f"{uri},x" for uri in uris)]).encode()
    )
    said, kinds = run(str(tmp_path / "pool.csv"), str(tmp_path / "out"))
    assert said[0] == "a pool of 6 normals: x 6"
    assert kinds == {}


def test_defects_alone_can_be_looked_at(tmp_path: Path) -> None:
    for number in range(2):
        storage.put(str(tmp_path / f"set/a/cut/{number}.png"), images.encode_png(photo(number)))
        mask = np.zeros((SIZE, SIZE, 1), np.uint8)
        mask[10:20, 10:20] = 255
        storage.put(str(tmp_path / f"set/a/cut/{number}_mask.png"), images.encode_png(mask))
    said, _ = run(str(tmp_path / "set"), str(tmp_path / "out"))
    assert any(line.split()[:5] == ["a", "cut", "-", "2", "2"] for line in said)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_pool(str(tmp_path / "pool"), 1)
    assert main(["inspect", str(tmp_path / "pool"), "--output", str(tmp_path / "out")]) == 0
    assert "0 of 3 photos are suspicious" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none"), "--output", str(tmp_path / "out")]) == 2
    assert "no images there" in capsys.readouterr().err
    assert main(["inspect", "seeds:0-9", "--output", str(tmp_path / "out")]) == 2
    assert "seeds are no photographs" in capsys.readouterr().err


def test_ray_sees_what_threads_see(tmp_path: Path, ray_cluster: None) -> None:
    write_split_set(str(tmp_path / "set"), {"train": (3, 2), "test": (1, 1)}, SIZE)
    tables = []
    for name, above in (("threads", 1000), ("ray", 0)):
        run(str(tmp_path / "set"), str(tmp_path / name), ray_above=above)
        tables.append(pq.read_table(tmp_path / name / PHOTOS))
    assert tables[0].equals(tables[1])


def test_nothing_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images there"):
        run(str(tmp_path / "nothing"), str(tmp_path / "out"))
