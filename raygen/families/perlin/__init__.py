"""Perlin: anomalies of noise and other textures, with no real defect (DRAEM, Zavrtanik et al., ICCV 2021)."""

from typing import Literal

from raygen.checkpoint import Checkpoint
from raygen.families.family import DefectGenerator, Family, Trainer
from raygen.families.recipes import OnceConfig, SamplingConfig


class PerlinTrainConfig(OnceConfig):
    """Collecting textures from the normals of a defect set; nothing is learned, so it takes seconds."""

    family: Literal["perlin"] = "perlin"
    defect_type: str = "anomaly"


class Perlin(Family):
    recipe = PerlinTrainConfig
    learns = False

    def trainer(self) -> type[Trainer]:
        from raygen.families.perlin.anomalies import PerlinTrainer

        return PerlinTrainer

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        from raygen.families.perlin.anomalies import PerlinGenerator

        return PerlinGenerator(checkpoint, config)
