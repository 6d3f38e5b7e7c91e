"""StyleGAN2 with adaptive augmentation: DFM-GAN's stage 1 and, tuned on one defect type, its paper's baseline."""

from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.family import DefectGenerator, Family, Trainer
from raygen.families.recipes import SamplingConfig
from raygen.families.stylegan2.config import StyleGAN2TrainConfig


class StyleGAN2(Family):
    """See raygen.families.family.Family."""

    recipe = StyleGAN2TrainConfig
    draws_normals = True
    takes_photographs = False
    has_masks = False

    def trainer(self) -> type[Trainer]:
        from raygen.families.stylegan2.training import StyleGAN2Trainer

        return StyleGAN2Trainer

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        from raygen.families.stylegan2.generator import StyleGAN2Sampler

        self.refuse(checkpoint, config)
        return StyleGAN2Sampler(checkpoint, config)

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        if config.masks:
            raise UserError(f"{checkpoint.uri}: a StyleGAN2 knows no masks; set masks = false")
        if config.write_normals:
            raise UserError(
                f"{checkpoint.uri} draws no normals beside its samples; set write_normals = false"
            )
