#!/usr/bin/env bash
# safetensors 0.8.0: `safetensors.numpy.save` writes an array that is a view (a slice of columns, a transpose) as the
# memory behind it, not as its values: no error, and other numbers come back. `np.asarray(…, order="C")` first mends it.
# (`safetensors.torch.save` refuses such tensors with an error.)
#
# Seen: a[1:3, 2:5] of a 4 × 6 array, [[8, 9, 10], [14, 15, 16]], comes back as [[8, 9, 10], [11, 12, 13]].
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import numpy as np
from safetensors.numpy import load, save

whole = np.arange(24, dtype=np.uint8).reshape(4, 6)
view = whole[1:3, 2:5]
found = load(save({"view": view}))["view"]
print("saved ", view.tolist())
print("loaded", found.tolist())
assert view.tolist() == [[8, 9, 10], [14, 15, 16]]
assert found.tolist() == [[8, 9, 10], [11, 12, 13]], "safetensors behaves otherwise now"
mended = load(save({"view": np.asarray(view, order="C")}))["view"]
assert mended.tolist() == view.tolist()
PYTHON
