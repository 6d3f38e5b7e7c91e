"""A defect set is listed alike in both layouts, with its masks and splits, and loaded whole or not at all."""

import io
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from conftest import S3Server
from PIL import Image, ImageFilter, ImageOps

from raygen import images, storage, surfaces
from raygen.data.defects import group_by_cell, list_defect_set, load_masks, load_photos, read_mask
from raygen.data.photo import Photo
from raygen.data.table17 import MVTEC_TYPES, TABLE_17
from raygen.errors import UserError

SIZE = 32
PRODUCTS = sorted(surfaces.PRODUCTS)
PNG = images.encode_png(np.zeros((SIZE, SIZE, 1), np.uint8))


def write_defect_set(uri: str, rename: dict[str, str] | None = None, **options) -> dict[str, np.ndarray]:
    """Writes two normals a product and one defect a type, each with its mask; returns name -> pixels."""
    found = {}
    for name, pixels in surfaces.defect_set(num_normals=2, num_per_type=1, seed=0, size=SIZE, **options):
        for old, new in (rename or {}).items():
            name = name.replace(old, new)
        found[name] = pixels
        storage.put(storage.join(uri, name), images.encode_png(np.atleast_3d(pixels)))
    return found


def write_mvtec(uri: str, category: str, defects: dict[str, list[int]]) -> str:
    """Writes one category: two normals under train, one under test, and defects with masks."""
    base = storage.join(uri, category) if category else uri
    names = ["train/good/000.png", "train/good/001.png", "test/good/000.png"]
    for defect, ids in defects.items():
        names += [f"test/{defect}/{i:03d}.png" for i in ids]
        names += [f"ground_truth/{defect}/{i:03d}_mask.png" for i in ids]
    for name in names:
        storage.put(storage.join(base, name), PNG)
    return base


def names(photos: tuple[Photo, ...], base_uri: str) -> list[str]:
    return [photo.uri.removeprefix(base_uri + "/") for photo in photos]


def table(photos: tuple[Photo, ...]) -> dict[tuple[str, str, str], int]:
    return Counter((photo.product, photo.defect_type, photo.split) for photo in photos)


def test_our_layout(folder_uri: str) -> None:
    written = write_defect_set(folder_uri)
    photos = list_defect_set(folder_uri + "/")
    assert names(photos, folder_uri) == sorted(name for name in written if "_mask" not in name)
    for photo in photos:
        product, defect_type, name = photo.uri.split("/")[-3:]
        mask_uri = photo.uri.replace(".png", "_mask.png") if defect_type != "normal" else None
        assert photo[1:5] == (product, defect_type, mask_uri, "")
        assert photo.etag == storage.stat(photo.uri).etag
        assert mask_uri is None or storage.exists(mask_uri), name
    assert set(table(photos)) == {
        (product, defect_type, "") for product in PRODUCTS for defect_type in ("normal", "scratches", "spots")
    }


def test_folders_are_matched_in_any_case_and_files_by_extension(tmp_path: Path) -> None:
    for name in (
        "A/Good/1.JPG", "A/NORMAL/2.png", "A/Scratches/3.tiff", "A/Scratches/3_mask.png", "A/Spots/4.webp",
        "A/Spots/5_mask.png", "A/Spots/notes.txt", "A/stray.png", "A/Spots/deeper/6.png", "top.png",
    ):  # fmt: skip
        storage.put(str(tmp_path / name), b"x")
    photos = list_defect_set(str(tmp_path))
    assert [(Path(p.uri).name, p.defect_type, p.mask_uri and Path(p.mask_uri).name) for p in photos] == [
        ("1.JPG", "normal", None),
        ("2.png", "normal", None),
        ("3.tiff", "scratches", "3_mask.png"),
        ("4.webp", "spots", None),
    ]


def test_one_listing_and_no_request_per_file(s3_uri: str, s3_server: S3Server) -> None:
    write_defect_set(s3_uri)
    before = s3_server.requests()
    assert len(list_defect_set(s3_uri)) == 12
    # And a normal and a defect of each product, for how deep they are.
    assert s3_server.requests() - before == {"LIST": 1, "GET": 2 * len(PRODUCTS)}
    storage.put(storage.join(s3_uri, "metadata.csv"), b"file,text\n")
    before = s3_server.requests()
    list_defect_set(s3_uri)
    assert (s3_server.requests() - before).total() == 2 + 2 * len(PRODUCTS)


def test_types_rename_and_drop_folders(tmp_path: Path) -> None:
    write_defect_set(str(tmp_path), {"/scratches/": "/Crack/"})
    photos = list_defect_set(str(tmp_path), types={"crack": "scratches", "Spots": "-"})
    assert {photo.defect_type for photo in photos} == {"normal", "scratches"}
    assert all(photo.mask_uri for photo in photos if photo.defect_type == "scratches")
    photos = list_defect_set(str(tmp_path), types={"spots": "", "good": "normal"})
    assert {photo.defect_type for photo in photos} == {"normal", "crack"}


def test_products_restrict(tmp_path: Path) -> None:
    write_defect_set(str(tmp_path))
    photos = list_defect_set(str(tmp_path), products=["woven_fabric", "brushed_metal"])
    assert {photo.product for photo in photos} == {"woven_fabric", "brushed_metal"}
    with pytest.raises(UserError, match="no product 'steel' there; choose from brushed_metal, grained_lea"):
        list_defect_set(str(tmp_path), products=["brushed_metal", "steel"])


def test_mvtec_layout(folder_uri: str) -> None:
    write_mvtec(folder_uri, "bottle", {"broken_large": [0, 1], "Crack": [0]})
    write_mvtec(folder_uri, "grid", {"bent": [3]})
    photos = list_defect_set(folder_uri)
    assert table(photos) == {
        ("bottle", "normal", "train"): 2,
        ("bottle", "normal", "test"): 1,
        ("bottle", "broken_large", ""): 2,
        ("bottle", "crack", ""): 1,
        ("grid", "normal", "train"): 2,
        ("grid", "normal", "test"): 1,
        ("grid", "bent", ""): 1,
    }
    for photo in photos:
        mask_uri = photo.uri.replace("/test/", "/ground_truth/").replace(".png", "_mask.png")
        assert photo.mask_uri == (None if photo.defect_type == "normal" else mask_uri)
    assert len(list_defect_set(folder_uri, products=["grid"])) == 4


def test_mvtec_with_splits_of_our_kind(tmp_path: Path) -> None:
    write_mvtec(str(tmp_path), "bottle", {"crack": [0, 1, 2]})
    rows = "id,product,domain,split\n000,bottle,crack,train\n001,bottle,Crack,test\n002,bottle,crack,\n"
    (tmp_path / "metadata.csv").write_text(rows)
    photos = list_defect_set(str(tmp_path))
    assert [(p.defect_type, p.split) for p in photos] == [
        ("crack", "train"),
        ("crack", "test"),
        ("crack", ""),
        ("normal", "test"),  # of a normal the folder tells: both folders count from 000
        ("normal", "train"),
        ("normal", "train"),
    ]


def test_one_mvtec_category(folder_uri: str) -> None:
    category_uri = write_mvtec(folder_uri, "leather", {"cut": [0, 1], "poke": [0]})
    photos = list_defect_set(category_uri, types=TABLE_17)
    assert photos == list_defect_set(folder_uri, types=TABLE_17)
    assert table(photos) == {
        ("leather", "normal", "train"): 2,
        ("leather", "normal", "test"): 1,
        ("leather", "scratches", ""): 2,
        ("leather", "spots", ""): 1,
    }


def test_one_mvtec_category_from_within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(write_mvtec(str(tmp_path), "bottle", {"crack": [0]}))
    assert {photo.product for photo in list_defect_set(".")} == {"bottle"}


def test_table_17_sums_as_the_paper_says(tmp_path: Path) -> None:
    """MVTec AD's own counts of photos, of which the paper takes those in its table."""
    counts = {
        "carpet": {"color": 19, "cut": 17, "hole": 17, "metal_contamination": 17, "thread": 19},
        "leather": {"color": 19, "cut": 19, "fold": 17, "glue": 19, "poke": 18},
        "tile": {"crack": 17, "glue_strip": 18, "gray_stroke": 16, "oil": 18, "rough": 17},
        "wood": {"color": 8, "combined": 11, "hole": 10, "liquid": 10, "scratch": 21},
    }
    for category, defects in counts.items():
        for folder in ("train/good", *(f"test/{defect}" for defect in defects)):
            (tmp_path / category / folder).mkdir(parents=True)
            for number in range(defects.get(folder.removeprefix("test/"), 1)):
                (tmp_path / category / folder / f"{number:03d}.png").touch()
    photos = list_defect_set(str(tmp_path), types=TABLE_17)
    assert {key[:2]: count for key, count in table(photos).items() if key[1] != "normal"} == {
        ("carpet", "scratches"): 24,
        ("carpet", "spots"): 23,
        ("leather", "scratches"): 48,
        ("leather", "spots"): 39 - 1,  # glue's 009, which the paper counts under both
        ("tile", "scratches"): 17,
        ("wood", "scratches"): 19,
        ("wood", "spots"): 12,
    }
    of_color = [Path(p.uri).stem for p in photos if "/wood/test/color/" in p.uri]
    assert of_color == ["003", "005"]


def test_table_17_applies_only_when_it_is_asked_for(tmp_path: Path) -> None:
    """One's own product may be called as a category of MVTec AD is."""
    write_mvtec(str(tmp_path), "tile", {"crack": [0], "oil": [0]})
    write_mvtec(str(tmp_path), "mug", {"chip": [0]})
    assert "tile" in MVTEC_TYPES
    plain = {("tile", "crack", ""): 1, ("tile", "oil", ""): 1, ("mug", "chip", ""): 1}
    assert {key: n for key, n in table(list_defect_set(str(tmp_path))).items() if key[1] != "normal"} == plain
    photos = list_defect_set(str(tmp_path), types=TABLE_17)
    assert {photo[1:3] for photo in photos if photo.defect_type != "normal"} == {
        ("tile", "scratches"),
        ("mug", "chip"),
    }


@pytest.mark.parametrize(
    ("files", "types", "message"),
    [
        ([], {}, "nothing there; expected {product}/{defect_type}/{id}.png"),
        (["a/notes.txt", "b.png"], {}, "no photos among the 2 files there; expected"),
        (["a/b/spots/0.png", "a/spots/0_mask.png"], {}, "no photos among the 2 files there; expected"),
        (["a/spots/0.png"], {}, "no normals there; put some into {product}/normal/"),
        (["a/normal/0.png"], {}, "no defects there; put some into {product}/{defect_type}/"),
        (["a/normal/0.png", "a/spots/0.png"], {"spots": "-"}, "no defects there (left out: a/spots); put"),
        (
            ["tile/train/good/0.png", "tile/test/oil/0.png"],
            TABLE_17,
            "no defects there (left out: tile/oil); put",
        ),
    ],
)
def test_sets_that_cannot_be_used(folder_uri: str, files: list[str], types, message: str) -> None:
    for name in files:
        storage.put(storage.join(folder_uri, name), PNG)
    with pytest.raises(UserError) as caught:
        list_defect_set(folder_uri, types=types)
    assert message in str(caught.value)
    assert folder_uri in str(caught.value)
    assert "\n" not in str(caught.value)


def test_photos_are_loaded_in_order(folder_uri: str) -> None:
    written = write_defect_set(folder_uri, channels=3)
    photos = list_defect_set(folder_uri)[::-1]
    pixels = load_photos(photos, SIZE, 3, num_threads=3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, np.stack([written[name] for name in names(photos, folder_uri)]))


@pytest.mark.parametrize(("size", "channels"), [(16, 1), (48, 3)])
def test_photos_of_another_size_are_brought_to_it(tmp_path: Path, size: int, channels: int) -> None:
    wide = np.repeat(np.arange(60, dtype=np.uint8)[None, :, None], 40, axis=0)
    for name in ("a/normal/0.png", "a/spots/0.png"):
        storage.put(str(tmp_path / name), images.encode_png(wide))
    pixels = load_photos(list_defect_set(str(tmp_path)), size, channels)
    assert pixels.shape == (2, size, size, channels)
    assert 25 < pixels.mean() < 35  # its middle
    assert load_photos([], size, channels).shape == (0, size, size, channels)


def test_an_unusable_photo_is_named(folder_uri: str) -> None:
    write_defect_set(folder_uri)
    spoilt = storage.join(folder_uri, "grained_leather/spots/000000.png")
    storage.put(spoilt, storage.read(spoilt)[:200])
    photos = list_defect_set(folder_uri)
    with pytest.raises(UserError, match=rf"{spoilt}: truncated: .*; repair or remove it"):
        load_photos(photos, SIZE, 1)
    storage.put(spoilt, PNG)
    with pytest.raises(UserError, match=rf"{spoilt}: gone or changed since it was listed"):
        load_photos(photos, SIZE, 1)
    storage.delete(spoilt)
    with pytest.raises(UserError, match=rf"{spoilt}: gone or changed since it was listed"):
        load_photos(photos, SIZE, 1)


def test_cells_are_in_a_fixed_order(tmp_path: Path) -> None:
    write_defect_set(str(tmp_path), {"/scratches/": "/dents/"})  # sorts before "normal"
    photos = list_defect_set(str(tmp_path))
    for some in (photos, photos[::-1]):
        cells = group_by_cell(some)
        assert list(cells) == [(p, kind) for p in PRODUCTS for kind in ("normal", "dents", "spots")]
        assert sorted(i for indices in cells.values() for i in indices) == list(range(len(photos)))
        for cell, indices in cells.items():
            assert indices == sorted(indices)
            assert {(some[i].product, some[i].defect_type) for i in indices} == {cell}


def test_neither_torch_nor_ray_is_needed() -> None:
    code = "import sys, raygen.data.defects; assert not {'torch', 'ray', 'boto3'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------ what is in a mask


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


SQUARE = np.zeros((32, 48), bool)
SQUARE[4:10, 30:40] = True


def one_masked(folder: Path, mask: bytes, photo: bytes | None = None, extension: str = "png") -> Photo:
    storage.put(str(folder / "p/spots/0.png"), photo or encoded(Image.new("L", (48, 32), 90)))
    storage.put(str(folder / f"p/spots/0_mask.{extension}"), mask)
    (found,) = list_defect_set(str(folder), kinds=["defects"])
    return found


def colours(colour: tuple[int, ...]) -> Image.Image:
    return Image.fromarray(np.where(SQUARE[..., None], np.array(colour), 0).astype(np.uint8))


def with_palette(*palette: int) -> Image.Image:
    image = Image.fromarray(SQUARE.astype(np.uint8)).convert("P")
    image.putpalette([*palette, *[0] * (768 - len(palette))])
    return image


SOFT = Image.fromarray(SQUARE.astype(np.uint8) * 255).filter(ImageFilter.GaussianBlur(1))
ALPHA = np.dstack([np.full((32, 48, 3), 255, np.uint8), SQUARE.astype(np.uint8) * 255])

MASKS = {
    "255": Image.fromarray(SQUARE.astype(np.uint8) * 255),
    "1": Image.fromarray(SQUARE.astype(np.uint8)),
    "7": Image.fromarray(SQUARE.astype(np.uint8) * 7),
    "1 bit": Image.fromarray(SQUARE),
    "16 bits, 1": Image.fromarray(SQUARE.astype(np.uint16)),
    "16 bits, 65535": Image.fromarray(SQUARE.astype(np.uint16) * 65535),
    "32 bits": Image.fromarray(SQUARE.astype(np.int32)),
    "red": colours((200, 0, 0)),
    "dark blue": colours((0, 0, 20)),
    "palette, black and maroon": with_palette(0, 0, 0, 128, 0, 0),
    "palette, white and red": with_palette(255, 255, 255, 255, 0, 0),
    "opacity": Image.fromarray(ALPHA),
    "colours on what is clear": Image.fromarray(ALPHA * np.array([1, 0, 0, 1], np.uint8)),
    "soft edges": SOFT,
}


@pytest.mark.parametrize("name", MASKS)
def test_whatever_is_no_background_is_defect(tmp_path: Path, name: str) -> None:
    photo = one_masked(tmp_path, encoded(MASKS[name], "TIFF" if "bits" in name else "PNG"))
    found = read_mask(photo)
    assert found.dtype == bool
    if name == "soft edges":
        assert (found & SQUARE).sum() > 0.9 * (found | SQUARE).sum()
    else:
        np.testing.assert_array_equal(found, SQUARE)


def test_a_jpeg_mask_is_told_at_the_middle(tmp_path: Path) -> None:
    photo = one_masked(tmp_path, encoded(MASKS["255"], "JPEG", quality=60), extension="jpg")
    assert len(np.unique(np.asarray(Image.open(photo.mask_uri or "")))) > 2
    np.testing.assert_array_equal(read_mask(photo), SQUARE)


def test_parts_are_united_and_a_smaller_mask_is_brought_to_the_photo(tmp_path: Path) -> None:
    photo = one_masked(tmp_path, encoded(MASKS["255"]))
    storage.put(
        str(tmp_path / "p/spots/0_mask_2.png"), encoded(MASKS["1"].transpose(Image.Transpose.ROTATE_180))
    )
    (photo,) = list_defect_set(str(tmp_path), kinds=["defects"])
    np.testing.assert_array_equal(read_mask(photo), SQUARE | SQUARE[::-1, ::-1])
    half = one_masked(tmp_path / "half", encoded(MASKS["1"].resize((24, 16), Image.Resampling.NEAREST)))
    found = read_mask(half)
    assert found.shape == SQUARE.shape
    assert (found & SQUARE).sum() > 0.9 * (found | SQUARE).sum()


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (48, 32)), "its mask is empty"),
        (
            Image.fromarray((~SQUARE).astype(np.uint8) * 255),
            "its mask marks 96% of the photo: is it inverted",
        ),
        (Image.new("L", (48, 32), 255), "its mask marks 100% of the photo"),
        (Image.new("L", (32, 32), 255), "its mask is 32×32 px, the photo 48×32"),
        (Image.new("F", (48, 32), 1.0), "unsupported"),
    ],
)
def test_a_mask_that_cannot_be_one_is_an_error_and_not_a_lesson(tmp_path: Path, mask, message: str) -> None:
    photo = one_masked(tmp_path, encoded(mask, "TIFF"))
    with pytest.raises(UserError, match=message) as caught:
        load_masks([photo], 32)
    assert "0_mask.png" in str(caught.value)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photo_and_its_mask_lie_on_each_other(tmp_path: Path, orientation: int) -> None:
    """Whether the mask was drawn on the photo as stored or as shown; where sizes do not tell, it is refused."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.where(SQUARE, 250, 10).astype(np.uint8))
    photo = encoded(stored, exif=exif)
    shown = ImageOps.exif_transpose(Image.open(io.BytesIO(photo)))
    upright = np.asarray(shown) > 127
    both = one_masked(tmp_path / "both", encoded(MASKS["255"], exif=exif), photo)
    np.testing.assert_array_equal(read_mask(both), upright)
    as_stored = one_masked(tmp_path / "stored", encoded(MASKS["255"]), photo)
    as_shown = one_masked(tmp_path / "shown", encoded(Image.fromarray(upright)), photo)
    if orientation in (2, 3, 4):
        for found in (as_stored, as_shown):
            with pytest.raises(UserError, match=f"turned by EXIF orientation {orientation}"):
                read_mask(found)
    else:
        np.testing.assert_array_equal(read_mask(as_stored), upright)
        np.testing.assert_array_equal(read_mask(as_shown), upright)


def test_values_of_a_mask_may_be_types(folder_uri: str) -> None:
    values = np.zeros((32, 48), np.uint8)
    values[2:6, 2:6], values[20:28, 30:40], values[10:12, 10:30] = 1, 2, 3
    storage.put(storage.join(folder_uri, "p/ok/0.png"), encoded(Image.new("L", (48, 32), 90)))
    storage.put(storage.join(folder_uri, "p/defect/0.png"), encoded(Image.new("L", (48, 32), 90)))
    storage.put(storage.join(folder_uri, "p/defect/0_mask.png"), encoded(Image.fromarray(values)))
    named = {"1": "Scratch", "2": "spot", "3": "scratch"}
    photos = list_defect_set(folder_uri, mask_values=named)
    assert [(photo.defect_type, photo.mask_part) for photo in photos] == [
        ("scratch", "1,3"), ("spot", "2"), ("normal", ""),
    ]  # fmt: skip
    scratch, spot, _ = (Photo.of_row(photo.row()) for photo in photos)
    np.testing.assert_array_equal(read_mask(scratch), np.isin(values, (1, 3)))
    np.testing.assert_array_equal(read_mask(spot), values == 2)
    left = list_defect_set(folder_uri, mask_values=named | {"2": "-"}, kinds=["defects"])
    assert [photo.defect_type for photo in left] == ["scratch"]
    with pytest.raises(UserError, match=r'0_mask\.png has the value 3, .*"3" = "-"'):
        list_defect_set(folder_uri, mask_values={"1": "a", "2": "b"})
    with pytest.raises(UserError, match="mask_values: 'red' is no value"):
        list_defect_set(folder_uri, mask_values={"red": "a"})


def test_colours_of_a_mask_may_be_types(tmp_path: Path) -> None:
    one_masked(tmp_path, encoded(colours((255, 0, 16))))
    (photo,) = list_defect_set(str(tmp_path), kinds=["defects"], mask_values={"#ff0010": "crack"})
    assert photo.defect_type == "crack"
    np.testing.assert_array_equal(read_mask(photo), SQUARE)


def test_a_damaged_photo_is_told_where_its_mask_is_read(tmp_path: Path) -> None:
    photo = one_masked(tmp_path, encoded(MASKS["255"]))
    storage.put(photo.uri, storage.read(photo.uri)[:60])
    with pytest.raises(UserError, match=r"0\.png: truncated"):
        read_mask(photo._replace(etag=None))
