"""DFM-GAN: residual blocks on a frozen StyleGAN2 draw a defect and its mask (Duan et al. 2023)."""

from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.family import DefectGenerator, Family, Trainer
from raygen.families.recipes import SamplingConfig


class DFMGAN(Family):
    """See raygen.families.family.Family."""

    recipe = DFMGANTrainConfig
    draws_normals = True

    def trainer(self) -> type[Trainer]:
        from raygen.families.dfmgan.training import DFMGANTrainer

        return DFMGANTrainer

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        from raygen.families.dfmgan.generator import DFMGANSampler

        return DFMGANSampler(checkpoint, config)

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        if not config.draws_normals and config.composition != "residual":
            raise UserError(
                f"{checkpoint.uri} puts defects on photographs by residuals alone; set composition = "
                '"residual", or pool = seeds:0-1000, say'
            )
