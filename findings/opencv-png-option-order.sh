#!/usr/bin/env bash
# opencv-python-headless 4.14.0.94: what `imencode` makes of PNG options depends on their order, and says nothing:
# IMWRITE_PNG_COMPRESSION puts a strategy that was set before it back to the default. With the strategy last the files
# are others, and it counts. Without any option the strategy is RLE, so that naming a level alone changes it, too.
#
# Seen: noise on a ramp, 128 × 128 grey, level 1, strategy RLE: the level last gives the bytes of the default strategy.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check opencv-python-headless==4.14.0.94 numpy==2.4.6
"$folder/venv/bin/python" - <<'PYTHON'
import cv2
import numpy as np

ramp = np.arange(128)[:, None] + np.random.default_rng(0).integers(0, 6, (128, 128))
level = [cv2.IMWRITE_PNG_COMPRESSION, 1]
row_filter = [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
runs = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
default = [cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_DEFAULT]


def encoded(*options: int) -> bytes:
    return cv2.imencode(".png", ramp.astype(np.uint8), list(options))[1].tobytes()


last, first = encoded(*level, *row_filter, *runs), encoded(*runs, *row_filter, *level)
print(cv2.__version__, "strategy RLE after the level:", len(last), "bytes; before it:", len(first), "bytes")
assert last != first, "the order does not matter any more"
assert first == encoded(*level, *row_filter, *default), "the level does not put the strategy back any more"
assert last == encoded(*row_filter), "without a strategy it is not RLE any more"
PYTHON
