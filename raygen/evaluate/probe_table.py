"""The probes of an evaluation, on a running Ray: features, then every fold, draw and setting."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

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
from raygen.evaluate.feature_cache import Cache, Source, augmented_name
from raygen.evaluate.features import seconds_per_image
from raygen.evaluate.probe_fits import Images, ProbeInput, ProbeResult
from raygen.evaluate.probe_plan import ProbePlan, Setting, Work
from raygen.evaluate.samples import Chosen
from raygen.evaluate.statistics import Floats, TestPhotos
from raygen.pretrained import Lite0Features
from raygen.records import MODES, NORMAL, digest
from raygen.show import Counted

_PHOTOS_PER_SOURCE = 256
_RESULTS = TypeAdapter(list[ProbeResult])


@dataclass(frozen=True)
class Tested:
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
        UserError: the network's packages or weights are missing, or an alternative is none.
    """

    def __init__(
        self, plan: ProbePlan, config: EvaluateConfig, size: tuple[int, int], say: Callable[[str], None]
    ) -> None:
        self.plan, self.config, self.size, self.say = plan, config, size, say
        if plan.works:
            self.extractor = probe_extractor(config.probe, torch.device("cpu"))
            for family in plan.alternatives:
                Alternative.of(family, plan.folds[0], 1, 0)

    def fit(self) -> Tested | None:
        """Everything; what an earlier attempt has finished is read. None if nothing is to be probed."""
        if not self.plan.works:
            return None
        sources = self.sources
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
                data = self._input(work)
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

    def _sum_up(self, results: Mapping[int, list[ProbeResult]]) -> Tested:
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
                chances = np.array(result.log_chances).reshape(len(rows), -1)
                for table, values in (
                    (losses, chances.argmax(axis=1) != classes[rows]),
                    (log_losses, -chances[np.arange(len(rows)), classes[rows]]),
                    (confidences, np.exp(chances.max(axis=1))),
                ):
                    table.setdefault(setting, np.full(shape, np.nan))[rows, work.seed] = values
                num_samples[setting] = max(num_samples.get(setting, 0), result.num_synthetic)
        photos = [photo for _, photo in tested]
        return Tested(photos, folds, cells, losses, log_losses, confidences, num_samples)

    # ------------------------------------------------------------------------------------------ sources

    @cached_property
    def sources(self) -> list[Source]:
        """Everything that features are wanted of."""
        plan, augmentations = self.plan, self.config.probe.augmentations
        photos = {
            photo.uri: photo for fold in plan.folds for photo in (*plan.training(fold), *fold.val, *fold.test)
        }
        learned = {photo.uri: photo for fold in plan.folds for photo in plan.training(fold)}
        defects = [photo for photo in learned.values() if photo.defect_type != NORMAL]
        normals = [photo for photo in learned.values() if photo.defect_type == NORMAL]
        sources = self._of_photos(list(photos.values()), 0)
        sources += self._of_photos(defects, augmentations) + self._of_photos(normals, 1)
        shards = {
            (one.uri, shard.sha256): Source(key=shard.sha256, run_uri=one.uri, shard=shard)
            for one in plan.runs.values()
            for shard in one.manifest.shards
            if shard.shard in {sample.shard for samples in one.cells.values() for sample in samples}
        }
        made = {source.key: source for work in plan.works for source in self._made(work).values()}
        return [*sources, *shards.values(), *made.values()]

    def _of_photos(self, photos: Sequence[Photo], augmentations: int) -> list[Source]:
        sources = []
        for start in range(0, len(photos), _PHOTOS_PER_SOURCE):
            some = tuple(photos[start : start + _PHOTOS_PER_SOURCE])
            key = digest(*self.size, augmentations, *(photo.content for photo in some))
            sources.append(Source(key=key, photos=some, augmentations=augmentations))
        return sources

    def alternative(self, family: str, work: Work) -> Alternative:
        """The samples of a family for a work: the same for every seed where all defects are known."""
        real = self.plan.real(work)
        most = max(self.counts(work).values(), default=1)
        wanted = max(self.plan.wanted(most, setting.amount) for setting in work.settings)
        single = any(setting.source == family and setting.guidance != "mix" for setting in work.settings)
        count = wanted if single or work.few is None else -(-wanted // 2)  # the mix takes half of either mode
        seed = 0 if work.few is None else work.seed
        return Alternative.of(family, real, max(1, count), seed)

    def _made(self, work: Work) -> dict[str, Source]:
        """The samples that are made for a work, by family."""
        used = {
            part for setting in work.settings if setting.source for part in self.plan.parts(setting.source)
        }
        made = {}
        for family in used & set(self.plan.alternatives):
            alternative = self.alternative(family, work)
            made[family] = Source(key=digest(*self.size, alternative.key), alternative=alternative)
        return made

    def counts(self, work: Work) -> dict[int, int]:
        """Cell of defects -> training photos."""
        counts: dict[int, int] = {}
        for photo in self.plan.real(work).train:
            if photo.defect_type != NORMAL:
                cell = self.plan.cell(photo)
                counts[cell] = counts.get(cell, 0) + 1
        return counts

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Name of a photo, or of its first augmentation -> key of its features."""
        return {
            augmented_name(photo, 0) if source.augmentations else photo.uri: source.key
            for source in self.sources
            for photo in source.photos
        }

    def _input(self, work: Work) -> ProbeInput:
        """A work, by the names of its images."""
        plan, probe = self.plan, self.config.probe
        real = plan.real(work)
        training = plan.training(real)
        augmented = [
            (photo, draw)
            for photo in training
            for draw in range(probe.augmentations if photo.defect_type != NORMAL else 1)
        ]
        made = self._made(work)
        samples: dict[str, dict[str, Images]] = {}
        keys = {self._keys[photo.uri] for photo in (*training, *real.val, *real.test)}
        keys |= {self._keys[augmented_name(photo, 0)] for photo in training}
        for setting in work.settings:
            for part in plan.parts(setting.source) if setting.source else ():
                if part in made:
                    alternative = made[part].alternative
                    assert alternative is not None
                    keys.add(made[part].key)
                    samples[part] = self.names_made(alternative)
                else:
                    chosen = plan.runs[part, work.fold, work.few]
                    used = {s.shard for some in chosen.cells.values() for s in some}
                    keys |= {shard.sha256 for shard in chosen.manifest.shards if shard.shard in used}
                    samples[part] = self.names_chosen(chosen)
        counts = self.counts(work)
        return ProbeInput(
            settings=work.settings,
            shares={
                setting.source: dict(plan.parts(setting.source))
                for setting in work.settings
                if setting.source
            },
            keys=tuple(sorted(keys)),
            num_classes=len(plan.kinds),
            seed=work.seed,
            real=self._images(training),
            augmented=Images(
                names=tuple(augmented_name(photo, draw) for photo, draw in augmented),
                cells=tuple(plan.cell(photo) for photo, _ in augmented),
            ),
            val=self._images(real.val),
            test=self._images(real.test),
            samples=samples,
            wanted={
                amount: {cell: plan.wanted(count, amount) for cell, count in counts.items()}
                for amount in {setting.amount for setting in work.settings if setting.amount}
            },
        )

    def _images(self, photos: Iterable[Photo]) -> Images:
        photos = list(photos)
        return Images(
            names=tuple(photo.uri for photo in photos), cells=tuple(self.plan.cell(photo) for photo in photos)
        )

    def names_made(self, alternative: Alternative) -> dict[str, Images]:
        return {
            mode: Images(
                names=tuple(
                    alternative.name(cell, mode, n)
                    for cell in alternative.cells
                    for n in range(alternative.count)
                ),
                cells=tuple(
                    self.plan.number(*cell) for cell in alternative.cells for _ in range(alternative.count)
                ),
            )
            for mode in MODES
        }

    def names_chosen(self, chosen: Chosen) -> dict[str, Images]:
        found = {}
        for mode in MODES:
            samples = [s for (*_, of), some in sorted(chosen.cells.items()) if of == mode for s in some]
            found[mode] = Images(
                names=tuple(sample.sample_id for sample in samples),
                cells=tuple(self.plan.number(sample.product, sample.defect_type) for sample in samples),
            )
        return found

    def costs(self) -> list[Cost]:
        """What each source took, mixes aside."""
        found = []
        for family in self.plan.alternatives:
            works = [work for work in self.plan.works if work.few is None]
            if works:
                alternative = self.alternative(family, works[0])
                hours = on_ray.seconds_to_make(alternative, *self.size) / 3600
                cost = Cost(source=family, training=0.0, thousand_samples=1000 * hours / len(alternative))
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

    def price(self) -> float:
        """Seconds of one core like this for all features; measured on a few images of noise."""
        if not self.plan.works:
            return 0.0
        return sum(map(len, self.sources)) * seconds_per_image(self.extractor, *self.size)


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
