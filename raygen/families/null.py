"""The generator that copies the normal: `null:SIZExCHANNELS` measures all but the model.

With `@MILLISECONDS` behind it, an accelerator is simulated that takes so long over a sample.
"""

import numpy as np
from numpy.typing import NDArray

from raygen.accelerator import simulate
from raygen.checkpoint import Checkpoint
from raygen.families.family import DefectGenerator, Family, Made, TakesPhotographs, Views
from raygen.families.recipes import SamplingConfig
from raygen.records import SCORES, SampleRequest


class Null(Family):
    """See raygen.families.family.Family."""

    has_masks = False
    uses_gpus = False
    needs_references = False

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        return NullGenerator(checkpoint, config)


class NullGenerator(TakesPhotographs):
    """Copies the normal: what is left is the price of everything but the model, its masks and its scores."""

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        self.is_judged = False
        self.is_residual = config.composition == "residual"
        self.seconds = checkpoint.config.model.get("milliseconds", 0.0) / 1000

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """The views, with empty masks."""
        n, height, width, channels = views.pixels.shape
        if self.seconds:
            simulate(self.micro_batch * self.seconds)  # the last rows are padded, as every generator's are
        return Made(
            pixels=views.pixels,
            layers=np.zeros((n, channels, height, width), np.float32) if self.is_residual else None,
            masks=np.zeros((n, height, width), np.uint8),
            scores=np.full((n, len(SCORES)), np.nan, np.float32),
            references=np.full(n, -1),
        )
