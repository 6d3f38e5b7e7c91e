#!/usr/bin/env bash
# datumaro 1.13.12: the importer `roboflow_yolo` leaves out, without an error or a warning, the images whose label file
# has outlines (YOLO-seg, which Roboflow exports under the same name and layout) and those that have no label file
# (images without an object, as Ultralytics documents them). What has boxes comes through, so that nothing looks amiss.
#
# Seen: of three images (box, outline, no label file) the data set has one item, box.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datumaro==1.13.12 numpy==2.4.6 pillow==12.3.0
mkdir -p "$folder/set/train/images" "$folder/set/train/labels"
cd "$folder/set"
printf 'train: ../train/images\nnc: 1\nnames: [crack]\n' > data.yaml
echo '0 0.5 0.5 0.25 0.25' > train/labels/box.txt
echo '0 0.25 0.25 0.75 0.25 0.75 0.75' > train/labels/outline.txt
"$folder/venv/bin/python" - <<'PYTHON'
import datumaro
import numpy as np
from PIL import Image

for name in ("box", "outline", "none"):
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(f"train/images/{name}.jpg")
found = datumaro.Dataset.import_from(".", "roboflow_yolo")
items = {item.id: [annotation.type.name for annotation in item.annotations] for item in found}
print("images written: box, none, outline")
print("items read:    ", items)
assert items == {"box": ["bbox"]}, "datumaro behaves otherwise now"
PYTHON
