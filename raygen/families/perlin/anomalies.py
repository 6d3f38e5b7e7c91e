"""DRAEM's anomalies: where Perlin noise is high, an altered texture shows through a normal."""

import numpy as np
import torch
from PIL import Image, ImageOps

from raygen.checkpoint import REFERENCE_CODES, Checkpoint, Reference
from raygen.data.defects import load_photos
from raygen.families.family import Contents, Made, NoIterations, Still, TakesPhotographs, Views, stream
from raygen.families.masks import Defects, Floats, confine
from raygen.families.perlin import PerlinTrainConfig
from raygen.families.photos import DefectSet
from raygen.families.recipes import SamplingConfig
from raygen.families.references import choose_references
from raygen.families.scores import pixel_scores
from raygen.records import SampleRequest

ALTERATIONS = (ImageOps.autocontrast, ImageOps.equalize, ImageOps.invert, ImageOps.solarize, ImageOps.flip)
THRESHOLD, OPACITY, LATTICE = 0.5, (0.1, 1.0), 64


def perlin_noise(random: np.random.Generator, size: int) -> Floats:
    """Gradient noise in about [-1, 1], (size, size), of 1 to 32 cells along each axis, turned by any angle."""
    angle, cells = random.uniform(0, 2 * np.pi), 2.0 ** random.integers(0, 6, 2)
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


class PerlinTrainer(NoIterations[PerlinTrainConfig]):
    @staticmethod
    def draft(config: PerlinTrainConfig) -> tuple[dict, DefectSet]:
        normals = DefectSet.read(config, kinds=["normals"])
        return {}, DefectSet(normals.photos, normals.products, (config.defect_type,))

    def contents(self, training: Still, learning: DefectSet) -> Contents:
        photos = learning.spread(self.config.references_per_cell)
        sizes, name = (self.config.image_size, self.config.channels), self.config.defect_type
        textures = {"textures": torch.from_numpy(load_photos(photos, *sizes))}
        bank = [Reference(uri=photo.uri, product=photo.product, defect_type=name) for photo in photos]
        return Contents({}, *sizes, {REFERENCE_CODES: textures}, tuple(bank))


class PerlinGenerator(TakesPhotographs):
    """Latent-guided, the texture is the normal's own; reference-guided, that of a normal in the bank."""

    def __init__(self, checkpoint: Checkpoint, config: SamplingConfig) -> None:
        super().__init__(checkpoint, config)
        self.textures = checkpoint.tensors(REFERENCE_CODES)["textures"].byte().numpy()

    def make(self, views: Views, request: SampleRequest, seeds: np.ndarray) -> Made:
        chosen, sources = np.full(len(seeds), -1), views.pixels
        if request.mode == "reference":
            wanted = request.defect_type, seeds, views.products
            chosen = choose_references(self.references, self.config, *wanted)
            sources = self.textures[chosen]
        randoms = [stream(seed) for seed in seeds]
        noise = np.stack([perlin_noise(random, sources.shape[1]) for random in randoms])
        opacity = np.array([random.uniform(*OPACITY) for random in randoms], np.float32)[:, None, None]
        textures = np.stack([altered(*pair) for pair in zip(sources, randoms, strict=True)])
        found = noise > np.minimum(THRESHOLD, 0.8 * noise.max((1, 2), keepdims=True))  # never nowhere
        defects = Defects(found, found * opacity)
        masks, weights = confine(defects, views.allowed, fade_edges=self.config.native)
        layers = (textures - views.pixels.astype(np.float32)) * weights[..., None]
        pixels = (views.pixels + layers).round().astype(np.uint8)
        scores, layers = pixel_scores(pixels, views.pixels, masks), layers.transpose(0, 3, 1, 2) / 127.5
        return Made(pixels, layers, masks * np.uint8(255 * self.config.masks), scores, chosen)
