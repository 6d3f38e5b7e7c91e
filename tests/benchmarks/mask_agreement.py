"""Do DFM-GAN's masks say where its defects are? Each mask against the actual change |defect - normal|.

    raygen generate … --set pool=seeds:0-200 --set write_normals=true --set output=RUN
    python tests/benchmarks/mask_agreement.py RUN [--threshold 10]

For every product and defect type: mean IoU of the mask and of the pixels that change by more than the threshold
(in grey levels, of any channel), without samples that have neither; the share of all change that lies inside the
mask; the mask's mean share of the image; and how many masks are blank or reach the border of the image along more
than half of it.
"""

import argparse
import io
from collections import defaultdict

import numpy as np
from PIL import Image

from raygen.data.runs import read_manifest, read_shard
from raygen.records import NORMAL

Row = tuple[float, float, float, bool, bool]


def pixels(file: dict[str, bytes]) -> np.ndarray:
    """int16, (H, W, C)."""
    found = np.asarray(Image.open(io.BytesIO(file["bytes"]))).astype(np.int16)
    return found.reshape(*found.shape[:2], -1)


def measure(mask: np.ndarray, change: np.ndarray, threshold: float) -> Row:
    """IoU, change inside, area, is blank, hugs the border; of a mask, bool (H, W), and a change, (H, W)."""
    changed = change > threshold
    union = (mask | changed).sum()
    iou = float((mask & changed).sum() / union) if union else np.nan
    inside = float(change[mask].sum() / max(1, change.sum()))
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return iou, inside, float(mask.mean()), not mask.any(), bool(border.mean() > 0.5)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--threshold", type=float, default=10)
    args = parser.parse_args()
    manifest = read_manifest(args.run)
    if manifest is None:
        parser.error(f"{args.run}: no complete run there")
    found: dict[tuple[str, str], list[Row]] = defaultdict(list)
    for stats in manifest.shards:
        rows = read_shard(args.run, stats).to_pylist()
        normals = {row["normal_uri"]: pixels(row["image"]) for row in rows if row["defect_type"] == NORMAL}
        for row in rows:
            if row["defect_type"] == NORMAL:
                continue
            if row["normal_uri"] not in normals:
                parser.error(f"{args.run}: holds no normals; generate it with write_normals = true")
            change = np.abs(pixels(row["image"]) - normals[row["normal_uri"]]).max(axis=2)
            mask = pixels(row["mask"])[:, :, 0] > 0
            found[row["product"], row["defect_type"]].append(measure(mask, change, args.threshold))
    for (product, kind), values in sorted(found.items()):
        iou, inside, area, blank, border = np.nanmean(np.array(values, float), axis=0)
        print(
            f"{product}/{kind} ({len(values)}): IoU {iou:.2f}; {100 * inside:.0f} % of the change inside; area "
            f"{100 * area:.1f} %; blank {100 * blank:.0f} %; along the border {100 * border:.0f} %"
        )


if __name__ == "__main__":
    main()
