"""What an actor holds: the bank, and cut-outs put on normals. No torch here."""

from functools import cached_property
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from raygen.checkpoint import Checkpoint
from raygen.families.copy_paste.blending import blend
from raygen.families.copy_paste.collector import cutouts_of
from raygen.families.copy_paste.config import LatentConfig, Turns, VaryConfig
from raygen.families.copy_paste.cutouts import Cutout
from raygen.families.copy_paste.warping import Piece, Warped, draw_pose, prepare, warp
from raygen.families.family import Made, TakesPhotographs, Views, stream
from raygen.families.masks import Floats, Mask
from raygen.families.recipes import SamplingConfig
from raygen.families.scores import pixel_scores
from raygen.records import SCORES, SampleRequest

_ALLOWED = 0.9  # so much of a defect must lie where defects may, or another try is made
_MAX_PIECES = 512  # cut-outs that are held ready: full-size ones may be large


class Normal(NamedTuple):
    """What a defect is put on."""

    pixels: Floats  # (H, W, C), in grey levels
    look: Floats  # (2,): logarithms of mean and standard deviation
    product: str
    allowed: Mask | None  # (H, W): where defects may lie; None for anywhere


class Pasted(NamedTuple):
    """A try at a sample."""

    image: Floats  # (H, W, C), in grey levels, not rounded
    mask: Mask  # (H, W)
    row: int  # of the bank
    novelty: float
    merit: float  # 1 if it can be seen and lies where it may, else less


class Cell(NamedTuple):
    """The cut-outs that normals of a product may get."""

    rows: NDArray[np.int64]  # of the bank
    weakest: float  # strength of a real one, in grey levels
    strongest: float
    turns: Turns


class CopyPasteGenerator(TakesPhotographs):
    """Reference-guided, a real defect, moved and turned; latent-guided, also bent, stretched and mixed."""

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        cv2.setNumThreads(1)  # an actor has the cores that it reserves
        model = checkpoint.config.model
        self.vary, self.latent = VaryConfig(**model["vary"]), LatentConfig(**model["latent"])
        self.cells: dict[tuple[str, str], Cell] = {}
        self.pieces: dict[int, Piece] = {}

    @cached_property
    def cutouts(self) -> list[Cutout]:
        return cutouts_of(self.bank)

    @cached_property
    def looks(self) -> Floats:
        """Of the cut-outs' photos, (n, 2): logarithms of mean and standard deviation."""
        return _logarithms(self.bank["look"])

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        levels = views.pixels.astype(np.float32)
        axes = (1, 2, 3)
        looks = _logarithms(np.stack([levels.mean(axes), levels.std(axes)], axis=1))
        allowed = [None] * len(seeds) if views.allowed is None else views.allowed
        normals = map(Normal, levels, looks, views.products, allowed)
        pasted = [
            self._paste(normal, request, int(seed)) for normal, seed in zip(normals, seeds, strict=True)
        ]
        images = np.stack([one.image for one in pasted])
        pixels = np.rint(images.clip(0, 255)).astype(np.uint8)
        masks = np.stack([one.mask for one in pasted]) & self.config.masks
        scores = pixel_scores(pixels, views.pixels, masks)
        scores[:, list(SCORES).index("novelty")] = [one.novelty for one in pasted]
        is_latent, is_residual = request.mode == "latent", self.config.composition == "residual"
        return Made(
            pixels,
            layers=((images - levels) / 127.5).transpose(0, 3, 1, 2) if is_residual else None,
            masks=masks * np.uint8(255),
            scores=scores if self.config.masks else np.full_like(scores, np.nan),
            references=np.array([-1 if is_latent else one.row for one in pasted]),
        )

    def _paste(self, normal: Normal, request: SampleRequest, seed: int) -> Pasted:
        """The first try that is good; without a defect if none is, so that the gate refuses it."""
        random, cell = stream(seed), self._cell(normal.product, request.defect_type)
        found = self._try(normal, cell, request.mode == "latent", random)
        for _ in range(1, self.vary.tries):
            if found.merit >= 1:
                break
            found = self._try(normal, cell, request.mode == "latent", random)
        if found.merit >= 1:
            return found
        return found._replace(image=normal.pixels, mask=np.zeros_like(found.mask), novelty=np.nan)

    def _try(self, normal: Normal, cell: Cell, is_latent: bool, random: np.random.Generator) -> Pasted:
        side = len(normal.pixels)
        row = self._choose(normal, cell, random)
        cutout, piece = self.cutouts[row], self._piece(row)
        pose = draw_pose(cutout, side, self.vary, cell.turns, self.config.native, random)
        gain, novelty = self.vary.gain ** random.uniform(-1, 1), np.nan
        warped = warp(piece, pose, side)
        if is_latent:
            copy, own_gain = warped, gain
            if random.random() < self.latent.mix and cutout.strength:
                gain *= self.cutouts[self._choose(normal, cell, random)].strength / cutout.strength
            warped = warp(piece, pose.vary(self.latent, random), side)
            novelty = _novelty(warped, gain, copy, own_gain)
        mask, image = np.zeros((side, side), bool), normal.pixels.copy()
        if not warped.mask.any():
            return Pasted(image, mask, row, novelty, 0.0)
        here = normal.pixels[warped.box]
        gain = _within(cell, gain, cutout.strength)
        if self.vary.lighting:
            gain *= min(2.0, max(0.5, float(here[warped.mask].mean()) / max(cutout.around, 1.0)))
        changed = blend(here, warped, gain, self.vary.blend, random)
        where = warped.matte > 0
        if normal.allowed is not None:
            where &= normal.allowed[warped.box]
        changed = np.where(where[..., None], changed, here)
        image[warped.box] = changed
        difference = np.abs(np.rint(changed.clip(0, 255)) - here).max(axis=2)
        defect = warped.mask & where
        mask[warped.box] = defect | (difference > 0)
        seen = float(difference[defect].mean()) if defect.any() else 0.0
        inside = defect.sum() / warped.mask.sum()
        merit = min(1.0, seen / max(self.vary.min_change, 1e-6)) * min(1.0, inside / _ALLOWED)
        return Pasted(image, mask, row, novelty, merit)

    def _choose(self, normal: Normal, cell: Cell, random: np.random.Generator) -> int:
        """Of some cut-outs drawn, that whose photo looks most like the normal."""
        drawn = cell.rows[random.integers(len(cell.rows), size=self.vary.alike)]
        return int(drawn[np.abs(self.looks[drawn] - normal.look).sum(axis=1).argmin()])

    def _piece(self, row: int) -> Piece:
        if row not in self.pieces:
            if len(self.pieces) >= _MAX_PIECES:
                self.pieces.clear()
            self.pieces[row] = prepare(self.cutouts[row])
        return self.pieces[row]

    def _cell(self, product: str, defect_type: str) -> Cell:
        """What a normal may get: cut-outs of its product, unless the run says otherwise; any if there are none."""
        if (product, defect_type) not in self.cells:
            wanted = self.config.reference_products
            names = {product} if wanted in ("any", "same") else set(wanted)
            folded = {name.casefold() for name in names}
            of_type = [row for row, one in enumerate(self.references) if one.defect_type == defect_type]
            rows = [row for row in of_type if self.references[row].product.casefold() in folded]
            if not rows or (wanted == "any" and self.vary.other_products):
                rows = of_type
            strengths = np.abs([self.cutouts[row].strength for row in rows])
            turns = self.vary.turns
            self.cells[product, defect_type] = Cell(
                np.array(rows),
                float(strengths.min()),
                float(strengths.max()),
                turns if isinstance(turns, str) else turns.get(product, "flips"),
            )
        return self.cells[product, defect_type]


def _logarithms(looks: Floats) -> Floats:
    return np.log(np.maximum(looks, 1.0), dtype=np.float32)


def _within(cell: Cell, gain: float, strength: float) -> float:
    """The gain that leaves a defect as strong as some real one of its cell."""
    own = abs(strength)
    if not own:
        return gain
    return float(np.copysign(min(max(abs(gain), cell.weakest / own), cell.strongest / own), gain))


def _novelty(piece: Warped, gain: float, copy: Warped, gain_of_copy: float) -> float:
    """How far a cut-out is from its copy: 0 for the same, 1 for two that have nothing in common."""
    both = (piece.box, copy.box)
    top, left = (min(a.start, b.start) for a, b in zip(*both, strict=True))
    bottom, right = (max(a.stop, b.stop) for a, b in zip(*both, strict=True))
    fields = np.zeros((2, bottom - top, right - left, piece.residual.shape[2]), np.float32)
    for field, one, by in zip(fields, (piece, copy), (gain, gain_of_copy), strict=True):
        rows, columns = one.box
        place = np.s_[rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]
        field[place] = np.float32(by) * one.residual * one.matte[..., None]
    whole = np.square(fields).sum()
    return float(np.sqrt(np.square(fields[0] - fields[1]).sum() / whole)) if whole else float("nan")
