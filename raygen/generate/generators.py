"""The generators behind the actors: uint8 views in, samples out, each decided by its seed alone."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import GENERATOR, JUDGE, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.masks import Defects, confine, find_defects
from raygen.generate.sampling import DefectGenerator, Made, Views
from raygen.generate.scores import Judge, Judgement, Novelty, contrast, preservation
from raygen.models.dtgan import DTGANConfig, Generator, MappingNetwork, compose
from raygen.models.dtgan_folded import FoldedGenerator
from raygen.records import NORMAL, SCORES, SampleRequest

_FEWEST_FOR_MEDIAN = 8  # layers; the median of fewer may still hold a defect


def load_generator(checkpoint: Checkpoint, config: GenerateConfig) -> DefectGenerator:
    """Builds the generator of a checkpoint's family on the GPU this process may use, else on the CPU."""
    return _FAMILIES[checkpoint.config.family](checkpoint, config)


class NullGenerator:
    """Copies the normal: what is left is the price of everything but the model, its masks and its scores."""

    is_judged = False

    def __init__(self, checkpoint: Checkpoint, config: GenerateConfig) -> None:
        self.micro_batch = config.micro_batch
        self.is_residual = config.composition == "residual"

    def backgrounds(self, pixels: NDArray[np.uint8]) -> None:
        """There is nothing to compute."""

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """The views, with empty masks."""
        n, height, width, channels = views.pixels.shape
        return Made(
            pixels=views.pixels,
            layers=np.zeros((n, channels, height, width), np.float32) if self.is_residual else None,
            masks=np.zeros((n, height, width), np.uint8),
            scores=np.full((n, len(SCORES)), np.nan, np.float32),
            references=np.full(n, -1),
        )


class _Drawn(NamedTuple):
    """Defects before they are put on anything."""

    layer: torch.Tensor  # (M, C or C + 1, H, W)
    content: torch.Tensor | None  # (M, content_channels, 16, 16); None where it is a reference's
    references: NDArray[np.int64]  # (n,)


class DTGANGenerator:
    """DT-GAN for inference: x̃ = B(x) + F(s, c), B once per view, F once per latent-guided sample, and the layers
    of the reference bank, which depend on no normal, once per checkpoint.

    Every forward pass has M = `micro_batch` rows, the last ones padded, so that the kernels see one shape and a
    sample's bits do not depend on its neighbours.
    """

    def __init__(self, checkpoint: Checkpoint, config: GenerateConfig) -> None:
        self.config = config
        self.micro_batch = config.micro_batch
        self.is_judged = config.masks
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.precision = getattr(torch, config.precision)
        # A rerun must give the same bits, whatever the actor's share of a machine: on CPUs the number of threads
        # decides which kernels run (and two actors of one thread beat one of two). float32 is meant as such.
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False

        self.sizes = _sizes(checkpoint)
        generator, mapping = _networks(checkpoint, self.sizes)
        self.mapping = mapping.to(self.device)
        self.folded = FoldedGenerator(generator).to(self.device)
        self.domains = {name: i for i, name in enumerate((NORMAL, *checkpoint.config.defect_types))}
        self.references = checkpoint.references
        self.reference_layers = self._reference_layers(checkpoint)
        if config.masks:
            self.bare_layers = {name: self._bare_layer(name) for name in checkpoint.config.defect_types}
            self.reference_defects = self._reference_defects()
            self.judge = Judge(checkpoint, self.sizes, self.device) if JUDGE in checkpoint.files else None
            self.novelty = Novelty(checkpoint, self.device)

    # --------------------------------------------------------------------------------------------- samples

    @torch.inference_mode()
    def backgrounds(self, pixels: NDArray[np.uint8]) -> torch.Tensor | None:
        """B(x) of views, (n, H, W, C) to (n, C, H, W); residual compositions need none."""
        if self.config.composition == "residual":
            return None
        found = [torch.empty(0, self.sizes.channels, *pixels.shape[1:3], device=self.device)]
        for start in range(0, len(pixels), self.micro_batch):
            some = pixels[start : start + self.micro_batch]
            with self._autocast():
                found.append(self.folded.background(self._to_model(some))[: len(some)].float())
        return torch.cat(found)

    @torch.inference_mode()
    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds` are the only randomness."""
        num_rows = len(seeds)
        drawn = self._draw(request, seeds, views.products)
        nowhere = np.zeros(views.pixels.shape[:3], bool)
        masks, weights = Defects(nowhere, nowhere.astype(np.float32))
        if self.config.masks:
            found = self._find(drawn, request.defect_type, num_rows)
            masks, weights = confine(found, views.allowed, fade_edges=self.config.native)
        layer, on = drawn.layer, views.backgrounds
        if self.config.composition == "residual":
            layer = self._pad(layer[:num_rows] - self.bare_layers[request.defect_type])
            layer = layer * self._pad(torch.from_numpy(weights).to(self.device))[:, None]
            on = images.to_model(torch.from_numpy(views.pixels).to(self.device))
        samples = images.from_model(compose(self._pad(on), layer))  # (M, H, W, C)
        pixels = samples[:num_rows].cpu().numpy()
        scores = np.full((num_rows, len(SCORES)), np.nan, np.float32)
        if self.config.masks:
            scores = self._score(samples, pixels, masks, views, request, drawn.content)
        return Made(
            pixels=pixels,
            layers=layer[:num_rows].cpu().numpy() if self.config.composition == "residual" else None,
            masks=masks * np.uint8(255),
            scores=scores,
            references=drawn.references,
        )

    def _score(
        self,
        samples: torch.Tensor,
        pixels: NDArray[np.uint8],
        masks: NDArray[np.bool_],
        views: Views,
        request: SampleRequest,
        content: torch.Tensor | None,
    ) -> NDArray[np.float32]:
        """(n, scores), in the order of SCORES."""
        unknown = np.full(len(pixels), np.nan, np.float32)
        judged = Judgement(unknown, unknown, unknown)
        if self.judge is not None:
            with self._autocast():
                judged = self.judge(samples, self.domains[request.defect_type], views.products)
        novelty = unknown if content is None else self.novelty(content[: len(pixels)], request.defect_type)
        scores = {
            **judged._asdict(),
            "preservation": preservation(pixels, views.pixels, masks),
            "mask_area": masks.mean(axis=(1, 2), dtype=np.float32),
            "contrast": contrast(pixels, masks),
            "novelty": novelty,
        }
        return np.stack([scores[name] for name in SCORES], axis=1)

    # --------------------------------------------------------------------------------------------- defects

    def _draw(self, request: SampleRequest, seeds: NDArray[np.int64], products: Sequence[str]) -> _Drawn:
        """The defects that seeds stand for."""
        if request.mode == "latent":
            layer, content = self._latent_layers(request.defect_type, seeds)
            return _Drawn(layer, content, np.full(len(seeds), -1))
        chosen = np.array(
            [
                _choose(seed, self._bank(request.defect_type, product))
                for seed, product in zip(seeds, products, strict=True)
            ]
        )
        return _Drawn(
            self._pad(self.reference_layers[torch.from_numpy(chosen).to(self.device)]), None, chosen
        )

    def _latent_layers(self, defect_type: str, seeds: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """F(s, c) and c for (s, c) from the mapping network; z and the per-pixel noise come from each seed's own
        stream (Philox: the same numbers on every machine)."""
        size = self.sizes.latent_dim + self.mapping.noise_size
        drawn = np.stack([_stream(seed).standard_normal(size, np.float32) for seed in seeds])
        z, noise = self._pad(torch.from_numpy(drawn).to(self.device)).split(
            [self.sizes.latent_dim, self.mapping.noise_size], dim=1
        )
        with self._autocast():
            style, content = self.mapping.for_domain(z, self.domains[defect_type], noise)
            return self.folded.defect_layer(style, content).float(), content.float()

    def _bank(self, defect_type: str, product: str) -> list[int]:
        """The references that may guide a sample on a normal of a product."""
        wanted = self.config.reference_products
        allowed = None if wanted == "any" else {product} if wanted == "same" else set(wanted)
        names = None if allowed is None else {name.casefold() for name in allowed}
        return [
            row
            for row, item in enumerate(self.references)
            if item.defect_type == defect_type and (names is None or item.product.casefold() in names)
        ]

    @torch.inference_mode()
    def _reference_layers(self, checkpoint: Checkpoint) -> torch.Tensor:
        """F(s, c) of every reference in the bank: (references, C or C + 1, H, W)."""
        channels = self.sizes.channels + (self.sizes.fusion == "alpha")
        layers = [torch.empty(0, channels, *[self.sizes.image_size] * 2, device=self.device)]
        codes = checkpoint.tensors(REFERENCE_CODES) if checkpoint.references else {}
        for start in range(0, len(checkpoint.references), self.micro_batch):
            some = slice(start, start + self.micro_batch)
            style, content = (codes[name][some].to(self.device) for name in ("style", "content"))
            with self._autocast():
                layer = self.folded.defect_layer(self._pad(style), self._pad(content))
            layers.append(layer[: len(style)].float())
        return torch.cat(layers)

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
        noise = torch.zeros(self.micro_batch, self.mapping.noise_size, device=self.device)
        with self._autocast():
            style, content = self.mapping.for_domain(z, self.domains[NORMAL], noise)
            return self.folded.defect_layer(style, torch.zeros_like(content))[0].float()

    def _strength(self, layers: torch.Tensor, defect_type: str) -> NDArray[np.float32]:
        """By how many grey levels layers, (n, C or C + 1, H, W), go beyond the bare one: (n, H, W)."""
        change = (layers - self.bare_layers[defect_type]).abs().amax(dim=1)
        return change.mul(127.5).cpu().numpy()

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

    def _find(self, drawn: _Drawn, defect_type: str, num_rows: int) -> Defects:
        """Where the first `num_rows` defects are."""
        if drawn.content is None:
            masks, weights = self.reference_defects
            return Defects(masks[drawn.references], weights[drawn.references])
        return find_defects(self._strength(drawn.layer[:num_rows], defect_type), self.config.mask)

    # ---------------------------------------------------------------------------------------------- tensors

    def _to_model(self, pixels: NDArray[np.uint8]) -> torch.Tensor:
        """(n, H, W, C) to (M, C, H, W) in [-1, 1], padded."""
        return images.to_model(self._pad(torch.from_numpy(pixels).to(self.device)))

    def _pad(self, rows: torch.Tensor) -> torch.Tensor:
        """Appends zeros up to `micro_batch` rows."""
        missing = self.micro_batch - len(rows)
        return torch.cat([rows, rows.new_zeros(missing, *rows.shape[1:])]) if missing else rows

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


_FAMILIES = {"dtgan": DTGANGenerator, "null": NullGenerator}


def _sizes(checkpoint: Checkpoint) -> DTGANConfig:
    try:
        sizes = DTGANConfig(**checkpoint.config.model)
    except (TypeError, ValueError) as error:
        raise UserError(f"{checkpoint.uri}: its sizes are not DT-GAN's ({error})") from None
    if sizes.decoders != "separate":
        raise UserError(
            f"{checkpoint.uri}: ladder (a) to (d) has no defect layers, which this job is made of; "
            "train ladder (e), (f) or (g)"
        )
    return sizes


def _networks(checkpoint: Checkpoint, sizes: DTGANConfig) -> tuple[Generator, MappingNetwork]:
    generator, mapping = Generator(sizes), MappingNetwork(sizes)
    weights = checkpoint.tensors(GENERATOR)
    try:
        for prefix, network in (("generator.", generator), ("mapping.", mapping)):
            network.load_state_dict(
                {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            )
    except RuntimeError as error:
        first_line = str(error).splitlines()[0]
        raise UserError(f"{checkpoint.uri}: its weights do not fit its sizes ({first_line})") from None
    return generator.eval(), mapping.eval()


def _choose(seed: int, bank: Sequence[int]) -> int:
    return bank[int(_stream(seed).integers(len(bank)))]


def _stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int(seed)))
