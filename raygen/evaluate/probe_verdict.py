"""What the probes found: every setting against traditional augmentation of the same real photos, and in words."""

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from raygen.evaluate.costs import Cost
from raygen.evaluate.probe import calibration_error
from raygen.evaluate.probe_plan import ProbePlan, Setting
from raygen.evaluate.probe_table import Found
from raygen.evaluate.statistics import LEVEL, POWER, Interval, compare, holm, worth
from raygen.records import NORMAL

Task = Literal["error", "dice"]
_WHAT = {"error": "error", "dice": "1 − Dice"}


class Compared(BaseModel):
    """One setting's loss, and how far it is from that of its base on the same photos. All are shares in [0, 1];
    intervals hold the truth at 95 %."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task  # error: a photo of the wrong class; dice: 1 − Dice of a defect's mask
    name: str
    kind: str  # "no-aug", "trad-aug", "samples"
    source: str  # run, alternative or mix; "" without samples
    guidance: str
    amount: int  # samples for each real defect; 0 without
    few: int | None  # real defects of each cell; None: all
    loss: Interval
    points: Interval  # loss minus the base's: traditional augmentation of the same photos
    relative: Interval  # the same as a share of the base's loss
    p: float
    p_corrected: float | None  # where it is one of the verdict's, corrected for their number
    detectable: (
        float | None
    )  # the smallest difference in points that these photos could show; None: they show none
    cells: dict[str, Interval]  # points, by product/class
    log_loss: float | None  # mean over the cells; of errors
    calibration: float | None  # how far its confidence is from its accuracy
    num_photos: int
    num_folds: int
    num_samples: int  # synthetic images that were learned from, in a fold at most

    @property
    def gains(self) -> bool:
        """Whether it is told to be better."""
        return self._is_told and self.points.value < 0

    @property
    def loses(self) -> bool:
        return self._is_told and self.points.value > 0

    @property
    def _is_told(self) -> bool:
        return (self.p if self.p_corrected is None else self.p_corrected) <= LEVEL


class Worth(BaseModel):
    """How many more real defects of each cell would have done what samples did."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str
    few: int  # real defects of each cell that there were
    more: float | None  # None: more than the curve reaches
    beyond: float  # that reach, less `few`


class ProbeOutcome(BaseModel):
    """All of it, for metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_defects: int  # that were tested
    num_normals: int
    num_folds: int
    num_groups: int
    rows: tuple[Compared, ...]
    worth: tuple[Worth, ...]
    costs: tuple[Cost, ...] = ()

    def of(self, task: Task, *, verdict: bool = False) -> list[Compared]:
        """The rows of a task; or those of the verdict alone."""
        return [row for row in self.rows if row.task == task and (not verdict or row.p_corrected is not None)]


def sum_up(plan: ProbePlan, tested: Found, pixels: Found | None, costs: Sequence[Cost]) -> ProbeOutcome:
    """Every setting's row; the verdict's corrected for being several."""
    rows = [*_rows(plan, tested, "error"), *(_rows(plan, pixels, "dice") if pixels else [])]
    corrected: list[Compared] = []
    for task in ("error", "dice"):
        own = [row for row in rows if row.task == task]
        chances = holm({row.name: row.p for row in own if _is_of_verdict(plan, row)})
        corrected += [
            row.model_copy(update={"p_corrected": chances[row.name]}) if _is_of_verdict(plan, row) else row
            for row in own
        ]
    normals = sum(photo.defect_type == NORMAL for photo in tested.photos)
    return ProbeOutcome(
        num_defects=len(tested.photos) - normals,
        num_normals=normals,
        num_folds=len(np.unique(tested.fold)),
        num_groups=len({photo.group for photo in tested.photos}),
        rows=tuple(corrected),
        worth=tuple(_worth(plan, corrected)),
        costs=tuple(costs),
    )


def _is_of_verdict(plan: ProbePlan, row: Compared) -> bool:
    """Whether a row is the one by which its source is judged."""
    is_main = row.few is None and row.amount == plan.probe.amount and row.kind == "samples"
    return is_main and row.guidance == plan.guidance_of(row.source)


def _rows(plan: ProbePlan, tested: Found, task: Task) -> list[Compared]:
    num_comparisons = sum(plan.guidance_of(source) is not None for source in plan.sources)
    rows = []
    for setting in tested.losses:
        base = setting.base
        photos, numbers, (loss, of_base) = tested.of(setting, base)
        found = compare(photos, loss, of_base, max(1, num_comparisons))
        names = [plan.cell_name(cell) for cell in np.unique(tested.cell[numbers]).tolist()]
        log_loss, calibration = _calibration(plan, tested, setting, numbers)
        rows.append(
            Compared(
                task=task,
                name=setting.name,
                kind=setting.kind,
                source=setting.source,
                guidance=setting.guidance if setting.source else "",
                amount=setting.amount,
                few=setting.few,
                loss=found.loss,
                points=found.points,
                relative=found.relative,
                p=found.p,
                p_corrected=None,
                detectable=found.detectable if np.isfinite(found.detectable) else None,
                cells=dict(zip(names, found.cells, strict=True)),
                log_loss=log_loss,
                calibration=calibration,
                num_photos=len(numbers),
                num_folds=len(np.unique(photos.fold)),
                num_samples=tested.num_samples[setting],
            )
        )
    return rows


def _calibration(
    plan: ProbePlan, tested: Found, setting: Setting, rows: np.ndarray
) -> tuple[float | None, float | None]:
    if setting not in tested.log_losses:
        return None, None
    of_cell = np.unique(tested.cell[rows], return_inverse=True)[1]
    log_loss = np.nanmean(tested.log_losses[setting][rows], axis=1)
    confidence, wrong = tested.confidences[setting][rows, 0], tested.losses[setting][rows, 0]
    by_cell = np.bincount(of_cell, log_loss) / np.bincount(of_cell)
    return float(by_cell.mean()), calibration_error(confidence, wrong == 0)


def _worth(plan: ProbePlan, rows: Sequence[Compared]) -> Iterable[Worth]:
    """Read off the curve without samples, whose end is all real defects."""
    errors = [row for row in rows if row.task == "error"]
    alone = {row.few: row.loss.value for row in errors if row.kind == "trad-aug"}
    defects = sum(photo.defect_type != NORMAL for real in plan.folds for photo in real.train)
    every = defects / sum(len(real.cells) for real in plan.folds)  # of a cell, on average
    curve = {count or every: loss for count, loss in alone.items()}
    if len(curve) < 2:
        return
    for row in errors:
        if row.kind == "samples" and row.few is not None:
            found = worth(list(curve.items()), row.loss.value)
            yield Worth(
                source=row.source,
                few=row.few,
                more=None if found is None else max(0.0, found - row.few),
                beyond=max(curve) - row.few,
            )


# ------------------------------------------------------------------------------------------------- words


def in_words(outcome: ProbeOutcome) -> list[str]:
    """The verdict, a line each; the first says what these photos could have told at all."""
    lines = []
    for task in ("error", "dice"):
        judged = outcome.of(task, verdict=True)
        alone = next((r for r in outcome.of(task) if r.kind == "trad-aug" and r.few is None), None)
        if alone is None:
            continue
        lines.append(_what_could_be_told(outcome, task, alone, judged))
        lines += [_line(row, len(judged)) for row in judged]
        lines += _winner(task, judged)
    lines += words_of_worth(outcome.worth)
    lines += [_words_of_cost(cost) for cost in outcome.costs]
    return lines


def _what_could_be_told(
    outcome: ProbeOutcome, task: Task, alone: Compared, judged: Sequence[Compared]
) -> str:
    if task == "error":
        tested = f"{outcome.num_defects:,} defects and {outcome.num_normals:,} normals"
        how = f"in {outcome.num_folds} folds, each once" if outcome.num_folds > 1 else "of one split"
        start = f"Tested on {tested} {how} ({outcome.num_groups:,} groups): "
    else:
        start = f"Segmentation, on {alone.num_photos:,} masks: "
    line = f"{start}traditional augmentation alone has {_WHAT[task]} {_share(alone.loss)}."
    if not judged:
        return line
    known = [row.detectable for row in judged if row.detectable is not None]
    if len(known) < len(judged):
        return f"{line} These photos are of too few groups to show any gain."
    smallest = max(known)
    share = smallest / alone.loss.value if alone.loss.value else 0.0
    return (
        f"{line} The smallest gain that these photos could have shown is {100 * smallest:.1f} points ({share:.0%} "
        f"of it), in {POWER:.0%} of such tests."
    )


def _line(row: Compared, num_judged: int) -> str:
    corrected = f", corrected for {num_judged} comparisons" if num_judged > 1 else ""
    told = "lower" if row.gains else "higher" if row.loses else "no difference can be told"
    folds = f", in {row.num_folds} folds" if row.num_folds > 1 else ""
    line = (
        f"{row.name}, {row.amount} for each real defect: {_WHAT[row.task]} {_share(row.loss)}, {_change(row)} "
        f"against traditional augmentation{folds} (p = {row.p_corrected:.2g}{corrected}): {told}."
    )
    worse = {cell: points for cell, points in row.cells.items() if points.low > 0}
    if worse:
        cells = ", ".join(f"{cell} {_points(points)}" for cell, points in worse.items())
        line += f" It loses in {cells}."
    return line


def _winner(task: Task, judged: Sequence[Compared]) -> list[str]:
    if len(judged) < 2:
        return []
    first, second = sorted(judged, key=lambda row: row.points.value)[:2]
    if not first.gains:
        return [f"No winner by {_WHAT[task]}: none is told to be better than traditional augmentation alone."]
    ahead = 100 * (second.points.value - first.points.value)
    return [
        f"The best by {_WHAT[task]} is {first.name}; {second.name}, the next, is {ahead:.1f} points behind."
    ]


def words_of_worth(found: Sequence[Worth]) -> Iterable[str]:
    for one in found:
        start = f"With {one.few} real defects of each product and type, {one.source}'s samples are worth "
        if one.more is None:
            yield f"{start}more than {one.beyond:.0f} more."
        elif one.more < 0.5:
            yield f"{start}none more."
        else:
            yield f"{start}{one.more:.0f} more."


def _words_of_cost(cost: Cost) -> str:
    training = (
        "a training of which nothing is said"
        if cost.training is None
        else f"{cost.training:.2g} h of training"
    )
    start = (
        f"{cost.source} took {training} and "
        if cost.training != 0
        else f"{cost.source} took no training and "
    )
    return f"{start}{cost.thousand_samples:.2g} h for 1,000 samples (hours of a core, or of a worker's GPU)."


def _share(interval: Interval) -> str:
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _points(interval: Interval) -> str:
    return f"{100 * interval.value:+.1f} points".replace("-", "−")


def _change(row: Compared) -> str:
    """`−18 % [−30, −4]`"""
    low, value, high = (100 * share for share in (row.relative.low, row.relative.value, row.relative.high))
    return f"{value:+.0f} % [{low:+.0f}, {high:+.0f}]".replace("-", "−")
