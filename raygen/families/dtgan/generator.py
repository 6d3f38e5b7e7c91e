"""DT-GAN behind an actor: uint8 views in, samples out, each decided by its seed alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import JUDGE, Checkpoint
from raygen.families.blocks import sent
from raygen.families.dtgan.codes import Codes, read_bank, read_sizes
from raygen.families.dtgan.folded import FoldedGenerator
from raygen.families.dtgan.networks import Generator, compose
from raygen.families.dtgan.scores import TOLD, Judge, Novelty
from raygen.families.family import Made, TakesPhotographs, Views
from raygen.families.inference import MicroBatches, fetched, load_weights
from raygen.families.masks import Defects, confine, find_defects
from raygen.families.recipes import SamplingConfig
from raygen.families.scores import pixel_scores
from raygen.records import NORMAL, SCORES, SampleRequest

_TOLD = [list(SCORES).index(name) for name in TOLD]
_FEWEST_FOR_MEDIAN = 8  # layers; the median of fewer may still hold a defect


class _Drawn(NamedTuple):
    """Defects before they are put on anything."""

    layer: torch.Tensor  # (M, C or C + 1, H, W)
    content: torch.Tensor | None  # (M, content_channels, 16, 16), if new; None where it is a reference's
    references: NDArray[np.int64]  # (n,)


class DTGANGenerator(TakesPhotographs):
    """DT-GAN for inference: x̃ = B(x) + F(s, c), B once per view, F once per latent-guided or restyled sample, and
    the layers of the reference bank, which depend on no normal, once per checkpoint.

    Every forward pass has M = `micro_batch` rows, see `MicroBatches`.
    """

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        self.batches = MicroBatches(config)
        self.device = self.batches.device
        self.sizes = read_sizes(checkpoint)
        generator = load_weights(Generator(self.sizes), checkpoint, "generator")
        folded = FoldedGenerator(generator).to(self.device)
        self.background = self.batches.compiled(folded.background)
        self.defect_layer = self.batches.compiled(folded.defect_layer)
        self.codes = Codes(checkpoint, config, self.sizes, self.batches)
        styles, contents = read_bank(checkpoint, self.sizes)
        # F(s, c) of every reference in the bank: (references, C or C + 1, H, W)
        self.reference_layers = self.batches.run(self.defect_layer, styles, contents)
        self.reference_contents = contents.to(self.device)
        if config.masks:
            self.bare_layers = {name: self._bare_layer(name) for name in checkpoint.config.defect_types}
            self.reference_defects = self._reference_defects()
            self.judge = Judge(checkpoint, self.sizes, self.batches) if JUDGE in checkpoint.files else None
            self.novelty = Novelty(checkpoint, self.device)

    # --------------------------------------------------------------------------------------------- samples

    def backgrounds(self, pixels: NDArray[np.uint8]) -> torch.Tensor | None:
        """B(x) of views, (n, H, W, C) to (n, C, H, W); residual compositions need none."""
        if self.config.composition == "residual":
            return None
        return self.batches.run(lambda some: self.background(images.to_model(some)), torch.from_numpy(pixels))

    @torch.inference_mode()
    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds` are the only randomness."""
        num_rows = len(seeds)
        drawn = self._draw(request, seeds, views.products)
        nowhere = np.zeros(views.pixels.shape[:3], bool)
        masks, weights = Defects(nowhere, nowhere.astype(np.float32))
        if self.config.masks:
            found = self._find(drawn, request, num_rows)
            masks, weights = confine(found, views.allowed, fade_edges=self.config.native)
        layer, on = drawn.layer, views.backgrounds
        if self.config.composition == "residual":
            layer = self.batches.pad(layer[:num_rows] - self.bare_layers[request.defect_type])
            layer = layer * self.batches.pad(sent(torch.from_numpy(weights), self.device))[:, None]
            on = images.to_model(sent(torch.from_numpy(views.pixels), self.device))
        samples = images.from_model(compose(self.batches.pad(on), layer))  # (M, H, W, C)
        wanted = [samples[:num_rows]]
        if self.config.masks:
            wanted.append(self._told(samples, views, request, drawn.content))
        if self.config.native:
            wanted.append(layer[:num_rows])
        pixels, *more = fetched(*wanted)
        scores = np.full((num_rows, len(SCORES)), np.nan, np.float32)
        if self.config.masks:
            scores = pixel_scores(pixels, views.pixels, masks)
            scores[:, _TOLD] = more[0].T
        return Made(
            pixels=pixels,
            layers=more[1] if self.config.native else None,  # else nobody wants them
            masks=masks * np.uint8(255),
            scores=scores,
            references=drawn.references,
        )

    def _told(
        self, samples: torch.Tensor, views: Views, request: SampleRequest, content: torch.Tensor | None
    ) -> torch.Tensor:
        """What D and the contents say of n samples, padded to M rows: (len(TOLD), n)."""
        num_rows = len(views.products)
        unknown = torch.full((3, num_rows), torch.nan, device=self.device)
        judged = unknown
        if self.judge is not None:
            with self.batches.autocast():
                judged = self.judge(samples, self.codes.domains[request.defect_type], views.products)
        novelty = unknown[0]
        if content is not None:
            novelty = self.novelty(content, request.defect_type)[:num_rows]
        return torch.cat([judged, novelty[None]])

    # --------------------------------------------------------------------------------------------- defects

    def _draw(self, request: SampleRequest, seeds: NDArray[np.int64], products: Sequence[str]) -> _Drawn:
        """The defects that seeds stand for."""
        if request.mode == "latent":
            with self.batches.autocast():
                style, content = self.codes.draw(request.defect_type, seeds.tolist(), products)
                layer = self.defect_layer(style, content)
            return _Drawn(layer.float(), content.float(), np.full(len(seeds), -1))
        chosen = self.codes.choose(request.defect_type, seeds, products)
        rows = sent(torch.from_numpy(chosen), self.device)
        if request.mode == "reference":
            return _Drawn(self.batches.pad(self.reference_layers[rows]), None, chosen)
        with self.batches.autocast():
            style = self.codes.draw_style(request.defect_type, seeds.tolist(), products)
            layer = self.defect_layer(style, self.batches.pad(self.reference_contents[rows]))
        return _Drawn(layer.float(), None, chosen)

    # ----------------------------------------------------------------------------------------------- masks

    @torch.inference_mode()
    def _bare_layer(self, defect_type: str) -> torch.Tensor:
        """What layers of a type have in common and no defect is part of: (C or C + 1, H, W).

        It is their median over the references: defects lie here and there, so that most layers are bare at most
        places. F(s, 0), which the algebra suggests, was never trained for the styles of defects, and is streaked.
        With too few references it is normal's own layer.
        """
        rows = [row for row, item in enumerate(self.references) if item.defect_type == defect_type]
        if len(rows) >= _FEWEST_FOR_MEDIAN:
            return self.reference_layers[rows].median(dim=0).values
        z = torch.zeros(self.micro_batch, self.sizes.latent_dim, device=self.device)
        noise = torch.zeros(self.micro_batch, self.sizes.noise_size, device=self.device)
        with self.batches.autocast():
            product = torch.zeros(self.micro_batch, dtype=torch.long, device=self.device)
            style, content = self.codes.mapping.for_domain(z, self.codes.domains[NORMAL], noise, product)
            return self.defect_layer(style, torch.zeros_like(content))[0].float()

    def _strength(self, layers: torch.Tensor, defect_type: str) -> NDArray[np.float32]:
        """By how many grey levels layers, (n, C or C + 1, H, W), go beyond the bare one: (n, H, W)."""
        change = (layers - self.bare_layers[defect_type]).abs().amax(dim=1)
        (strength,) = fetched(change.mul(127.5))
        return strength

    def _reference_defects(self) -> Defects:
        """Those of all references."""
        shape = (len(self.references), *[self.sizes.image_size] * 2)
        found = Defects(np.zeros(shape, bool), np.zeros(shape, np.float32))
        for row, item in enumerate(self.references):
            strength = self._strength(self.reference_layers[row : row + 1], item.defect_type)
            found.masks[row : row + 1], found.weights[row : row + 1] = find_defects(
                strength, self.config.mask
            )
        return found

    def _find(self, drawn: _Drawn, request: SampleRequest, num_rows: int) -> Defects:
        """Where the first `num_rows` defects are."""
        if request.mode == "reference":
            masks, weights = self.reference_defects
            return Defects(masks[drawn.references], weights[drawn.references])
        return find_defects(self._strength(drawn.layer[:num_rows], request.defect_type), self.config.mask)
