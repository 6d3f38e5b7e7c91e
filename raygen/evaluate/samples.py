"""The synthetic side: which samples of a run are looked at, and their pixels."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from raygen import images, storage
from raygen.data.runs import Manifest, Run, ShardStats, read_columns, read_manifest, read_run, read_shard
from raygen.errors import UserError
from raygen.learned import Learned, read_learned
from raygen.records import MODES, Mode, digest

_COLUMNS = (
    "sample_id", "normal_uri", "normal_sha256", "product", "defect_type", "mode", "reference_uri", "accepted",
    "type_prob", "contrast",
)  # fmt: skip

Cell = tuple[str, str, Mode]
"""Product, defect type, mode."""

Guidance = Literal[Mode, "mix"]
"""A mode, or half of either: the paper's mixture set."""

GUIDANCES: tuple[Guidance, ...] = (*MODES, "mix")


class Sample(NamedTuple):
    """A sample of a run, without its pixels."""

    sample_id: str
    normal_uri: str
    normal_sha256: str
    product: str
    defect_type: str
    mode: Mode
    reference_uri: str | None
    shard: int
    type_prob: float | None = None  # the scores of that name; None where its checkpoint cannot tell
    contrast: float | None = None


@dataclass(frozen=True)
class Chosen:
    """The samples of a run that an evaluation looks at: of each cell as many as are wanted, or all there are."""

    name: str
    uri: str
    run: Run
    manifest: Manifest
    cells: Mapping[Cell, Sequence[Sample]]  # each in an order of its own that is as good as random
    learned: Sequence[Learned] | None = None  # what its checkpoint learned from; None where nobody says

    @cached_property
    def shards(self) -> Mapping[int, ShardStats]:
        """The run's, by their numbers."""
        return {shard.shard: shard for shard in self.manifest.shards}

    def take(self, cell: tuple[str, str], guidance: Guidance, count: int) -> list[Sample]:
        """The first samples of a product and defect type, at most `count`: of one mode or, for "mix", half of
        either, and no more in all than there are of either mode alone."""
        counts = self.count(cell, guidance, count)
        return [s for mode, number in counts.items() for s in self.cells.get((*cell, mode), ())[:number]]

    def count(self, cell: tuple[str, str], guidance: Guidance, count: int) -> dict[Mode, int]:
        """How many `take` takes of each mode."""
        there = {mode: len(self.cells.get((*cell, mode), ())) for mode in MODES}
        if guidance != "mix":
            return {guidance: min(count, there[guidance])}
        count = min(count, *there.values())
        return {"latent": count // 2, "reference": count - count // 2}


def choose_samples(
    name: str,
    uri: str,
    wanted: Mapping[Cell, int],
    only_accepted: bool,
    seed: int,
) -> Chosen:
    """Chooses samples of a complete run, by whole shards in an order that `seed` shuffles: of a run of millions
    it reads the columns of a few shards, never all.

    Args:
        name: the run's name in the recipe.
        uri: its folder.
        wanted: how many of each cell, at most.
        only_accepted: leave out what the gate refused.
        seed: of the order.

    Raises:
        UserError: no complete run there, or one that has no sample of any wanted cell.
    """
    run, manifest = _read_complete(name, uri)
    chosen: dict[Cell, list[Sample]] = {cell: [] for cell in wanted}
    for shard in sorted(manifest.shards, key=lambda shard: digest(seed, shard.sha256)):
        short = {cell for cell, samples in chosen.items() if len(samples) < wanted[cell]}
        if not short:
            break
        usable = (cell for cell in shard.cells if cell.accepted + cell.kept * (not only_accepted))
        if any(cell.cell in short for cell in usable):
            for sample in _list_samples(uri, shard, only_accepted):
                cell = (sample.product, sample.defect_type, sample.mode)
                if cell in short:
                    chosen[cell].append(sample)
    cells = {
        cell: sorted(samples, key=lambda sample: digest(seed, sample.sample_id))[: wanted[cell]]
        for cell, samples in chosen.items()
        if samples
    }
    if not cells:
        raise UserError(
            f"runs.{name} = {uri}: no samples of {', '.join(sorted({'/'.join(cell[:2]) for cell in wanted}))}; "
            "it was made for other products, defect types or modes than are looked at"
        )
    return Chosen(name, uri, run, manifest, cells, _read_learned(uri, run))


def read_record(name: str, uri: str) -> list[Learned] | None:
    """What the checkpoint of a complete run learned from; None where nobody says.

    Raises:
        UserError: no complete run there.
    """
    return _read_learned(uri, _read_complete(name, uri)[0])


def _read_complete(name: str, uri: str) -> tuple[Run, Manifest]:
    run, manifest = read_run(uri), read_manifest(uri)
    if run is None or manifest is None:
        state = "an incomplete run" if run else "no run"
        raise UserError(
            f"runs.{name} = {uri}: {state} there; name a folder that `raygen generate` has completed"
        )
    return run, manifest


def _read_learned(uri: str, run: Run) -> list[Learned] | None:
    if run.learned is None:
        return None
    try:
        return read_learned(storage.read(storage.join(uri, run.learned)))
    except storage.ObjectMissingError:
        raise UserError(f"{uri}/{run.learned}: gone; `raygen verify {uri}` says what else is") from None


def _list_samples(uri: str, shard: ShardStats, only_accepted: bool) -> Iterable[Sample]:
    with _files_of(uri):
        rows = read_columns(uri, shard, _COLUMNS).to_pylist()
    for row in rows:
        accepted = row.pop("accepted")
        if accepted or not only_accepted:
            yield Sample(shard=shard.shard, **row)


def read_pixels(
    uri: str, shard: ShardStats, wanted: Collection[str] | None, image_size: int, channels: int
) -> tuple[list[str], np.ndarray]:
    """The pixels of samples of a shard: what the model made, of full-size photographs the window.

    Args:
        uri: the run folder.
        shard: the shard.
        wanted: sample ids of this shard; None for all.
        image_size, channels: the model's.

    Returns:
        Sample ids, and uint8 (N, image_size, image_size, channels), in the shard's order.

    Raises:
        UserError: files of the run are gone.
    """
    run, rows = _read_rows(uri, shard, wanted, "image")
    pixels = np.empty((rows.num_rows, image_size, image_size, channels), np.uint8)
    for index, row in enumerate(rows.to_pylist()):
        photo = images.decode_photo(row["image"]["bytes"], 2**31, pixel_range=run.range_of(row["product"]))
        pixels[index] = images.resize_window(photo, _window(row), image_size, channels)
    return rows["sample_id"].to_pylist(), pixels


def _window(row: Mapping[str, Any]) -> tuple[int, int, int, int]:
    x, y, size = row["window_x"], row["window_y"], row["window_size"]
    return x, y, x + size, y + size


def read_masks(
    uri: str, shard: ShardStats, wanted: Collection[str] | None, image_size: int
) -> tuple[list[str], np.ndarray]:
    """The masks of samples, as `read_pixels` gives their pixels: uint8 (N, image_size, image_size), 255 on the
    defect, else 0; blank where a sample has none."""
    _, rows = _read_rows(uri, shard, wanted, "mask")
    masks = np.zeros((rows.num_rows, image_size, image_size), np.uint8)
    for index, row in enumerate(rows.to_pylist()):
        if row["mask"] is not None and row["mask"]["bytes"]:
            left, upper, right, lower = _window(row)
            mask = images.decode_photo(row["mask"]["bytes"], 2**31)[upper:lower, left:right, 0]
            masks[index] = images.resize_mask(mask, image_size)
    return rows["sample_id"].to_pylist(), masks


def _read_rows(
    uri: str, shard: ShardStats, wanted: Collection[str] | None, column: str
) -> tuple[Run, pa.Table]:
    """The run, and of the wanted samples one column of images and what cuts the window out of them."""
    with _files_of(uri):
        run, rows = read_run(uri), read_shard(uri, shard)
    assert run is not None
    rows = rows.select(["sample_id", "product", "window_x", "window_y", "window_size", column])
    if wanted is None:
        return run, rows
    places = [i for i, name in enumerate(rows["sample_id"].to_pylist()) if name in wanted]
    return run, rows.take(pa.array(places, pa.int64()))


@contextmanager
def _files_of(uri: str) -> Iterator[None]:
    """Says in one line what of a run is gone or damaged."""
    try:
        yield
    except storage.ObjectMissingError as missing:
        what = f"{missing}: gone"
    except (pa.ArrowInvalid, OSError) as error:
        what = f"runs: a shard of {uri} is damaged ({str(error).splitlines()[0]})"
    else:
        return
    raise UserError(f"{what}; `raygen verify {uri}` says what else is, and how to mend it") from None
