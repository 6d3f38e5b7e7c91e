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
from raygen.evaluate.samples import read_pixels


class Source(BaseModel):
    """Images to extract features of: the samples of a shard, or some photos."""

    model_config = ConfigDict(frozen=True)

    key: str  # digest of the images
    run_uri: str = ""
    shard: ShardStats | None = None
    photos: tuple[Photo, ...] = ()

    def __len__(self) -> int:
        return self.shard.num_samples if self.shard else len(self.photos)

    def read(self, image_size: int, channels: int) -> tuple[list[str], np.ndarray]:
        """A name for each image, its sample id or its URI; and uint8 (N, image_size, image_size, channels)."""
        if self.shard:
            return read_pixels(self.run_uri, self.shard, None, image_size, channels)
        return [photo.uri for photo in self.photos], load_photos(self.photos, image_size, channels)


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
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.reshape(-1)), features.shape[1])
        buffer = io.BytesIO()
        pq.write_table(pa.table({"name": list(names), "features": values}), buffer)
        storage.put(storage.join(self.folder_uri, f"{key}.parquet"), buffer.getvalue())

    def get(self, key: str) -> tuple[list[str], np.ndarray]:
        """Names and features."""
        table = pq.read_table(io.BytesIO(storage.read(storage.join(self.folder_uri, f"{key}.parquet"))))
        values: Any = table["features"].combine_chunks()
        rows = table.num_rows
        return table["name"].to_pylist(), values.flatten().to_numpy(zero_copy_only=False).reshape(rows, -1)

    def gather(self, keys: Sequence[str], groups: Sequence[Sequence[str]]) -> list[np.ndarray]:
        """Features of some names, however they are spread over keys: float32 (N, D), for each group of names."""
        places: dict[str, list[tuple[int, int]]] = {}
        for group, names in enumerate(groups):
            for row, name in enumerate(names):
                places.setdefault(name, []).append((group, row))
        found: list[np.ndarray] = []
        for key in keys:
            names, features = self.get(key)
            found = found or [np.full((len(some), features.shape[1]), np.nan, np.float32) for some in groups]
            for name, feature in zip(names, features, strict=True):
                for group, row in places.get(name, ()):
                    found[group][row] = feature
        return found
