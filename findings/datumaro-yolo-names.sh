#!/usr/bin/env bash
# datumaro 1.13.12: where the `names` of a YOLO data.yaml are a table (number: name), the importer `roboflow_yolo` takes
# the names in the order in which they are written and drops the numbers: in a table that does not begin with 0 or is
# not in order, every object gets another class's name. No error. (YAML's tables have no order.)
#
# Seen: names {1: dent, 0: crack}, a label file with class 0, which is crack: read as dent.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datumaro==1.13.12 numpy==2.4.6 pillow==12.3.0
mkdir -p "$folder/set/train/images" "$folder/set/train/labels"
cd "$folder/set"
printf 'train: ../train/images\nnc: 2\nnames:\n  1: dent\n  0: crack\n' > data.yaml
echo '0 0.5 0.5 0.25 0.25' > train/labels/a.txt
"$folder/venv/bin/python" - <<'PYTHON'
import datumaro
import numpy as np
from PIL import Image

Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("train/images/a.jpg")
found = datumaro.Dataset.import_from(".", "roboflow_yolo")
names = found.categories()[datumaro.AnnotationType.label]
read = [names[annotation.label].name for item in found for annotation in item.annotations]
print("class 0 is called crack; read as", read)
assert read == ["dent"], "datumaro behaves otherwise now"
PYTHON
