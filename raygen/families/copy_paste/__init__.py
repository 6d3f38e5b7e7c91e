"""Copy-paste: real defects, cut out by their masks, on other normals (Ghiasi et al., CVPR 2021). No training."""

from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.family import Collector, DefectGenerator, Family
from raygen.families.recipes import SamplingConfig


class CopyPaste(Family):
    """See raygen.families.family.Family."""

    recipe = CopyPasteConfig
    uses_gpus = False

    def collector(self) -> type[Collector]:
        from raygen.families.copy_paste.collector import CopyPasteCollector

        return CopyPasteCollector

    def generator(self, checkpoint: Checkpoint, config: SamplingConfig) -> DefectGenerator:
        from raygen.families.copy_paste.generator import CopyPasteGenerator

        return CopyPasteGenerator(checkpoint, config)

    def refuse(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        native = checkpoint.config.model["native"]
        native = checkpoint.config.model["native"]
        if config.native != native:
            there = "windows of full-size photographs" if native else "whole photographs"
            raise UserError(
                f"{checkpoint.uri}: its cut-outs are of {there}; set native = {str(native).lower()} here, or cut "
                f"them out with native = {str(config.native).lower()}"
            )

    def warnings(self, checkpoint: Checkpoint, config: SamplingConfig) -> list[str]:
        there = {(one.product, one.defect_type) for one in checkpoint.references}
        found = checkpoint.config
        return [
            f"{checkpoint.uri} has no cut-out of {product}/{defect_type}: takes those of other products"
            for product in found.products
            for defect_type in found.defect_types
            if (product, defect_type) not in there
        ]
