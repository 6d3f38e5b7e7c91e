"""The page's plots, each one panel narrow enough for a phone, with what it shows in words."""

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from raygen.evaluate.distances import Distance
from raygen.evaluate.probe_verdict import Compared, Task
from raygen.evaluate.report import Downstream, condition_name
from raygen.evaluate.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LOSSES: Mapping[Task, str] = {"error": "error", "dice": "1 − Dice"}
TRADITIONAL = "traditional augmentation"

_WIDTH, _DPI = 5.0, 170  # inches: 480 CSS pixels, whose letters of 10 points are still read at 360
_COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#aa4499",
    "#8c6d00",
    "#332288",
)  # told apart by the colour-blind
_MARKERS = "osD^vPX"  # not as many as colours: their pairs come again late
_SHADE = "#e4e4e4"
_TOLD = {"lower": ("#0072b2", "<"), "not told": ("#555555", "o"), "higher": ("#c2410c", ">")}


class Plot(NamedTuple):
    """A picture with its words, for those who do not see it, too."""

    title: str
    alt: str
    png: bytes


# ------------------------------------------------------------------------------------------- the probe


def told(row: Compared) -> str:
    """`lower`, `higher` or `not told`."""
    return "lower" if row.gains else "higher" if row.loses else "not told"


def forest(rows: Sequence[Compared]) -> Plot | None:
    """The differences from traditional augmentation, with their intervals, source by source."""
    rows = [row for row in rows if row.few is None and row.kind != "trad-aug"]
    if not rows:
        return None
    what = LOSSES[rows[0].task]
    groups: dict[str, list[Compared]] = {}
    for row in rows:
        groups.setdefault(row.source, []).append(row)

    def paint(axis: "Axes") -> None:
        place, ticks, handles = 0.0, {}, {}
        for source, own in groups.items():
            if source:
                beside = axis.get_yaxis_transform()
                axis.text(0.01, place, _short(source, 40), transform=beside, va="center", weight="bold")
                place += 1
            for row in own:
                colour, marker = _TOLD[told(row)]
                value, low, high = _percents(row.points)
                if row.detectable is not None:
                    axis.barh(place, 200 * row.detectable, 1, -100 * row.detectable, color=_SHADE, zorder=0)
                axis.plot([low, high], [place, place], color=colour, linewidth=2)
                face = "white" if marker == "o" else colour
                (handles[told(row)],) = axis.plot(
                    value, place, marker, color=colour, markerfacecolor=face, markersize=8, linestyle="none"
                )
                ticks[place] = f"{row.guidance}, {row.amount}×" if source else row.name
                place += 1
            place += 0.4
        axis.axvline(0, color="black", linewidth=1)
        axis.set_yticks(list(ticks), list(ticks.values()))
        axis.set_ylim(place, -0.8)
        axis.set_xlabel(f"{what} minus that of {TRADITIONAL}, points\n← better      worse →")
        known = {name: handles[name] for name in _TOLD if name in handles}
        _legend_below(axis, {**known, "too small to be told": axis.barh([0], [0], color=_SHADE)}, columns=2)

    said = "; ".join(f"{_label(row)} {in_points(row.points)}, {told(row)}" for row in rows)
    num_places = len(rows) + 1.4 * len(groups)
    return Plot(
        f"Differences from {TRADITIONAL}",
        f"Forest plot: {what} minus that of {TRADITIONAL}, in points with 95 % intervals. {said}.",
        _draw(paint, _height(num_places)),
    )


def _height(num_places: float) -> float:
    return 1.5 + 0.27 * num_places


def over_amount(rows: Sequence[Compared]) -> Plot | None:
    """The loss by the number of samples, where several were tried."""
    curves: dict[str, dict[float, Interval]] = {}
    for judged in rows:
        if judged.p_corrected is not None:  # of each source the guidance by which it is judged
            points = {
                float(row.amount): row.loss
                for row in rows
                if (row.source, row.guidance, row.few) == (judged.source, judged.guidance, None)
            }
            if len(points) > 1:
                curves[judged.source] = dict(sorted(points.items()))
    alone = next((row for row in rows if row.kind == "trad-aug" and row.few is None), None)
    if not curves:
        return None
    ticks = {amount: f"{amount:g}" for curve in curves.values() for amount in curve}
    base = {TRADITIONAL: dict.fromkeys((min(ticks), max(ticks)), alone.loss)} if alone else {}
    along = "samples for each real defect"
    return _curves("the amount of samples", {**base, **curves}, rows, along, ticks)


def over_real_defects(rows: Sequence[Compared]) -> Plot | None:
    """The loss by the number of real defects, where it was tried with few."""
    counts = sorted({row.few for row in rows if row.few is not None})
    if not counts:
        return None
    end = 2.0 * counts[-1]  # a place for "all"
    judged = {(row.source, row.guidance, row.amount) for row in rows if row.p_corrected is not None}
    curves: dict[str, dict[float, Interval]] = {}
    for row in rows:
        is_judged = (row.source, row.guidance, row.amount) in judged
        if row.kind == "trad-aug" or (row.kind == "samples" and (is_judged or row.few is not None)):
            curve = curves.setdefault(row.source or TRADITIONAL, {})
            curve[end if row.few is None else float(row.few)] = row.loss
    curves = {name: dict(sorted(curve.items())) for name, curve in curves.items() if len(curve) > 1}
    if not curves:
        return None
    ticks = {**{float(count): str(count) for count in counts}, end: "all"}
    along = "real defects of each product and type"
    return _curves("the number of real defects", curves, rows, along, ticks)


def _curves(
    over: str,
    curves: Mapping[str, Mapping[float, Interval]],
    rows: Sequence[Compared],
    along: str,
    ticks: Mapping[float, str],
) -> Plot:
    what = LOSSES[rows[0].task]
    sources = list(dict.fromkeys(row.source for row in rows if row.source))  # each of one colour in all plots

    def paint(axis: "Axes") -> None:
        handles = {}
        for name, curve in curves.items():
            number = sources.index(name) if name in sources else -1
            colour = "#444444" if name == TRADITIONAL else _COLOURS[number % len(_COLOURS)]
            values, lows, highs = zip(*map(_percents, curve.values()), strict=True)
            line = "--" if name == TRADITIONAL else "-"
            marker = "." if name == TRADITIONAL else _MARKERS[number % len(_MARKERS)]
            (handles[name],) = axis.plot(list(curve), values, line, color=colour, marker=marker)
            axis.fill_between(list(curve), lows, highs, color=colour, alpha=0.13, linewidth=0)
        axis.set_xscale("log")
        axis.set_xticks(list(ticks), list(ticks.values()))
        axis.minorticks_off()
        axis.set(xlabel=along, ylabel=f"{what} (%)")
        axis.set_ylim(bottom=0)
        _legend_below(axis, handles)

    said = "; ".join(
        f"{name} {', '.join(f'{_percents(loss)[0]:.1f} % at {ticks[place]}' for place, loss in curve.items())}"
        for name, curve in curves.items()
    )
    alt = f"Curves with 95 % bands: {what} by {along}. {said}."
    return Plot(f"{sentence(what)} over {over}", alt, _draw(paint, 3.2 + 0.22 * len(curves)))


def sentence(text: str) -> str:
    """With a capital first letter, and the others as they are."""
    return text[:1].upper() + text[1:]


def in_points(interval: Interval) -> str:
    """`−2.1 [−3.4, −0.8]`"""
    value, low, high = _percents(interval)
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]".replace("-", "−")


def _percents(interval: Interval) -> tuple[float, float, float]:
    value, low, high = (100 * share for share in interval)
    return value, low, high


def _label(row: Compared) -> str:
    return f"{row.name}, {row.amount}×" if row.source else row.name


# ------------------------------------------------------------------------- classifiers and distances


def errors(downstream: Sequence[Downstream]) -> Iterable[Plot]:
    """Error against data set size, with the standard deviation over the seeds; one for each scope."""
    for scope in dict.fromkeys(row.scope for row in downstream):
        yield _errors_of(scope, [row for row in downstream if row.scope == scope])


def _errors_of(scope: str, rows: Sequence[Downstream]) -> Plot:
    names = list(dict.fromkeys(map(condition_name, rows)))

    def paint(axis: "Axes") -> None:
        handles = {}
        for offset, name in enumerate(names):
            own = [row for row in rows if condition_name(row) == name]
            handles[name] = axis.errorbar(
                [
                    row.size * (1 + 0.02 * (offset - len(names) / 2)) for row in own
                ],  # so that bars do not hide
                [100 * row.mean for row in own],
                [100 * row.std for row in own],
                color=_COLOURS[offset % len(_COLOURS)],
                marker=_MARKERS[offset % len(_MARKERS)],
                capsize=3,
            )
        axis.set(xlabel="images of each product and class", ylabel="error (%)")
        axis.set_ylim(bottom=0)
        _legend_below(axis, handles)

    said = "; ".join(f"{condition_name(row)} {100 * row.mean:.1f} % at {row.size}" for row in rows)
    alt = f"Error with its standard deviation over seeds, by condition and number of images, {scope}. {said}."
    return Plot(f"Error by condition and size: {scope}", alt, _draw(paint, 3.2 + 0.22 * len(names)))


def kernel_distances(distances: Sequence[Distance], what: str) -> Iterable[Plot]:
    """The kernel distance of every cell, with the standard deviation over subsets; one for each cell."""
    cells: dict[tuple[str, str], list[Distance]] = {}
    for kind in dict.fromkeys(row.defect_type for row in distances):
        for row in distances:
            if row.defect_type == kind:
                cells.setdefault((row.product, kind), []).append(row)
    for (product, kind), rows in cells.items():
        yield _distances_of(f"{product}, {kind}", rows, what)


def _distances_of(cell: str, rows: Sequence[Distance], what: str) -> Plot:
    labels = [f"{row.run or 'real'}: {row.what}" for row in rows]

    def paint(axis: "Axes") -> None:
        colours = ["#999999" if row.run is None else _COLOURS[0] for row in rows]
        hatches = ["//" if row.run is None else "" for row in rows]
        kids, stds = [row.kid for row in rows], [row.kid_std for row in rows]
        axis.barh(range(len(rows)), kids, xerr=stds, color=colours, hatch=hatches, edgecolor="white")
        axis.set_yticks(range(len(rows)), [_short(label, 26) for label in labels])
        axis.invert_yaxis()
        axis.locator_params("x", nbins=4)
        axis.set_xlabel(what)

    said = "; ".join(f"{label} {row.kid:.4f}" for label, row in zip(labels, rows, strict=True))
    alt = f"Bars: {what} from the real training defects, {cell}. {said}."
    return Plot(f"{what} by cell: {cell}", alt, _draw(paint, 1.1 + 0.26 * len(rows)))


# --------------------------------------------------------------------------------------------- drawing


def _legend_below(axis: "Axes", handles: Mapping[str, Any], columns: int = 1) -> None:
    axis.figure.legend(
        list(handles.values()), [_short(name, 40) for name in handles], loc="outside lower center", ncols=columns,
        frameon=False,
    )  # fmt: skip


def _short(name: str, most: int) -> str:
    """A name that leaves room for the plot; a legend leaves out those that begin with an underscore."""
    name = f" {name}" if name.startswith("_") else name
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _draw(paint: Callable[["Axes"], None], height: float) -> bytes:
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: no state, no display

    # No name is read as a formula, whatever signs are in it.
    style: dict[Any, Any] = {
        "text.parse_math": False,
        "font.size": 10,
        "legend.fontsize": 9,
    }
    with rc_context(style):
        figure = Figure(figsize=(_WIDTH, height), layout="constrained")
        axis = figure.subplots()
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        paint(axis)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()
