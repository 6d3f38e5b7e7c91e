"""DT-GAN: translates a normal into a wanted defect (Defect Transfer GAN, under review at ICLR 2022)."""

from raygen.checkpoint import JUDGE, Checkpoint, CheckpointConfig
from raygen.errors import UserError
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.family import DefectGenerator, Family, Trainer
from raygen.families.recipes import SamplingConfig
from raygen.records import MODES, Mode


class DTGAN(Family):
    """See raygen.families.family.Family."""

    recipe = DTGANTrainConfig

    def trainer(self) -> type[Trainer]:
        from raygen.families.dtgan.training import DTGANTrainer

        return DTGANTrainer

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        self.refuse(checkpoint, config)
        if is_joint(checkpoint.config):
            from raygen.families.dtgan.joint_generator import JointDTGANGenerator

            return JointDTGANGenerator(checkpoint, config)
        from raygen.families.dtgan.generator import DTGANGenerator

        return DTGANGenerator(checkpoint, config)

    def modes(self, checkpoint: Checkpoint) -> tuple[Mode, ...]:
        # Ladder (a) has no content that could be restyled.
        return (*MODES, "restyled") if checkpoint.config.model.get("content", True) else MODES

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        if config.masks and is_joint(checkpoint.config):
            mend = "set masks = false"
            if config.composition != "reconstruct":  # it, and native with it, is made of masks
                mend += ', composition = "reconstruct"' + (" and native = false" if config.native else "")
            raise UserError(
                f"{checkpoint.uri}: ladder (a) to (d) has no defect layers to read masks off; {mend}"
            )

    def warnings(self, checkpoint: Checkpoint, config: SamplingConfig) -> list[str]:
        if config.masks and JUDGE not in checkpoint.config.files:
            return [f"{checkpoint.uri} has no {JUDGE}: realism, type_prob and product_prob stay empty"]
        return []


def is_joint(config: CheckpointConfig) -> bool:
    """Whether one decoder makes whole images, without defect layers: ladder (a) to (d)."""
    return config.model.get("decoders") == "joint"
