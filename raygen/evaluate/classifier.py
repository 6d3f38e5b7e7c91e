"""The classifier of Section 4.2 and Appendix B: a pretrained backbone, classes, and a head that must not tell
real images from synthetic ones."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raygen.evaluate.config import DownstreamConfig
from raygen.extras import require
from raygen.pretrained import Lite0, load_weights, read_weights

_DOMAIN_LAYERS = {"resnet50": 2, "efficientnet_b4": 3, "lite0": 3}  # Figures 8 and 9

# Principal components of ImageNet's colours, in [0, 1] (Krizhevsky et al. 2012): what "lighting" varies along.
_LIGHTING_STD = (0.2175, 0.0188, 0.0045)
_LIGHTING = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


class GradientReversal(torch.autograd.Function):
    """The identity, with a gradient that points the other way (Ganin and Lempitsky 2015)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: float) -> Tensor:
        ctx.weight = weight
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return -ctx.weight * gradients[0], None


class TimmBackbone(nn.Module):
    """A network of timm, without its classifier."""

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights_uri: str) -> None:
        super().__init__()
        self.network: Any = require("timm", "timm").create_model(name, pretrained=False, num_classes=0)
        load_weights(self.network, weights_uri, read_weights(weights_uri))
        self.num_features: int = self.network.num_features
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(self.network.pretrained_cfg[key]).reshape(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Images in [-1, 1], (N, 3, H, W) -> pooled features, (N, num_features)."""
        return self.network(((x + 1) / 2 - self.mean) / self.std)


class Classifier(nn.Module):
    """Classes and, through a gradient reversal layer, real or synthetic: the backbone learns features that the
    second head finds of no use."""

    def __init__(self, config: DownstreamConfig, num_classes: int) -> None:
        """
        Raises:
            UserError: the backbone's package or weights are missing.
        """
        super().__init__()
        if config.backbone == "lite0":
            self.backbone: Lite0 | TimmBackbone = Lite0(config.weights)
        else:
            assert config.weights is not None  # the recipe has seen to it
            self.backbone = TimmBackbone(config.backbone, config.weights)
        self.input_size, self.domain_weight = config.input_size, config.domain_weight
        width = self.backbone.num_features
        self.classes = nn.Linear(width, num_classes)
        self.domain = domain_head(width, config.domain_hidden, _DOMAIN_LAYERS[config.backbone])
        self.frozen: list[nn.Module] = []
        if config.frozen_blocks:
            assert isinstance(self.backbone, Lite0)
            self.frozen = [self.backbone.stem, *self.backbone.blocks[: config.frozen_blocks]]
            for module in self.frozen:
                module.requires_grad_(False)

    def train(self, mode: bool = True) -> "Classifier":
        """As of any module; but frozen blocks keep the statistics of their norms."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Classifies images.

        Args:
            x: in [-1, 1], (N, 1 or 3, H, W), of any size.

        Returns:
            Logits of the classes, (N, num_classes), and of being synthetic, (N,).
        """
        features = self.backbone(self._to_input(x))
        domain = self.domain(GradientReversal.apply(features, self.domain_weight))
        return self.classes(features), domain.squeeze(1)

    def _to_input(self, x: Tensor) -> Tensor:
        if x.shape[-1] != self.input_size:
            size = (self.input_size, self.input_size)
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False, antialias=True)
        return x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def domain_head(width: int, hidden: int, num_layers: int) -> nn.Sequential:
    """The perceptron that tells real from synthetic: two layers for ResNet-50 (Figure 8); three for EfficientNet
    (Figure 9), whose weights begin as N(0, 0.01²), the last layer's as N(0, 0.05²), and whose biases begin as
    0."""
    layers: list[nn.Module] = []
    for before in [width, *[hidden] * (num_layers - 2)]:
        layers += [nn.Linear(before, hidden), nn.ReLU()]
    layers.append(nn.Linear(hidden, 1))
    if num_layers > 2:
        linears = [layer for layer in layers if isinstance(layer, nn.Linear)]
        for layer in linears:
            nn.init.normal_(layer.weight, std=0.05 if layer is linears[-1] else 0.01)
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


def augment(x: Tensor, random: torch.Generator) -> Tensor:
    """Traditional augmentation, each image by itself: a horizontal flip; jitter of brightness, contrast and (of
    colour images) saturation by up to 40 %; lighting, with a standard deviation of 0.1 (Krizhevsky et al.
    2012). The paper names these three and no strengths.

    Args:
        x: images in [-1, 1], (N, 1 or 3, H, W).
        random: of the draws; on the CPU.
    """

    def draw(kind: Any, *shape: int) -> Tensor:
        return kind(*shape, generator=random).to(x.device)

    n, channels = x.shape[:2]
    x = torch.where(draw(torch.rand, n, 1, 1, 1) < 0.5, x.flip(3), x)
    brightness, contrast, saturation = draw(torch.rand, 3, n, 1, 1, 1) * 0.8 + 0.6
    x = ((x + 1) / 2) * brightness  # [0, 1] from here
    mean = x.mean((1, 2, 3), keepdim=True)
    x = (x - mean) * contrast + mean
    if channels == 3:
        grey = x.mean(1, keepdim=True)
        x = (x - grey) * saturation + grey
    strengths = draw(torch.randn, n, 3) * 0.1 * torch.tensor(_LIGHTING_STD, device=x.device)
    shift = strengths @ torch.tensor(_LIGHTING, device=x.device).T  # (N, 3), red to blue
    x = x + (shift if channels == 3 else shift.mean(1, keepdim=True))[:, :, None, None]
    return x.clamp(0, 1) * 2 - 1
