"""Features at rest, by the digests of images and extractor: an evaluation that goes on extracts nothing twice."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict

from raygen import storage
from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.data.runs import ShardStats
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.augmentation import augment_photo
from raygen.evaluate.samples import read_pixels
from raygen.records import digest


class Source(BaseModel):
    """Images to extract features of: the samples of a shard, some photos, their augmentations, or samples that are
    made here."""

    model_config = ConfigDict(frozen=True)

    key: str  # digest of the images
    run_uri: str = ""
    shard: ShardStats | None = None
    photos: tuple[Photo, ...] = ()
    augmentations: int = 0  # of each photo, in its place; 0: the photos themselves
    alternative: Alternative | None = None

    def __len__(self) -> int:
        if self.shard:
            return self.shard.num_samples
        return len(self.alternative) if self.alternative else len(self.photos) * max(1, self.augmentations)

    def read(self, image_size: int, channels: int) -> tuple[list[str], np.ndarray]:
        """A name for each image, see `Alternative.name` and `augmented_name`, or its sample id or URI; and uint8
        (N, image_size, image_size, channels)."""
        if self.shard:
            return read_pixels(self.run_uri, self.shard, None, image_size, channels)
        if self.alternative:
            made = self.alternative.make(image_size, channels)
            return made.names, made.pixels
        pixels = load_photos(self.photos, image_size, channels)
        if not self.augmentations:
            return [photo.uri for photo in self.photos], pixels
        names, augmented = [], []
        for photo, own in zip(self.photos, pixels, strict=True):
            for draw in range(self.augmentations):
                names.append(augmented_name(photo, draw))
                random = np.random.default_rng(int(digest(photo.content, draw, num_bytes=8), 16))
                augmented.append(augment_photo(own, random)[0])
        return names, np.stack(augmented)


def augmented_name(photo: Photo, draw: int) -> str:
    """Of an augmentation of a photo."""
    return f"{photo.uri}#{draw}"


def within(key: str, name: str) -> str:
    """A name of one key alone: a sample's id is its own within its run, and runs may share them."""
    return f"{key}/{name}"


class Cache:
    """Features at rest: {folder}/{digest of the extractor}/{digest of the images}.parquet."""

    def __init__(self, output_uri: str, extractor: str) -> None:
        self.folder_uri = storage.join(output_uri, "features", extractor)

    def keys(self) -> set[str]:
        """Those that are there."""
        names = (entry.uri.rpartition("/")[2] for entry in storage.list_files(self.folder_uri, deep=False))
        return {name.removesuffix(".parquet") for name in names}

    def put(self, key: str, names: Sequence[str], features: np.ndarray) -> None:
        """Keeps features, float32 (N, D), one row a name."""
        if not names:
            features = np.empty((0, 1), np.float32)
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        buffer = io.BytesIO()
        pq.write_table(pa.table({"name": list(names), "features": values}), buffer)
        storage.put(storage.join(self.folder_uri, f"{key}.parquet"), buffer.getvalue())

    def get(self, key: str) -> tuple[list[str], np.ndarray]:
        """Names and features."""
        table = pq.read_table(io.BytesIO(storage.read(storage.join(self.folder_uri, f"{key}.parquet"))))
        values: Any = table["features"].combine_chunks()
        shape = table.num_rows, table["features"].type.list_size
        return table["name"].to_pylist(), values.flatten().to_numpy(zero_copy_only=False).reshape(shape)

    def gather(self, keys: Sequence[str], groups: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Features of some names, however they are spread over keys: float32 (N, D), for each group of names; NaN
        for one that is nowhere. A name that several keys may have is told apart as `within` says."""
        places: dict[str, list[tuple[int, int]]] = {}
        for group, names in enumerate(groups):
            for row, name in enumerate(names):
                places.setdefault(name, []).append((group, row))
        found: list[np.ndarray] = []
        for key in keys:
            names, features = self.get(key)
            if not names:
                continue
            found = found or [np.full((len(some), features.shape[1]), np.nan, np.float32) for some in groups]
            for name, feature in zip(names, features, strict=True):
                for group, row in (*places.get(name, ()), *places.get(within(key, name), ())):
                    found[group][row] = feature
        return found
