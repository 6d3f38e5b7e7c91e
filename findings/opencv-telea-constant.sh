#!/usr/bin/env bash
# opencv-python-headless 4.14.0.94: `inpaint` by INPAINT_TELEA does not fill a hole in an evenly grey photo with that
# grey, though each pixel it sets is a weighted mean of known ones: it is off by up to two levels, both ways, and the
# errors differ from pixel to pixel, as noise would. INPAINT_NS fills the same hole exactly.
#
# Seen: photo of grey 100, hole of 5 × 12 pixels, radius 3: Telea gives 99 to 102, Navier-Stokes 100.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==4.14.0.94 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

photo, hole = np.full((32, 32), 100, np.uint8), np.zeros((32, 32), np.uint8)
hole[9:14, 8:20] = 255
filled = {name: cv2.inpaint(photo, hole, 3, getattr(cv2, name)) for name in ("INPAINT_TELEA", "INPAINT_NS")}
for name, image in filled.items():
    print(cv2.__version__, name, "of grey 100:", image[hole > 0].min(), "to", image[hole > 0].max())
assert len(np.unique(filled["INPAINT_TELEA"])) > 1, "Telea's fill is even now"
assert (filled["INPAINT_NS"] == 100).all(), "the other fill is not even any more"
PYTHON
