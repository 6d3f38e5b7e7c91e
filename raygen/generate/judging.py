"""The judge that a recipe's gate names: checked before a run begins, at work in its actors."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.data.runs import Run
from raygen.errors import UserError
from raygen.families import load_judge
from raygen.families.family import DefectGenerator, Judge, Made, Rows, Views
from raygen.generate.config import GenerateConfig
from raygen.records import NORMAL, SCORES, SampleRequest


def read_judge(config: GenerateConfig) -> Checkpoint | None:
    """The judge that a recipe names, if it names one.

    Raises:
        UserError: there is none.
    """
    if config.gate.judge is None:
        return None
    try:
        return load_checkpoint(config.gate.judge)
    except UserError as error:
        raise UserError(f"gate.judge: {error}") from None


def judge_digest(config: GenerateConfig) -> str | None:
    """Of the judge that a recipe names: as a checkpoint's, it decides which samples are accepted."""
    judge = read_judge(config)
    return judge.digest if judge else None


def deciding(config: GenerateConfig) -> dict[str, Any]:
    """What decides samples, shards and verdicts, beside the checkpoint's digest: the recipe's part of it, and the
    digest of the judge if it names one."""
    digest = judge_digest(config)
    return config.identity() | ({"gate.judge": digest} if digest else {})


def refuse_other_judges(
    config: GenerateConfig, checkpoint: Checkpoint, has_masks: bool, defect_types: Iterable[str]
) -> None:
    """Raises UserError if the recipe's judge is none, or cannot judge what is to be made.

    Args:
        config: the recipe.
        checkpoint: what makes the samples.
        has_masks: whether it gives them masks; without, nothing goes through the gate.
        defect_types: that are to be made.
    """
    judge = read_judge(config)
    if judge is None:
        return
    if not has_masks:
        raise UserError(
            f"gate.judge: samples of {checkpoint.uri} have no masks, and nothing is gated; leave the key out"
        )
    known = load_judge(judge, config).classes
    for name in defect_types:
        if name not in known:
            raise UserError(
                f"gate.judge: {name!r} is unknown to {judge.uri}; it knows {', '.join(known)}; fit one that has "
                f'seen it, or calls others so: types = {{folder = "{name}"}} in its recipe'
            )


def judge_warnings(config: GenerateConfig, run: Run) -> list[str]:
    """What to tell the user about the recipe's judge."""
    judge = read_judge(config)
    if judge is None:
        return []
    found, size, seen = [], judge.config.image_size, {name.casefold() for name in judge.config.products}
    if config.native:
        found.append(f"{judge.uri} was fitted to whole photos, and is to judge windows of photographs")
    if run.image_size < size:
        found.append(
            f"{judge.uri} was fitted to photos of {size} px, and samples have {run.image_size}: fit one with "
            f"image_size = {run.image_size}"
        )
    if unseen := [name for name in run.products if name.casefold() not in seen]:
        found.append(
            f"{', '.join(unseen)}: not among the products that {judge.uri} has seen "
            f"({', '.join(judge.config.products)})"
        )
    return found


class Judged:
    """A generator whose samples get their scores from a judge, those that it has a word on; see
    raygen.families.family.DefectGenerator."""

    def __init__(self, generator: DefectGenerator, judge: Judge) -> None:
        self.generator, self.judge = generator, judge
        self.is_judged, self.micro_batch = generator.is_judged, generator.micro_batch

    @property
    def block(self) -> int | None:
        return self.generator.block

    def draw_normals(self, seeds: Sequence[int], products: Sequence[str]) -> tuple[NDArray[np.uint8], Rows]:
        return self.generator.draw_normals(seeds, products)

    def backgrounds(self, pixels: NDArray[np.uint8]) -> Rows | None:
        return self.generator.backgrounds(pixels)

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        made = self.generator.make(views, request, seeds)
        if request.defect_type == NORMAL:  # what no other seed would make better
            return made
        scores, names = made.scores.copy(), list(SCORES)
        for name, values in self.judge(made.pixels, request.defect_type).items():
            scores[:, names.index(name)] = values
        return made._replace(scores=scores)
