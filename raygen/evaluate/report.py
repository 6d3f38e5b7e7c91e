"""What an evaluation found: metrics.json for programs, one self-contained HTML page for people."""

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from raygen.evaluate.distances import Distance
from raygen.evaluate.downstream import Fit, FitResult
from raygen.evaluate.memorisation import Copied
from raygen.evaluate.probe_verdict import ProbeOutcome

SCHEMA_VERSION = 2


class RunSummary(BaseModel):
    """A run that was looked at."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    run_id: str
    checkpoint: str  # digest
    image_size: int
    channels: int
    num_samples: int  # of the whole run
    chosen: dict[str, int]  # product/type/mode -> samples looked at
    refused: int  # samples that the run's gate has refused: kept all the same, or dropped


class Downstream(BaseModel):
    """One comparison's classifiers: the same but for their seeds. Errors are shares in [0, 1]."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: str  # ALL, or a product
    condition: str
    run: str | None
    source: str | None  # cross-domain: the product whose references guide
    size: int  # images of each product and class
    errors: tuple[float, ...]  # one a seed: mean over the cells of the test split
    mean: float
    std: float  # over the seeds, unbiased; 0 for one
    plain_mean: float  # of the error over all test photos
    confusion: tuple[tuple[int, ...], ...]  # summed over the seeds
    num_real: int
    num_synthetic: int


class Metrics(BaseModel):
    """metrics.json."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[2] = SCHEMA_VERSION
    names: dict[str, str]  # what the distances are called, for their networks: frechet, kid, clustered
    products: tuple[str, ...]
    defect_types: tuple[str, ...]
    photos: dict[str, dict[str, int]]  # split -> product/type -> real photos
    runs: dict[str, RunSummary]
    distances: tuple[Distance, ...]
    memorisation: tuple[Copied, ...] = ()  # the samples of each run that are most likely copies
    downstream: tuple[Downstream, ...]
    probe: ProbeOutcome | None = None
    verdict: tuple[str, ...]
    caveats: tuple[str, ...]
    settings: dict[str, Any]


def sum_fits(results: Iterable[FitResult]) -> tuple[Downstream, ...]:
    """One entry for each comparison, in their order."""
    groups: dict[Fit, list[FitResult]] = {}
    for result in results:
        groups.setdefault(result.fit.model_copy(update={"seed": 0}), []).append(result)
    return tuple(_sum_group(fit, group) for fit, group in groups.items())


def _sum_group(fit: Fit, group: Sequence[FitResult]) -> Downstream:
    errors = [result.error for result in group]
    return Downstream(
        **fit.model_dump(exclude={"seed"}),
        errors=tuple(errors),
        mean=float(np.mean(errors)),
        std=float(np.std(errors, ddof=1)) if len(errors) > 1 else 0.0,
        plain_mean=float(np.mean([result.plain_error for result in group])),
        confusion=tuple(map(tuple, np.sum([result.confusion for result in group], axis=0).tolist())),
        num_real=group[0].num_real,
        num_synthetic=group[0].num_synthetic,
    )


def render(metrics: Metrics, sheets: Mapping[str, bytes], copies: Mapping[str, bytes] | None = None) -> str:
    """The page, self-contained: tables, plots, sheets (name -> PNG), likely copies (run -> PNG), settings."""
    from jinja2 import Environment

    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(percent=percent, embed=_embed)
    template = environment.from_string(files("raygen.evaluate").joinpath("report.html.j2").read_text("utf-8"))
    return template.render(
        m=metrics,
        errors=_error_table(metrics.downstream),
        plots={name: figure for name, figure in _plots(metrics).items() if figure},
        sheets=sheets,
        copies=copies or {},
        settings=json.dumps(metrics.settings, indent=2, ensure_ascii=False),
    )


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _embed(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def condition_name(row: Downstream) -> str:
    """`Trad-Aug`, `ours: Mix`, `ours: vA`."""
    if row.run is None:
        return {"no-aug": "No-Aug", "trad-aug": "Trad-Aug"}[row.condition]
    what = f"v{row.source}" if row.source else row.condition.capitalize()
    return f"{row.run}: {what}"


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


def _plots(metrics: Metrics) -> dict[str, bytes | None]:
    return {
        "Error by condition and size": _plot_errors(metrics),
        f"{metrics.names.get('kid', '')} by cell": _plot_distances(metrics),
    }


def _plot_errors(metrics: Metrics) -> bytes | None:
    """Error against data set size, with the standard deviation over the seeds."""
    if not metrics.downstream:
        return None
    scopes = list(dict.fromkeys(row.scope for row in metrics.downstream))
    figure, axes = _figure(len(scopes))
    for axis, scope in zip(axes, scopes, strict=True):
        rows = [row for row in metrics.downstream if row.scope == scope]
        names = list(dict.fromkeys(map(condition_name, rows)))
        for offset, name in enumerate(names):
            own = [row for row in rows if condition_name(row) == name]
            sizes = [
                row.size * (1 + 0.02 * (offset - len(names) / 2)) for row in own
            ]  # so that bars do not hide
            axis.errorbar(
                sizes,
                [100 * row.mean for row in own],
                [100 * row.std for row in own],
                marker="o",
                capsize=3,
                label=name,
            )
        axis.set(title=scope, xlabel="images of each product and class", ylabel="error (%)")
        axis.set_ylim(bottom=0)
    axes[0].legend(fontsize=8)
    return _png(figure)


def _plot_distances(metrics: Metrics) -> bytes | None:
    """The kernel distance of every cell, with the standard deviation over subsets: a column for each product, a
    row for each defect type."""
    products = list(dict.fromkeys(row.product for row in metrics.distances))
    defect_types = list(dict.fromkeys(row.defect_type for row in metrics.distances))
    if not products:
        return None
    num_bars = max(len(_of_cell(metrics, product, kind)) for product in products for kind in defect_types)
    figure, axes = _figure(len(products), len(defect_types), height=1.1 + 0.24 * num_bars)
    places = [(product, kind) for kind in defect_types for product in products]
    for axis, (product, kind) in zip(axes, places, strict=True):
        rows = _of_cell(metrics, product, kind)
        axis.set_visible(bool(rows))
        labels = [f"{row.run}: {row.what}" if row.run else f"real: {row.what}" for row in rows]
        colours = ["#999999" if row.run is None else "#2a6f97" for row in rows]
        axis.barh(labels, [row.kid for row in rows], xerr=[row.kid_std for row in rows], color=colours)
        axis.invert_yaxis()
        axis.set(title=f"{product}, {kind}", xlabel=metrics.names["kid"])
    return _png(figure)


def _of_cell(metrics: Metrics, product: str, defect_type: str) -> list[Distance]:
    return [row for row in metrics.distances if (row.product, row.defect_type) == (product, defect_type)]


def _figure(columns: int, rows: int = 1, height: float = 3.8) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure  # not pyplot: no state, no display

    figure = Figure(figsize=(4.2 * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, list(axes.flat)


def _png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
