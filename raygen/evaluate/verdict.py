"""What the figures of an evaluation say, in words."""

from collections.abc import Mapping, Sequence

import numpy as np
import scipy.stats

from raygen.evaluate.distances import ALL, Distance
from raygen.evaluate.report import Downstream, percent


def verdict(
    distances: Sequence[Distance], downstream: Sequence[Downstream], names: Mapping[str, str]
) -> list[str]:
    """What the figures say of the mix (of a run without one: of its modes) and all products together: a line each,
    good or bad, beside the paper's own gains."""
    lines = []
    runs = _mixes(distances)
    floors = {(row.product, row.defect_type, row.what): row for row in distances if row.run is None}
    for ours in runs[0] if runs else ():
        for other in (row for rows in runs[1:] for row in rows if row.what == ours.what):
            lines.append(_compare_distances(ours, other, names))
        if floor := floors.get((ours.product, ours.defect_type, "test")):
            lines.append(
                f"{names['kid']}: {ours.kid:.4f} of {_whose(ours)}, {floor.kid:.4f} of held-out real defects, the "
                "floor."
            )
        nothing = floors[ours.product, ours.defect_type, "normal"]
        word = "farther from" if ours.kid > nothing.kid else "closer to"
        lines.append(
            f"{_whose(ours)} is {word} the real defects than normals are, which have no defect at all "
            f"({names['kid']} {nothing.kid:.4f})."
        )
    scopes = [row.scope for row in downstream]
    widest = ALL if ALL in scopes else scopes[0] if scopes else ""
    general = [row for row in downstream if row.scope == widest]
    synthetic = [row for row in general if row.run is not None and row.source is None]
    synthetic = [row for row in synthetic if row.condition == "mix"] or synthetic
    for row in synthetic:
        for base in general:
            if (base.condition, base.size) == ("trad-aug", row.size):
                paper = " (The paper on SDI: −18 %.)" if row.condition == "mix" else ""
                lines.append(_compare_errors(row, base) + paper)
        ours = next(r for r in synthetic if (r.condition, r.size) == (row.condition, row.size))
        if row is not ours:
            lines.append(_compare_errors(ours, row))
        lines += _single_products(row, downstream)
    return lines


def _single_products(general: Downstream, downstream: Sequence[Downstream]) -> list[str]:
    """The same comparison of each product's own classifiers, in one line."""
    changes = []
    for row in downstream:
        alike = (row.run, row.condition, row.source) == (general.run, general.condition, None)
        for base in downstream if alike and row.scope != general.scope else ():
            if (base.condition, base.scope, base.size) == ("trad-aug", row.scope, row.size):
                change = _change(row.mean, base.mean)
                changes.append(f"{row.scope} {percent(row.mean)} against {percent(base.mean)}, {change}")
    return [f"{general.run}, {general.condition}, single products: {'; '.join(changes)}."] if changes else []


def _mixes(distances: Sequence[Distance]) -> list[list[Distance]]:
    """For each run its row of the most products and types together: of its mix, or, without one, of each mode."""
    rows = [row for row in distances if row.run is not None]
    if not rows:
        return []
    widest = (rows[0].product, rows[0].defect_type)  # the table begins with them
    whole: dict[str | None, list[Distance]] = {row.run: [] for row in rows}
    for row in rows:
        if (row.product, row.defect_type) == widest:
            whole[row.run].append(row)
    return [[row for row in own if row.what == "mix"] or own for own in whole.values()]


def _whose(row: Distance) -> str:
    return f"{row.run} ({row.what})"


def _compare_distances(ours: Distance, other: Distance, names: Mapping[str, str]) -> str:
    line = (
        f"Distance: {names['frechet']} {ours.frechet:.2f} of {_whose(ours)} against {other.frechet:.2f} of "
        f"{_whose(other)}: {_change(ours.frechet, other.frechet)}; {names['kid']} {ours.kid:.4f} against "
        f"{other.kid:.4f}: {_change(ours.kid, other.kid)}. "
        "(The paper on SDI, DT-GAN against StarGAN v2: FID −21 %, KID −31 %.)"
    )
    if ours.num_images != other.num_images:
        line += f" But of {ours.num_images} and {other.num_images} images: not of equal sizes."
    return line


def _compare_errors(row: Downstream, base: Downstream) -> str:
    """By Welch's test over the seeds."""
    whose = "traditional augmentation alone" if base.run is None else f"{base.run}'s {base.condition}"
    scope = "all products" if row.scope == ALL else row.scope
    line = (
        f"{row.run}, {row.condition}, {scope}, {row.size} a cell: error {percent(row.mean)} against "
        f"{percent(base.mean)} with {whose}: {_change(row.mean, base.mean)}"
    )
    if min(len(row.errors), len(base.errors)) < 2 or not row.std + base.std:
        return f"{line}; the seeds do not tell how sure that is."
    chance = float(np.asarray(scipy.stats.ttest_ind(row.errors, base.errors, equal_var=False))[1])
    return (
        f"{line}; {'too little to tell' if chance > 0.05 else 'more than the seeds vary'} (p = {chance:.2g})."
    )


def _change(value: float, base: float) -> str:
    """`−18 %`"""
    return f"{100 * (value - base) / base:+.0f} %".replace("-", "−") if base > 0 else "no base"
