"""What an actor holds: the bank, and cut-outs put on normals. No torch here."""

from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raygen.checkpoint import Checkpoint
from raygen.families.copy_paste.blending import blend
from raygen.families.copy_paste.collector import cutouts_of
from raygen.families.copy_paste.config import LatentConfig, VaryConfig
from raygen.families.copy_paste.cutouts import Cutout
from raygen.families.copy_paste.warping import Warped, draw_pose, warp
from raygen.families.family import Made, TakesPhotographs, Views, stream
from raygen.families.masks import Floats, Mask
from raygen.families.recipes import SamplingConfig
from raygen.families.scores import pixel_scores
from raygen.records import SCORES, SampleRequest

_ALLOWED = 0.9  # so much of a defect must lie where defects may, or another place is tried


class Pasted(NamedTuple):
    """A try at a sample."""

    image: Floats  # (H, W, C), in grey levels, not rounded
    mask: Mask  # (H, W)
    row: int  # of the bank
    novelty: float
    merit: float  # at least 1 if it is good


class CopyPasteGenerator(TakesPhotographs):
    """Reference-guided, a real defect, moved and turned; latent-guided, one that is bent, stretched and mixed."""

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        cv2.setNumThreads(1)  # an actor has its cores
        model = checkpoint.config.model
        self.vary, self.latent = VaryConfig(**model["vary"]), LatentConfig(**model["latent"])
        self.cells: dict[tuple[str, str], NDArray[np.int64]] = {}

    @cached_property
    def cutouts(self) -> list[Cutout]:
        return cutouts_of(self.bank)

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        allowed = views.allowed if views.allowed is not None else [None] * len(seeds)
        pasted = [
            self._best(pixels.astype(np.float32), product, where, request, int(seed))
            for pixels, product, where, seed in zip(views.pixels, views.products, allowed, seeds, strict=True)
        ]
        images = np.stack([one.image for one in pasted])
        pixels = np.rint(images.clip(0, 255)).astype(np.uint8)
        masks = np.stack([one.mask for one in pasted]) & self.config.masks
        scores = pixel_scores(pixels, views.pixels, masks)
        scores[:, list(SCORES).index("novelty")] = [one.novelty for one in pasted]
        is_latent, is_residual = request.mode == "latent", self.config.composition == "residual"
        return Made(
            pixels,
            layers=((images - views.pixels) / 127.5).transpose(0, 3, 1, 2) if is_residual else None,
            masks=masks * np.uint8(255),
            scores=scores if self.config.masks else np.full_like(scores, np.nan),
            references=np.array([-1 if is_latent else one.row for one in pasted]),
        )

    def _best(
        self, normal: Floats, product: str, allowed: Mask | None, request: SampleRequest, seed: int
    ) -> Pasted:
        """The first try that can be seen and lies where it may; without a mask if none does."""
        random, rows = stream(seed), self._rows(product, request.defect_type)
        best: Pasted | None = None
        for _ in range(self.vary.tries):
            found = self._paste(normal, product, allowed, request, rows, random)
            if best is None or found.merit > best.merit:
                best = found
            if best.merit >= 1:
                return best
        assert best is not None
        return best._replace(image=normal, mask=np.zeros_like(best.mask))

    def _paste(
        self,
        normal: Floats,
        product: str,
        allowed: Mask | None,
        request: SampleRequest,
        rows: NDArray[np.int64],
        random: np.random.Generator,
    ) -> Pasted:
        row = int(rows[random.integers(len(rows))])
        cutout = self.cutouts[row]
        is_latent = request.mode == "latent"
        pose = draw_pose(cutout, normal.shape[0], self.vary, self._turns(product), self.config.native, random)
        gain = float(np.exp(random.uniform(-1, 1) * np.log(self.vary.gain)))
        bent = pose
        if is_latent:
            bent = pose.bend(self.latent, random)
            if random.random() < self.latent.mix:
                other = self.cutouts[int(rows[random.integers(len(rows))])]
                gain *= other.strength / cutout.strength if cutout.strength else 1.0
        piece = warp(cutout, bent, normal.shape[0])
        if not piece.mask.any():
            return Pasted(normal, np.zeros(normal.shape[:2], bool), row, np.nan, 0.0)
        novelty = _novelty(piece, gain, warp(cutout, pose, normal.shape[0])) if is_latent else np.nan
        here = normal[piece.box]
        if self.vary.lighting:
            gain *= float(np.clip(here[piece.mask].mean() / max(cutout.around, 1.0), 0.5, 2.0))
        gain = self._limit(gain, cutout, rows)
        changed = blend(here, piece, gain, self.vary.blend, random)
        where = piece.matte > 0
        if allowed is not None:
            where &= allowed[piece.box]
        changed = np.where(where[..., None], changed, here)
        difference = np.abs(np.rint(changed.clip(0, 255)) - here)
        marked = where & (piece.mask | (difference > 0).any(axis=2))
        image, mask = normal.copy(), np.zeros(normal.shape[:2], bool)
        image[piece.box], mask[piece.box] = changed, marked
        core = piece.mask & where
        seen = float(difference[core].mean()) if core.any() else 0.0
        inside = core.sum() / piece.mask.sum()
        merit = min(1.0, seen / max(self.vary.min_change, 1e-6)) * min(1.0, inside / _ALLOWED)
        return Pasted(image, mask, row, novelty, merit)

    def _turns(self, product: str) -> str:
        turns = self.vary.turns
        return turns if isinstance(turns, str) else turns.get(product, "flips")

    def _limit(self, gain: float, cutout: Cutout, rows: NDArray[np.int64]) -> float:
        """The gain that leaves a defect as strong as some real one of its cell."""
        shown = np.abs([self.cutouts[row].strength for row in rows])
        own = abs(cutout.strength)
        if not own or not shown.any():
            return gain
        return float(np.sign(gain) * np.clip(abs(gain) * own, min(shown.min(), own), shown.max()) / own)

    def _rows(self, product: str, defect_type: str) -> NDArray[np.int64]:
        """The cut-outs that a normal may get."""
        if (product, defect_type) not in self.cells:
            wanted = self.config.reference_products
            if wanted == "any":
                names = None if self.vary.other_products else {product.casefold()}
            else:
                names = {product.casefold()} if wanted == "same" else {name.casefold() for name in wanted}
            of_type = [row for row, one in enumerate(self.references) if one.defect_type == defect_type]
            of_names = [
                row for row in of_type if names is None or self.references[row].product.casefold() in names
            ]
            self.cells[product, defect_type] = np.array(of_names or of_type)
        return self.cells[product, defect_type]


def _novelty(piece: Warped, gain: float, copy: Warped) -> float:
    """How far a cut-out is from its copy: 0 for the same, 1 for two that have nothing in common."""
    top, left = (min(a.start, b.start) for a, b in zip(piece.box, copy.box, strict=True))
    bottom, right = (max(a.stop, b.stop) for a, b in zip(piece.box, copy.box, strict=True))
    fields = []
    for one, by in ((piece, gain), (copy, 1.0)):
        field = np.zeros((bottom - top, right - left, one.residual.shape[2]), np.float32)
        rows, columns = one.box
        field[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left] = (
            by * one.residual * one.matte[..., None]
        )
        fields.append(field)
    apart = np.square(fields[0] - fields[1]).sum()
    whole = np.square(fields[0]).sum() + np.square(fields[1]).sum()
    return float(np.sqrt(apart / whole)) if whole else np.nan
