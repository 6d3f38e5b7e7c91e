"""The probes of an evaluation, on a running Ray: features, then every fold, draw and setting."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate import on_ray
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.config import EvaluateConfig, ProbeConfig
from raygen.evaluate.costs import Cost
from raygen.evaluate.feature_cache import Cache
from raygen.evaluate.features import seconds_per_image
from raygen.evaluate.probe_fits import ProbeInput, ProbeResult
from raygen.evaluate.probe_inputs import ProbeInputs
from raygen.evaluate.probe_plan import ProbePlan, Setting
from raygen.evaluate.samples import Chosen
from raygen.evaluate.statistics import Floats, TestPhotos
from raygen.extras import require
from raygen.pretrained import Lite0Features
from raygen.records import digest
from raygen.show import Counted

_RESULTS = TypeAdapter(list[ProbeResult])


@dataclass(frozen=True)
class Found:
    """What was found on N test photos, each tested in one fold."""

    photos: Sequence[Photo]
    fold: np.ndarray  # int (N,)
    cell: np.ndarray  # int (N,)
    losses: Mapping[Setting, Floats]  # (N, S) of S seeds, each 0 to 1; NaN where a fold had no such probe
    log_losses: Mapping[Setting, Floats]  # likewise, minus the logarithm of the true class's chance
    confidences: Mapping[Setting, Floats]  # likewise, the chance of the class that was found
    num_samples: Mapping[Setting, int]  # the most of a fold

    def of(self, *settings: Setting) -> tuple[TestPhotos, np.ndarray, list[Floats]]:
        """The photos that all of some settings were tested on, their rows, and each one's losses, of the seeds
        that all have."""
        losses = [self.losses[setting] for setting in settings]
        seeds = min(int((~np.isnan(loss)).any(axis=0).sum()) for loss in losses)
        rows = np.flatnonzero(
            ~np.isnan(np.concatenate([loss[:, :seeds] for loss in losses], axis=1)).any(axis=1)
        )
        names = [self.photos[int(row)].group for row in rows]
        groups = np.unique(names, return_inverse=True)[1]
        _, cells = np.unique(self.cell[rows], return_inverse=True)
        return TestPhotos(groups, self.fold[rows], cells), rows, [loss[rows, :seeds] for loss in losses]


def probe_extractor(config: ProbeConfig, device: torch.device) -> Lite0Features:
    """The network whose features are probed.

    Raises:
        UserError: its packages or its weights are missing.
    """
    return Lite0Features(config.weights, device, config.input_size)


class ProbeTable:
    """The probes of an evaluation, to be fitted.

    Raises:
        UserError: the network's packages or weights are missing.
    """

    def __init__(
        self, plan: ProbePlan, config: EvaluateConfig, size: tuple[int, int], say: Callable[[str], None]
    ) -> None:
        self.plan, self.config, self.size, self.say = plan, config, size, say
        self.inputs = ProbeInputs(plan, size)
        if plan.works:
            require("sklearn.linear_model", "evaluate")
            self.extractor = probe_extractor(config.probe, torch.device("cpu"))

    def fit(self) -> Found | None:
        """Everything; what an earlier attempt has finished is read. None if nothing is to be probed."""
        if not self.plan.works:
            return None
        sources = self.inputs.sources
        progress = Counted(self.say, "images for the probe", sum(map(len, sources)))
        cache = on_ray.extract_features(
            sources,
            partial(probe_extractor, self.config.probe),
            self.config.features.batch,
            self.extractor.digest,
            self.config.output,
            *self.size,
            compute=self.config.compute,
            done=progress.add,
        )
        return self._sum_up(self._fit_all(cache))

    def _fit_all(self, cache: Cache) -> dict[int, list[ProbeResult]]:
        """Results by the number of the work."""
        folder = storage.join(self.config.output, "probes")
        there = {entry.uri for entry in storage.list_files(folder)}
        works = self.plan.works
        progress = Counted(self.say, "draws of probes", len(works))
        results: dict[int, list[ProbeResult]] = {}
        pending: list[int] = []
        uris: dict[int, str] = {}

        def inputs() -> Iterator[ProbeInput]:
            for number, work in enumerate(works):
                data = self.inputs.of(work)
                uris[number] = storage.join(
                    folder, f"{data.key(self.config.probe, self.extractor.digest)}.json"
                )
                if uris[number] in there and (known := _read(uris[number])):
                    results[number] = known
                    progress.add(1)
                else:
                    pending.append(number)
                    yield data

        for place, found in on_ray.fit_probes(inputs(), cache, self.config.probe):
            number = pending[place]
            results[number] = found
            storage.put(uris[number], _RESULTS.dump_json(found))
            progress.add(1)
        return results

    def _sum_up(self, results: Mapping[int, list[ProbeResult]]) -> Found:
        tested = [(fold, photo) for fold, real in enumerate(self.plan.folds) for photo in real.test]
        cells = np.array([self.plan.cell(photo) for _, photo in tested])
        classes, folds = cells % len(self.plan.kinds), np.array([fold for fold, _ in tested])
        shape = (len(tested), self.config.probe.seeds)
        losses: dict[Setting, Floats] = {}
        log_losses: dict[Setting, Floats] = {}
        confidences: dict[Setting, Floats] = {}
        num_samples: dict[Setting, int] = {}
        for number, work in enumerate(self.plan.works):
            rows = np.flatnonzero(folds == work.fold)
            for setting, result in zip(work.settings, results[number], strict=True):
                chances = np.array(result.log_chances).reshape(len(rows), len(self.plan.kinds))
                for table, values in (
                    (losses, chances.argmax(axis=1) != classes[rows]),
                    (log_losses, -chances[np.arange(len(rows)), classes[rows]]),
                    (confidences, np.exp(chances.max(axis=1))),
                ):
                    table.setdefault(setting, np.full(shape, np.nan))[rows, work.seed] = values
                num_samples[setting] = max(num_samples.get(setting, 0), result.num_synthetic)
        photos = [photo for _, photo in tested]
        return Found(photos, folds, cells, losses, log_losses, confidences, num_samples)

    def costs(self) -> list[Cost]:
        """What each source took, mixes aside."""
        found = []
        for name in self.plan.alternatives:
            works = [work for work in self.plan.works if work.few is None]
            if works:
                alternative = self.inputs.alternative(name, works[0])
                hours = self._seconds_to_make(alternative) / 3600
                cost = Cost(source=name, training=0.0, thousand_samples=1000 * hours / len(alternative))
                found.append(cost)
        for name in self.config.probe_runs:
            runs = {one.uri: one for (of, *_), one in self.plan.runs.items() if of == name}.values()
            seconds = sum(sum(s.seconds.values()) for one in runs for s in one.manifest.shards)
            samples = sum(one.manifest.num_samples for one in runs)
            trained = [_seconds_of_training(one) for one in runs]
            training = None if None in trained else sum(filter(None, trained)) / 3600
            hours = seconds / 3600
            found.append(
                Cost(source=name, training=training, thousand_samples=1000 * hours / max(1, samples))
            )
        return found

    def _seconds_to_make(self, alternative: Alternative) -> float:
        """Measured once, and kept."""
        uri = storage.join(self.config.output, "costs", f"{digest(*self.size, alternative.key)}.json")
        try:
            return float(storage.read(uri))
        except storage.ObjectMissingError:
            seconds = round(on_ray.seconds_to_make(alternative, *self.size), 2)
            storage.put(uri, str(seconds).encode())
            return seconds

    def price(self) -> float:
        """Seconds of one core like this for all features; measured on a few images of noise."""
        if not self.plan.works:
            return 0.0
        return sum(map(len, self.inputs.sources)) * seconds_per_image(self.extractor, *self.size)


def _seconds_of_training(one: Chosen) -> float | None:
    """What the checkpoint of a run says, if it can still be read."""
    try:
        training = load_checkpoint(one.run.config["checkpoint"]).config.training
        return float(training["seconds"])
    except (UserError, KeyError, TypeError, ValueError):
        return None


def _read(uri: str) -> list[ProbeResult] | None:
    try:
        return _RESULTS.validate_json(storage.read(uri))
    except ValidationError:  # of another version: fit again
        return None
