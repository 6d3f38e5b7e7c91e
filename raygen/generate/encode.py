"""From what an actor made to files and rows: the defect goes onto its photograph, and both into PNG."""

import hashlib
from typing import Any

import numpy as np
import pyarrow as pa

from raygen import images
from raygen.data.runs import CellStats, Run, sum_cells
from raygen.families.masks import boxes
from raygen.generate.config import GenerateConfig
from raygen.generate.shards import Encoded
from raygen.generate.windows import Window, put_defect
from raygen.records import REJECT_SCHEMA, SAMPLE_SCHEMA, SCORES, sample_id, sample_seed


def encode_samples(generated: pa.Table, shard: int, config: GenerateConfig, run: Run) -> Encoded:
    """GENERATED_SCHEMA -> PNG files and their rows (SAMPLE_SCHEMA), one normal's at a time; samples that the gate
    drops become rejects (REJECT_SCHEMA)."""
    import cv2  # planning needs none of it, and it is slow to import

    cv2.setNumThreads(1)  # a task has the share of the cores that it reserves
    rows: list[dict[str, Any]] = []
    dropped: list[dict[str, Any]] = []
    cells: list[CellStats] = []
    drops = config.gate.on_shortfall == "drop"
    binary = ("photo", "pixels", "layers", "masks")
    for index, normal in enumerate(generated.drop(list(binary)).to_pylist()):
        buffers = {name: generated[name][index] for name in binary}
        photo = None
        if buffers["photo"].is_valid:
            photo = images.decode_photo(
                buffers["photo"].as_py(),
                config.max_pixels,
                deep=config.bit_depth != 8,
                pixel_range=run.range_of(normal["product"]),
            )
        for column, request in enumerate(run.requests):
            reason, num_attempts = normal["reasons"][column], normal["num_attempts"][column]
            cells.append(
                CellStats.of_sample(normal["product"], request, reason, num_attempts, is_dropped=drops)
            )
            first_seed = sample_seed(normal["sha256"], run.checkpoint, request, run.seed)
            name = sample_id(normal["uri"], first_seed)
            told = {"sample_id": name, "product": normal["product"], **request._asdict()}
            if reason and drops:
                detail = f"refused {num_attempts} times"
                dropped.append({"uri": normal["uri"], "reason": reason, "detail": detail, **told})
                continue
            image, mask, window = _compose(normal, buffers, photo, column, run)
            y, x, size = window
            found = boxes(mask[y : y + size, x : x + size], y, x)
            png, mask_png = images.encode_png(image), images.encode_mask(mask)
            rows.append(
                {
                    **told,
                    "normal_uri": normal["uri"],
                    "normal_sha256": normal["sha256"],
                    "attempt": normal["attempts"][column],
                    "seed": normal["seeds"][column],
                    "reference_uri": normal["references"][column],
                    "checkpoint": run.checkpoint,
                    "run_id": run.run_id,
                    "shard": shard,
                    "height": image.shape[0],
                    "width": image.shape[1],
                    "window_x": x,
                    "window_y": y,
                    "window_size": size,
                    **dict(zip(SCORES, normal["scores"][column], strict=True)),
                    "accepted": reason is None,
                    "reject_reason": reason,
                    "boxes": found,
                    "image_sha256": hashlib.sha256(png).hexdigest(),
                    "mask_sha256": hashlib.sha256(mask_png).hexdigest(),
                    "image": {"bytes": png, "path": f"{name}.png"},
                    "mask": {"bytes": mask_png, "path": f"{name}_mask.png"},
                }
            )
    return Encoded(
        samples=pa.Table.from_pylist(rows, SAMPLE_SCHEMA),
        dropped=pa.Table.from_pylist(dropped, REJECT_SCHEMA),
        cells=sum_cells(cells),
    )


def _compose(
    normal: dict[str, Any], buffers: dict[str, Any], photo: np.ndarray | None, column: int, run: Run
) -> tuple[np.ndarray, np.ndarray, Window]:
    """One sample's image, uint8 (H, W, C), its mask, uint8 (H, W), and its window."""
    side, num_requests = run.image_size, len(run.requests)

    def array(name: str, kind: type[np.generic], *shape: int) -> Any:
        return np.frombuffer(buffers[name].as_buffer(), kind).reshape(num_requests, *shape)[column]

    mask = array("masks", np.uint8, side, side)
    if photo is None:
        return array("pixels", np.uint8, side, side, run.channels), mask, Window(0, 0, side)
    window = Window(*normal["windows"][3 * column : 3 * column + 3])
    layers = array("layers", np.float32, -1, side, side)
    image, full_mask = put_defect(photo, window, layers, mask, run.range_of(normal["product"]))
    return image, full_mask, window
