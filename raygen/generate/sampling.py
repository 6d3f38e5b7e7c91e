"""From windows to samples: every request on every normal, made anew until the gate accepts it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from raygen.generate.config import GateConfig
from raygen.generate.gate import failed_rule, merit
from raygen.records import SCORES, SampleRequest

Seeds = Callable[[int], NDArray[np.int64]]
"""Number of an attempt -> its seeds, (N, R)."""


class Windows(NamedTuple):
    """What samples are made on: V views of each of N normals, one for all requests or one for each."""

    pixels: NDArray[np.uint8]  # (N, V, H, W, C), of the checkpoint's size
    products: list[str]  # (N,)
    allowed: NDArray[np.bool_] | None = None  # (N, V, H, W): where defects may lie; None for anywhere


class Views(NamedTuple):
    """Some rows of windows, one view of each."""

    pixels: NDArray[np.uint8]  # (n, H, W, C)
    products: list[str]  # (n,)
    allowed: NDArray[np.bool_] | None  # (n, H, W)
    backgrounds: Any  # (n, C, H, W), as the generator's `backgrounds` gave them; or None


class Made(NamedTuple):
    """One sample on each of n views."""

    pixels: NDArray[np.uint8]  # (n, H, W, C)
    layers: (
        NDArray[np.float32] | None
    )  # (n, C or C + 1, H, W): the weighted defects, in residual compositions
    masks: NDArray[np.uint8]  # (n, H, W): 255 on the defect, else 0
    scores: NDArray[np.float32]  # (n, scores), in the order of SCORES; NaN where nobody can tell
    references: NDArray[np.int64]  # (n,): row of the checkpoint's reference index; -1 for none


class DefectGenerator(Protocol):
    """What an actor holds."""

    is_judged: bool
    """Whether its samples have masks and scores, and go through the gate."""
    micro_batch: int
    """The most views it takes at once."""

    def backgrounds(self, pixels: NDArray[np.uint8]) -> Any:
        """What samples of the same views have in common: (n, H, W, C) to something with n rows, or to None."""
        ...

    def make(self, views: Views, request: SampleRequest, seeds: NDArray[np.int64]) -> Made:
        """Makes a request on up to `micro_batch` views; `seeds`, (n,), are the only randomness."""
        ...


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
    num_normals, num_views, *_ = windows.pixels.shape
    flat = generator.backgrounds(windows.pixels.reshape(-1, *windows.pixels.shape[2:]))
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
                    windows.pixels[rows, view],
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
