"""Every labelling tool's export of the same few defects gives the same labels and masks."""

import json

import exports
import numpy as np
import pytest
from conftest import S3Server
from exports import BOXED, CRACK, HEIGHT, SPOT, WIDTH

from raygen import storage
from raygen.data.annotations import AnnotatedImage, Annotations, draw_mask, read_annotations
from raygen.data.annotations.label_studio import Brush
from raygen.errors import UserError

LABELS = {"a": {"crack": True, "spot": True}, "b": {"dent": False}, "c": {}}
SEVERSTAL = {"a": {"1": True, "3": True}, "b": {"4": True}, "c": {}}
NAMES = {
    "coco": "COCO JSON", "coco_lists": "COCO JSON", "datumaro": "Datumaro JSON", "yolo": "YOLO",
    "voc": "Pascal VOC", "labelme": "LabelMe", "cvat": "CVAT for images", "label_studio": "Label Studio",
    "supervisely": "Supervisely",
    "severstal": "Severstal's CSV", "severstal_old": "Severstal's CSV",
}  # fmt: skip


def write(uri: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        storage.put(storage.join(uri, name), data)


def read(uri: str) -> Annotations:
    found = read_annotations(uri, list(storage.list_files(uri)))
    assert found is not None
    return found


def by_stem(found: Annotations) -> dict[str, AnnotatedImage]:
    return {str(image.image_uri).split("/")[-1].removesuffix(".png"): image for image in found.images}


def draw(image: AnnotatedImage, label: str, boxes: bool = False, scale: int = 1) -> np.ndarray:
    mask = draw_mask(
        image.source_uri, image.etag, image.name, label, HEIGHT // scale, WIDTH // scale, boxes=boxes
    )
    assert mask.dtype == bool
    assert mask.shape == (HEIGHT // scale, WIDTH // scale)
    return mask


def iou(one: np.ndarray, other: np.ndarray) -> float:
    return (one & other).sum() / (one | other).sum()


@pytest.mark.parametrize("export", exports.EXPORTS)
def test_every_export_gives_the_same_labels_and_masks(export: str, folder_uri: str) -> None:
    files = exports.EXPORTS[export]()
    write(folder_uri, files)
    found = read(folder_uri + "/")
    assert found.format == NAMES[export]
    images = by_stem(found)
    assert len(found.images) == len(images) == 3
    is_severstal, is_voc = "severstal" in export, export == "voc"
    expected = SEVERSTAL if is_severstal else LABELS
    if is_voc:
        expected = {name: dict.fromkeys(labels, False) for name, labels in LABELS.items()}
    assert {name: image.labels for name, image in images.items()} == expected
    assert {image.split for image in found.images} == ({""} if export == "label_studio" else {"train"})
    for name, image in images.items():
        assert image.image_uri
        assert image.image_uri.removeprefix(folder_uri + "/") in files
        assert image.image_uri.endswith(f"/{name}.png")
    for image in found.images:
        if image.source_uri:
            assert image.etag == storage.stat(image.source_uri.partition("#")[0]).etag

    crack, spot, dent = ("1", "3", "4") if is_severstal else ("crack", "spot", "dent")
    if is_voc:
        assert "3 objects are boxes alone: no masks" in found.notes
        assert draw(images["a"], crack, boxes=True).sum() == 70 * 50
    else:
        assert iou(draw(images["a"], crack), CRACK) >= 0.95
        if export == "yolo":
            assert draw(images["a"], spot).sum() == 400
        else:
            np.testing.assert_array_equal(draw(images["a"], spot), SPOT)
    np.testing.assert_array_equal(draw(images["b"], dent, boxes=True), BOXED)
    if not is_severstal:
        with pytest.raises(UserError, match="'dent' has boxes alone, no outlines"):
            draw(images["b"], dent)
    with pytest.raises(UserError, match="'rust' is not on this image"):
        draw(images["a"], "rust")


def test_two_splits_may_have_photos_of_one_name(folder_uri: str) -> None:
    write(folder_uri, exports.coco(split="train") | exports.coco(split="valid", compressed=False))
    images = read(folder_uri).images
    assert [(image.name, image.split) for image in images] == [
        *((f"train/{name}.png", "train") for name in "abc"),
        *((f"valid/{name}.png", "val") for name in "abc"),
    ]
    np.testing.assert_array_equal(draw(images[3], "spot"), SPOT)


def test_splits_of_files_that_lie_apart_from_their_photos(tmp_path) -> None:
    """COCO's and Datumaro's own layouts: photos of one name in the folders of their splits."""
    (document,) = (data for name, data in exports.coco().items() if name.endswith(".json"))
    write(
        str(tmp_path),
        {"annotations/instances_train2017.json": document, "annotations/instances_val2017.json": document}
        | exports.photos("train2017/")
        | exports.photos("val2017/"),
    )
    found = read(str(tmp_path))
    assert [(image.name, image.split) for image in found.images] == [
        *((f"train2017/{name}.png", "train") for name in "abc"),
        *((f"val2017/{name}.png", "val") for name in "abc"),
    ]
    assert found.notes == [
        "2 crowds: several objects with one outline",
        "2 objects are boxes alone: no masks",
    ]


def test_photos_that_are_not_there_or_could_be_several(tmp_path) -> None:
    document = exports.coco()["train/_annotations.coco.json"]
    write(str(tmp_path), {"all.json": document} | exports.photos("x/", "ab") | exports.photos("y/", "a"))
    found = read(str(tmp_path))
    assert [(image.name, image.image_uri is None) for image in found.images] == [
        ("a.png", True),
        ("x/b.png", False),
        ("c.png", True),
    ]
    assert "2 annotated images are not there, or could be one of several files" in found.notes
    np.testing.assert_array_equal(draw(found.images[0], "spot"), SPOT)


def test_an_export_for_each_product(tmp_path) -> None:
    for product in ("bolt", "nut"):
        files = exports.yolo()
        files["data.yaml"] = files["data.yaml"].replace(b"crack", product.encode())
        write(str(tmp_path / product), files)
    found = read(str(tmp_path))
    assert [(image.name, set(image.labels)) for image in found.images if image.name.endswith("a.png")] == [
        ("bolt/train/images/a.png", {"bolt", "spot"}),
        ("nut/train/images/a.png", {"nut", "spot"}),
    ]
    assert {image.split for image in found.images} == {"train"}


def test_voc_masks_are_no_photos(tmp_path) -> None:
    document = exports.voc()["ANNOTATIONS/b.xml"]
    write(
        str(tmp_path),
        {"Annotations/b.xml": document, "SegmentationClass/b.png": b"", "JPEGImages/b.jpg": b""},
    )
    assert [image.name for image in read(str(tmp_path)).images] == ["JPEGImages/b.jpg"]


def test_label_studio_labels_of_their_own(tmp_path) -> None:
    """With <Labels> beside <Polygon>, a region has two results of one id; what nobody did is left out."""
    common = {"id": "r", "original_width": WIDTH, "original_height": HEIGHT, "to_name": "image"}
    points = {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "closed": True}
    results = [
        {**common, "type": "polygon", "value": points},
        {**common, "type": "labels", "value": {**points, "labels": ["crack"]}},
        {"id": "c", "type": "choices", "value": {"choices": ["good"]}},
    ]
    tasks = [
        {
            "id": 1,
            "data": {"text": "x", "image": "/data/upload/2/0123abcd-a.png"},
            "annotations": [{"result": results}],
        },
        {"id": 2, "data": {"image": "b.png"}, "annotations": []},
        {"id": 3, "data": {"image": "c.png"}, "annotations": [{"was_cancelled": True, "result": []}]},
    ]
    write(str(tmp_path), {"x.json": exports.dump(tasks), "a.png": b"", "b.png": b"", "c.png": b""})
    found = read(str(tmp_path))
    assert [(image.name, image.labels) for image in found.images] == [("0123abcd-a.png", {"crack": True})]
    assert found.images[0].image_uri == str(tmp_path / "a.png")
    assert draw(found.images[0], "crack").sum() == 40 * 30
    assert set(found.notes) == {
        "1 results of the kind choices, left out",
        "2 tasks that nobody has annotated, left out",
    }


def test_a_source_is_read_once(s3_uri: str, s3_server: S3Server) -> None:
    write(s3_uri, exports.coco())
    entries = list(storage.list_files(s3_uri))
    before = s3_server.requests()
    found = read_annotations(s3_uri, entries)
    assert found
    for _ in range(3):
        draw(found.images[0], "crack")
    assert s3_server.requests() - before == {"GET": 2}  # by who lists, and by who draws


def test_what_is_no_annotation(tmp_path) -> None:
    write(
        str(tmp_path),
        {
            "metadata.csv": b"id,product,domain,split\n1,a,b,train\n",
            "Class1/Train/Label/Labels.txt": b"1\n1\t0\t0001.PNG\t0\t0\n",
            "Class1/Train/0001.PNG": b"x",
            "a/1.png": b"x",
            "a/1.txt": b"a note on this photo\n",
            "a/2.png": b"x",
            "a/2.txt": b"",
            "other.csv": b"a,b\n1,2\n",
            "run.json": b"{}",
            "list.json": b"[1, 2]",
            "recipe.yaml": b"seed: 1\n",
            "layout.xml": b"<layout/>",
        },
    )
    assert read_annotations(str(tmp_path), list(storage.list_files(str(tmp_path)))) is None
    assert read_annotations(str(tmp_path), []) is None


def test_two_formats_are_refused(tmp_path) -> None:
    write(str(tmp_path), exports.coco() | exports.voc())
    with pytest.raises(
        UserError, match=r"2 formats, .*COCO JSON \(train/_annotations.coco.json\).*; keep one of them there"
    ):
        read(str(tmp_path))


def test_a_photo_that_two_files_describe_is_refused(tmp_path) -> None:
    files = exports.coco()
    write(str(tmp_path), files | {"train/copy.json": files["train/_annotations.coco.json"]})
    with pytest.raises(UserError, match=r"a\.png: annotated in .*_annotations.coco.json and in .*copy.json"):
        read(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.json", b'{"images": [', "a.json: not a JSON file that can be read"),
        ("a.json", b'{"images": [{"id": 1}], "annotations": []}', "not a COCO JSON .*no 'file_name'"),
        (
            "a.json",
            b'{"images": [], "annotations": [{"id": 4, "image_id": 1, "category_id": 1}]}',
            "annotation 4: no 'bbox'",
        ),
        (
            "a.json",
            b'{"images": [], "annotations": [{"id": 4, "image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4]}]}',
            "annotations of an image 1 that it does not list",
        ),
        ("a.json", b'[{"image": "a.png", "annotation_id": 1}]', "JSON-MIN; export it as JSON"),
        ("a.xml", b"<annotation><object>", "a.xml: not a XML file that can be read"),
        (
            "a.xml",
            b'<!DOCTYPE a [<!ENTITY x "y">]><annotation><filename>&x;</filename></annotation>',
            "EntitiesForbidden",
        ),
        ("a.xml", b"<annotations><track/></annotations>", "CVAT for video; export it as CVAT for images"),
        (
            "a.xml",
            b"<annotation><object><bndbox><xmin>x</xmin></bndbox></object></annotation>",
            "bndbox/xmin is no number",
        ),
        ("a.csv", b"ImageId,ClassId,EncodedPixels\na.png,1,3 4 5\n", "not pairs of start and length"),
    ],
)
def test_damaged_files_are_named(name: str, data: bytes, message: str, tmp_path) -> None:
    write(str(tmp_path), {name: data})
    with pytest.raises(UserError, match=message) as caught:
        read(str(tmp_path))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def one_coco(
    tmp_path, segmentation: object, size: tuple[int, int] = (HEIGHT, WIDTH), **more: object
) -> Annotations:
    document = {
        "images": [{"id": 1, "file_name": "a.png", "height": size[0], "width": size[1]}],
        "categories": [{"id": 1, "name": "crack"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": [1, 1, 4, 4],
                "segmentation": segmentation,
                **more,
            }
        ],
    }
    write(str(tmp_path), {"a.json": json.dumps(document).encode(), "a.png": b""})
    return read(str(tmp_path))


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([[100, 10, 120, 10, 120, 30]], "lies outside 80 × 60 pixels"),
        ([[1, 1, 1e9, 1, 5, 5]], "reaches to 1e\\+09"),
        ({"size": [HEIGHT, WIDTH], "counts": [5, 5]}, "run lengths of 10 pixels in all"),
        ({"size": [HEIGHT, WIDTH], "counts": "1"}, "run lengths of"),
        ({"size": [HEIGHT, WIDTH], "counts": [-5, 4805]}, "run lengths"),
    ],
)
def test_outlines_that_cannot_be_drawn(segmentation: object, message: str, tmp_path) -> None:
    found = one_coco(tmp_path, segmentation)
    with pytest.raises(UserError, match=message) as caught:
        draw(found.images[0], "crack")
    assert "a.json: a.png: 'crack'" in str(caught.value)


def test_outlines_are_cut_off_at_the_image(tmp_path) -> None:
    found = one_coco(tmp_path, [[-10, -10, 20, -10, 20, 20, -10, 20]])
    mask = draw(found.images[0], "crack")
    assert mask.sum() == mask[:20, :20].sum() == 400


def test_a_photo_of_another_size(tmp_path) -> None:
    found = one_coco(tmp_path, [[10, 10, 50, 10, 50, 30, 10, 30]])
    mask = draw(found.images[0], "crack", scale=2)
    assert mask.sum() == mask[5:15, 5:25].sum() == 200
    with pytest.raises(UserError, match=r"annotated at 80 × 60 pixels, .* has 60 × 80, turned by its EXIF"):
        draw_mask(found.images[0].source_uri, found.images[0].etag, "a.png", "crack", WIDTH, HEIGHT)


def test_notes(tmp_path) -> None:
    found = one_coco(tmp_path, [[1, 1, 2, 2]], category_id=5, iscrowd=1)
    assert found.images[0].labels == {"5": False}
    assert set(found.notes) == {
        "1 objects of the class 5, which has no name",
        "1 crowds: several objects with one outline",
        "1 outlines of fewer than three points, left out",
        "1 objects are boxes alone: no masks",
    }


def test_holes_circles_and_turned_boxes(tmp_path) -> None:
    square = [[10, 10], [50, 10], [50, 50], [10, 50]]
    hole = [[20, 20], [30, 20], [30, 30], [20, 30]]
    document = {
        "size": {"height": HEIGHT, "width": WIDTH},
        "objects": [
            {"classTitle": "x", "geometryType": "polygon", "points": {"exterior": square, "interior": [hole]}}
        ],
    }
    write(str(tmp_path / "s"), {"ann/a.png.json": exports.dump(document), "img/a.png": b""})
    mask = draw(read(str(tmp_path / "s")).images[0], "x")
    assert mask.sum() == 1600 - 100
    assert not mask[20:30, 20:30].any()

    document = {
        "imagePath": "a.png", "imageHeight": HEIGHT, "imageWidth": WIDTH,
        "shapes": [{"label": "x", "points": [[40, 30], [60, 30]], "shape_type": "circle"}],
    }  # fmt: skip
    write(str(tmp_path / "l"), {"a.json": exports.dump(document), "a.png": b""})
    mask = draw(read(str(tmp_path / "l")).images[0], "x")
    disc = (exports.ROWS + 0.5 - 30) ** 2 + (exports.COLUMNS + 0.5 - 40) ** 2 < 400
    assert iou(mask, disc) > 0.98

    value = {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": 90, "rectanglelabels": ["x"]}
    result = {"id": "r", "original_width": WIDTH, "original_height": HEIGHT, "value": value}
    task = {"data": {"image": "a.png"}, "annotations": [{"result": [result]}]}
    write(str(tmp_path / "t"), {"a.json": exports.dump([task]), "a.png": b""})
    mask = draw(read(str(tmp_path / "t")).images[0], "x", boxes=True)
    assert mask.sum() == mask[30:50, 25:40].sum() == 300  # turned about its upper left corner, clockwise


def test_label_studio_brushes_of_single_values() -> None:
    rng = np.random.default_rng(0)
    rgba = rng.integers(0, 3, (7, 11, 4), np.uint8)
    mask = Brush(bytes(exports.rle_pack(rgba.ravel())), (7, 11)).draw(7, 11)
    np.testing.assert_array_equal(mask, rgba[:, :, 3] > 0)


def test_yolo_without_names_and_with_a_classes_txt(tmp_path) -> None:
    write(str(tmp_path), {"a.png": b"", "a.txt": b"2 0.5 0.5 0.2 0.2\n", "b.png": b"", "notes.txt": b"x"})
    found = read(str(tmp_path))
    assert [(image.name, image.labels) for image in found.images] == [("a.png", {"2": False}), ("b.png", {})]
    assert "1 objects of the class 2, which has no name" in found.notes
    assert "1 photos of which YOLO says nothing: free of defects" in found.notes
    write(str(tmp_path), {"classes.txt": "a\nb\nRiß #1/x\n".encode()})
    found = read(str(tmp_path))
    assert found.images[0].labels == {"Riß #1/x": False}
    assert draw(found.images[0], "Riß #1/x", boxes=True).sum() == 16 * 12
    write(str(tmp_path), {"a.txt": b"2 30 40 20 20\n"})
    with pytest.raises(UserError, match=r"a\.txt: not a YOLO .*line 1: neither a box nor an outline"):
        read(str(tmp_path))


def test_addresses_of_label_studio() -> None:
    from raygen.data.annotations.label_studio import image_name, without_prefix

    assert image_name("/data/upload/1/ab12cd34-name.jpg") == "ab12cd34-name.jpg"
    assert image_name("/data/upload/ab12cd34-name.jpg") == "ab12cd34-name.jpg"
    assert without_prefix("x/ab12cd34-name.jpg") == "x/name.jpg"
    assert image_name("s3://bucket/line%204/1.jpg") == "line 4/1.jpg"
    assert image_name("/data/local-files/?d=line%204/1.jpg") == "line 4/1.jpg"
    assert image_name("https://host/x/1.jpg?token=3") == "x/1.jpg"
