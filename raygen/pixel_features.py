"""Features without a network: how grey levels, edges and local contrast of an image are distributed."""

import numpy as np
import torch
from scipy import ndimage

from raygen.records import digest

_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, as Pillow's "L"
_GREY_BINS, _EDGE_BINS, _DIRECTION_BINS = 32, 16, 12
_SMALLEST, _LARGEST = 1, 256  # grey levels: what edges and local contrast are binned between
_WINDOW = 7  # pixels: side of the square whose standard deviation is the local contrast
_SCALES = (1, 2)  # by which images are made smaller


class PixelFeatures:
    """Histograms of grey levels and, at full and half size, of the magnitude and direction of Sobel's gradient
    (directions weighed by magnitude, opposite ones taken together) and of the local standard deviation; magnitudes
    and deviations in bins of equal ratios. Fixed: nothing is learned, and no weights are needed.

    Each is the square root of the shares times the number of bins: of length 1 in the mean square, whatever the
    bins, so that the Euclidean distance of two is Hellinger's, in which rare levels count too.
    """

    name = "Pixels"

    def __init__(self, weights_uri: str | None, device: torch.device) -> None:
        settings = (_GREY_BINS, _EDGE_BINS, _DIRECTION_BINS, _SMALLEST, _LARGEST, _WINDOW, *_SCALES)
        self.digest = digest(self.name, *settings)

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (N, H, W, 1 or 3) -> float32 (N, 120)."""
        grey = pixels[..., 0].astype(float) if pixels.shape[-1] == 1 else np.rint(pixels @ _LUMA)
        parts = [_histogram(np.floor(grey * _GREY_BINS / 256).astype(int), _GREY_BINS)]
        for scale in _SCALES:
            parts += _textures(_shrunk(grey, scale))
        return np.concatenate(parts, axis=1).astype(np.float32)


def _shrunk(grey: np.ndarray, factor: int) -> np.ndarray:
    """Means over squares of factor × factor; rows and columns left over are dropped."""
    count, height, width = grey.shape
    height, width = height // factor, width // factor
    whole = grey[:, : height * factor, : width * factor]
    return whole.reshape(count, height, factor, width, factor).mean(axis=(2, 4))


def _textures(grey: np.ndarray) -> list[np.ndarray]:
    """Histograms of (N, H, W): gradient magnitude, direction, local standard deviation."""
    y, x = (_sobel(grey, *axes) for axes in ((1, 2), (2, 1)))
    magnitude = np.hypot(x, y)
    direction = np.floor(np.arctan2(y, x) % np.pi * _DIRECTION_BINS / np.pi).astype(int) % _DIRECTION_BINS
    mean, square = (
        ndimage.uniform_filter(values, _WINDOW, axes=(1, 2), mode="nearest") for values in (grey, grey**2)
    )
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return [
        _histogram(_logarithmic(magnitude), _EDGE_BINS),
        _histogram(direction, _DIRECTION_BINS, magnitude),
        _histogram(_logarithmic(deviation), _EDGE_BINS),
    ]


def _sobel(grey: np.ndarray, along: int, across: int) -> np.ndarray:
    """The derivative, in grey levels a pixel. (ndimage's own would smooth over the images of a batch, too.)"""
    smooth = ndimage.correlate1d(grey, [0.25, 0.5, 0.25], across, mode="nearest")
    return ndimage.correlate1d(smooth, [-0.5, 0, 0.5], along, mode="nearest")


def _logarithmic(values: np.ndarray) -> np.ndarray:
    """Grey levels -> bins of equal ratios; the first takes all that is smaller."""
    return np.digitize(values, np.geomspace(_SMALLEST, _LARGEST, _EDGE_BINS)[:-1])


def _histogram(bins: np.ndarray, num_bins: int, weights: np.ndarray | None = None) -> np.ndarray:
    """Square roots of the shares of each image's bins, (N, H, W), times `num_bins`: (N, num_bins)."""
    count = len(bins)
    places = (bins + num_bins * np.arange(count)[:, None, None]).ravel()
    flat = None if weights is None else weights.ravel()
    sums = np.bincount(places, flat, count * num_bins).reshape(count, num_bins).astype(float)
    totals = sums.sum(axis=1, keepdims=True)
    shares = np.divide(sums, totals, out=np.full_like(sums, 1 / num_bins), where=totals > 0)
    return np.sqrt(shares * num_bins)
