"""Sample sheets for a person's eyes: real defects and those of each run, one above the other, and the samples of
each run that score highest and lowest."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from raygen.data.defects import load_photos
from raygen.evaluate.on_ray import read_samples
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.samples import Sample
from raygen.records import Mode
from raygen.show import draw_sheet

_COLUMNS = 8
_SCORES = ("type_prob", "contrast")  # the first of them that a run has


class Extremes(NamedTuple):
    """The ends of a run's samples in the order of a score."""

    score: str
    highest: list[tuple[float, Sample]]
    lowest: list[tuple[float, Sample]]
    num_scored: int  # samples that have one


def find_extremes(samples: Iterable[Sample]) -> Extremes | None:
    """No sample is at both ends; None where none has a score."""
    samples = list(samples)
    for score in _SCORES:
        scored = [(value, sample) for sample in samples if (value := getattr(sample, score)) is not None]
        ranked = sorted(
            (one for one in scored if math.isfinite(one[0])), key=lambda one: (-one[0], one[1].sample_id)
        )
        if len(ranked) > 1:
            columns = min(_COLUMNS, len(ranked) // 2)
            return Extremes(score, ranked[:columns], ranked[-columns:][::-1], len(ranked))
    return None


def sample_sheets(plan: EvaluationPlan) -> dict[str, bytes]:
    """Name -> a PNG. By defect type: for each product a row of its real training defects, and one for each run and
    mode. By run: its samples of the highest and lowest score among those that are looked at."""
    real, size = plan.real, (plan.image_size, plan.channels)
    shown: dict[tuple[str, str, str, Mode], list[Sample]] = {
        (run, product, defect_type, mode): one.take((product, defect_type), mode, _COLUMNS)
        for run, one in plan.chosen.items()
        for product, defect_type, mode in one.cells
    }
    extremes = {
        run: found
        for run, one in plan.chosen.items()
        if (found := find_extremes(sample for samples in one.cells.values() for sample in samples))
    }
    wanted = {(run, sample) for (run, *_), samples in shown.items() for sample in samples}
    wanted |= {(run, sample) for run, ends in extremes.items() for _, sample in (*ends.highest, *ends.lowest)}
    pixels = read_samples(plan.chosen, wanted, *size)
    sheets = {}
    for defect_type in real.defect_types:
        groups: dict[str, list[list[np.ndarray | None]]] = {}
        for product, _ in (cell for cell in real.cells if cell[1] == defect_type):
            photos = load_photos(real.of_cell(product, defect_type)[:_COLUMNS], *size)
            groups[f"{product}, real"] = [list(photos)]
            for (run, *cell, mode), samples in shown.items():
                if cell == [product, defect_type]:
                    groups[f"{product}, {run}: {mode}"] = [[pixels[run, s.sample_id] for s in samples]]
        sheets[defect_type] = draw_sheet([""] * _COLUMNS, groups, size[0])
    for run, ends in extremes.items():
        rows = {
            _caption(name, ends.score, found): [[pixels[run, sample.sample_id] for _, sample in found]]
            for name, found in (("highest", ends.highest), ("lowest", ends.lowest))
        }
        title = f"{run}: highest and lowest {ends.score} of {ends.num_scored:,} samples"
        sheets[title] = draw_sheet([""] * _COLUMNS, rows, size[0])
    return sheets


def _caption(which: str, score: str, found: Sequence[tuple[float, Sample]]) -> str:
    """`highest type_prob: 0.99, 0.98`"""
    return f"{which} {score}: {', '.join(f'{value:.3g}' for value, _ in found)}"
