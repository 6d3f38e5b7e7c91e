"""DRAEM's anomalies: where Perlin noise is high, an altered texture shows through a normal."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from raygen.data.defects import Photo, load_photos
from raygen.families.family import CollectsBank, Contents, Made, Taken, TakesPhotographs, Views, stream
from raygen.families.masks import Defects, Floats, confine, surroundings
from raygen.families.perlin import PerlinConfig
from raygen.families.photos import TRAINING_SPLITS, DefectSet
from raygen.families.references import choose_references
from raygen.families.scores import pixel_scores
from raygen.records import SampleRequest

ALTERATIONS = (ImageOps.autocontrast, ImageOps.equalize, ImageOps.invert, ImageOps.solarize, ImageOps.flip)
MODEL, LATTICE = {"threshold": 0.5, "opacity": [0.1, 1.0]}, 64


def perlin_noise(random: np.random.Generator, size: int) -> Floats:
    """Gradient noise in about [-1, 1], (size, size), of cells of a whole axis to 8 pixels, turned."""
    angle, cells = random.uniform(0, 2 * np.pi), 2.0 ** random.integers(0, max(1, int(np.log2(size / 4))), 2)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) * cells[:, None]
    at = np.tensordot(turn, np.mgrid[:size, :size] / size, 1)
    directions, corner = random.uniform(0, 2 * np.pi, (LATTICE, LATTICE)), np.floor(at).astype(int)
    noise = np.zeros((size, size))
    for step in np.ndindex(2, 2):
        row, column = (corner + np.reshape(step, (2, 1, 1))) % LATTICE
        y, x = at - corner - np.reshape(step, (2, 1, 1))
        fade = [t**3 * (10 - 15 * t + 6 * t**2) for t in (1 - abs(y), 1 - abs(x))]
        towards = directions[row, column]
        noise += fade[0] * fade[1] * (np.sin(towards) * y + np.cos(towards) * x)
    return (np.sqrt(2) * noise).astype(np.float32)


def altered(texture: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """A texture, uint8 (H, W, C), moved around its edges, after three alterations."""
    image = Image.fromarray(np.roll(texture, random.integers(0, len(texture), 2), (0, 1)).squeeze())
    for number in random.choice(len(ALTERATIONS), 3, replace=False):
        image = ALTERATIONS[number](image)
    return np.asarray(image).reshape(texture.shape)


class PerlinCollector(CollectsBank[PerlinConfig]):
    def draft(self) -> tuple[dict, DefectSet]:
        normals = DefectSet.read(self.config, kinds=["normals"])
        photos = normals.part(TRAINING_SPLITS).spread(self.config.references_per_cell)
        return MODEL, normals.having(photos, (self.config.defect_type,))

    def take(self, photo: Photo) -> Taken:
        texture = load_photos([photo], self.config.image_size, self.config.channels)[0]
        return Taken({"texture": texture}, pictures=[texture])

    def contents(self, photos: Sequence[Photo], taken: Sequence[Taken]) -> Contents:
        textures = np.stack([one.arrays["texture"] for one in taken])
        return self.bank(MODEL, photos, {"textures": textures}, self.config.defect_type)


class PerlinGenerator(TakesPhotographs):
    """Latent-guided, the texture is the normal's own; reference-guided, that of a normal in the bank."""

    def make(self, views: Views, request: SampleRequest, seeds: np.ndarray) -> Made:
        rows, sources, model = np.full(len(seeds), -1), views.pixels, self.checkpoint.config.model
        if request.mode == "reference":
            rows = choose_references(self.references, self.config, request.defect_type, seeds, views.products)
            sources = self.bank["textures"][rows]
        randoms = [stream(seed) for seed in seeds]
        noise = np.stack([perlin_noise(random, sources.shape[1]) for random in randoms])
        opacity = np.array([r.uniform(*model["opacity"]) for r in randoms], np.float32)[:, None, None]
        textures = np.stack([altered(*pair) for pair in zip(sources, randoms, strict=True)])
        found = noise > np.minimum(model["threshold"], 0.8 * noise.max((1, 2), keepdims=True))
        defects = Defects(found, found * opacity)
        masks, weights = confine(defects, views.allowed, fade_edges=self.config.native)
        layers = (textures - views.pixels.astype(np.float32)) * weights[..., None]
        changed = np.any(np.abs(layers) >= 0.5, axis=3)
        masks &= (changed | surroundings(changed, 2)) & self.config.masks  # not on what stays as it is
        pixels = (views.pixels + layers).round().astype(np.uint8)
        scores = np.where(self.config.masks, pixel_scores(pixels, views.pixels, masks), np.float32(np.nan))
        layers = layers.transpose(0, 3, 1, 2) / 127.5 if self.config.composition == "residual" else None
        return Made(pixels, layers, masks * np.uint8(255), scores, rows)
