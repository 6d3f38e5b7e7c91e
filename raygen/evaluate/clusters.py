"""Clustered LPIPS of sets of samples, from their shards."""

from typing import NamedTuple

import numpy as np
import torch

from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.data.runs import ShardStats
from raygen.evaluate.config import FeatureConfig
from raygen.evaluate.features import PERCEPTUAL, extract
from raygen.evaluate.samples import read_pixels
from raygen.metrics import ClusteredDistance, clustered_distance


class Clustering(NamedTuple):
    """Sets of samples of a run to be clustered about the same real defects."""

    run_uri: str
    shards: tuple[ShardStats, ...]  # that hold the samples
    sets: tuple[tuple[str, ...], ...]  # of sample ids; one may stand in several
    photos: tuple[Photo, ...]


def measure_clustering(
    clustering: Clustering,
    image_size: int,
    channels: int,
    config: FeatureConfig,
    max_cluster: int,
    device: torch.device,
) -> list[ClusteredDistance]:
    """Reads the samples, a shard at a time, and measures each set.

    Args:
        clustering: what.
        image_size, channels: to which images are brought first: the samples' own.
        config: which vectors, by the recipe.
        max_cluster: how many of a cluster count.
        device: to compute on.
    """
    extractor = PERCEPTUAL[config.perceptual](config.perceptual_weights, device)
    wanted = {name for names in clustering.sets for name in names}
    vectors: dict[str, np.ndarray] = {}
    for shard in clustering.shards:
        names, pixels = read_pixels(clustering.run_uri, shard, wanted, image_size, channels)
        vectors.update(zip(names, extract(extractor, pixels, config.batch), strict=True))
    real = extract(extractor, load_photos(clustering.photos, image_size, channels), config.batch)
    return [
        clustered_distance(np.stack([vectors[name] for name in names]), real, max_cluster)
        for names in clustering.sets
    ]
