"""The contact sheet: normals and what was made of them, side by side, for a person's eyes."""

from collections.abc import Sequence

import numpy as np

from raygen import images
from raygen.data.pool import read_normals
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import Run
from raygen.generate.shards import ShardStats, read_shard
from raygen.show import draw_sheet

_MAX_COLUMNS = 8
_MAX_PRODUCTS = 12


def contact_sheet(config: GenerateConfig, run: Run, stats: Sequence[ShardStats], num_rows: int = 3) -> bytes:
    """Draws `normal | sample | sample …`, captioned, `num_rows` rows of a product; returns a PNG.

    Reads one shard per product, the first that has samples of it; of very many products it shows some.
    """
    requests = run.requests[:_MAX_COLUMNS]
    captions = ["normal", *(f"{request.defect_type}, {request.mode}" for request in requests)]
    groups: dict[str, list[list[np.ndarray]]] = {}
    for product in _spread(list(run.products), _MAX_PRODUCTS):
        shard = next((shard for shard in stats if product in shard.products), None)
        if shard is None:
            continue
        samples = read_shard(config.output, shard)
        uris = samples["normal_uri"].to_pylist()
        products = dict(zip(uris, samples["product"].to_pylist(), strict=True))
        some = _spread([uri for uri in products if products[uri] == product], num_rows)
        rows = groups.setdefault(product, [])
        for uri, raw in zip(some, read_normals(some, [None] * len(some), num_threads=4), strict=True):
            try:
                normal = _decode(raw.data or b"", config, run)
            except images.BadImageError:
                continue  # gone or changed since; the sheet shows the others
            first = uris.index(uri)
            pngs = [samples["image"][first + i]["bytes"].as_py() for i in range(len(requests))]
            rows.append([normal, *(_decode(png, config, run) for png in pngs)])
    return draw_sheet(captions, groups, run.image_size)


def _decode(data: bytes, config: GenerateConfig, run: Run) -> np.ndarray:
    return images.decode(data, run.image_size, run.channels, resize=True, max_pixels=config.max_pixels)


def _spread(items: list[str], count: int) -> list[str]:
    """`count` items at even distances, for variety."""
    step = max(1, len(items) // count)
    return items[::step][:count]
