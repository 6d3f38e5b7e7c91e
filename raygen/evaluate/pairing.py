"""Which run's samples may be judged by which photos: a run goes with the fold that its checkpoint left out."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from raygen.data.folds import Folds, with_groups
from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.real_photos import RealSet
from raygen.evaluate.samples import Cell, Chosen, choose_samples, read_record
from raygen.learned import Learned
from raygen.records import MODES, NORMAL

Paired = tuple[str, int, int | None]
"""A run's name, the fold that it left out, and how many real defects of each cell it knew; None for all."""

_FEWEST = 8  # samples of a cell that are chosen, whatever they are for


def read_folds(config: EvaluateConfig) -> tuple[RealSet, ...]:
    """The defect set in folds; or as one, with its own splits.

    Raises:
        UserError: no photos there, or none to learn from.
    """
    if config.folds is None:
        real = RealSet.read(config)
        return (replace(real, test=tuple(with_groups(real.test))) if config.probe.conditions else real,)
    survey = config.survey()
    folds = Folds.deal(survey.photos, config.folds)
    note = f"{config.folds} folds: each photo is tested in one; the set's own splits count for nothing"
    notes = (*survey.notes, note)
    return tuple(RealSet.of(config, folds.split(fold), notes) for fold in range(config.folds))


def pair_runs(config: EvaluateConfig, names: Sequence[str], folds: Sequence[RealSet]) -> dict[Paired, Chosen]:
    """Finds for every run the fold that it may be judged by, and chooses its samples.

    Raises:
        UserError: a run is missing or incomplete; its checkpoint, or its samples, know photos of every fold's
            test; or two runs of one name know the same photos.
    """
    runs: dict[Paired, Chosen] = {}
    uris: dict[Paired, str] = {}
    for name in names:
        for uri in config.uris_of(name):
            learned = read_record(name, uri)
            for fold, few in _pairs(config, name, uri, learned, folds):
                key = (name, fold, few)
                if key in runs:
                    left = f"have left out fold {fold}" if config.folds else "know the same photos"
                    raise UserError(f"runs.{name}: {uris[key]} and {uri} both {left}; name one of them")
                chosen = choose_samples(
                    name, uri, _wanted(config, name, folds[fold]), config.only_accepted, config.seed
                )
                runs[key] = _without_held_out(config, chosen, folds[fold])
                uris[key] = uri
    return runs


def _pairs(
    config: EvaluateConfig,
    name: str,
    uri: str,
    learned: Sequence[Learned] | None,
    folds: Sequence[RealSet],
) -> list[tuple[int, int | None]]:
    """The folds that a run may be judged by, with the number of defects that it knew."""
    if learned is None:
        if config.folds is None:
            return [(0, None)]
        raise UserError(
            f"runs.{name} = {uri}: made by a checkpoint without a record of what it learned from, which cannot be "
            "paired with a fold; train it anew"
        )
    leaks = {fold: real.leaked_photos(learned) for fold, real in enumerate(folds)}
    fitting = [fold for fold, found in leaks.items() if not found]
    if not fitting:
        found = min(leaks.values(), key=len)
        if config.folds is None:
            raise _leak(name, "checkpoint's training photos", found)
        raise UserError(
            f"runs.{name} = {uri}: its checkpoint knows photos of every fold's test, such as {found[0]};"
            f" train it with fold = 0, say, of the same folds = {config.folds}, products, types and mask_values"
        )
    return [(fold, _few(config, learned, folds[fold])) for fold in fitting]


def _few(config: EvaluateConfig, learned: Sequence[Learned], real: RealSet) -> int | None:
    """The smallest number of the curve that holds all defects that a checkpoint knew; None if none does, or it
    knew no defect."""
    known = {photo.sha256 for photo in learned if photo.defect_type != NORMAL and photo.use == "learned"}
    if not known:
        return None
    for count in sorted(config.probe.real_defects):
        few = real.with_few(count)
        if few.train != real.train and known <= few.defects_learned:
            return count
    return None


def _without_held_out(config: EvaluateConfig, chosen: Chosen, real: RealSet) -> Chosen:
    """Without samples on normals that the fold holds out.

    Raises:
        UserError: references are held-out photos; or, without folds, normals are.
    """
    samples = [sample for cell in chosen.cells.values() for sample in cell]
    leaks = real.leaked_references({s.reference_uri for s in samples if s.reference_uri})
    if leaks:
        raise _leak(chosen.name, "references", leaks)
    if chosen.name not in {*config.downstream_runs, *config.probe_runs}:
        return chosen
    held_out = real.leaked_normals({sample.normal_sha256: sample.normal_uri for sample in samples})
    if held_out and config.folds is None:
        raise _leak(chosen.name, "normals", held_out)
    gone = set(held_out)
    kept = {
        cell: [sample for sample in some if sample.normal_uri not in gone]
        for cell, some in chosen.cells.items()
    }
    return replace(chosen, cells={cell: some for cell, some in kept.items() if some})


def _leak(name: str, what: str, leaks: Sequence[str]) -> UserError:
    return UserError(
        f"runs.{name}: {len(leaks)} of its {what} are held-out photos, such as {leaks[0]}; they would be judged "
        "by what they were made of: train and generate from the split train alone"
    )


def _wanted(config: EvaluateConfig, name: str, real: RealSet) -> Mapping[Cell, int]:
    """How many samples of each cell a run is asked for: at least a few, for the sheets."""
    wanted: dict[Cell, int] = {}
    for cell, mode in itertools.product(real.cells, MODES):
        counts = [_FEWEST]
        if name in config.distance_runs:
            counts.append(config.distances.samples_per_cell)
        if name in config.downstream_runs:
            fill = min(max(config.downstream.sizes), real.num_normals(cell[0]))
            by_source = config.downstream.cross_domain and mode == "reference"
            counts.append(fill * len(real.products) if by_source else fill)  # about as many from each product
        if name in config.probe_runs:  # some stand on normals that a fold holds out
            counts.append(2 * config.probe.max_samples if config.folds else config.probe.max_samples)
        wanted[*cell, mode] = max(counts)
    return wanted
