#!/usr/bin/env bash
# Pillow 13.0.0 and TIFFs whose PhotometricInterpretation is 0 (WhiteIsZero: low values are bright). Of 8 bits they come
# inverted, so that 255 is white, as everywhere in Pillow; of 16 bits they come as they are stored, so that the same
# picture is a negative. Both without a word: the mode, "L" or "I;16", does not tell.
#
# Seen: a pixel stored as 0, which is white, comes as 255 of 8 bits and as 0 of 16.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import io

import numpy as np
import tifffile
from PIL import Image

ramp = np.arange(256, dtype=np.uint16).reshape(16, 16)
for bits, stored in ((8, ramp.astype(np.uint8)), (16, ramp * np.uint16(257))):
    file = io.BytesIO()
    tifffile.imwrite(file, stored, photometric="miniswhite")
    image = Image.open(file)
    found = np.asarray(image)
    print(f"{bits} bits: mode {image.mode}, stored {stored[0, 0]} comes as {found[0, 0]}")
    right = 255 - stored if bits == 8 else stored
    assert np.array_equal(found, right), "Pillow behaves otherwise now"
PYTHON
