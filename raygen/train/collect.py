"""A bank collected from a defect set: something of each photo, wherever, then a checkpoint of it all at once."""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors.numpy
from numpy.typing import NDArray

from raygen import images, storage
from raygen.checkpoint import CONFIG
from raygen.data.defects import group_by_cell
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.families.family import Taken
from raygen.families.photos import DefectSet
from raygen.families.recipes import BankConfig
from raygen.relay import tells
from raygen.show import draw_sheet
from raygen.train.config import collector_of
from raygen.train.folder import SHEET, TrainingFolder, TrainingRun

PHOTOS_PER_TASK = 16
_MAX_LINES, _MAX_ACROSS, _PICTURE = 20, 9, 256


def batches_of(photos: Sequence[Photo]) -> list[dict[str, object]]:
    """The photos as rows of work: `number` and, as JSON, `photos`."""
    starts = range(0, len(photos), PHOTOS_PER_TASK)
    return [
        {
            "number": start,
            "photos": json.dumps([photo.row() for photo in photos[start : start + PHOTOS_PER_TASK]]),
        }
        for start in starts
    ]


@tells
def take(batch: pa.Table, config: BankConfig) -> pa.Table:
    """Takes what there is to take of some photos: a row of work in; a row out of their `number` and, for each, its
    `arrays` as safetensors, its `facts` as JSON, its `pictures` as PNG, and why it was `refused`, if it was."""
    (work,) = batch.to_pylist()
    collector = collector_of(config)(config)
    taken = [collector.take(Photo.of_row(row)) for row in json.loads(work["photos"])]
    return pa.table(
        {
            "number": [work["number"]],
            "arrays": [[_pack(one.arrays) for one in taken]],
            "facts": [[json.dumps(dict(one.facts)) for one in taken]],
            "pictures": [[[_picture(pixels) for pixels in one.pictures] for one in taken]],
            "refused": [[one.refused for one in taken]],
        }
    )


def _picture(pixels: NDArray[np.uint8]) -> bytes:
    return images.encode_png(images.fit(pixels, min(len(pixels), _PICTURE)))


def _pack(arrays: dict[str, NDArray[Any]]) -> bytes:
    # Of views it would write the memory behind them, without a word.
    return safetensors.numpy.save({name: np.asarray(array, order="C") for name, array in arrays.items()})


def unpack(rows: Iterable[dict[str, Any]]) -> list[Taken]:
    """What was taken, in the order of the photos; of rows as `take` left them, in any order."""
    return [
        Taken(
            safetensors.numpy.load(row["arrays"][n]),
            json.loads(row["facts"][n]),
            [images.decode_photo(png, max_pixels=2**28) for png in row["pictures"][n]],
            row["refused"][n],
        )
        for row in sorted(rows, key=lambda row: row["number"])
        for n in range(len(row["arrays"]))
    ]


def write_bank(
    config: BankConfig,
    folder: TrainingFolder,
    run: TrainingRun,
    taken: Sequence[Taken],
    say: Callable[[str], None],
    seconds: float = 0,
) -> None:
    """Writes the checkpoint of what was taken, and tells of what was refused.

    Args:
        config: the recipe.
        folder: of the checkpoint.
        run: what the folder says it is.
        taken: of all its photos, in their order.
        say: takes each line for the user.
        seconds: that it took.

    Raises:
        UserError: nothing was taken at all, or of some defect type.
    """
    photos = folder.read_photos(run)
    kept = [(photo, one) for photo, one in zip(photos, taken, strict=True) if not one.refused]
    shown = Counter(photo.uri for photo in photos)

    def name(photo: Photo) -> str:  # one that shows several types stands there once for each
        return photo.uri if shown[photo.uri] == 1 else f"{photo.uri} as {photo.defect_type}"

    refused = [(name(photo), one.refused) for photo, one in zip(photos, taken, strict=True) if one.refused]
    for uri, reason in refused[:_MAX_LINES]:
        say(f"refused: {uri}: {reason}")
    if len(refused) > _MAX_LINES:
        say(f"… and {len(refused) - _MAX_LINES} more; all stand in the checkpoint's {CONFIG}")
    missing = {photo.defect_type for photo in photos} - {photo.defect_type for photo, _ in kept}
    if missing:
        uri, reason = next(
            (p.uri, one.refused) for p, one in zip(photos, taken, strict=True) if p.defect_type in missing
        )
        raise UserError(
            f"defects = {config.defects}: nothing to take of {', '.join(sorted(missing))}: all of its photos were "
            f"refused ({uri}: {reason})"
        )
    collector = collector_of(config)(config)
    contents = collector.contents(*map(list, zip(*kept, strict=True)))
    uri = folder.checkpoint_uri(0)
    if collector.captions:
        storage.put(
            storage.join(uri, SHEET), _sheet(collector.captions, kept, min(contents.image_size, _PICTURE))
        )
    learning = DefectSet(photos, run.products, run.defect_types)
    facts = {name(photo): dict(one.facts) for photo, one in kept if one.facts}
    record = {"seconds": round(seconds), "refused": dict(refused), **({"taken": facts} if facts else {})}
    record |= contents.record
    folder.save(contents, config, run, learning, 0, **record)
    folder.note_best(0, 0.0)
    for line in contents.report:
        say(line)
    say(
        f"{len(kept):,} of {len(photos):,} photos are in {uri}"
        + (f"; look at its {SHEET}" if collector.captions else "")
    )


def _sheet(captions: Sequence[str], kept: Sequence[tuple[Photo, Taken]], size: int) -> bytes:
    """The pictures of a few photos of each product and type."""
    cells = group_by_cell(photo for photo, _ in kept)
    across = max(1, _MAX_ACROSS // len(captions))
    groups = {}
    for (product, defect_type), rows in list(cells.items())[:_MAX_LINES]:
        shown = [
            picture
            for row in rows[:: max(1, len(rows) // across)][:across]
            for picture in kept[row][1].pictures
        ]
        groups[f"{product} {defect_type}"] = [shown]
    return draw_sheet([*captions] * across, groups, size)
