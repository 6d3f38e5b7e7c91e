"""The distances of runs from the real training defects, cell by cell, and their floors."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from raygen.evaluate.config import DistanceConfig
from raygen.evaluate.samples import GUIDANCES, Guidance
from raygen.metrics import (
    Features,
    copy_rate,
    density_coverage,
    frechet_distance,
    kernel_distance,
    kernel_interval,
    precision_recall,
)

ALL = "all"
"""Every product, or every defect type."""

_FEWEST_TO_BOOTSTRAP = 10  # images on a side: the draws of fewer are too much alike

What = Literal[Guidance, "test", "normal"]


class Distance(BaseModel):
    """One row of the distance table: a set of images against the real training defects of a product and type."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str | None  # None for the real images of a floor
    product: str  # or ALL
    defect_type: str  # or ALL
    what: What  # samples of a mode, or of both; "test": held-out defects, the floor; "normal": doing nothing
    num_images: int
    num_real: int  # training defects
    frechet: float
    kid: float
    kid_std: float  # over subsets
    kid_low: float | None = None  # 95 % interval of a bootstrap over the images; None where a side has few
    kid_high: float | None = None
    precision: float | None  # None where a set is too small
    recall: float | None
    density: float | None = None  # as are these
    coverage: float | None = None
    copy_rate: float | None  # None without held-out defects
    clustered: float | None = None  # clustered LPIPS; of single cells only
    clustered_nonempty: float | None = None


class Comparison(NamedTuple):
    """What a row compares."""

    run: str | None
    product: str
    defect_type: str
    what: What

    def among(self, cells: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        """Those products and defect types that it takes together."""
        return [
            (product, defect_type)
            for product, defect_type in cells
            if self.product in (ALL, product) and self.defect_type in (ALL, defect_type)
        ]


def plan_comparisons(
    runs: Sequence[str], cells: Sequence[tuple[str, str]], has_test: bool
) -> list[Comparison]:
    """The rows of the table: for the products and defect types of some cells, and all of them together, the floors
    and then the runs."""
    products, defect_types = (sorted(set(names)) for names in zip(*cells, strict=True))
    rows: list[Comparison] = []
    for product in [*([ALL] if len(products) > 1 else []), *products]:
        for defect_type in [*([ALL] if len(defect_types) > 1 else []), *defect_types]:
            if not Comparison(None, product, defect_type, "test").among(cells):
                continue
            if has_test:
                rows.append(Comparison(None, product, defect_type, "test"))
            rows.append(Comparison(None, product, defect_type, "normal"))
            rows += [Comparison(run, product, defect_type, what) for run in runs for what in GUIDANCES]
    return rows


def measure(
    row: Comparison, images: Features, train: Features, test: Features, config: DistanceConfig, seed: int
) -> Distance | None:
    """Computes a row; None where there are fewer than two images on a side.

    Args:
        row: what it is.
        images: features of the samples, or of a floor's images, (N, D).
        train, test: features of the real defects.
        config: the recipe's.
        seed: of KID's subsets.
    """
    if min(len(images), len(train)) < 2:
        return None
    kid = kernel_distance(images, train, config.kid_subsets, config.kid_subset_size, seed)
    interval = None
    if min(len(images), len(train)) >= _FEWEST_TO_BOOTSTRAP:
        interval = kernel_interval(images, train, seed=seed)
    enough = min(len(images), len(train)) > config.neighbours
    found = precision_recall(train, images, config.neighbours) if enough else None
    local = density_coverage(train, images, config.neighbours) if enough else None
    has_limit = len(test) > 0 and row.what != "test"
    return Distance(
        **row._asdict(),
        num_images=len(images),
        num_real=len(train),
        frechet=frechet_distance(images, train),
        kid=kid.mean,
        kid_std=kid.std,
        kid_low=interval.low if interval else None,
        kid_high=interval.high if interval else None,
        precision=found.precision if found else None,
        recall=found.recall if found else None,
        density=local.density if local else None,
        coverage=local.coverage if local else None,
        copy_rate=copy_rate(images, train, test, config.copy_quantile) if has_limit else None,
    )
