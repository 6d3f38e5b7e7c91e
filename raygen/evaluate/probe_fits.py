"""The probes of one draw of photos: from names of features to what each says of every test photo."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict

from raygen.evaluate.config import ProbeConfig
from raygen.evaluate.probe import Ints, Labelled, balance, fit
from raygen.evaluate.probe_plan import Setting
from raygen.evaluate.samples import Guidance
from raygen.records import digest

PROTOCOL = 2
"""Grows when a probe would come out otherwise: results of an earlier one are not taken for its own."""

SYNTHETIC_SHARE = 0.5
"""Of a cell's weight, where there are samples."""


class Images(BaseModel):
    """Names of images among features, and their cells."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    names: tuple[str, ...] = ()
    cells: tuple[int, ...] = ()


class ProbeInput(BaseModel):
    """All that decides the probes of one draw of photos, but for the recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: tuple[Setting, ...]
    shares: dict[str, dict[str, float]]  # source -> its parts and their shares
    keys: tuple[str, ...]  # of features
    num_classes: int
    seed: int
    real: Images
    augmented: Images
    val: Images
    test: Images
    samples: dict[
        str, dict[str, Images]
    ]  # part -> mode -> samples, those of a cell in an order to take them in
    wanted: dict[int, dict[int, int]]  # amount -> cell -> samples

    def key(self, config: ProbeConfig, extractor: str) -> str:
        """A digest of all that decides what comes of it."""
        fitting = config.model_dump_json(include={"strengths"})
        return digest(PROTOCOL, extractor, fitting, self.model_dump_json())


class ProbeResult(NamedTuple):
    """What a probe says of T test photos."""

    log_chances: list[list[float]]  # (T, K)
    num_real: int
    num_synthetic: int
    strength: float


class Gathers(Protocol):
    """Where features are."""

    def gather(self, keys: Sequence[str], groups: Sequence[Sequence[str]]) -> list[np.ndarray]: ...


def fit_probes_of(data: ProbeInput, cache: Gathers, config: ProbeConfig) -> list[ProbeResult]:
    """Fits a probe for each setting."""
    flat = [(part, mode) for part, modes in data.samples.items() for mode in modes]
    groups = [data.real, data.augmented, data.val, data.test, *(data.samples[p][m] for p, m in flat)]
    found = [
        Labelled(features, np.array(group.cells, np.int64))
        for features, group in zip(cache.gather(data.keys, [g.names for g in groups]), groups, strict=True)
    ]
    real, augmented, val, test = found[:4]
    samples = {key: _made(some) for key, some in zip(flat, found[4:], strict=True)}
    results = []
    for setting in data.settings:
        train = real if setting.kind == "no-aug" else real + augmented
        weights, num_synthetic = balance(train.cells), 0
        if setting.kind == "samples":
            shares = data.shares[setting.source]
            taken = take(setting.guidance, shares, samples, data.wanted[setting.amount], data.seed)
            num_synthetic = len(taken.cells)
            there = set(taken.cells.tolist())
            own = {c: 1 - SYNTHETIC_SHARE * (c in there) for c in np.unique(train.cells).tolist()}
            weights = np.concatenate([balance(train.cells, own), SYNTHETIC_SHARE * balance(taken.cells)])
            train = train + taken
        probe = fit(train, weights, val, data.num_classes, config.strengths)
        chances = np.round(probe.log_chances(test.features), 4)
        results.append(ProbeResult(chances.tolist(), len(real.cells), num_synthetic, probe.strength))
    return results


def _made(samples: Labelled) -> Labelled:
    """Those that there are: of some defects nothing can be copied."""
    there = ~np.isnan(samples.features).any(axis=1)
    return Labelled(samples.features[there], samples.cells[there])


def take(
    guidance: Guidance,
    shares: Mapping[str, float],
    samples: Mapping[tuple[str, str], Labelled],
    wanted: Mapping[int, int],
    seed: int,
) -> Labelled:
    """The samples that `draw` draws: (part, mode) -> what there is."""
    cells = {key: some.cells for key, some in samples.items()}
    drawn = draw(guidance, shares, cells, wanted, seed)
    return Labelled(
        np.concatenate([samples[key].features[rows] for key, rows in drawn]),
        np.concatenate([samples[key].cells[rows] for key, rows in drawn]),
    )


def draw(
    guidance: Guidance,
    shares: Mapping[str, float],
    cells: Mapping[tuple[str, str], Ints],
    wanted: Mapping[int, int],
    seed: int,
) -> list[tuple[tuple[str, str], Ints]]:
    """Draws samples: of each cell so many, of each part its share, half of either mode for the mix.

    Args:
        guidance: which modes.
        shares: part -> its share.
        cells: (part, mode) -> the cell of each sample that there is, (N,).
        wanted: cell -> how many; fewer where there are fewer.
        seed: of the draws.

    Returns:
        (part, mode) and the rows of its samples, several times each.
    """
    modes = ("latent", "reference") if guidance == "mix" else (guidance,)
    keys = [(part, mode) for part in shares for mode in modes]
    ends = np.cumsum([shares[part] / len(modes) for part, _ in keys])
    found = []
    for cell, count in sorted(wanted.items()):
        reached = np.floor(count * ends + 1e-6).astype(int)  # in all, so that none is lost to rounding
        for key, own in zip(keys, np.diff(reached, prepend=0), strict=True):
            rows = np.flatnonzero(cells[key] == cell)
            found.append((key, np.random.default_rng([seed, cell]).permutation(rows)[:own]))
    return found
