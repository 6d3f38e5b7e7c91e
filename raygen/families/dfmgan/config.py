"""The recipe of a DFM-GAN training (stage 2)."""

from typing import Annotated, Literal

from pydantic import Field

from raygen.config import Place
from raygen.families.recipes import named
from raygen.families.stylegan2.config import AdaptiveConfig, GANTrainConfig


class TransferAdaptiveConfig(AdaptiveConfig):
    """The same for stage 2, which begins from a trained discriminator."""

    full_range: Annotated[int, Field(ge=1)] = 100_000


class DFMGANTrainConfig(GANTrainConfig):
    """Training DFM-GAN's residual blocks on the defects of a set that have masks (stage 2); its `model` holds
    fields of raygen.families.dfmgan.networks.DFMGANConfig but the backbone. The defaults are the original's."""

    family: Literal["dfmgan"] = "dfmgan"
    backbone: Place
    """What stage 1 left: a training's folder, or one of its checkpoints."""
    images: Annotated[int, Field(ge=1)] = 400_000
    average_ramp: Annotated[float, Field(ge=0)] = 0.0
    """None, since it begins from a trained backbone."""
    match: Annotated[float, Field(ge=0)] = 1.0
    """Weight of D_match, which sees image and mask together; 0: without it. Watch the area of the masks; where
    they come out blank or hug the border, less may be better (0.2)."""
    mode_seeking: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the mode-seeking loss on masks."""
    adaptive: TransferAdaptiveConfig = TransferAdaptiveConfig()

    def places(self) -> dict[str, str]:
        return super().places() | named(backbone=self.backbone)

    def checkpoints(self) -> tuple[str, ...]:
        return (self.backbone,)
