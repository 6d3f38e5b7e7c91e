"""Images to features: what is compared, behind one small protocol.

A distance is named for its network: "FID" and "KID" are those on InceptionV3's features; any other says what it
is made of, say "KID-Lite0"."""

import time
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen import images
from raygen.errors import UserError
from raygen.evaluate.config import FeatureConfig
from raygen.evaluate.own_features import OwnFeatures
from raygen.extras import require
from raygen.pixel_features import PixelFeatures
from raygen.pretrained import Lite0, Lite0Features, local_file, parse_weights, read_weights, sha256, to_rgb
from raygen.records import digest


class Extractor(Protocol):
    """What turns images into features."""

    name: str  # names its distances
    digest: str  # of all that decides the features: weights and preprocessing

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 1 or 3) -> float32 (N, D)."""
        ...


class PerceptualLite0:
    """LPIPS's form on Lite0: vectors whose *squared* Euclidean distance is the mean over places of the squared
    difference of channel-normalised features, summed over the last blocks at strides 4, 8, 16 and 32. It has no
    learned weights, and is comparable with itself alone. Of images brought to 128 px."""

    name = "LPIPS-Lite0"
    input_size = 128
    depths = (2, 4, 10, 15)

    def __init__(self, weights_uri: str | None, device: torch.device) -> None:
        self.device = device
        self.network = Lite0(weights_uri).eval().to(device)
        self.digest = digest(self.name, self.input_size, *self.depths, self.network.digest)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        h = self.network.stem(self.network.normalize(to_rgb(pixels, self.input_size, self.device)))
        vectors = []
        for depth, block in enumerate(self.network.blocks):
            h = block(h)
            if depth in self.depths:
                vectors.append(perceptual_vector(h))
        return torch.cat(vectors, dim=1).cpu().numpy()


class Inception:
    """FID's InceptionV3, torch-fidelity's: 2048 features of images that it brings to 299 px itself."""

    name = "Inception"

    def __init__(self, weights_uri: str | None, device: torch.device) -> None:
        module: Any = require("torch_fidelity.feature_extractor_inceptionv3", "fid")
        with local_file(weights_uri) as path:
            self.network = module.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
            )
        self.network.eval().to(device)
        self.device = device
        self.digest = digest(self.name, _digest_of(self.network))

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        x = torch.tensor(pixels, device=self.device).permute(0, 3, 1, 2)
        (features,) = self.network(x.expand(-1, 3, -1, -1).contiguous())  # it wants uint8
        return features.float().cpu().numpy()


class LPIPS:
    """LPIPS itself (Zhang et al. 2018; AlexNet, version 0.1) as vectors: their *squared* Euclidean distance is
    LPIPS. Of images at their own size."""

    name = "LPIPS"

    def __init__(self, weights_uri: str | None, device: torch.device) -> None:
        module: Any = require("lpips", "lpips")
        # Without a file its trunk comes from torchvision's hub.
        self.network = module.LPIPS(net="alex", pnet_rand=weights_uri is not None, verbose=False)
        if weights_uri is not None:
            _load_trunk(self.network.net, weights_uri)
        self.network.eval().to(device)
        self.device = device
        self.digest = digest(self.name, _digest_of(self.network))

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        x = images.to_model(torch.tensor(pixels, device=self.device)).expand(-1, 3, -1, -1)
        depths = self.network.net(self.network.scaling_layer(x))
        vectors = []
        for h, linear in zip(depths, self.network.lins, strict=True):
            weights = linear.model[-1].weight  # (1, C, 1, 1), not below 0
            vectors.append(perceptual_vector(h, weights.sqrt()))
        return torch.cat(vectors, dim=1).cpu().numpy()


def _load_trunk(trunk: nn.Module, uri: str) -> None:
    """Loads torchvision's AlexNet into LPIPS's trunk, which has its convolutions in slices."""
    weights = parse_weights(uri, read_weights(uri))
    try:
        trunk.load_state_dict(
            {key: weights[f"features.{key.split('.', 1)[1]}"] for key in trunk.state_dict()}
        )
    except (KeyError, RuntimeError):
        raise UserError(f"weights {uri}: not those of torchvision's AlexNet") from None


def perceptual_vector(h: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    """Features (N, C, H, W), each place brought to length 1, as vectors (N, C·H·W) whose squared distance is
    the mean over places of the squared difference, weighed by scale²."""
    places = h.shape[2] * h.shape[3]
    return (F.normalize(h, dim=1, eps=1e-10) * scale / places**0.5).flatten(1)


EXTRACTORS: dict[str, Callable[[str | None, torch.device], Extractor]] = {
    "lite0": Lite0Features,
    "inception": Inception,
    "pixels": PixelFeatures,
    "own": OwnFeatures,
}
PERCEPTUAL: dict[str, Callable[[str | None, torch.device], Extractor]] = {
    "lite0": PerceptualLite0,
    "lpips": LPIPS,
}


def build_extractor(config: FeatureConfig, device: torch.device) -> Extractor:
    """The extractor of distances.

    Raises:
        UserError: its package or its weights are missing.
    """
    return EXTRACTORS[config.extractor](config.weights, device)


def extract(extractor: Extractor, pixels: np.ndarray, batch: int) -> np.ndarray:
    """Features of any number of images, uint8 (N, H, W, 1 or 3): float32 (N, D)."""
    parts = [extractor(pixels[start : start + batch]) for start in range(0, len(pixels), batch)]
    return np.concatenate(parts) if parts else np.empty((0, 0), np.float32)


def seconds_per_image(extractor: Extractor, image_size: int, channels: int) -> float:
    """Seconds for one image on this process's one thread; measured on a few of noise."""
    torch.set_num_threads(1)
    noise = np.random.default_rng(0).integers(0, 256, (16, image_size, image_size, channels), np.uint8)
    times = []
    for _ in range(3):
        started = time.perf_counter()
        extractor(noise)
        times.append(time.perf_counter() - started)
    return min(times) / len(noise)


def _digest_of(network: nn.Module) -> str:
    state = network.state_dict()
    return sha256(b"".join(name.encode() + state[name].cpu().numpy().tobytes() for name in sorted(state)))
