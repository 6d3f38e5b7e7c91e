"""DFM-GAN's part in a training: sizes, batches, sheets, checkpoints; the steps are beside it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from raygen import images
from raygen.checkpoint import GENERATOR, JUDGE
from raygen.errors import UserError
from raygen.families.dfmgan.config import DFMGANTrainConfig
from raygen.families.dfmgan.networks import DFMGANConfig, full_mask
from raygen.families.dfmgan.step import DFMGANTraining, iterate
from raygen.families.dfmgan.vital_signs import THRESHOLDS, vital_signs
from raygen.families.family import Contents, Fields, Settled
from raygen.families.photos import TRAINING_SPLITS, DefectSet, loader
from raygen.families.stylegan2.batches import GANBatchMaker, LatentSizes, cells_of, to_gan_batch
from raygen.families.stylegan2.networks import StyleGAN2Config, repeat_w
from raygen.families.stylegan2.training import (
    backbone_weights,
    check_transforms,
    describe,
    draw_latents,
    make_sizes,
    read_stage1,
    refuse_other_products,
)
from raygen.families.vital_signs import Signs
from raygen.families.world import Terms, World
from raygen.show import draw_sheet

_SHEET_ROWS = 3
_MAX_PRODUCTS = 8


class DFMGANTrainer:
    """See raygen.families.family.Trainer."""

    shown = ("D/real", "D/fake", "D_match/fake", "mask_area", "augmentation")
    thresholds = THRESHOLDS

    def __init__(self, config: DFMGANTrainConfig, run: Settled) -> None:
        self.config = config
        self.sizes = DFMGANConfig.of(run.model)
        self.defect_types = run.defect_types

    @staticmethod
    def draft(config: DFMGANTrainConfig) -> tuple[dict[str, Any], DefectSet]:
        check_transforms(config.adaptive)
        defects = DefectSet.read(config, kinds=["defects"])
        stage1 = read_stage1(config.backbone, "backbone")
        refuse_other_products(stage1, defects, "backbone")
        if stage1.config.defect_types:
            raise UserError(
                f'backbone = {config.backbone}: has learned defects; name one with learns = "normals"'
            )
        for photo in defects.part(TRAINING_SPLITS).photos:
            if photo.mask_uri is None:
                raise UserError(
                    f"defect set: {photo.uri}: has no mask; put one beside it, as {{id}}_mask.png"
                )
        counted = {
            "num_types": len(defects.defect_types),
            "backbone": StyleGAN2Config(**stage1.config.model),
        }
        sizes: DFMGANConfig = make_sizes(DFMGANConfig, config.model, counted)
        return sizes.as_dict(), defects

    def describe(self) -> str:
        types = len(self.defect_types)
        start = f"residual blocks from {self.sizes.first} × {self.sizes.first} up"
        return f"{describe(self.sizes.backbone)}; {start}, {types} defect type{'s' * (types > 1)}"

    def start(self, on: torch.device) -> DFMGANTraining:
        stage1 = read_stage1(self.config.backbone, "backbone")
        return DFMGANTraining.start(
            self.config, self.sizes, on, backbone_weights(stage1), stage1.tensors(JUDGE)
        )

    def warm(self, training: DFMGANTraining) -> None:
        pass

    def stepper(self, training: DFMGANTraining, world: World) -> Callable[[Fields], Terms]:
        device = next(training.generator.parameters()).device

        world.share(network for _, network in training.networks())

        def step(fields: Fields) -> Terms:
            batch = to_gan_batch(fields, self.sizes.backbone.channels, device)
            return iterate(training, batch, self.config, world)

        return step

    def maker(self, learning: DefectSet, in_memory: bool) -> GANBatchMaker:
        sizes = self.sizes.backbone
        return GANBatchMaker(
            seed=self.config.seed,
            cells=cells_of(learning),
            products=np.array(learning.product_numbers),
            defect_types=np.array(learning.domains) - 1,
            load=loader(learning.photos, sizes, in_memory=in_memory, masks="all"),
            mirror=self.config.mirror,
            normal=LatentSizes(sizes.latent_dim, sizes.noise_size),
            defect=LatentSizes(sizes.latent_dim, self.sizes.noise_size),
        )

    def validate(self, training: DFMGANTraining, judged: DefectSet) -> dict[str, float]:
        return {}  # as for stage 1

    def vital_signs(self, training: DFMGANTraining, learning: DefectSet, judged: DefectSet) -> Signs:
        return vital_signs(training, learning, judged, self.config.adaptive, self.config.seed)

    @torch.no_grad()
    def sheet(self, training: DFMGANTraining, judged: DefectSet, title: str = "") -> bytes:
        """Of each product: normals, and for every defect type a photo, a mask and the defect on the normal."""
        captions = ["normal"]
        for name in self.defect_types:
            captions += [f"photo, {name}", "mask", f"drawn, {name}"]
        groups = {
            product: [self._row(training, judged, number, row) for row in range(_SHEET_ROWS)]
            for number, product in enumerate(judged.products[:_MAX_PRODUCTS])
        }
        return draw_sheet(captions, groups, self.sizes.backbone.image_size, title)

    def _row(
        self, training: DFMGANTraining, judged: DefectSet, product: int, row: int
    ) -> list[np.ndarray | None]:
        generator, sizes = training.average, self.sizes.backbone
        device = next(generator.parameters()).device
        load = loader(judged.photos, sizes, in_memory=False)

        def latents(stream: int, noise_size: int) -> tuple[torch.Tensor, torch.Tensor]:
            z, noise = draw_latents(self.config.seed, 1, sizes.latent_dim, noise_size, 16 * row + stream)
            return torch.from_numpy(z).to(device), torch.from_numpy(noise).to(device)

        z, noise = latents(0, sizes.noise_size)
        w = generator.backbone.mapping(z, torch.tensor([product], device=device))
        ws = repeat_w(w, sizes.num_ws)
        cells: list[np.ndarray | None] = [images.from_model(generator.normal(ws, noise))[0].cpu().numpy()]
        for defect_type in range(len(self.defect_types)):
            own = [
                index
                for index, place in enumerate(zip(judged.product_numbers, judged.domains, strict=True))
                if place == (product, defect_type + 1)
            ]
            cells.append(load([own[row % len(own)]])[0] if own else None)
            z, defect_noise = latents(1 + defect_type, self.sizes.noise_size)
            defect_ws = generator.defect_ws(z, torch.tensor([defect_type], device=device))
            made = generator(ws, noise, defect_ws, defect_noise)
            mask = full_mask(made.mask, sizes.image_size)[0, 0] >= 0
            cells.append((mask.cpu().numpy() * np.uint8(255))[:, :, None])
            cells.append(images.from_model(made.image)[0].cpu().numpy())
        return cells

    def contents(self, training: DFMGANTraining, learning: DefectSet) -> Contents:
        # Without the discriminators: they look at batches, and say nothing of one sample.
        weights = {f"generator.{name}": value for name, value in training.average.state_dict().items()}
        return Contents(
            model=self.sizes.as_dict(),
            image_size=self.sizes.backbone.image_size,
            channels=self.sizes.backbone.channels,
            tensors={GENERATOR: weights},
        )
