"""The same few defects as every labelling tool exports them, written by the formats' documentation.

Photo a has a crack of two parts, outlined, and a spot, painted; b has a dent, boxed; c is free of defects.
"""

import base64
import io
import json
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 60, 80
PARTS = [[(5.0, 5.0), (45.0, 9.0), (45.0, 25.0), (5.0, 21.0)], [(50.0, 30.0), (75.0, 55.0), (50.0, 55.0)]]
BOX = (20, 10, 52, 40)  # left, top, right, bottom
ROWS, COLUMNS = np.mgrid[:HEIGHT, :WIDTH]
SPOT = ((ROWS - 40) ** 2 + (COLUMNS - 20) ** 2 < 150) & ~((ROWS - 40) ** 2 + (COLUMNS - 20) ** 2 < 20)
SPOT_CORNER = (int(np.flatnonzero(SPOT.any(axis=0))[0]), int(np.flatnonzero(SPOT.any(axis=1))[0]))
BOXED = (ROWS >= 10) & (ROWS < 40) & (COLUMNS >= 20) & (COLUMNS < 52)


def inside(points: list[tuple[float, float]]) -> np.ndarray:
    """bool (HEIGHT, WIDTH): the pixels whose centres lie in a convex outline, clockwise as one sees it."""
    mask = np.ones((HEIGHT, WIDTH), bool)
    for (x, y), (to_x, to_y) in zip(points, points[1:] + points[:1], strict=True):
        mask &= (to_x - x) * (ROWS + 0.5 - y) - (to_y - y) * (COLUMNS + 0.5 - x) >= 0
    return mask


CRACK = inside(PARTS[0]) | inside(PARTS[1])


def spot_part() -> np.ndarray:
    """The spot's own rectangle."""
    rows, columns = SPOT.any(axis=1), SPOT.any(axis=0)
    return SPOT[rows][:, columns]


def runs(flat: np.ndarray) -> list[int]:
    """Lengths of zeros and ones in turn, zeros first."""
    edges = np.flatnonzero(np.diff(flat.astype(np.int8), prepend=0)).tolist()
    return np.diff([0, *edges, len(flat)]).tolist()


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def flat(points: list[tuple[float, float]]) -> list[float]:
    return [number for point in points for number in point]


def coco(compressed: bool = True, split: str = "train") -> dict[str, bytes]:
    encoded: Any = coco_mask.encode(np.asfortranarray(SPOT.astype(np.uint8)))
    counts = encoded["counts"].decode() if compressed else runs(SPOT.ravel(order="F"))
    left, top, right, bottom = BOX
    document = {
        "info": {},
        "licenses": [],
        "categories": [{"id": n, "name": name} for n, name in ((7, "crack"), (3, "spot"), (12, "dent"))],
        "images": [
            {"id": 100 + n, "file_name": f"{name}.png", "height": HEIGHT, "width": WIDTH}
            for n, name in enumerate("abc")
        ],
        "annotations": [
            {"id": 1, "image_id": 100, "category_id": 7, "iscrowd": 0, "segmentation": [*map(flat, PARTS)],
             "bbox": [5, 5, 70, 50], "area": 900.0},
            {"id": 2, "image_id": 100, "category_id": 3, "iscrowd": 1, "bbox": [0, 0, 1, 1], "area": 9,
             "segmentation": {"size": [HEIGHT, WIDTH], "counts": counts}},
            {"id": 3, "image_id": 101, "category_id": 12, "iscrowd": 0, "segmentation": [], "area": 960,
             "bbox": [left, top, right - left, bottom - top]},
        ],
    }  # fmt: skip
    return {f"{split}/_annotations.coco.json": dump(document), **photos(f"{split}/")}


def coco_lists() -> dict[str, bytes]:
    return coco(compressed=False)


def datumaro() -> dict[str, bytes]:
    encoded: Any = coco_mask.encode(np.asfortranarray(SPOT.astype(np.uint8)))
    left, top, right, bottom = BOX
    common = {"attributes": {}, "group": 0, "z_order": 0}
    mask = {"counts": encoded["counts"].decode(), "size": [HEIGHT, WIDTH]}
    objects: dict[str, list[dict]] = {
        "a": [
            {"id": 0, "type": "polygon", "label_id": 0, "points": flat(PARTS[0]), **common},
            {"id": 0, "type": "polygon", "label_id": 0, "points": flat(PARTS[1]), **common},
            {"id": 1, "type": "mask", "label_id": 1, "rle": mask, **common},
        ],
        "b": [
            {
                "id": 2,
                "type": "bbox",
                "label_id": 2,
                "bbox": [left, top, right - left, bottom - top],
                **common,
            }
        ],
        "c": [],
    }
    labels = [{"name": name, "parent": "", "attributes": []} for name in ("crack", "spot", "dent")]
    items = [
        {"id": name, "annotations": found, "image": {"path": f"{name}.png", "size": [HEIGHT, WIDTH]}}
        for name, found in objects.items()
    ]
    document = {"info": {}, "categories": {"label": {"labels": labels, "attributes": []}}, "items": items}
    return {"annotations/train.json": dump(document), **photos("images/train/")}


def yolo() -> dict[str, bytes]:
    """The spot is its outline here, without its hole: four corners."""
    size = np.array([WIDTH, HEIGHT])

    def line(kind: int, points: list[tuple[float, float]]) -> str:
        return " ".join([str(kind), *(f"{number:.6f}" for number in (np.array(points) / size).ravel())])

    left, top, right, bottom = BOX
    a = [line(0, PARTS[0]), line(0, PARTS[1]), line(4, SPOT_SQUARE)]
    b = line(9, [((left + right) / 2, (top + bottom) / 2), (right - left, bottom - top)])
    names = "train: ../train/images\nval: ../valid/images\nnames:\n  0: crack\n  4: spot\n  9: dent\n"
    return {
        "data.yaml": names.encode(),
        "train/labels/a.txt": "\n".join(a).encode(),
        "train/labels/b.txt": f"{b}\n".encode(),
        **photos("train/images/"),
    }


SPOT_SQUARE = [(10.0, 30.0), (30.0, 30.0), (30.0, 50.0), (10.0, 50.0)]


def voc() -> dict[str, bytes]:
    """Boxes alone, pixels from 1; of NEU-DET's and GC10-DET's files, some name their photo without extension."""

    def document(name: str, objects: list[tuple[str, tuple[int, int, int, int]]]) -> bytes:
        found = "".join(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox><xmin>{left + 1}</xmin>"
            f"<ymin>{top + 1}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for label, (left, top, right, bottom) in objects
        )
        return (
            f"<annotation><folder>x</folder><filename>{name}</filename><size><width>{WIDTH}</width>"
            f"<height>{HEIGHT}</height><depth>1</depth></size>{found}</annotation>"
        ).encode()

    return {
        "ANNOTATIONS/a.xml": document("a.png", [("crack", (5, 5, 75, 55)), ("spot", (8, 28, 33, 53))]),
        "ANNOTATIONS/b.xml": document("b", [("dent", BOX)]),
        "ANNOTATIONS/c.xml": document("another.png", []),
        "ImageSets/Main/train.txt": b"a\nb\nc\n",
        **photos("IMAGES/"),
    }


def labelme() -> dict[str, bytes]:
    left, top, right, bottom = BOX
    x, y = SPOT_CORNER
    part = spot_part()
    corners = [[x, y], [x + part.shape[1] - 1, y + part.shape[0] - 1]]
    painted = base64.b64encode(png(part)).decode()
    shapes: dict[str, list[dict]] = {
        "a": [
            {"label": "crack", "points": PARTS[0], "shape_type": "polygon", "group_id": 1, "flags": {}},
            {"label": "crack", "points": PARTS[1], "shape_type": "polygon", "group_id": 1, "flags": {}},
            {"label": "spot", "points": corners, "shape_type": "mask", "mask": painted, "flags": {}},
        ],
        "b": [{"label": "dent", "points": [[right, bottom], [left, top]], "shape_type": "rectangle"}],
        "c": [],
    }
    return {
        **{
            f"train/json/{name}.json": dump(
                {
                    "version": "5.5.0",
                    "flags": {},
                    "shapes": found,
                    "imagePath": f"..\\images\\{name}.png",
                    "imageData": None,
                    "imageHeight": HEIGHT,
                    "imageWidth": WIDTH,
                }
            )
            for name, found in shapes.items()
        },
        **photos("train/images/"),
    }


def cvat() -> dict[str, bytes]:
    left, top, right, bottom = BOX
    x, y = SPOT_CORNER
    part = spot_part()
    polygons = "".join(
        f'<polygon label="crack" source="manual" occluded="0" group_id="1" z_order="0" '
        f'points="{";".join(f"{x:.2f},{y:.2f}" for x, y in points)}"></polygon>'
        for points in PARTS
    )
    painted = (
        f'<mask label="spot" source="manual" occluded="0" rle="{", ".join(map(str, runs(part.ravel())))}" '
        f'left="{x}" top="{y}" width="{part.shape[1]}" height="{part.shape[0]}" z_order="0"></mask>'
    )
    box = f'<box label="dent" xtl="{left}" ytl="{top}" xbr="{right}" ybr="{bottom}" z_order="0"></box>'
    images = "".join(
        f'<image id="{n}" name="parts/{name}.png" subset="Train" width="{WIDTH}" height="{HEIGHT}">{found}</image>'
        for n, (name, found) in enumerate((("a", polygons + painted), ("b", box), ("c", "")))
    )
    labels = "".join(f"<label><name>{name}</name></label>" for name in ("crack", "spot", "dent"))
    labels = f"<task><labels>{labels}</labels></task>"
    text = f"<annotations><version>1.1</version><meta>{labels}</meta>{images}</annotations>"
    return {"annotations.xml": text.encode(), **photos("images/parts/")}


def rle_pack(values: np.ndarray) -> list[int]:
    """Label Studio's (thi.ng's rle-pack) of uint8: runs as runs, all others value by value."""
    bits = [f"{len(values):032b}", f"{7:05b}", *(f"{length - 1:04b}" for length in (3, 4, 8, 16))]
    starts = np.flatnonzero(np.diff(values.astype(int), prepend=-1)).tolist()
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        while start < end:
            count = min(end - start, 65536)
            which, length = next((n, size) for n, size in enumerate((3, 4, 8, 16)) if count <= 1 << size)
            repeated = count > 2
            bits += [str(int(repeated)), f"{which:02b}", f"{count - 1:0{length}b}"]
            bits += [f"{values[start]:08b}"] * (1 if repeated else count)
            start += count
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8))


def label_studio() -> dict[str, bytes]:
    left, top, right, bottom = BOX
    percent = np.array([100 / WIDTH, 100 / HEIGHT])
    rgba = np.zeros((HEIGHT, WIDTH, 4), np.uint8)
    rgba[SPOT] = (1, 2, 3, 200)
    rgba[~SPOT, :3] = 9  # colours say nothing

    def result(n: int, kind: str, value: dict) -> dict:
        return {
            "id": f"r{n}", "type": kind, "from_name": "tag", "to_name": "image", "original_width": WIDTH,
            "original_height": HEIGHT, "image_rotation": 0, "value": value,
        }  # fmt: skip

    polygons = [
        result(n, "polygonlabels", {"points": (np.array(p) * percent).tolist(), "polygonlabels": ["crack"]})
        for n, p in enumerate(PARTS)
    ]
    brush = {"format": "rle", "rle": rle_pack(rgba.ravel()), "brushlabels": ["spot"]}
    x, y = (np.array([left, top]) * percent).tolist()
    width, height = (np.array([right - left, bottom - top]) * percent).tolist()
    box = {"x": x, "y": y, "width": width, "height": height, "rotation": 0, "rectanglelabels": ["dent"]}
    found = {
        "/data/upload/1/ab12cd34-a.png": [*polygons, result(2, "brushlabels", brush)],
        "s3://bucket/line%204/b.png": [result(3, "rectanglelabels", box)],
        "/data/local-files/?d=line%204/c.png": [],
    }
    tasks = [
        {
            "id": n,
            "data": {"image": address},
            "annotations": [{"id": n, "result": results}],
            "predictions": [],
        }
        for n, (address, results) in enumerate(found.items())
    ]
    return {"project-1.json": dump(tasks), **photos("images/")}


def supervisely() -> dict[str, bytes]:
    left, top, right, bottom = BOX
    part = spot_part()
    image = Image.fromarray(part.astype(np.uint8)).convert("P")
    image.putpalette([0, 0, 0, 255, 255, 255])
    buffer = io.BytesIO()
    image.save(buffer, "PNG", transparency=0, optimize=0)  # as their SDK writes it
    data = base64.b64encode(zlib.compress(buffer.getvalue())).decode()
    objects: dict[str, list[dict]] = {
        "a": [
            *(
                {"classTitle": "crack", "geometryType": "polygon", "points": {"exterior": p, "interior": []}}
                for p in PARTS
            ),
            {"classTitle": "spot", "geometryType": "bitmap", "bitmap": {"data": data, "origin": SPOT_CORNER}},
        ],
        "b": [
            {"classTitle": "dent", "geometryType": "rectangle",
             "points": {"exterior": [[left, top], [right, bottom]], "interior": []}}
        ],
        "c": [],
    }  # fmt: skip
    return {
        "meta.json": dump({"classes": [{"title": "crack", "shape": "polygon", "color": "#fff"}], "tags": []}),
        **{
            f"train/ann/{name}.png.json": dump(
                {"description": "", "tags": [], "size": {"height": HEIGHT, "width": WIDTH}, "objects": found}
            )
            for name, found in objects.items()
        },
        **photos("train/img/"),
    }


def pairs(mask: np.ndarray) -> str:
    """Severstal's starts and lengths."""
    counts = runs(mask.ravel(order="F"))
    ends = np.cumsum(counts)
    return " ".join(f"{ends[n] - counts[n] + 1} {counts[n]}" for n in range(1, len(counts), 2))


def severstal() -> dict[str, bytes]:
    rows = f"a.png,1,{pairs(CRACK)}\na.png,3,{pairs(SPOT)}\nb.png,4,{pairs(BOXED)}\n"
    text = f"ImageId,ClassId,EncodedPixels\n{rows}"
    return {"train.csv": text.encode(), **photos("train_images/"), **photos("test_images/", "d")}


def severstal_old() -> dict[str, bytes]:
    rows = {"a.png_1": pairs(CRACK), "a.png_3": pairs(SPOT), "b.png_4": pairs(BOXED)}
    names = [f"{name}.png_{kind}" for name in "abc" for kind in range(1, 5)]
    text = "ImageId_ClassId,EncodedPixels\r\n" + "".join(f"{name},{rows.get(name, '')}\r\n" for name in names)
    return {"train.csv": text.encode(), **photos("train_images/")}


def photos(folder: str, names: str = "abc") -> dict[str, bytes]:
    return {f"{folder}{name}.png": png(np.zeros((HEIGHT, WIDTH), np.uint8)) for name in names}


EXPORTS: dict[str, Callable[[], dict[str, bytes]]] = {
    "coco": coco,
    "coco_lists": coco_lists,
    "datumaro": datumaro,
    "yolo": yolo,
    "voc": voc,
    "labelme": labelme,
    "cvat": cvat,
    "label_studio": label_studio,
    "supervisely": supervisely,
    "severstal": severstal,
    "severstal_old": severstal_old,
}
