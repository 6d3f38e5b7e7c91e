"""Perlin: anomalies of noise and other textures, with no real defect (DRAEM, Zavrtanik et al., ICCV 2021)."""

from typing import Literal

from raygen.checkpoint import Checkpoint
from raygen.families.family import Collector, DefectGenerator, Family
from raygen.families.recipes import BankConfig, SamplingConfig


class PerlinConfig(BankConfig):
    """Collecting textures from the normals of a defect set; nothing is learned, so it takes seconds."""

    family: Literal["perlin"] = "perlin"
    defect_type: str = "anomaly"


class Perlin(Family):
    recipe = PerlinConfig
    takes = "normals"
    uses_gpus = False

    def collector(self) -> type[Collector]:
        from raygen.families.perlin.anomalies import PerlinCollector

        return PerlinCollector

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        from raygen.families.perlin.anomalies import PerlinGenerator

        return PerlinGenerator(checkpoint, config)
