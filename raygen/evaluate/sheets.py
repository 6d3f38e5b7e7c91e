"""Sample sheets: real defects and those of each run, one above the other, for a person's eyes."""

import numpy as np

from raygen.data.defects import load_photos
from raygen.evaluate.on_ray import read_samples
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.samples import Sample
from raygen.records import Mode
from raygen.show import draw_sheet

_COLUMNS = 8


def sample_sheets(plan: EvaluationPlan) -> dict[str, bytes]:
    """Defect type -> a PNG: for each product a row of its real training defects, and one for each run and mode."""
    real, size = plan.real, (plan.image_size, plan.channels)
    shown: dict[tuple[str, str, str, Mode], list[Sample]] = {
        (run, product, defect_type, mode): one.take((product, defect_type), mode, _COLUMNS)
        for run, one in plan.chosen.items()
        for product, defect_type, mode in one.cells
    }
    wanted = {(run, sample) for (run, *_), samples in shown.items() for sample in samples}
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
    return sheets
