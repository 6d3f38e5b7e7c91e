#!/usr/bin/env bash
# datumaro 1.13.12: ellipses do not pass through its CVAT format, though it has them (`Ellipse`), and CVAT does
# (`<ellipse>` in "CVAT for images 1.1"): its exporter writes none, its importer reads none. No error, no warning: an
# image whose defects are ellipses is one without a defect.
#
# Seen: an image with an ellipse and a polygon comes back with the polygon; so does a CVAT file with both.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check datumaro==1.13.12 numpy==2.4.6 pillow==12.3.0
cd "$folder"
"$folder/venv/bin/python" - <<'PYTHON'
from pathlib import Path

import datumaro
import numpy as np
from datumaro.components.annotation import Ellipse, Polygon
from datumaro.components.media import Image

objects = [Ellipse(10, 10, 30, 20, label=0), Polygon([5, 5, 45, 5, 45, 25], label=0)]
media = Image.from_numpy(np.zeros((60, 80, 3), np.uint8))
item = datumaro.DatasetItem(id="a", subset="default", media=media, annotations=objects)
datumaro.Dataset.from_iterable([item], categories=["crack"]).export("set", "cvat", save_media=True)


def kinds() -> list[str]:
    found = datumaro.Dataset.import_from("set", "cvat")
    return [annotation.type.name for item in found for annotation in item.annotations]


print("written: ellipse, polygon; read:", kinds())
assert kinds() == ["polygon"], "datumaro behaves otherwise now"
(file,) = Path("set").rglob("*.xml")
ellipse = '<ellipse label="crack" source="manual" occluded="0" cx="20.00" cy="15.00" rx="10.00" ry="5.00" z_order="0"></ellipse>'
file.write_text(file.read_text().replace("</image>", f"{ellipse}</image>"))
print("with <ellipse> in the file; read:", kinds())
assert kinds() == ["polygon"], "datumaro behaves otherwise now"
PYTHON
