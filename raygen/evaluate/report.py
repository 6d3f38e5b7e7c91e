"""What an evaluation has measured: metrics.json."""

from collections.abc import Iterable, Sequence
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


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def condition_name(row: Downstream) -> str:
    """`Trad-Aug`, `ours: Mix`, `ours: vA`."""
    if row.run is None:
        return {"no-aug": "No-Aug", "trad-aug": "Trad-Aug"}[row.condition]
    what = f"v{row.source}" if row.source else row.condition.capitalize()
    return f"{row.run}: {what}"
