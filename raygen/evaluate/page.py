"""The page of an evaluation, which needs no other file: report.html.j2, and of the probe probe.html.j2."""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from pydantic import BaseModel

from raygen.evaluate import plots
from raygen.evaluate.plots import Plot
from raygen.evaluate.probe_verdict import Compared, ProbeOutcome, Task, words_of_worth
from raygen.evaluate.report import Downstream, Metrics, condition_name, percent
from raygen.evaluate.statistics import Interval

_BETTER, _WORSE = (86, 180, 233), (230, 159, 0)  # sky blue and orange: black is read on both


def render(metrics: Metrics, sheets: Mapping[str, bytes], copies: Mapping[str, bytes] | None = None) -> str:
    """The page, self-contained: tables, plots, sheets (name -> PNG), likely copies (run -> PNG), settings."""
    from jinja2 import Environment, PackageLoader

    environment = Environment(
        loader=PackageLoader("raygen.evaluate", ""), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        percent=percent, embed=_embed, share=_share, points=plots.in_points, change=_change, chance=_chance,
        number=_number, told=plots.told, sentence=plots.sentence,
    )  # fmt: skip
    return environment.get_template("report.html.j2").render(
        m=metrics,
        tasks=_tasks(metrics.probe) if metrics.probe else [],
        worth=list(words_of_worth(metrics.probe.worth)) if metrics.probe else [],
        errors=_error_table(metrics.downstream),
        error_plots=list(plots.errors(metrics.downstream)),
        distance_plots=list(plots.kernel_distances(metrics.distances, metrics.names.get("kid", ""))),
        sheets=sheets,
        copies=copies or {},
        settings=json.dumps(metrics.settings, indent=2, ensure_ascii=False),
    )


class _Task(NamedTuple):
    """All that the page shows of one loss."""

    name: str
    what: str  # the loss
    rows: list[Compared]  # with all real defects
    cells: list[str]
    differences: list["_Differences"]
    forest: Plot | None
    curves: list[Plot]


class _Differences(NamedTuple):
    """A row of the heat map."""

    row: Compared
    fields: list["_Field | None"]  # one a cell; None: it was not tested there


class _Field(NamedTuple):
    points: Interval
    colour: str
    is_told: bool  # its interval excludes 0


_TASKS: dict[Task, str] = {"error": "Classification", "dice": "Segmentation"}


def _tasks(outcome: ProbeOutcome) -> list[_Task]:
    found = []
    for task, name in _TASKS.items():
        rows = outcome.of(task)
        if rows:
            whole = _by_source([row for row in rows if row.few is None])
            cells = list(dict.fromkeys(cell for row in whole for cell in row.cells))
            curves = (plots.over_amount(rows), plots.over_real_defects(rows))
            found.append(
                _Task(
                    name=name,
                    what=plots.LOSSES[task],
                    rows=whole,
                    cells=cells,
                    differences=_heat_map(whole, cells),
                    forest=plots.forest(whole),
                    curves=[plot for plot in curves if plot],
                )
            )
    return found


def _by_source(rows: Sequence[Compared]) -> list[Compared]:
    """Each source's together, and those of a guidance by their amount."""
    sources, guidances = [row.source for row in rows], [row.guidance for row in rows]
    return sorted(
        rows, key=lambda row: (sources.index(row.source), guidances.index(row.guidance), row.amount)
    )


def _heat_map(rows: Sequence[Compared], cells: Sequence[str]) -> list[_Differences]:
    rows = [row for row in rows if row.kind != "trad-aug"]
    values = [abs(points.value) for row in rows for points in row.cells.values()]
    reach = max((value for value in values if math.isfinite(value)), default=0.0)

    def field(points: Interval) -> _Field:
        return _Field(points, _tint(points.value, reach), points.low > 0 or points.high < 0)

    return [
        _Differences(row, [field(row.cells[cell]) if cell in row.cells else None for cell in cells])
        for row in rows
    ]


def _tint(value: float, reach: float) -> str:
    """White at 0, and towards its full colour at `reach`."""
    strength = min(1.0, abs(value) / reach) if reach and math.isfinite(value) else 0.0
    full = _BETTER if value < 0 else _WORSE
    return "#" + "".join(f"{round(255 + strength * (channel - 255)):02x}" for channel in full)


# ---------------------------------------------------------------------------------------------- figures


def _share(interval: Interval) -> str:
    """`12.3 % [10.1, 14.9]`"""
    return f"{100 * interval.value:.1f} % [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def _change(interval: Interval) -> str:
    """`−18 % [−30, −4]`"""
    value, low, high = (100 * share for share in interval)
    return f"{value:+.0f} % [{low:+.0f}, {high:+.0f}]".replace("-", "−")


def _chance(p: float | None) -> str:
    return "–" if p is None else f"{p:.2g}" if p >= 0.0001 else "< 0.0001"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def _embed(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


class _Table(BaseModel):
    """Tables 2, 3 and 8: a row for each scope and size, a column for each condition."""

    columns: list[str]
    rows: list[tuple[str, int, dict[str, Downstream]]]


def _error_table(downstream: Sequence[Downstream]) -> _Table:
    columns = list(dict.fromkeys(map(condition_name, downstream)))
    rows: dict[tuple[str, int], dict[str, Downstream]] = {}
    for row in downstream:
        rows.setdefault((row.scope, row.size), {})[condition_name(row)] = row
    return _Table(columns=columns, rows=[(scope, size, cells) for (scope, size), cells in rows.items()])
