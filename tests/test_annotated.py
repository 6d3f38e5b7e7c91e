"""A folder that a labelling tool exported is a defect set, with its types, masks and normals."""

from pathlib import Path

import exports
import numpy as np
import pytest
from exports import BOXED, CRACK, SPOT
from factories import write_bank
from PIL import Image
from test_annotations import iou, write

from raygen import images, storage
from raygen.data.defects import MaskError, list_defect_set, read_mask
from raygen.data.photo import Photo
from raygen.data.survey import survey
from raygen.errors import UserError
from raygen.families.copy_paste.config import CopyPasteConfig


@pytest.mark.parametrize("export", exports.EXPORTS)
def test_an_export_is_a_defect_set(export: str, folder_uri: str) -> None:
    uri = storage.join(folder_uri, "tiles")
    write(uri, exports.EXPORTS[export]())
    found = survey(uri)
    assert found.notes[0].startswith("read as ")
    # A folder that is neither a split nor one of images is a product's.
    assert {photo.product for photo in found.photos} == {"parts" if export == "cvat" else "tiles"}
    crack, spot, dent = ("1", "3", "4") if "severstal" in export else ("crack", "spot", "dent")
    assert sorted((Path(photo.uri).name, photo.defect_type) for photo in found.photos) == [
        ("a.png", crack), ("a.png", spot), ("b.png", dent), ("c.png", "normal"),
    ]  # fmt: skip
    masks = {
        photo.defect_type: read_mask(Photo.of_row(photo.row())) for photo in found.photos if photo.mask_uri
    }
    if export == "voc":
        assert not masks
        return
    assert iou(masks[crack], CRACK) > 0.95
    assert export == "yolo" or iou(masks[spot], SPOT) > 0.95  # which has it as a square


def test_labels_are_types_and_a_photo_may_show_two(tmp_path: Path) -> None:
    write(str(tmp_path / "tiles"), exports.coco())
    photos = list_defect_set(str(tmp_path / "tiles"))
    assert [(Path(photo.uri).name, photo.defect_type, photo.mask_uri is not None) for photo in photos] == [
        ("a.png", "crack", True),
        ("a.png", "spot", True),
        ("b.png", "dent", False),
        ("c.png", "normal", False),
    ]
    renamed = list_defect_set(str(tmp_path / "tiles"), types={"Crack": "scratches", "spot": "-"})
    assert {photo.defect_type for photo in renamed} == {"scratches", "dent", "normal"}


def test_boxes_are_masks_where_that_is_asked_for(tmp_path: Path) -> None:
    write(str(tmp_path), exports.coco())
    assert any("boxes alone" in note for note in survey(str(tmp_path)).notes)
    [dent] = [photo for photo in survey(str(tmp_path), box_masks=True).photos if photo.defect_type == "dent"]
    np.testing.assert_array_equal(read_mask(dent), BOXED)


def test_what_nobody_annotated_is_left_alone_but_in_a_folder_of_normals(tmp_path: Path) -> None:
    more = exports.photos("train/", "z") | exports.photos("normal/", "n")
    write(str(tmp_path), exports.coco() | more)
    found = survey(str(tmp_path))
    assert {Path(photo.uri).name for photo in found.photos if photo.defect_type == "normal"} == {
        "c.png",
        "n.png",
    }
    assert [note for note in found.notes if "1 images are not annotated, such as" in note and "z.png" in note]


def test_an_annotation_that_does_not_fit_its_photo_is_a_bad_mask(tmp_path: Path) -> None:
    write(str(tmp_path), exports.coco())
    storage.put(str(tmp_path / "train/a.png"), images.encode_png(np.zeros((60, 60, 1), np.uint8)))
    photo = list_defect_set(str(tmp_path))[0]
    with pytest.raises(MaskError, match="annotated at 80 × 60 pixels, and the photo has 60 × 60"):
        read_mask(photo)


def test_a_turned_photo_turns_its_annotation(tmp_path: Path) -> None:
    """Tools draw on the photo as it is stored."""
    write(str(tmp_path), exports.coco())
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "train/a.png").save(tmp_path / "train/a.png", exif=exif)
    crack = list_defect_set(str(tmp_path))[0]
    assert iou(read_mask(crack), np.rot90(CRACK, -1)) > 0.95


def test_defects_of_an_export_are_cut_out(tmp_path: Path) -> None:
    """Each photo as often as it shows types, and what was taken of each is told apart."""
    pixels = np.full((exports.HEIGHT, exports.WIDTH), 150, np.uint8) + (
        np.indices((60, 80)).sum(0) % 5
    ).astype(np.uint8)
    pixels[CRACK | SPOT] = 40
    write(
        str(tmp_path / "set"), exports.coco() | {f"train/{name}.png": exports.png(pixels) for name in "abc"}
    )
    config = CopyPasteConfig(
        defects=str(tmp_path / "set"),
        output=str(tmp_path / "bank"),
        types={"dent": "-"},
        channels=1,
        image_size=64,
    )
    bank = write_bank(config)
    photo = f"{tmp_path}/set/train/a.png"
    assert set(bank.config.training["taken"]) == {f"{photo} as crack", f"{photo} as spot"}
    assert [reference.defect_type for reference in bank.references] == ["crack", "spot"]


def voc(name: str, label: str) -> bytes:
    """A box, as NEU-DET and GC10-DET have it."""
    box = "<xmin>10</xmin><ymin>20</ymin><xmax>30</xmax><ymax>40</ymax>"
    size = "<size><width>80</width><height>60</height><depth>1</depth></size>"
    found = f"<object><name>{label}</name><bndbox>{box}</bndbox></object>"
    return f"<annotation><filename>{name}</filename>{size}{found}</annotation>".encode()


def test_neu_det_and_gc10_det_have_types_splits_and_no_normals(folder_uri: str) -> None:
    grey = exports.png(np.zeros((exports.HEIGHT, exports.WIDTH), np.uint8))
    neu = {
        f"{split}/{folder}": data
        for split in ("train", "validation")
        for folder, data in (
            ("images/crazing/crazing_1.jpg", grey),
            ("annotations/crazing_1.xml", voc("crazing_1.jpg", "crazing")),
            ("images/rolled-in_scale/rolled-in_scale_2.jpg", grey),
            ("annotations/rolled-in_scale_2.xml", voc("rolled-in_scale_2", "rolled-in_scale")),
        )
    }
    gc10 = {
        "1/img_01.jpg": grey,
        "lable/img_01.xml": voc("img_01.jpg", "1_chongkong"),
        "2/img_02.jpg": grey,
        "lable/img_02.xml": voc("img_02.jpg", "2_hanfeng"),
    }
    for name, files in (("neu", neu), ("gc10", gc10)):
        write(storage.join(folder_uri, name), files)
    photos = list_defect_set(storage.join(folder_uri, "neu"), kinds=["defects"])
    assert sorted(photo[1:5] for photo in photos) == [
        ("neu", kind, None, split) for kind in ("crazing", "rolled-in_scale") for split in ("train", "val")
    ]
    photos = list_defect_set(storage.join(folder_uri, "gc10"), kinds=["defects"], box_masks=True)
    assert [photo[1:3] for photo in photos] == [("gc10", "1_chongkong"), ("gc10", "2_hanfeng")]
    assert all(read_mask(photo).sum() == 21 * 21 for photo in photos)


def test_two_labels_of_one_type_are_one_photo_and_one_mask(tmp_path: Path) -> None:
    write(str(tmp_path), exports.coco())
    photos = list_defect_set(str(tmp_path), types={"spot": "flaw", "crack": "flaw", "dent": "flaw"})
    assert [(Path(photo.uri).name, photo.defect_type) for photo in photos] == [
        ("a.png", "flaw"),
        ("b.png", "flaw"),
        ("c.png", "normal"),
    ]
    assert iou(read_mask(Photo.of_row(photos[0].row())), CRACK | SPOT) > 0.95
    assert photos[1].mask_uri is None
    with pytest.raises(UserError, match="no product 'x' there; choose from"):
        list_defect_set(str(tmp_path), products=["x"])
