#!/usr/bin/env bash
# Pillow 13.0.0 opens an RGB image of 16 bits a channel, PNG or TIFF, as mode "RGB" of 8: the lower byte of each value
# is dropped while it decodes, without an error or a warning. Of a camera's 12 bits, stored in the lower part of 16,
# only four are left. (Grey images of 16 bits keep them, as "I;16".)
#
# Seen: values up to 4,095 come back as values up to 15, of both formats; OpenCV reads them as they were written.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 opencv-python-headless==4.14.0.94
"$folder/venv/bin/python" - <<'PYTHON'
import io

import cv2
import numpy as np
from PIL import Image

levels = np.linspace(0, 4095, 8 * 8 * 3).astype(np.uint16).reshape(8, 8, 3)
for kind in (".png", ".tiff"):
    data = cv2.imencode(kind, levels[:, :, ::-1])[1]
    image = Image.open(io.BytesIO(data.tobytes()))
    found = np.asarray(image)
    print(kind, "mode", image.mode, "type", found.dtype, "highest", found.max(), "of", levels.max())
    assert (image.mode, found.dtype) == ("RGB", np.uint8), "Pillow behaves otherwise now"
    assert np.array_equal(found, levels >> 8), "Pillow behaves otherwise now"
    again = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)[:, :, ::-1]
    assert np.array_equal(again, levels)
PYTHON
