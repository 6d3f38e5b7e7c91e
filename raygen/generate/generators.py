"""The generators behind the actors: uint8 normals in, uint8 samples out, each decided by its seed alone."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import torch

from raygen import images
from raygen.checkpoint import GENERATOR, REFERENCE_CODES, Checkpoint
from raygen.errors import UserError
from raygen.generate.config import GenerateConfig
from raygen.models.dtgan import DTGANConfig, Generator, MappingNetwork
from raygen.models.dtgan_folded import FoldedGenerator
from raygen.records import NORMAL, SampleRequest


class Generated(NamedTuple):
    """The samples of N normals, R a normal."""

    pixels: np.ndarray  # uint8 (N, R, H, W, C)
    reference: np.ndarray  # int64 (N, R): row of the checkpoint's reference index; -1 for none


class DefectGenerator(Protocol):
    """What an actor holds."""

    def generate(
        self, normals: np.ndarray, seeds: np.ndarray, requests: Sequence[SampleRequest]
    ) -> Generated:
        """Makes every request on every normal.

        Args:
            normals: uint8 (N, H, W, C), of the checkpoint's size.
            seeds: int64 (N, R), the only randomness.
            requests: R of them.
        """
        ...


def load_generator(checkpoint: Checkpoint, config: GenerateConfig) -> DefectGenerator:
    """Builds the generator of a checkpoint's family on the GPU this process may use, else on the CPU."""
    return _FAMILIES[checkpoint.config.family](checkpoint, config.micro_batch, config.precision)


class NullGenerator:
    """Copies the normal: what is left is the price of everything but the model."""

    def __init__(self, checkpoint: Checkpoint, micro_batch: int, precision: str) -> None:
        pass

    def generate(
        self, normals: np.ndarray, seeds: np.ndarray, requests: Sequence[SampleRequest]
    ) -> Generated:
        pixels = np.repeat(normals[:, None], len(requests), axis=1)
        return Generated(pixels, np.full(seeds.shape, -1))


class DTGANGenerator:
    """DT-GAN for inference: x̃ = B(x) + F(s, c), B once per normal, F once per latent-guided sample, and the
    layers of the reference bank, which depend on no normal, once per checkpoint.

    Every forward pass has `micro_batch` rows, the last one padded, so that the kernels see one shape and a
    sample's bits do not depend on its neighbours.
    """

    def __init__(self, checkpoint: Checkpoint, micro_batch: int, precision: str) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.micro_batch = micro_batch
        self.precision = getattr(torch, precision)
        # A rerun must give the same bits, whatever the actor's share of a machine: on CPUs the number of threads
        # decides which kernels run (and two actors of one thread beat one of two). float32 is meant as such.
        if self.device.type == "cpu":
            torch.set_num_threads(1)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.allow_tf32 = False

        try:
            sizes = DTGANConfig(**checkpoint.config.model)
        except (TypeError, ValueError) as error:
            raise UserError(f"{checkpoint.uri}: its sizes are not DT-GAN's ({error})") from None
        if sizes.decoders != "separate":
            raise UserError(
                f"{checkpoint.uri}: ladder (a) to (d) has no defect layers, which this job is made of; "
                "train ladder (e), (f) or (g)"
            )
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
        self.latent_dim = sizes.latent_dim
        self.mapping = mapping.eval().to(self.device)
        self.folded = FoldedGenerator(generator.eval()).to(self.device)
        self.domains = {name: i for i, name in enumerate((NORMAL, *checkpoint.config.defect_types))}
        self.bank: dict[str, np.ndarray] = {
            name: np.array([i for i, item in enumerate(checkpoint.references) if item.defect_type == name])
            for name in checkpoint.config.defect_types
        }
        self.reference_layers = self._reference_layers(checkpoint)

    @torch.inference_mode()
    def generate(
        self, normals: np.ndarray, seeds: np.ndarray, requests: Sequence[SampleRequest]
    ) -> Generated:
        num_normals = len(normals)
        pixels = np.empty((num_normals, len(requests), *normals.shape[1:]), np.uint8)
        reference = np.full(seeds.shape, -1)
        for start in range(0, num_normals, self.micro_batch):
            rows = slice(start, min(start + self.micro_batch, num_normals))
            num_rows = rows.stop - rows.start
            x = images.to_model(torch.from_numpy(self._pad(normals[rows])).to(self.device))  # (M, C, H, W)
            with self._autocast():
                background = self.folded.background(x)  # (M, C, H, W)
            made: list[torch.Tensor] = []
            for column, request in enumerate(requests):
                wanted = seeds[rows, column]
                if request.mode == "latent":
                    layer = self._latent_layer(wanted, request.defect_type)  # (M, C, H, W)
                else:
                    chosen = self._choose_references(wanted, request.defect_type)  # (num_rows,)
                    reference[rows, column] = chosen
                    layer = self.reference_layers[torch.from_numpy(self._pad(chosen)).to(self.device)]
                made.append(images.from_model(background + layer))  # (M, H, W, C)
            pixels[rows] = torch.stack(made, dim=1)[:num_rows].cpu().numpy()  # one wait for the device
        return Generated(pixels, reference)

    def _latent_layer(self, seeds: np.ndarray, defect_type: str) -> torch.Tensor:
        """F(s, c) for (s, c) from the mapping network; z and the per-pixel noise come from each seed's own
        stream (Philox: the same numbers on every machine)."""
        size = self.latent_dim + self.mapping.noise_size
        drawn = np.stack([_stream(seed).standard_normal(size, np.float32) for seed in seeds])
        z_and_noise = torch.from_numpy(self._pad(drawn)).to(self.device)
        z, noise = z_and_noise[:, : self.latent_dim], z_and_noise[:, self.latent_dim :]
        with self._autocast():
            style, content = self.mapping.for_domain(z, self.domains[defect_type], noise)
            return self.folded.defect_layer(style, content)

    def _choose_references(self, seeds: np.ndarray, defect_type: str) -> np.ndarray:
        bank = self.bank[defect_type]
        return np.array([bank[_stream(seed).integers(len(bank))] for seed in seeds])

    @torch.inference_mode()
    def _reference_layers(self, checkpoint: Checkpoint) -> torch.Tensor:
        """F(s, c) of every reference in the bank: (references, C, H, W)."""
        shape = (checkpoint.config.channels, checkpoint.config.image_size, checkpoint.config.image_size)
        if not checkpoint.references:
            return torch.empty(0, *shape, device=self.device)
        codes = checkpoint.tensors(REFERENCE_CODES)
        layers = []
        for style, content in zip(
            codes["style"].split(self.micro_batch), codes["content"].split(self.micro_batch), strict=True
        ):
            padded = [torch.from_numpy(self._pad(code.numpy())).to(self.device) for code in (style, content)]
            with self._autocast():
                layers.append(self.folded.defect_layer(*padded)[: len(style)])
        return torch.cat(layers)

    def _pad(self, rows: np.ndarray) -> np.ndarray:
        """Appends zeros up to `micro_batch` rows."""
        padded = np.zeros((self.micro_batch, *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        return padded

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)


_FAMILIES = {"dtgan": DTGANGenerator, "null": NullGenerator}


def _stream(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=int(seed)))
