"""The contact sheet: normals and what was made of them, side by side, for a person's eyes."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from raygen import images
from raygen.checkpoint import load_checkpoint
from raygen.data.pool import is_drawn, read_normals, seed_of
from raygen.data.runs import CellStats, Run, ShardStats, read_shard, sum_cells
from raygen.generate.config import GenerateConfig
from raygen.show import Outlined, draw_sheet

_MAX_COLUMNS = 8
_MAX_PRODUCTS = 12

Row = dict[str, Any]
"""A sample, as in SAMPLE_SCHEMA."""


def contact_sheet(config: GenerateConfig, run: Run, stats: Sequence[ShardStats], num_rows: int = 3) -> bytes:
    """Draws `normal | sample | sample …`, captioned, `num_rows` rows of a product, with lines around the masks and
    the gate's acceptance rates; below, apart, samples that the gate refused, by reason. Returns a PNG.

    Of full-size photographs a sample's window is shown. Reads one shard per product, the first that has samples of
    it; of very many products it shows some.
    """
    requests = run.requests[:_MAX_COLUMNS]
    captions = ["normal", *(f"{request.defect_type}, {request.mode}" for request in requests)]
    cells = sum_cells(cell for shard in stats for cell in shard.cells)
    groups: dict[str, list[list[np.ndarray | Outlined | None]]] = {}
    refused: dict[str, list[Outlined]] = {}
    for product in _spread(list(run.products), _MAX_PRODUCTS):
        shard = next((shard for shard in stats if product in shard.products), None)
        if shard is None:
            continue
        samples = [row for row in read_shard(config.output, shard).to_pylist() if row["product"] == product]
        of_normal: dict[str, dict[tuple[str, str, int], Row]] = {}
        for row in samples:
            request = (row["defect_type"], row["mode"], row["k"])
            of_normal.setdefault(row["normal_uri"], {})[request] = row
            if not row["accepted"]:
                refused.setdefault(row["reject_reason"], []).append(_shown(row, run))
        uris = _spread(list(of_normal), num_rows)
        rows = groups.setdefault(f"{product}{_rates(cells, product) if run.is_judged else ''}", [])
        for uri, normal in zip(uris, _normals(config, run, product, uris), strict=True):
            if normal is None:
                continue  # gone or changed since; the sheet shows the others
            made = [of_normal[uri].get(request) for request in requests]
            rows.append([normal, *(_shown(row, run) if row and row["accepted"] else None for row in made)])
    for reason, shown in sorted(refused.items()):
        num_refused = sum(cell.reasons.get(reason, 0) for cell in cells)
        name = f"refused by {reason} ({num_refused:,} of all samples)"
        groups[name] = [_spread(shown, len(captions))]
    return draw_sheet(captions, groups, run.image_size)


def _normals(
    config: GenerateConfig, run: Run, product: str, uris: Sequence[str]
) -> Iterator[np.ndarray | None]:
    """Normals of a product at the model's size; None for what is of no use."""
    if is_drawn(config.pool):
        from raygen.families import load_generator

        generator = load_generator(load_checkpoint(config.checkpoint), config)
        yield from generator.draw_normals([seed_of(uri) for uri in uris], [product] * len(uris))[0]
        return
    for raw in read_normals(uris, [None] * len(uris), num_threads=4):
        try:
            yield images.decode(
                raw.data or b"",
                run.image_size,
                run.channels,
                resize=True,
                max_pixels=config.max_pixels,
                pixel_range=run.range_of(product),
            )
        except images.BadImageError:
            yield None


def _rates(cells: Iterable[CellStats], product: str) -> str:
    """`: accepted scratches/latent 92 %, …`"""
    own = [cell for cell in cells if cell.product == product]
    rates = (f"{c.defect_type}/{c.mode} {100 * c.accepted / c.asked:.0f} %" for c in own)
    return f": accepted {', '.join(rates)}"


def _shown(row: Row, run: Run) -> Outlined:
    """A sample's window, at the model's size, with its mask."""
    y, x, size = row["window_y"], row["window_x"], row["window_size"]
    pixels, mask = (
        images.resize_window(
            images.decode_photo(row[name]["bytes"], 2**31, pixel_range=run.range_of(row["product"])),
            (x, y, x + size, y + size),
            run.image_size,
            channels,
        )
        for name, channels in (("image", run.channels), ("mask", 1))
    )
    return Outlined(pixels, mask[:, :, 0])


def _spread(items: list[Any], count: int) -> list[Any]:
    """`count` items at even distances, for variety."""
    step = max(1, len(items) // count)
    return items[::step][:count]
