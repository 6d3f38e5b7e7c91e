"""From windows to samples: every request on every normal, made anew until the gate accepts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raygen.families.family import DefectGenerator, Made, Views
from raygen.generate.config import GateConfig
from raygen.generate.gate import failed_rule, merit
from raygen.records import SCORES, SampleRequest

Seeds = Callable[[int], NDArray[np.int64]]
"""Number of an attempt -> its seeds, (N, R)."""


class Windows(NamedTuple):
    """What samples are made on: V views of each of N normals, one for all requests or one for each."""

    pixels: NDArray[np.uint8] | None  # (N, V, H, W, C), of the checkpoint's size; None where they are drawn
    products: list[str]  # (N,)
    allowed: NDArray[np.bool_] | None = None  # (N, V, H, W): where defects may lie; None for anywhere
    seeds: list[int] | None = None  # (N,), of normals that the generator draws

    def part(self, rows: slice) -> "Windows":
        """Those of some of the normals."""
        pixels, products, allowed, seeds = (None if field is None else field[rows] for field in self)
        return Windows(pixels, products, allowed, seeds)  # type: ignore[arg-type]


@dataclass
class Samples:
    """R samples of each of N normals: what is kept of all attempts."""

    made: Made  # as above, with (N, R) for (n)
    reasons: NDArray[np.object_]  # (N, R): the rule of the gate that failed; None for accepted ones
    attempts: NDArray[np.int64]  # (N, R): number of the one that is kept
    num_attempts: NDArray[np.int64]  # (N, R): how many were made
    seeds: NDArray[np.int64]  # (N, R): of the one that is kept


def sample(
    generator: DefectGenerator,
    windows: Windows,
    requests: Sequence[SampleRequest],
    seeds: Seeds,
    gate: GateConfig,
) -> Samples:
    """Makes every request on every normal, and again those that the gate refuses, with the next seed, until it
    accepts them or `max_attempts` are made; of several refused ones the best is kept (see `gate.merit`)."""
    num_normals = len(windows.products)
    num_views = 1 if windows.pixels is None else windows.pixels.shape[1]
    block = max(1, min((generator.block or num_normals * num_views) // num_views, num_normals))
    parts = [slice(start, start + block) for start in range(0, max(1, num_normals), block)]
    return _join(
        [
            _sample_block(
                generator, windows.part(rows), requests, lambda attempt, rows=rows: seeds(attempt)[rows], gate
            )
            for rows in parts
        ]
    )


def _sample_block(
    generator: DefectGenerator,
    windows: Windows,
    requests: Sequence[SampleRequest],
    seeds: Seeds,
    gate: GateConfig,
) -> Samples:
    """`sample` of as many normals as their backgrounds fit into memory."""
    if windows.seeds is not None:
        drawn, flat = generator.draw_normals(windows.seeds, windows.products)
        pixels = drawn[:, None]
    else:
        assert windows.pixels is not None
        pixels = windows.pixels
        flat = generator.backgrounds(pixels.reshape(-1, *pixels.shape[2:]))
    num_normals, num_views = pixels.shape[:2]
    shape = (num_normals, len(requests))
    kept: list[list[Made | None]] = [[None] * len(requests) for _ in range(num_normals)]
    reasons, attempts = np.full(shape, None, object), np.zeros(shape, np.int64)
    num_attempts, kept_seeds = np.zeros(shape, np.int64), seeds(0).copy()
    merits: dict[tuple[int, int], tuple[int, float, float]] = {}
    pending = np.ones(shape, bool)
    for attempt in range(gate.max_attempts if generator.is_judged else 1):
        if not pending.any():
            break
        wanted = seeds(attempt)
        for column, request in enumerate(requests):
            view = column % num_views
            for rows in _chunks(np.flatnonzero(pending[:, column]), generator.micro_batch):
                views = Views(
                    pixels[rows, view],
                    [windows.products[row] for row in rows.tolist()],
                    None if windows.allowed is None else windows.allowed[rows, view],
                    None if flat is None else flat[rows * num_views + view],
                )
                made = generator.make(views, request, wanted[rows, column])
                for i, row in enumerate(rows):
                    scores = dict(zip(SCORES, made.scores[i].tolist(), strict=True))
                    reason = failed_rule(scores, gate) if generator.is_judged else None
                    num_attempts[row, column] += 1
                    found = merit(reason, scores)
                    if kept[row][column] is None or found > merits[row, column]:
                        kept[row][column] = _one(made, i)
                        merits[row, column] = found
                        reasons[row, column], attempts[row, column] = reason, attempt
                        kept_seeds[row, column] = wanted[row, column]
                    pending[row, column] = reason is not None
    return Samples(_stack(kept), reasons, attempts, num_attempts, kept_seeds)


def _join(parts: Sequence[Samples]) -> Samples:
    """The samples of several blocks as those of one."""
    if len(parts) == 1:
        return parts[0]
    made = [part.made for part in parts]
    names = [name for name in Made._fields if getattr(made[0], name) is not None]
    whole = {name: np.concatenate([getattr(one, name) for one in made]) for name in names}
    fields = ("reasons", "attempts", "num_attempts", "seeds")
    rest = {name: np.concatenate([getattr(part, name) for part in parts]) for name in fields}
    return Samples(made=Made(**{"layers": None, **whole}), **rest)


def _chunks(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def _one(made: Made, index: int) -> Made:
    """One of several, without their axis."""
    return Made(
        pixels=made.pixels[index],
        layers=None if made.layers is None else made.layers[index],
        masks=made.masks[index],
        scores=made.scores[index],
        references=made.references[index],
    )


def _stack(kept: list[list[Any]]) -> Made:
    """Samples one by one, N lists of R, as one `Made` of (N, R)."""

    def field(name: str) -> NDArray[Any]:
        return np.array([[getattr(one, name) for one in row] for row in kept])

    has_layers = any(one.layers is not None for row in kept for one in row)
    return Made(
        pixels=field("pixels"),
        layers=field("layers") if has_layers else None,
        masks=field("masks"),
        scores=field("scores"),
        references=field("references"),
    )
