"""The bank: the cut-outs of a defect set."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raygen import images
from raygen.data.defects import MaskError, read_mask, read_photo
from raygen.data.photo import Photo
from raygen.families.copy_paste.config import CopyPasteConfig
from raygen.families.copy_paste.cutouts import Cutout, Refused, cut
from raygen.families.family import CollectsBank, Contents, Taken
from raygen.families.masks import Mask
from raygen.families.photos import TRAINING_SPLITS, DefectSet

FLAT = ("residual", "pixels", "matte", "mask")
"""Fields of a `Cutout` that a bank holds one after the other; their shapes stand in `shapes`, (n, 2)."""
EACH = ("place", "touches", "strength", "around", "look")
"""Fields that it holds as rows."""


class CopyPasteCollector(CollectsBank[CopyPasteConfig]):
    """Cuts defects out; see raygen.families.family.Collector."""

    captions = ("photo", "background", "cut-out")

    def draft(self) -> tuple[dict[str, Any], DefectSet]:
        defects = DefectSet.read(self.config, kinds=["defects"])
        photos = defects.part(TRAINING_SPLITS).spread(self.config.references_per_cell)
        return self.config.model(), defects.having(photos)

    def take(self, photo: Photo) -> Taken:
        try:
            pixels, mask = self._read(photo)
            cutout, background = cut(pixels, mask, self.config.cut, fade_at_border=self.config.native)
            if self.config.native and max(cutout.mask.shape) > self.config.image_size:
                height, width = cutout.mask.shape
                raise Refused(
                    f"it is {width}×{height} px, larger than a window of image_size = {self.config.image_size}"
                )
        except Refused as refused:
            return Taken({}, refused=str(refused))
        fields = {name: np.asarray(value) for name, value in cutout._asdict().items()}
        height, width = cutout.mask.shape
        facts = {
            "split": photo.split,
            "place": [round(value, 3) for value in cutout.place],
            "size": [height, width],
            "area": int(cutout.mask.sum()),
            "angle": round(orientation(cutout.mask), 1),
            "strength": round(cutout.strength, 1),
        }
        return Taken(fields, facts, self._pictures(pixels, background, cutout))

    def contents(self, photos: Sequence[Photo], taken: Sequence[Taken]) -> Contents:
        arrays = {name: np.concatenate([one.arrays[name].ravel() for one in taken]) for name in FLAT}
        arrays |= {name: np.stack([one.arrays[name] for one in taken]) for name in EACH}
        arrays["shapes"] = np.array([one.arrays["mask"].shape for one in taken], np.int32)
        return self.bank(self.config.model(), photos, arrays)

    def _read(self, photo: Photo) -> tuple[NDArray[np.uint8], Mask]:
        """A photo and its mask, at their own size or brought to the bank's."""
        if photo.mask_uri is None:
            raise Refused("it has no mask; put one beside it, as {id}_mask.png")
        size = None if self.config.native else self.config.image_size
        pixels = read_photo(photo)
        try:
            mask = read_mask(photo)
        except MaskError as error:
            raise Refused(error.what) from None
        pixels = images.to_channels(pixels, self.config.channels)
        if size is not None:
            pixels, mask = images.fit(pixels, size), images.fit_mask(mask, (size, size))
            if not mask.any():
                raise Refused(f"its mask is empty when brought to {size} × {size}")
        return pixels, mask

    def _pictures(
        self, photo: NDArray[np.uint8], background: NDArray[np.uint8], cutout: Cutout
    ) -> list[NDArray[np.uint8]]:
        """What is around a cut-out: the photo, its background, and the difference on grey."""
        size, (height, width) = self.config.image_size, photo.shape[:2]
        top, left = (
            int(np.clip(share * whole - size / 2, 0, max(0, whole - size)))
            for share, whole in zip(cutout.place, (height, width), strict=True)
        )
        grey = (photo.astype(np.float32) - background + 128).clip(0, 255).astype(np.uint8)
        shown = [one[top : top + size, left : left + size] for one in (photo, background, grey)]
        missing = ((0, size - shown[0].shape[0]), (0, size - shown[0].shape[1]), (0, 0))
        return [np.pad(one, missing) for one in shown]


def cutouts_of(arrays: dict[str, NDArray[Any]]) -> list[Cutout]:
    """The cut-outs of a bank, as `contents` put them together."""
    shapes = [tuple(shape) for shape in arrays["shapes"].tolist()]
    areas = np.array([height * width for height, width in shapes])
    channels = len(arrays["pixels"]) // int(areas.sum())
    found: dict[str, list[Any]] = {name: arrays[name].tolist() for name in EACH}
    for name in FLAT:
        depth = (channels,) if name in ("residual", "pixels") else ()
        ends = np.cumsum(areas * channels if depth else areas)
        parts = np.split(arrays[name], ends[:-1])
        found[name] = [part.reshape(*shape, *depth) for part, shape in zip(parts, shapes, strict=True)]
    return [Cutout(**dict(zip(found, row, strict=True))) for row in zip(*found.values(), strict=True)]


def orientation(mask: NDArray[np.uint8]) -> float:
    """The angle of a mask's longer axis, in degrees from the horizontal, -90 to 90; of a round one, any."""
    rows, columns = np.nonzero(mask)
    (yy, xy), (_, xx) = np.cov(np.stack([rows, columns]), bias=True) if len(rows) > 1 else np.zeros((2, 2))
    return float(np.degrees(np.arctan2(2 * xy, xx - yy) / 2))
