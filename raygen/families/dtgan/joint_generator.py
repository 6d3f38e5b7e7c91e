"""The generator behind the actors for rungs (a) to (d) of the ablation, StarGAN v2's: whole images, no masks."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import Checkpoint
from raygen.families.blocks import compose_resampling, sent
from raygen.families.dtgan.codes import Codes, read_bank, read_sizes
from raygen.families.dtgan.joint import JointGenerator
from raygen.families.family import Made, TakesPhotographs, Views
from raygen.families.inference import MicroBatches, fetched, load_weights
from raygen.families.recipes import SamplingConfig
from raygen.records import SCORES, SampleRequest


class JointDTGANGenerator(TakesPhotographs):
    """One decoder for inference: x̃ = G(x, s, c), the encoder's features once per view, the decoder once per
    sample. No mask can be read off a whole image, so that nothing is scored or gated.
    """

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        self.is_judged = False
        self.batches = MicroBatches(config)
        sizes = read_sizes(checkpoint)
        self.network = load_weights(JointGenerator(sizes), checkpoint, "generator").to(self.batches.device)
        compose_resampling(self.network)
        self.encode = self.batches.compiled(self.network.encode)
        self.decode = self.batches.compiled(self.network.decode)
        self.codes = Codes(checkpoint, config, sizes, self.batches)
        self.reference_codes = [codes.to(self.batches.device) for codes in read_bank(checkpoint, sizes)]

    def backgrounds(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """The encoder's background features of views: (n, H, W, C) to (n, background_channels, 16, 16)."""
        return self.batches.run(lambda some: self.encode(images.to_model(some))[0], torch.from_numpy(pixels))

    @torch.inference_mode()
    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds` are the only randomness."""
        num_rows = len(seeds)
        style, content, references = self._draw(request, seeds, views.products)
        with self.batches.autocast():
            made = self.decode(self.batches.pad(views.backgrounds), style, content)
        return Made(
            pixels=fetched(images.from_model(made)[:num_rows])[0],
            layers=None,
            masks=np.zeros(views.pixels.shape[:3], np.uint8),
            scores=np.full((num_rows, len(SCORES)), np.nan, np.float32),
            references=references,
        )

    def _draw(
        self, request: SampleRequest, seeds: NDArray[np.int64], products: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor, NDArray[np.int64]]:
        """Style and content, padded, and the rows of the bank that they are from, (n,)."""
        if request.mode == "latent":
            return *self.codes.draw(request.defect_type, seeds.tolist(), products), np.full(len(seeds), -1)
        chosen = self.codes.choose(request.defect_type, seeds, products)
        rows = sent(torch.from_numpy(chosen), self.batches.device)
        style, content = (self.batches.pad(codes[rows]) for codes in self.reference_codes)
        if request.mode == "restyled":
            style = self.codes.draw_style(request.defect_type, seeds.tolist(), products)
        return style, content, chosen
