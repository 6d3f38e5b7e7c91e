#!/usr/bin/env bash
# supervision 0.31.2: `DetectionDataset.from_coco(…, force_masks=True)` draws a COCO polygon together with the pixels that
# its edges touch: a row and a column more than pycocotools, COCO's own code, and than the file's `area`. Small and thin
# objects become much larger: a strip three pixels wide, four.
#
# Seen: a square of 20 × 20, area 400, has 441 pixels (pycocotools: 400); a strip of 60 × 3, area 180, has 244 (180).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    supervision==0.31.2 pycocotools==2.0.11 numpy==2.4.6 opencv-python-headless==4.14.0.94
cd "$folder"
"$folder/venv/bin/python" -W ignore - <<'PYTHON'
import json
from pathlib import Path

import numpy as np
import supervision
from PIL import Image
from pycocotools import mask

HEIGHT, WIDTH = 60, 80
boxes = [(10, 30, 20, 20), (10, 5, 60, 3)]  # x, y, width, height
outlines = [[x, y, x + w, y, x + w, y + h, x, y + h] for x, y, w, h in boxes]
document = {
    "images": [{"id": 1, "file_name": "a.png", "height": HEIGHT, "width": WIDTH}],
    "categories": [{"id": 1, "name": "crack"}],
    "annotations": [
        {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0,
         "segmentation": [outline]}
        for n, (box, outline) in enumerate(zip(boxes, outlines), start=1)
    ],
}  # fmt: skip
Path("images").mkdir()
Image.fromarray(np.zeros((HEIGHT, WIDTH, 3), np.uint8)).save("images/a.png")
Path("coco.json").write_text(json.dumps(document))
((_, _, found),) = supervision.DetectionDataset.from_coco("images", "coco.json", force_masks=True)
drawn = [int(one.sum()) for one in found.mask]
coco = [int(mask.area(mask.frPyObjects([outline], HEIGHT, WIDTH)[0])) for outline in outlines]
print("area in the file", [w * h for _, _, w, h in boxes], "pycocotools", coco, "supervision", drawn)
assert coco == [400, 180]
assert drawn == [441, 244], "supervision behaves otherwise now"
PYTHON
