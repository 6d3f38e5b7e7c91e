"""The samples that are most likely copies of real training defects, for a person to judge."""

from collections.abc import Collection, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict

from raygen import images
from raygen.data.defects import load_photos, read_mask
from raygen.data.photo import Photo
from raygen.data.runs import ShardStats
from raygen.evaluate.on_ray import Selection, read_samples, run_on_features
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.samples import Sample, read_masks, read_pixels
from raygen.metrics import Features, nearest
from raygen.records import Mode
from raygen.show import draw_sheet

NUM_COPIES = 12
"""Of a run."""

_MARGIN = 1.5  # of a crop's side to its defect's
_SMALLEST = 0.25  # of a crop's side to the image's


class Copied(BaseModel):
    """A sample, and the real training defect of its product and type that is nearest to it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str
    sample_id: str
    product: str
    defect_type: str
    mode: Mode
    made_of: str  # URI of the sample's reference; of its normal, where it has none
    photo: str  # URI of the nearest training defect
    ratio: float  # their distance, over the median distance of held-out defects to their nearest; 0: the same


class Candidates(NamedTuple):
    """Samples of a product, defect type and mode, and the real defects of this product and type."""

    run: str
    samples: Sequence[Sample]
    features: Selection
    photos: Sequence[Photo]  # of the training split
    train: Selection  # their features
    held_out: Selection


def most_copied(
    samples: Features, train: Features, held_out: Features, num: int = NUM_COPIES
) -> list[tuple[int, int, float]]:
    """The samples nearest to a training defect: row of the sample, of the training defect, and their distance over
    the median distance of held-out defects to their nearest training defects; the smallest first.

    Args:
        samples, train, held_out: features (N, D), (M, D), (K, D); no set empty.
        num: how many, at most.
    """
    found, usual = nearest(samples, train), np.median(nearest(held_out, train).distance)
    if not usual:
        return []  # the held-out defects are copies themselves
    rows = np.argsort(found.distance, kind="stable")[:num]
    return [(int(row), int(found.row[row]), float(found.distance[row] / usual)) for row in rows]


def find_copies(cells: Iterable[Candidates]) -> list[Copied]:
    """The most likely copies of each run, `NUM_COPIES` at most, the likeliest first; none of cells without
    held-out defects: nothing says how near is near."""
    usable = [cell for cell in cells if len(cell.train) and len(cell.held_out)]
    arguments = ((cell.features, cell.train, cell.held_out) for cell in usable)
    of_run: dict[str, list[Copied]] = {cell.run: [] for cell in usable}
    for number, found in run_on_features(most_copied, arguments):
        cell = usable[number]
        of_run[cell.run] += [
            _describe(cell.run, cell.samples[row], cell.photos[photo], ratio) for row, photo, ratio in found
        ]
    return [
        copied
        for found in of_run.values()
        for copied in sorted(found, key=lambda one: (one.ratio, one.sample_id))[:NUM_COPIES]
    ]


def _describe(run: str, sample: Sample, photo: Photo, ratio: float) -> Copied:
    return Copied(
        run=run,
        sample_id=sample.sample_id,
        product=sample.product,
        defect_type=sample.defect_type,
        mode=sample.mode,
        made_of=sample.reference_uri or sample.normal_uri,
        photo=photo.uri,
        ratio=ratio,
    )


def draw_copies(plan: EvaluationPlan, copies: Sequence[Copied]) -> dict[str, bytes]:
    """Run -> a PNG: in a column each, the defects of its likely copies with their ratios, and below, of the real
    ones nearest to them."""
    size = (plan.image_size, plan.channels)
    wanted = [(copied.run, _sample_of(plan, copied)) for copied in copies]
    samples = read_samples(plan.chosen, wanted, *size, read=read_crops)
    panels = {}
    for run in dict.fromkeys(copied.run for copied in copies):
        own = [copied for copied in copies if copied.run == run]
        rows = {
            "sample": [[samples[run, copied.sample_id] for copied in own]],
            "nearest real training defect": [[_crop_photo(plan, copied) for copied in own]],
        }
        panels[run] = draw_sheet([f"{copied.ratio:.2f}" for copied in own], rows, plan.image_size)
    return panels


def _sample_of(plan: EvaluationPlan, copied: Copied) -> Sample:
    cell = plan.chosen[copied.run].cells[copied.product, copied.defect_type, copied.mode]
    return next(sample for sample in cell if sample.sample_id == copied.sample_id)


def _crop_photo(plan: EvaluationPlan, copied: Copied) -> np.ndarray:
    cell = plan.real.of_cell(copied.product, copied.defect_type)
    photo = next(photo for photo in cell if photo.uri == copied.photo)
    (pixels,) = load_photos([photo], plan.image_size, plan.channels)
    if photo.mask_uri is None:
        return pixels
    return crop_defect(pixels, images.fit_mask(read_mask(photo), (plan.image_size, plan.image_size)))


def read_crops(
    uri: str, shard: ShardStats, wanted: Collection[str], image_size: int, channels: int
) -> tuple[list[str], np.ndarray]:
    """`read_pixels`, cropped to the defects."""
    names, pixels = read_pixels(uri, shard, wanted, image_size, channels)
    _, masks = read_masks(uri, shard, wanted, image_size)
    return names, np.stack([crop_defect(*both) for both in zip(pixels, masks, strict=True)])


def crop_defect(pixels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The square about a mask's bounding box, a little larger, brought to the image's size; without a mask all.

    Args:
        pixels: uint8 (S, S, C).
        mask: (S, S), 0 outside.

    Returns:
        uint8 (S, S, C).
    """
    size = len(mask)
    rows, columns = np.nonzero(mask)
    if not len(rows):
        return pixels
    ends = [(int(some.min()), int(some.max()) + 1) for some in (columns, rows)]
    extent = max(high - low for low, high in ends)
    side = min(size, max(round(_MARGIN * extent), round(_SMALLEST * size)))
    left, upper = (min(max((low + high - side) // 2, 0), size - side) for low, high in ends)
    return images.resize_window(pixels, (left, upper, left + side, upper + side), size, pixels.shape[2])
