"""The evaluation from config to report: plan, measure, write."""

import json
import os
import time
from collections.abc import Callable

from raygen import storage
from raygen.config import check_writable, refuse_lost_places
from raygen.evaluate.classifier_fits import ClassifierFits
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.distance_table import DistanceTable
from raygen.evaluate.distances import Distance
from raygen.evaluate.downstream import FitResult
from raygen.evaluate.memorisation import Copied, draw_copies
from raygen.evaluate.page import render
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.probe_plan import ProbePlan
from raygen.evaluate.probe_table import ProbeTable
from raygen.evaluate.probe_verdict import ProbeOutcome, in_words, sum_up
from raygen.evaluate.real_photos import count_cells
from raygen.evaluate.report import Metrics, RunSummary, sum_fits
from raygen.evaluate.segmentation_table import SegmentationTable
from raygen.evaluate.sheets import sample_sheets
from raygen.evaluate.verdict import verdict
from raygen.extras import require
from raygen.show import duration

METRICS, SCHEMA, REPORT = "metrics.json", "metrics.schema.json", "report.html"


def evaluate(config: EvaluateConfig, say: Callable[[str], None] = print) -> Metrics:
    """Evaluates runs as a config asks for; goes on where an earlier attempt ended.

    Args:
        config: the recipe.
        say: takes each line for the user.

    Returns:
        What stands in metrics.json.

    Raises:
        UserError: a wrong config, defect set, run or output, or a package or weights that are missing.
    """
    started = time.monotonic()
    refuse_lost_places({"defects": config.defects, "output": config.output, **_run_places(config)})
    for package in ("jinja2", "matplotlib"):
        require(package, "evaluate")
    plan = EvaluationPlan.prepare(config)
    table, fits = DistanceTable(plan, say), ClassifierFits(plan, say)
    probes = ProbeTable(plan.probe, config, (plan.image_size, plan.channels), say)
    pixels = SegmentationTable(plan.probe, config, probes, say)
    check_writable(config.output)
    plan.describe(say)

    from raygen.on_ray import connected

    with connected():
        distances, copies = table.measure(), table.copies()
        probed = probe(plan.probe, probes, pixels)
        results = fits.train()
        sheets, panels = sample_sheets(plan), draw_copies(plan, copies)
    metrics = _sum_up(plan, table.names, distances, copies, results, probed)
    storage.put(storage.join(config.output, METRICS), metrics.model_dump_json(indent=1).encode())
    schema = json.dumps(Metrics.model_json_schema(), indent=1)
    storage.put(storage.join(config.output, SCHEMA), schema.encode())
    storage.put(storage.join(config.output, REPORT), render(metrics, sheets, panels).encode())
    for line in metrics.verdict:
        say(line)
    say(f"done in {duration(time.monotonic() - started)}; look at {storage.join(config.output, REPORT)}")
    return metrics


def dry_run(config: EvaluateConfig, say: Callable[[str], None] = print) -> None:
    """Says what `evaluate` would do and how long it would take on cores like this machine's; writes nothing."""
    plan = EvaluationPlan.prepare(config)
    say(config.model_dump_json(indent=2))
    plan.describe(say)
    probes = ProbeTable(plan.probe, config, (plan.image_size, plan.channels), say)
    extracting = DistanceTable(plan, say).price() + probes.price()
    training = ClassifierFits(plan, say).price()
    cores = os.cpu_count() or 1
    times = f"features take about {duration(extracting)}, the paper's classifiers {duration(training)}"
    say(f"{times} of one core of this machine,")
    say(f"so all take {duration((extracting + training) / cores)} of {cores} such cores")


def probe(plan: ProbePlan, probes: ProbeTable, pixels: SegmentationTable) -> ProbeOutcome | None:
    """All probes, summed up."""
    tested = probes.fit()
    if tested is None:
        return None
    return sum_up(plan, tested, pixels.fit(), probes.costs())


def _run_places(config: EvaluateConfig) -> dict[str, str]:
    return {f"runs.{name}": uri for name in config.runs for uri in config.uris_of(name)}


def _sum_up(
    plan: EvaluationPlan,
    names: dict[str, str],
    distances: list[Distance],
    copies: list[Copied],
    results: list[FitResult],
    probed: ProbeOutcome | None,
) -> Metrics:
    downstream = sum_fits(results)
    return Metrics(
        names=names,
        products=plan.real.products,
        defect_types=plan.real.defect_types,
        photos={
            split: {"/".join(cell): count for cell, count in count_cells(photos).items()}
            for split, photos in plan.real.splits.items()
        },
        runs={
            name: RunSummary(
                uri=one.uri,
                run_id=one.run.run_id,
                checkpoint=one.run.checkpoint,
                image_size=one.run.image_size,
                channels=one.run.channels,
                num_samples=one.manifest.num_samples,
                chosen={"/".join(cell): len(samples) for cell, samples in sorted(one.cells.items())},
                refused=sum(cell.kept + cell.dropped for cell in one.manifest.cells),
            )
            for name, one in plan.chosen.items()
        },
        distances=tuple(distances),
        memorisation=tuple(copies),
        downstream=downstream,
        probe=probed,
        verdict=(*(in_words(probed) if probed else ()), *verdict(distances, downstream, names)),
        caveats=tuple(plan.caveats()),
        settings=plan.config.settings(),
    )
