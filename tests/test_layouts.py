"""Public data sets, built small as their documentation lays them out, are read right, on a disk and on S3."""

import io
from collections.abc import Mapping

import numpy as np
import pytest
from PIL import Image

from raygen import storage
from raygen.data.layouts import BY_MASK, recognise
from raygen.data.photo import Photo
from raygen.data.survey import survey
from raygen.errors import UserError

PHOTO = np.random.default_rng(0).integers(60, 200, (16, 16), dtype=np.uint8)
MARKED, BLANK = np.zeros((16, 16), np.uint8), np.zeros((16, 16), np.uint8)
MARKED[4:8, 4:8] = 255

_KINDS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "bmp": "BMP", "tif": "TIFF"}


def encoded(pixels: np.ndarray | Image.Image, name: str) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, _KINDS[name.rpartition(".")[2].lower()])
    return file.getvalue()


def write(uri: str, files: Mapping[str, np.ndarray | Image.Image | str | None]) -> None:
    """Writes a set: pixels or, for None, a photo; or text."""
    for name, content in files.items():
        data = (
            content.encode()
            if isinstance(content, str)
            else encoded(PHOTO if content is None else content, name)
        )
        storage.put(storage.join(uri, name), data)


def read(uri: str, **options) -> dict[str, tuple]:
    """Photo -> product, type, split and its masks, all below the set."""

    def below(name: str) -> str:
        return name.removeprefix(f"{uri}/")

    return {
        below(photo.uri): (photo.product, photo.defect_type, photo.split, *map(below, photo.mask_uris))
        for photo in survey(uri, **options).photos
    }


SETS: dict[str, tuple[dict, dict, str]] = {
    # name: (files beside their content, photo -> what it is, the layout's name begins)
    "MVTec AD": (
        {
            "bottle/train/good/000.png": None,
            "bottle/test/good/000.png": None,
            "bottle/test/broken_large/000.png": None,
            "bottle/ground_truth/broken_large/000_mask.png": MARKED,
        },
        {
            "bottle/train/good/000.png": ("bottle", "normal", "train"),
            "bottle/test/good/000.png": ("bottle", "normal", "test"),
            "bottle/test/broken_large/000.png": (
                "bottle", "broken_large", "", "bottle/ground_truth/broken_large/000_mask.png",
            ),
        },
        "MVTec AD",
    ),
    "MVTec LOCO AD": (
        {
            "bag/train/good/000.png": None,
            "bag/validation/good/000.png": None,
            "bag/test/good/000.png": None,
            "bag/test/logical_anomalies/000.png": None,
            "bag/ground_truth/logical_anomalies/000/000.png": MARKED,
            "bag/ground_truth/logical_anomalies/000/001.png": MARKED,
        },
        {
            "bag/train/good/000.png": ("bag", "normal", "train"),
            "bag/validation/good/000.png": ("bag", "normal", "val"),
            "bag/test/good/000.png": ("bag", "normal", "test"),
            "bag/test/logical_anomalies/000.png": (
                "bag", "logical_anomalies", "",
                "bag/ground_truth/logical_anomalies/000/000.png", "bag/ground_truth/logical_anomalies/000/001.png",
            ),
        },
        "MVTec AD",
    ),
    "MVTec AD 2": (
        {
            "can/train/good/000_regular.png": None,
            "can/validation/good/000_regular.png": None,
            "can/test_public/good/000_regular.png": None,
            "can/test_public/bad/000_overexposed.png": None,
            "can/test_public/ground_truth/bad/000_overexposed_mask.png": MARKED,
            "can/test_private/000_regular.png": None,  # nobody says what it shows
        },
        {
            "can/train/good/000_regular.png": ("can", "normal", "train"),
            "can/validation/good/000_regular.png": ("can", "normal", "val"),
            "can/test_public/good/000_regular.png": ("can", "normal", "test"),
            "can/test_public/bad/000_overexposed.png": (
                "can", "bad", "", "can/test_public/ground_truth/bad/000_overexposed_mask.png",
            ),
        },
        "MVTec AD",
    ),
    "VisA": (
        {
            "candle/Data/Images/Normal/0000.JPG": None,
            "candle/Data/Images/Anomaly/000.JPG": None,
            "candle/Data/Masks/Anomaly/000.png": np.sign(MARKED),
            "candle/image_anno.csv": "image,label,mask\n",
        },
        {
            "candle/Data/Images/Normal/0000.JPG": ("candle", "normal", ""),
            "candle/Data/Images/Anomaly/000.JPG": ("candle", "anomaly", "", "candle/Data/Masks/Anomaly/000.png"),
        },
        "{product}/{defect_type}/",
    ),
    "BTAD": (
        {
            "01/train/ok/0000.bmp": None,
            "01/test/ok/0001.bmp": None,
            "01/test/ko/0000.bmp": None,
            "01/ground_truth/ko/0000.png": MARKED,
        },
        {
            "01/train/ok/0000.bmp": ("01", "normal", "train"),
            "01/test/ok/0001.bmp": ("01", "normal", "test"),
            "01/test/ko/0000.bmp": ("01", "ko", "", "01/ground_truth/ko/0000.png"),
        },
        "MVTec AD",
    ),
    "KolektorSDD": (
        {f"kos{kos:02}/Part{part}.jpg": None for kos in (1, 2) for part in (0, 1)}
        | {
            f"kos{kos:02}/Part{part}_label.bmp": MARKED if (kos, part) == (2, 1) else BLANK
            for kos in (1, 2)
            for part in (0, 1)
        },
        {
            "kos01/Part0.jpg": ("set", "normal", ""),
            "kos01/Part1.jpg": ("set", "normal", ""),
            "kos02/Part0.jpg": ("set", "normal", ""),
            "kos02/Part1.jpg": ("set", BY_MASK, "", "kos02/Part1_label.bmp"),
        },
        "KolektorSDD",
    ),
    "KolektorSDD2": (
        {f"{split}/{number}.png": None for split in ("train", "test") for number in (10000, 10001)}
        | {
            f"{split}/{number}_GT.png": MARKED if number == 10001 else BLANK
            for split in ("train", "test")
            for number in (10000, 10001)
        },
        {
            "train/10000.png": ("set", "normal", "train"),
            "train/10001.png": ("set", BY_MASK, "train", "train/10001_GT.png"),
            "test/10000.png": ("set", "normal", "test"),
            "test/10001.png": ("set", BY_MASK, "test", "test/10001_GT.png"),
        },
        "photos of one product, set, whose masks tell the defects with splits as folders",
    ),
    "DAGM 2007": (
        {
            "Class1/Train/0001.PNG": None,
            "Class1/Train/0576.PNG": None,
            "Class1/Train/Label/0576_label.PNG": MARKED,
            "Class1/Train/Label/Labels.txt": "1\n",
            "Class1/Test/0002.PNG": None,
            "Class1/Test/0003.PNG": None,
            "Class1/Test/Label/0003_label.PNG": MARKED,
        },
        {
            "Class1/Train/0001.PNG": ("Class1", "normal", "train"),
            "Class1/Train/0576.PNG": ("Class1", BY_MASK, "train", "Class1/Train/Label/0576_label.PNG"),
            "Class1/Test/0002.PNG": ("Class1", "normal", "test"),
            "Class1/Test/0003.PNG": ("Class1", BY_MASK, "test", "Class1/Test/Label/0003_label.PNG"),
        },
        "{product}/, whose masks tell the defects with splits",
    ),
    "Magnetic tile": (
        {
            "MT_Free/Imgs/exp1_num_1.jpg": None,
            "MT_Free/Imgs/exp1_num_1.png": BLANK,
            "MT_Blowhole/Imgs/exp1_num_3.jpg": None,
            "MT_Blowhole/Imgs/exp1_num_3.png": MARKED,
        },
        {
            "MT_Free/Imgs/exp1_num_1.jpg": ("set", "normal", ""),
            "MT_Blowhole/Imgs/exp1_num_3.jpg": ("set", "blowhole", "", "MT_Blowhole/Imgs/exp1_num_3.png"),
        },
        "the magnetic tile set",
    ),
    "Real-IAD": (
        {
            "audiojack/OK/S0001/audiojack_0001_OK_C1_2023.jpg": None,
            "audiojack/NG/BX/S0001/audiojack_0001_NG_BX_C1_2023.jpg": None,
            "audiojack/NG/BX/S0001/audiojack_0001_NG_BX_C1_2023.png": MARKED,
        },
        {
            "audiojack/OK/S0001/audiojack_0001_OK_C1_2023.jpg": ("audiojack", "normal", ""),
            "audiojack/NG/BX/S0001/audiojack_0001_NG_BX_C1_2023.jpg": (
                "audiojack", "bx", "", "audiojack/NG/BX/S0001/audiojack_0001_NG_BX_C1_2023.png",
            ),
        },
        "Real-IAD",
    ),
    "one product": (
        {"good/0.png": None, "crack/0.png": None, "masks/crack/0.png": MARKED},
        {"good/0.png": ("set", "normal", ""), "crack/0.png": ("set", "crack", "", "masks/crack/0.png")},
        "{defect_type}/ of one product, set",
    ),
    "splits above": (
        {f"{split}/steel/{kind}/0.png": None for split in ("train", "valid", "test") for kind in ("ok", "dent")}
        | {f"{split}/steel/dent/0_mask.png": MARKED for split in ("train", "valid", "test")},
        {
            f"{folder}/steel/{kind}/0.png": ("steel", name, split)
            + ((f"{folder}/steel/dent/0_mask.png",) if kind == "dent" else ())
            for folder, split in (("train", "train"), ("valid", "val"), ("test", "test"))
            for kind, name in (("ok", "normal"), ("dent", "dent"))
        },
        "{product}/{defect_type}/ with splits as folders",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_public_sets_are_read_as_they_lie(folder_uri: str, name: str) -> None:
    files, photos, layout = SETS[name]
    uri = storage.join(folder_uri, "set")
    write(uri, files)
    assert read(uri) == photos
    first, *_ = survey(uri).notes
    assert first.startswith(f"read as {layout}")


def test_what_nobody_labelled_is_left_alone_and_said(tmp_path) -> None:
    write(str(tmp_path), SETS["MVTec AD 2"][0])
    _, note = survey(str(tmp_path)).notes
    assert note == (
        f"WARNING: 1 image: lies elsewhere, such as {tmp_path}/can/test_private/000_regular.png: left alone"
    )


def test_parts_of_one_thing_are_a_group(tmp_path) -> None:
    for name, groups in (
        ("KolektorSDD", {"kos01", "kos02"}),
        ("Real-IAD", {"audiojack/normal/S0001", "audiojack/bx/S0001"}),
    ):
        write(str(tmp_path / name), SETS[name][0])
        assert {photo.group for photo in survey(str(tmp_path / name)).photos} == groups


def test_a_product_may_be_called_as_folders_of_masks_are(tmp_path) -> None:
    write(str(tmp_path), {"label/normal/0.png": None, "label/smear/0.png": None})
    assert {photo[:2] for photo in read(str(tmp_path)).values()} == {("label", "normal"), ("label", "smear")}


def test_defects_of_one_product_without_normals(tmp_path) -> None:
    uri = str(tmp_path / "set")
    write(
        uri, {"crack/0.png": None, "crack/0_mask.png": MARKED, "dent/0.png": None, "dent/0_mask.png": MARKED}
    )
    assert {row[:2] for row in read(uri, kinds=["defects"]).values()} == {("set", "crack"), ("set", "dent")}


def test_no_layout_is_no_guess() -> None:
    assert recognise("set", [""], []) is None
    assert recognise("set", ["a/b/c/d"], []) is None


def test_photos_are_frozen_as_rows() -> None:
    plain = Photo("u", "p", "t", None, "", "e", group="g")
    assert plain.row() == ["u", "p", "t", None, "", "e"]
    parts = plain._replace(mask_uri="m", more_masks=("n",), mask_part="1", group="")
    assert Photo.of_row(parts.row()) == parts
    with_parts = [*plain.row(), [], "2"]
    assert Photo.of_row(with_parts).mask_part == "2"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"a/ok/0.png": None, "a/cut/0.png": None, "a/cut/0_mask.png": MARKED, "a/cut/0_GT.png": MARKED},
            r"a/cut/0\.png: two files may be its mask",
        ),
        (
            {"a/ok/0.png": None, "a/cut/0.png": None, "a/dent/0.png": None, "a/masks/0.png": MARKED},
            r"a/masks/0\.png may be the mask of .*a/cut/0\.png and of .*a/dent/0\.png",
        ),
        ({"a/ok/0.png": None, "a/cut/0.jpg": None, "a/cut/0.png": None}, "cannot be told which is photo"),
        (
            {"a/ok/0.png": None, "a/cut/0.png": None, "a/marks/0.png": MARKED},
            r'a/marks/0\.png: looks like a mask, .*types = \{marks = "-"\}',
        ),
        ({"a/ok/0.png": None, "a/cut/0.png": None, "a/b\x07d/0.png": None}, "is no name of a defect type"),
        ({"a/ok/0.png": None, " /cut/0.png": None}, "is no name of a product"),
    ],
)
def test_what_cannot_be_told_is_asked(tmp_path, files, message: str) -> None:
    write(str(tmp_path), files)
    with pytest.raises(UserError, match=message) as caught:
        survey(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_masks_of_no_photo_are_said(tmp_path) -> None:
    write(str(tmp_path), {"a/ok/0.png": None, "a/cut/0.png": None, "a/cut/7_mask.png": MARKED})
    assert [note for note in survey(str(tmp_path)).notes if "7_mask.png: left alone" in note]


@pytest.mark.parametrize(
    "suffix", ["_mask", "_MASK", "_GT", "-label", ".bm", " mask", "_groundtruth", "_mask_1"]
)
@pytest.mark.parametrize("extension", ["png", "bmp", "tif"])
def test_masks_by_every_name(tmp_path, suffix: str, extension: str) -> None:
    write(
        str(tmp_path), {"a/ok/0.png": None, "a/cut/x_1.png": None, f"a/cut/x_1{suffix}.{extension}": MARKED}
    )
    assert read(str(tmp_path))["a/cut/x_1.png"][3:] == (f"a/cut/x_1{suffix}.{extension}",)


def test_numbered_masks_are_parts_of_one(tmp_path) -> None:
    parts = {f"a/cut/0_mask_{number}.png": MARKED for number in (10, 2, 1)}
    write(str(tmp_path), {"a/ok/0.png": None, "a/cut/0.png": None, **parts})
    assert read(str(tmp_path))["a/cut/0.png"][3:] == tuple(f"a/cut/0_mask_{n}.png" for n in (1, 2, 10))


@pytest.mark.parametrize("spelling", [".", "..", "../set", "./"])
def test_a_set_may_be_spelt_in_many_ways(tmp_path, monkeypatch: pytest.MonkeyPatch, spelling: str) -> None:
    write(str(tmp_path / "set"), {"good/0.png": None, "crack/0.png": None, "crack/0_mask.png": MARKED})
    monkeypatch.chdir(tmp_path / ("set/good" if spelling == ".." else "set"))
    photos = survey(spelling).photos
    assert {photo.product for photo in photos} == {"set"}
    assert all(storage.exists(uri) for photo in photos for uri in (photo.uri, *photo.mask_uris))
