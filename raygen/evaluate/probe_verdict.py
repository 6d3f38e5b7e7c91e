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
    worse_in: tuple[str, ...]  # those of them where it is told to lose, corrected for their number
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


class Best(BaseModel):
    """Of the sources that are told to be better than traditional augmentation, the best."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: Task
    name: str
    next: str | None  # the best of all others
    points: Interval | None  # loss minus that of the next, on the photos that both were tested on
    p: float | None


class ProbeOutcome(BaseModel):
    """All of it, for metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_defects: int  # that were tested
    num_normals: int
    num_folds: int
    num_groups: int
    rows: tuple[Compared, ...]
    best: tuple[Best, ...]
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
        best=tuple(
            best
            for task, found in (("error", tested), ("dice", pixels))
            if found and (best := _best(plan, found, [row for row in corrected if row.task == task]))
        ),
        worth=tuple(_worth(plan, corrected)),
        costs=tuple(costs),
    )


def _is_of_verdict(plan: ProbePlan, row: Compared) -> bool:
    """Whether a row is the one by which its source is judged."""
    is_main = row.few is None and row.amount == plan.probe.amount and row.kind == "samples"
    return is_main and row.guidance == plan.guidance_of(row.source)


def _best(plan: ProbePlan, tested: Found, rows: Sequence[Compared]) -> Best | None:
    judged = sorted((row for row in rows if row.p_corrected is not None), key=lambda row: row.points.value)
    first = next((row for row in judged if row.gains), None)
    if first is None:
        return None
    others = [row for row in judged if row is not first]
    if not others:
        return Best(task=first.task, name=first.name, next=None, points=None, p=None)
    settings = {
        setting.name: setting
        for setting in tested.losses
        if setting.few is None and setting.amount in (0, plan.probe.amount)
    }
    photos, numbers, (loss, of_next) = tested.of(settings[first.name], settings[others[0].name])
    found = compare(photos, loss, of_next) if len(numbers) else None
    return Best(
        task=first.task,
        name=first.name,
        next=others[0].name,
        points=found.points if found else None,
        p=found.p if found else None,
    )


def _rows(plan: ProbePlan, tested: Found, task: Task) -> list[Compared]:
    num_comparisons = sum(plan.guidance_of(source) is not None for source in plan.sources)
    rows = []
    for setting in tested.losses:
        base = setting.base
        photos, numbers, (loss, of_base) = tested.of(setting, base)
        if not len(numbers):  # samples without masks
            continue
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
                worse_in=tuple(
                    name
                    for name, points, chance in zip(names, found.cells, found.cell_chances, strict=True)
                    if points.value > 0 and chance <= LEVEL
                ),
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
    """Read off the curve without samples, whose end is all real defects, for what is told to be better: by its
    difference from that curve, so that a run of some folds and draws is held against the same ones."""
    errors = [row for row in rows if row.task == "error"]
    alone = {row.few: row.loss.value for row in errors if row.kind == "trad-aug"}
    sizes = [count for real in plan.folds for count in real.num_defects.values()]
    curve = [(float(np.minimum(sizes, count or max(sizes)).mean()), loss) for count, loss in alone.items()]
    if len(curve) < 2:
        return
    for row in errors:
        if row.kind == "samples" and row.few is not None and row.gains:
            own = float(np.minimum(sizes, row.few).mean())
            found = worth(curve, alone[row.few] + row.points.value)
            more = None if found is None else max(0.0, found - own)
            yield Worth(source=row.source, few=row.few, more=more, beyond=max(curve)[0] - own)


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
        best = next((one for one in outcome.best if one.task == task), None)
        lines += _winner(task, best, judged)
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
    most = max(row.num_photos for row in judged)
    known = [row.detectable for row in judged if row.num_photos == most]
    smallest = min((one for one in known if one is not None), default=float("inf"))
    if smallest >= alone.loss.value:
        return f"{line} These photos are too few, or of too few groups, to show any gain."
    share = smallest / alone.loss.value
    return (
        f"{line} The smallest gain that these photos could have shown is {100 * smallest:.1f} points ({share:.0%} "
        f"of it), in {POWER:.0%} of such tests."
    )


def _line(row: Compared, num_judged: int) -> str:
    corrected = f", corrected for {num_judged} comparisons" if num_judged > 1 else ""
    told = "lower" if row.gains else "higher" if row.loses else "no difference can be told"
    folds = f", in {row.num_folds} folds" if row.num_folds > 1 else ""
    line = (
        f"{row.name}, {row.amount} for each real defect ({row.num_samples:,}): {_WHAT[row.task]} "
        f"{_share(row.loss)}, {_change(row)} against traditional augmentation{folds} "
        f"(p = {row.p_corrected:.2g}{corrected}): {told}."
    )
    if row.worse_in:
        line += f" It loses in {', '.join(f'{cell} {_points(row.cells[cell])}' for cell in row.worse_in)}."
    return line


def _winner(task: Task, best: Best | None, judged: Sequence[Compared]) -> list[str]:
    if len(judged) < 2:
        return []
    if best is None:
        return [f"No winner by {_WHAT[task]}: none is told to be better than traditional augmentation alone."]
    line = f"The best by {_WHAT[task]} of those is {best.name}"
    if best.points is None or best.p is None:
        return [f"{line}; no photo tells it from {best.next}, the next."]
    told = "" if best.p <= LEVEL else ": they cannot be told apart"
    return [
        f"{line}; from {best.next}, the next, it is {_points(best.points)} away (p = {best.p:.2g}){told}."
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
