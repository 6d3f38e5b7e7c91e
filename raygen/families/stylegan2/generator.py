"""A StyleGAN2 behind an actor: the baseline of DFM-GAN's paper."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.family import Made, Views, stream
from raygen.families.inference import MicroBatches, load_weights
from raygen.families.recipes import SamplingConfig
from raygen.families.stylegan2.networks import Backbone, StyleGAN2Config
from raygen.records import SCORES, SampleRequest


class StyleGAN2Sampler:
    """A StyleGAN2 that was tuned on one defect type: whole images of it, each drawn from its own seed; what it
    gives for a normal is an image of the same kind. The baseline of DFM-GAN's paper."""

    is_judged = False

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        self.micro_batch = config.micro_batch
        self.block = None
        self.batches = MicroBatches(config)
        try:
            self.sizes = StyleGAN2Config(**checkpoint.config.model)
        except (TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.uri}: its sizes are not StyleGAN2's ({error})") from None
        network = load_weights(Backbone(self.sizes), checkpoint, "backbone").to(self.batches.device)
        self.network = self.batches.compiled(network)
        self.products = {name: i for i, name in enumerate(checkpoint.config.products)}

    def draw_normals(
        self, seeds: Sequence[int], products: Sequence[str]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Draws n images; they have nothing in common with the samples."""
        return self._draw(seeds, products), np.arange(len(seeds))

    def backgrounds(self, pixels: NDArray[np.uint8]) -> None:
        raise AssertionError("the plan refuses this")

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Draws an image for each seed."""
        return Made(
            pixels=self._draw(seeds.tolist(), views.products),
            layers=None,
            masks=np.zeros(views.pixels.shape[:3], np.uint8),
            scores=np.full((len(seeds), len(SCORES)), np.nan, np.float32),
            references=np.full(len(seeds), -1),
        )

    def _draw(self, seeds: Sequence[int], products: Sequence[str]) -> NDArray[np.uint8]:
        z, noise = draw(seeds, self.sizes.latent_dim, self.sizes.noise_size)
        labels = torch.tensor([self.products[name] for name in products])
        return images.from_model(self.batches.run(self.network, z, labels, noise)).cpu().numpy()


def draw(seeds: Sequence[int], latent_dim: int, noise_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """z, (n, latent_dim), and noise, (n, noise_size), of each seed's own stream."""
    rows = [stream(seed).standard_normal(latent_dim + noise_size, np.float32) for seed in seeds]
    z, noise = torch.from_numpy(np.stack(rows)).split([latent_dim, noise_size], dim=1)
    return z, noise
