"""Where are the defects? A logistic regression on the features of single pixels, judged by real masks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from raygen import images
from raygen.data.defects import load_photos, mask_content, read_mask
from raygen.data.photo import Photo
from raygen.data.runs import ShardStats
from raygen.errors import UserError
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.augmentation import augment_photo
from raygen.evaluate.config import ProbeConfig
from raygen.evaluate.feature_cache import within
from raygen.evaluate.probe import balance
from raygen.evaluate.probe_fits import SYNTHETIC_SHARE, draw
from raygen.evaluate.probe_plan import Setting
from raygen.evaluate.samples import read_masks, read_pixels
from raygen.pretrained import Lite0, to_rgb
from raygen.records import NORMAL, digest

PROTOCOL = 1

_DEPTHS = (0, 2, 4, 10)
"""Lite0's blocks whose features are taken: the last of strides 2, 4, 8 and 16."""
_LARGEST = 128  # pixels a side that are told apart, at most
_INPUT_SIZE = 128  # of the network
_OF_IMAGE = 40  # pixels inside a defect that are learned from, and as many outside
_BATCH = 16
_STRENGTH = 1e-4


class RunSamples(BaseModel):
    """Where samples of a run are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: str
    shards: tuple[ShardStats, ...]


class SegmentationInput(BaseModel):
    """All that decides the probes of pixels of one fold and seed, but for the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: tuple[Setting, ...]
    shares: dict[str, dict[str, float]]  # source -> its parts and their shares
    seed: int
    image_size: int
    channels: int
    train: tuple[Photo, ...]
    val: tuple[Photo, ...]
    test: tuple[Photo, ...]  # defects with masks
    cells: dict[str, int]  # product/type -> its number
    alternatives: dict[str, Alternative]
    runs: dict[str, RunSamples]
    names: dict[str, dict[str, tuple[str, ...]]]  # part -> mode -> samples
    of_names: dict[str, dict[str, tuple[int, ...]]]  # likewise the cells
    wanted: dict[int, int]  # cell -> samples

    def key(self, config: ProbeConfig, extractor: str) -> str:
        """A digest of all that decides what comes of it."""
        masks = (mask_content(photo) for photo in (*self.train, *self.val, *self.test))
        made = (alternative.key for alternative in self.alternatives.values())
        return digest(PROTOCOL, extractor, config.augmentations, self.model_dump_json(), *masks, *made)


class SegmentationResult(NamedTuple):
    """What a probe of pixels found on T test photos."""

    dice: list[float]  # (T,): 0 where nothing of the defect was found, 1 where all and nothing else
    threshold: float  # of the chance, as chosen
    num_real: int
    num_synthetic: int


class Pictures(NamedTuple):
    """N images with masks."""

    pixels: NDArray[np.uint8]  # (N, H, W, C)
    masks: NDArray[np.bool_]  # (N, H, W)
    cells: NDArray[np.int64]  # (N,)


class Pixels(NamedTuple):
    """Some pixels of N images: all that is learned from."""

    features: NDArray[np.float32]  # (P, D)
    defect: NDArray[np.bool_]  # (P,)
    image: NDArray[np.int64]  # (P,): which of the images
    cells: NDArray[np.int64]  # (N,), of images


def segment_all(
    data: SegmentationInput, config: ProbeConfig, device: torch.device
) -> list[SegmentationResult]:
    """Fits a probe of pixels for each setting."""
    network = PixelFeatures(config, device, min(data.image_size, _LARGEST))
    train = _photos(data, data.train)
    real = network.some(train, data.seed)
    augmented = network.some(_augmented(train, config.augmentations, data.seed), data.seed)
    val, test = _photos(data, data.val), _photos(data, data.test)
    results = []
    for setting in data.settings:
        parts = [real] if setting.kind == "no-aug" else [real, augmented]
        weights = balance(np.concatenate([part.cells for part in parts]))
        num_synthetic = 0
        if setting.kind == "samples":
            taken = _samples(data, setting)
            if not len(taken.cells):  # a run without masks teaches pixels nothing
                results.append(SegmentationResult([float("nan")] * len(test.cells), 0.5, len(train.cells), 0))
                continue
            own = np.concatenate([part.cells for part in parts])
            there = set(taken.cells.tolist())
            shares = {c: 1 - SYNTHETIC_SHARE * (c in there) for c in np.unique(own).tolist()}
            weights = np.concatenate([balance(own, shares), SYNTHETIC_SHARE * balance(taken.cells)])
            parts, num_synthetic = [*parts, network.some(taken, data.seed)], len(taken.cells)
        classify = _fit(parts, weights)
        threshold = _threshold(network, classify, val)
        dice = [dice_of(chances > threshold, mask) for chances, mask in network.all(classify, test)]
        results.append(SegmentationResult(dice, threshold, len(train.cells), num_synthetic))
    return results


def dice_of(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Twice what two masks share over what they have in all; 1 for two empty ones."""
    whole = int(found.sum()) + int(truth.sum())
    return 2 * int((found & truth).sum()) / whole if whole else 1.0


class Classify(NamedTuple):
    """A fitted probe of pixels."""

    mean: NDArray[np.float32]
    scale: NDArray[np.float32]
    weights: NDArray[np.float32]  # (D,)
    intercept: float

    def __call__(self, features: NDArray[np.float32]) -> NDArray[np.float32]:
        """(…, D) -> the chance of a defect, (…)."""
        weights = self.weights / self.scale
        return scipy.special.expit(features @ weights + np.float32(self.intercept - self.mean @ weights))


def _fit(parts: Sequence[Pixels], of_images: NDArray[np.float64]) -> Classify:
    from sklearn.linear_model import LogisticRegression

    features = np.concatenate([part.features for part in parts])
    defect = np.concatenate([part.defect for part in parts])
    starts = np.cumsum([0, *(len(part.cells) for part in parts)])
    image = np.concatenate([part.image + start for part, start in zip(parts, starts, strict=False)])
    # An image's weight is spread over its pixels; defects in all weigh as much as what is none.
    weights = of_images[image] / np.bincount(image, minlength=len(of_images))[image]
    for kind in (True, False):
        weights[defect == kind] /= weights[defect == kind].sum()
    mean, scale = features.mean(axis=0), features.std(axis=0) + 1e-6
    model = LogisticRegression(C=1 / (4 * _STRENGTH), max_iter=100, tol=1e-3)
    model.fit((features - mean) / scale, defect, sample_weight=weights)
    return Classify(mean, scale, model.coef_[0].astype(np.float32), float(np.ravel(model.intercept_)[0]))


def _threshold(network: "PixelFeatures", classify: Classify, val: Pictures) -> float:
    """The chance from which on a pixel is a defect: that of the best mean Dice on validation photos."""
    # Not beyond 0.98: few validation photos would choose 0.9998, which does worse on others.
    steps = [0.3 + 0.04 * number for number in range(18)]
    found = [
        [dice_of(chances > step, mask) for step in steps] for chances, mask in network.all(classify, val)
    ]
    if not found:
        return 0.5
    of_cells = [np.array(found)[val.cells == cell].mean(axis=0) for cell in np.unique(val.cells)]
    return steps[int(np.mean(of_cells, axis=0).argmax())]


class PixelFeatures:
    """Features of single pixels: Lite0's at four depths, brought to one size, and the pixels themselves."""

    def __init__(self, config: ProbeConfig, device: torch.device, size: int) -> None:
        self.network = Lite0(config.weights).eval().to(device)
        self.device, self.size = device, size
        self.input_size = max(_INPUT_SIZE, size)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """uint8 (n, H, W, 1 or 3) -> (n, size, size, D)."""
        x = to_rgb(pixels, self.input_size, self.device)
        h, maps = self.network.stem(self.network.normalize(x)), [x]
        for depth, block in enumerate(self.network.blocks[: _DEPTHS[-1] + 1]):
            h = block(h)
            if depth in _DEPTHS:
                maps.append(h)
        to = (self.size, self.size)
        same = [F.interpolate(m, size=to, mode="bilinear", align_corners=False, antialias=True) for m in maps]
        return torch.cat(same, dim=1).permute(0, 2, 3, 1).cpu().numpy()

    def some(self, pictures: Pictures, seed: int) -> Pixels:
        """Some pixels inside and outside each image's defect."""
        features, defect, image = [], [], []
        random = np.random.default_rng(seed)
        for start in range(0, len(pictures.cells), _BATCH):
            some = slice(start, start + _BATCH)
            for number, (maps, mask) in enumerate(
                zip(self(pictures.pixels[some]), pictures.masks[some], strict=True)
            ):
                on = self._fit(mask).ravel()
                rows = [np.flatnonzero(on == kind) for kind in (True, False)]
                chosen = np.concatenate([random.permutation(own)[:_OF_IMAGE] for own in rows])
                features.append(maps.reshape(len(on), -1)[chosen])
                defect.append(on[chosen])
                image.append(np.full(len(chosen), start + number))
        return Pixels(np.concatenate(features), np.concatenate(defect), np.concatenate(image), pictures.cells)

    def all(
        self, classify: Classify, pictures: Pictures
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Each image's chances of a defect, and its mask, both (size, size)."""
        for start in range(0, len(pictures.cells), _BATCH):
            some = slice(start, start + _BATCH)
            yield from zip(
                classify(self(pictures.pixels[some])), map(self._fit, pictures.masks[some]), strict=True
            )

    def _fit(self, mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
        return images.fit_mask(mask, (self.size, self.size))


def _photos(data: SegmentationInput, photos: Sequence[Photo]) -> Pictures:
    pixels = load_photos(photos, data.image_size, data.channels)
    masks = np.zeros((len(photos), data.image_size, data.image_size), bool)
    for row, photo in enumerate(photos):
        if photo.defect_type != NORMAL:
            masks[row] = images.fit_mask(read_mask(photo), (data.image_size, data.image_size))
    cells = [data.cells[f"{photo.product}/{photo.defect_type}"] for photo in photos]
    return Pictures(pixels, masks, np.array(cells, np.int64))


def has_mask(photo: Photo, image_size: int) -> bool:
    """Whether a defect's mask can be told from nothing, when brought to a size."""
    if photo.mask_uri is None:
        return False
    try:
        return bool(images.fit_mask(read_mask(photo), (image_size, image_size)).any())
    except UserError:
        return False


def _augmented(pictures: Pictures, count: int, seed: int) -> Pictures:
    random = np.random.default_rng(seed)
    pixels, masks, cells = [], [], []
    for picture, mask, cell in zip(*pictures, strict=True):
        for _ in range(count if mask.any() else 1):
            changed, moved = augment_photo(picture, random, mask)
            if moved is not None and (moved.any() or not mask.any()):
                pixels.append(changed)
                masks.append(moved)
                cells.append(cell)
    return Pictures(np.stack(pixels), np.stack(masks), np.array(cells, np.int64))


def _samples(data: SegmentationInput, setting: Setting) -> Pictures:
    """The samples of a setting, as the probe of whole images draws them; without those that have no mask."""
    found: list[Pictures] = []
    of_names: Mapping[tuple[str, str], NDArray[np.int64]] = {
        (part, mode): np.array(cells, np.int64)
        for part, modes in data.of_names.items()
        for mode, cells in modes.items()
    }
    drawn = draw(setting.guidance, data.shares[setting.source], of_names, data.wanted, data.seed)
    by_part: dict[str, list[tuple[str, int]]] = {}
    for (part, mode), rows in drawn:
        names, cells = data.names[part][mode], of_names[part, mode]
        by_part.setdefault(part, []).extend((names[row], int(cells[row])) for row in rows)
    for part, wanted in by_part.items():
        cell_of = dict(wanted)
        if part in data.alternatives:
            made = data.alternatives[part].make(data.image_size, data.channels)
            rows = [row for row, name in enumerate(made.names) if name in cell_of]
            names, pixels, masks = [made.names[row] for row in rows], made.pixels[rows], made.masks[rows] > 0
            found.append(_with_defect(names, pixels, masks, cell_of))
            continue
        run = data.runs[part]
        for shard in run.shards:
            start = within(shard.sha256, "")
            own = {name.removeprefix(start): cell for name, cell in wanted if name.startswith(start)}
            names, pixels = read_pixels(run.uri, shard, own.keys(), data.image_size, data.channels)
            _, masks = read_masks(run.uri, shard, own.keys(), data.image_size)
            found.append(_with_defect(names, pixels, masks > 0, own))
    return Pictures(*(np.concatenate(fields) for fields in zip(*found, strict=True)))


def _with_defect(
    names: Sequence[str], pixels: NDArray[np.uint8], masks: NDArray[np.bool_], cell_of: Mapping[str, int]
) -> Pictures:
    """Those whose mask is not blank."""
    seen = masks.any(axis=(1, 2))
    cells = np.array([cell_of[name] for name in names], np.int64)
    return Pictures(pixels[seen], masks[seen], cells[seen])
