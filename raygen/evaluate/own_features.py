"""Features of a small network that learns the user's own photos: no ImageNet, which a gate may have used."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen import images
from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.pretrained import parse_weights, read_weights, sha256
from raygen.records import digest

PROTOCOL = "own-1"
"""Of the network and its training; to be changed with them, since trained weights are kept by it."""

MAX_PHOTOS = 300
"""Of a product and type, at most."""

OWN_SECONDS = 60.0
"""What its training takes a core, at most; about half of it was measured, of images of 64 px and more."""

_SIDE = 64  # larger images are first brought down to it: on some hundred photos that is right more often
_STEPS, _BATCH = 240, 32
_PHOTOS_AT_A_TIME = 128


class OwnNetwork(nn.Module):
    """3×3 convolutions down to 8 px; then the mean and the maximum over places, and a linear classifier."""

    def __init__(self, image_size: int, channels: int, num_classes: int) -> None:
        super().__init__()
        self.side = min(image_size, _SIDE)
        widths = [1024 // side for side in (64, 32, 16, 8) if side <= self.side]
        stages: list[nn.Module] = []
        for before, after in pairwise([channels, *widths]):
            stages += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
            stages.append(nn.MaxPool2d(2))
        self.stages = nn.Sequential(*stages[:-1])
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(2 * widths[-1], num_classes)

    def features(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, C, H, W) -> (N, 256)."""
        x = F.adaptive_avg_pool2d(x, self.side)
        h = self.stages(x.contiguous(memory_format=torch.channels_last))
        return torch.cat([h.mean((2, 3)), h.amax((2, 3))], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, C, H, W) -> logits (N, num_classes)."""
        return self.head(self.dropout(self.features(x)))


class OwnFeatures:
    """What that network sees of an image before it names its class: 256 features, 1 in the mean square over the
    photos that it learned from. It knows these better than others: hold distances from them against the floor, the
    distance of held-out photos."""

    name = "Own"

    def __init__(self, weights_uri: str | None, device: torch.device) -> None:
        """
        Args:
            weights_uri: what `train_own` gave, at rest.
            device: to compute on.
        """
        assert weights_uri is not None
        data = read_weights(weights_uri)
        weights = parse_weights(weights_uri, data)
        self.device = device
        side, self.scale = int(weights.pop("side")), float(weights.pop("scale"))
        self.network = OwnNetwork(side, weights["stages.0.weight"].shape[1], len(weights["head.bias"]))
        self.network.load_state_dict(weights)
        self.network.eval().to(device)
        self.digest = digest(self.name, sha256(data))

    @torch.inference_mode()
    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        x = images.to_model(torch.tensor(pixels, device=self.device))
        return self.network.features(x).cpu().numpy() / self.scale


def own_key(photos: Sequence[Photo], image_size: int, channels: int, seed: int) -> str:
    """A digest of all that decides the weights."""
    contents = (field for photo in photos for field in (photo.content, photo.product, photo.defect_type))
    return digest(PROTOCOL, image_size, channels, seed, *contents)


def train_own(
    photos: Sequence[Photo], image_size: int, channels: int, seed: int, num_steps: int = _STEPS
) -> bytes:
    """Trains the network to tell products and types apart, normals included, each as often in a batch; on flipped,
    turned, brightened and darkened images. The same photos and seed give the same weights on one machine.

    Args:
        photos: of the training split alone.
        image_size, channels: to which they are brought first: the samples' own.
        seed: of everything that is drawn.
        num_steps: of the training.

    Returns:
        A safetensors file.
    """
    cells = sorted({(photo.product, photo.defect_type) for photo in photos})
    label = torch.tensor([cells.index((photo.product, photo.defect_type)) for photo in photos])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = OwnNetwork(image_size, channels, len(cells))
        pixels = _load(photos, image_size, channels, network.side)
        frequency = 1 / torch.bincount(label)[label].double()
        optimizer = torch.optim.AdamW(network.parameters(), weight_decay=0.05)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, num_steps, pct_start=0.15)
        for _ in range(num_steps):
            rows = torch.multinomial(frequency, _BATCH, replacement=True)
            x = _augment(images.to_model(pixels[rows]))
            loss = F.cross_entropy(network(x), label[rows], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    with torch.inference_mode():
        squares = [network.features(images.to_model(some)).square().mean(1) for some in pixels.split(_BATCH)]
    told = {"side": torch.tensor(network.side), "scale": torch.cat(squares).mean().sqrt()}
    return safetensors.torch.save({**network.state_dict(), **told})


def _load(photos: Sequence[Photo], image_size: int, channels: int, side: int) -> Tensor:
    """uint8 (N, side, side, C), a few at their own size at a time."""
    parts = []
    for start in range(0, len(photos), _PHOTOS_AT_A_TIME):
        some = load_photos(photos[start : start + _PHOTOS_AT_A_TIME], image_size, channels)
        x = images.to_model(torch.from_numpy(some))
        parts.append(images.from_model(F.adaptive_avg_pool2d(x, side)))
    return torch.cat(parts)


def _augment(x: Tensor) -> Tensor:
    """Flips, quarter turns, brightness and contrast, each image's own; images in about [-1, 1]."""
    count = len(x)
    for turned in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
        x = torch.where(torch.rand(count, 1, 1, 1) < 0.5, turned(x), x)
    gain, offset = torch.rand(2, count, 1, 1, 1) * 0.3 - 0.15
    return x * (1 + gain) + offset
