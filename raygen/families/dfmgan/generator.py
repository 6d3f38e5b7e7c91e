"""DFM-GAN behind an actor: normals that it draws, or photographs that it finds in itself, and defects on them.

Of a normal that is drawn, the backbone's work up to where the residual blocks enter is done once for all of its
defects. A photograph is *inverted* first: the styles that draw it best are searched for; then a defect is made on
that likeness, and what it changes inside its mask is put on the photograph itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families.blocks import channels_last
from raygen.families.dfmgan.inversion import invert
from raygen.families.dfmgan.networks import DFMGANConfig, DFMGANGenerator, Normals, full_mask
from raygen.families.family import Made, Views
from raygen.families.inference import MicroBatches, load_weights
from raygen.families.masks import Defects, confine
from raygen.families.recipes import SamplingConfig
from raygen.families.scores import pixel_scores
from raygen.families.stylegan2.generator import draw
from raygen.families.stylegan2.networks import State, repeat_w
from raygen.records import NORMAL, SCORES, SampleRequest

_BLOCK = 8  # micro-batches of normals whose features are held at once: 0.5 GB at 256 px


@dataclass(frozen=True)
class Backgrounds:
    """What the defects of n normals have in common; rows can be chosen."""

    ws: torch.Tensor  # (n, num_ws, W)
    noise: torch.Tensor  # (n, noise_size)
    x: torch.Tensor  # `raygen.families.dfmgan.networks.Normals`, its parts
    image: torch.Tensor
    features: torch.Tensor
    plain: torch.Tensor  # (n, C, H, W): the normal as the backbone draws it

    def __getitem__(self, rows: NDArray[np.int64]) -> "Backgrounds":
        chosen = torch.from_numpy(rows).to(self.ws.device)
        return Backgrounds(*(tensor[chosen] for tensor in self.__dict__.values()))


class DFMGANSampler:
    """DFM-GAN for inference. Every forward pass has M = `micro_batch` rows, see `MicroBatches`.

    What it knows of a sample is its mask, how far the rest changed, and the contrast; the other scores are null: a
    StyleGAN2's discriminator looks at batches, so that its word on one sample depends on its neighbours.
    """

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        self.config = config
        self.micro_batch = config.micro_batch
        self.block = _BLOCK * config.micro_batch
        self.is_judged = config.masks
        self.batches = MicroBatches(config)
        self.device = self.batches.device
        try:
            self.sizes = DFMGANConfig.of(checkpoint.config.model)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.uri}: its sizes are not DFM-GAN's ({error})") from None
        network = load_weights(DFMGANGenerator(self.sizes), checkpoint, "generator")
        channels_last(network)
        self.network = network.requires_grad_(False).to(self.device)
        self.begin = self.batches.compiled(self.network.begin)
        self.plain = self.batches.compiled(self.network.plain)
        self.finish = self.batches.compiled(self.network.finish)
        self.products = {name: i for i, name in enumerate(checkpoint.config.products)}
        self.defect_types = {name: i for i, name in enumerate(checkpoint.config.defect_types)}

    # ----------------------------------------------------------------------------------------- backgrounds

    def draw_normals(
        self, seeds: Sequence[int], products: Sequence[str]
    ) -> tuple[NDArray[np.uint8], Backgrounds]:
        """Draws n normals, one from each seed: (n, H, W, C), and what their defects have in common."""
        z, noise = draw(seeds, self.sizes.backbone.latent_dim, self.sizes.backbone.noise_size)
        labels = torch.tensor([self.products[name] for name in products])

        def styles(z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return repeat_w(self.network.backbone.mapping(z, labels), self.sizes.backbone.num_ws)

        found = self._begin(self.batches.run(styles, z, labels), noise.to(self.device))
        return images.from_model(found.plain).cpu().numpy(), found

    def backgrounds(self, pixels: NDArray[np.uint8]) -> Backgrounds:
        """Finds n photographs, (n, H, W, C), among what the backbone draws."""
        average = self.network.backbone.mapping.average
        noise = torch.zeros(len(pixels), self.sizes.backbone.noise_size, device=self.device)
        found = [average.new_zeros(0, self.sizes.backbone.num_ws, len(average))]
        for start in range(0, len(pixels), self.micro_batch):
            x = images.to_model(torch.from_numpy(pixels[start : start + self.micro_batch]).to(self.device))
            styles = invert(self.network.backbone.synthesis, average, self.batches.pad(x), self.config.invert)
            found.append(styles[: len(x)])
        return self._begin(torch.cat(found), noise)

    @torch.inference_mode()
    def _begin(self, ws: torch.Tensor, noise: torch.Tensor) -> Backgrounds:
        """The shared work on n normals, M at a time."""
        found = []
        for start in range(0, max(1, len(ws)), self.micro_batch):
            some = slice(start, start + self.micro_batch)
            num_rows = len(ws[some])
            padded = self.batches.pad(ws[some]), self.batches.pad(noise[some])
            with self.batches.autocast():
                normals = self.begin(*padded)
                plain = self.plain(normals, *padded)
            assert normals.below.image is not None
            parts = (*padded, normals.below.x, normals.below.image, normals.features, plain.float())
            found.append([part[:num_rows] for part in parts])
        return Backgrounds(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    # --------------------------------------------------------------------------------------------- samples

    @torch.inference_mode()
    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds` are the only randomness."""
        num_rows = len(seeds)
        nothing = np.zeros(views.pixels.shape[:3], np.uint8)
        unknown = np.full((num_rows, len(SCORES)), np.nan, np.float32)
        references = np.full(num_rows, -1)
        if request.defect_type == NORMAL:
            return Made(views.pixels, None, nothing, unknown, references)
        background: Backgrounds = views.backgrounds
        image, mask = self._defects(background, request, seeds)
        found = confine(Defects(mask, mask.astype(np.float32)), views.allowed, fade_edges=self.config.native)
        layers = None
        if self.config.composition == "residual":
            weights = torch.from_numpy(found.weights).to(self.device)[:, None]
            layer = (image - background.plain) * weights
            image = images.to_model(torch.from_numpy(views.pixels).to(self.device)) + layer
            layers = layer.cpu().numpy() if self.config.native else None  # else nobody wants them
        pixels = images.from_model(image).cpu().numpy()
        masks = found.masks if self.config.masks else nothing.astype(bool)
        scores = pixel_scores(pixels, views.pixels, masks) if self.config.masks else unknown
        return Made(pixels, layers, masks * np.uint8(255), scores, references)

    def _defects(
        self, background: Backgrounds, request: SampleRequest, seeds: NDArray[np.int64]
    ) -> tuple[torch.Tensor, NDArray[np.bool_]]:
        """Whole images, (n, C, H, W), and where the defect is, (n, H, W)."""
        num_rows = len(seeds)
        z, noise = draw(seeds.tolist(), self.sizes.backbone.latent_dim, self.sizes.noise_size)
        padded = Backgrounds(*(self.batches.pad(tensor) for tensor in background.__dict__.values()))
        label = torch.full((self.micro_batch,), self.defect_types[request.defect_type], device=self.device)
        with self.batches.autocast():
            defect_ws = self.network.defect_ws(self.batches.pad(z.to(self.device)), label)
            made = self.finish(
                Normals(State(padded.x, padded.image), padded.features),
                padded.ws,
                padded.noise,
                defect_ws,
                self.batches.pad(noise.to(self.device)),
            )
        mask = full_mask(made.mask, self.sizes.backbone.image_size)[:num_rows, 0] >= 0
        return made.image[:num_rows].float(), mask.cpu().numpy()
