"""Looks into many photos, in tasks of Ray Data."""

import json
from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import ray

from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.inspection.look import Seen, look
from raygen.on_ray import connected, prepare_data
from raygen.relay import tells

_PER_TASK = 256


@tells
def _look(batch: pa.Table, max_pixels: int, in_pool: bool) -> pa.Table:
    (work,) = batch.to_pylist()
    seen = [look(Photo.of_row(row), max_pixels, in_pool) for row in json.loads(work["photos"])]
    return pa.table({"number": [work["number"]], "seen": [[one._asdict() for one in seen]]})


def look_at_all(photos: Sequence[Photo], max_pixels: int, in_pool: bool) -> list[Seen]:
    """What is seen of photos, in their order."""
    work = [
        {"number": start, "photos": json.dumps([photo.row() for photo in photos[start : start + _PER_TASK]])}
        for start in range(0, len(photos), _PER_TASK)
    ]
    with connected():
        prepare_data()
        dataset = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
            partial(_look, max_pixels=max_pixels, in_pool=in_pool),
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=1,
        )
        rows = list(dataset.iter_rows())
    for row in rows:
        if row.get("error"):
            raise UserError(row["error"])
    found = [Seen(**one) for row in sorted(rows, key=lambda row: row["number"]) for one in row["seen"]]
    return [seen._replace(group=photo.group) for seen, photo in zip(found, photos, strict=True)]
