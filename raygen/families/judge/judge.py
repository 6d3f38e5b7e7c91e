"""The judge at work: what EfficientNet-Lite0's features say of a sample. Needs no torch before it judges."""

import functools
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from raygen import images
from raygen.checkpoint import JUDGE, Checkpoint
from raygen.errors import UserError
from raygen.families.masks import Floats
from raygen.families.recipes import SamplingConfig
from raygen.records import NORMAL

if TYPE_CHECKING:
    from raygen.pretrained import Lite0Features

Logits = NDArray[np.float64]


@functools.lru_cache(maxsize=1)
def lite0(weights: str | None) -> "Lite0Features":
    """The network, one for a process, on the GPU that it may use, else on one thread of the CPU.

    Raises:
        UserError: the packages or the weights are missing.
    """
    import torch

    from raygen.pretrained import Lite0Features

    on_gpu = torch.cuda.is_available()
    if not on_gpu:  # the number of threads decides which kernels run, and so the last bit
        torch.set_num_threads(1)
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return Lite0Features(weights, torch.device("cuda" if on_gpu else "cpu"))


def features(network: "Lite0Features", pixels: NDArray[np.uint8], micro_batch: int = 1) -> Floats:
    """Features of images, of which none depends on its neighbours: one at a time on a CPU, where more at once are
    no faster; on a GPU in micro-batches of one size, padded.

    Args:
        network: sees them.
        pixels: uint8 (n, H, W, 1 or 3), n at least 1.
        micro_batch: images in one forward pass of a GPU.

    Returns:
        float32 (n, 1280).
    """
    size, found = micro_batch if network.device.type == "cuda" else 1, []
    for start in range(0, len(pixels), size):
        some = pixels[start : start + size]
        padding = ((0, size - len(some)), *[(0, 0)] * 3)
        found.append(network(np.pad(some, padding))[: len(some)])
    return np.concatenate(found)


def log_softmax(logits: Logits) -> Logits:
    """(n, classes) -> (n, classes), the last axis normalised."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


class LinearJudge:
    """A checkpoint of this family; see raygen.families.family.Judge."""

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        self.checkpoint, self.micro_batch = checkpoint, config.micro_batch
        self.size, self.channels = checkpoint.config.image_size, checkpoint.config.channels
        self.classes = (NORMAL, *checkpoint.config.defect_types)

    @functools.cached_property
    def network(self) -> "Lite0Features":
        model = self.checkpoint.config.model
        network = lite0(model["weights"])
        if network.digest != model["features"]:
            raise UserError(
                f"{self.checkpoint.uri}: was fitted to features of other weights than those of Lite0 here; put "
                "them back, or fit a judge anew"
            )
        return network

    @functools.cached_property
    def head(self) -> dict[str, NDArray[Any]]:
        return {key: value.astype(np.float64) for key, value in self.checkpoint.arrays(JUDGE).items()}

    def logits(self, pixels: NDArray[np.uint8]) -> Logits:
        """Images, uint8 (n, H, H, 1 or 3), to calibrated logits of the classes, (n, classes)."""
        brought = [images.fit(images.to_channels(one, self.channels), self.size) for one in pixels]
        seen = features(self.network, np.stack(brought), self.micro_batch).astype(np.float64)
        head = self.head
        # Row by row: the bits of a product of many depend on how many.
        raw = np.stack([head["weight"] @ row + head["bias"] for row in seen])
        return raw / head["temperature"]

    def __call__(self, pixels: NDArray[np.uint8], defect_type: str) -> dict[str, Floats]:
        logits, wanted = self.logits(pixels), self.classes.index(defect_type)
        realism = np.full(len(pixels), np.nan) if wanted == 0 else logits[:, wanted] - logits[:, 0]
        type_prob = np.exp(log_softmax(logits)[:, wanted])
        return {"realism": realism.astype(np.float32), "type_prob": type_prob.astype(np.float32)}
