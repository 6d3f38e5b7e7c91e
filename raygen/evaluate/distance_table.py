"""The distances of an evaluation, on a running Ray: features, then every row of the table."""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import product as pairs

import numpy as np
import torch

from raygen import storage
from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.evaluate import on_ray
from raygen.evaluate.config import FeatureConfig
from raygen.evaluate.distances import Comparison, Distance, RealFeatures, gather_real, measure
from raygen.evaluate.feature_cache import Source
from raygen.evaluate.features import EXTRACTORS, PERCEPTUAL, Extractor, seconds_per_image
from raygen.evaluate.own_features import MAX_PHOTOS, OWN_SECONDS, OwnFeatures, own_key
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.real_photos import count_cells
from raygen.evaluate.samples import GUIDANCES, Sample
from raygen.records import MODES, NORMAL, digest
from raygen.show import Counted

_PHOTOS_PER_SOURCE = 256


class DistanceTable:
    """The rows of the distance table, to be measured.

    Raises:
        UserError: the extractor's package or weights are missing.
    """

    def __init__(self, plan: EvaluationPlan, say: Callable[[str], None]) -> None:
        self.say = say
        self.config, self.real, self.chosen = plan.config, plan.real, plan.chosen
        self.size = (plan.image_size, plan.channels)
        self.rows = plan.comparisons
        self.features = self.config.features.model_copy(update={"extractor": plan.extractor})
        self.names: dict[str, str] = {}  # what the distances are called, for their features
        if self.rows:
            features, cpu = self.features, torch.device("cpu")
            is_trained_later = features.extractor == "own"
            name = OwnFeatures.name if is_trained_later else self._extractor(features).name
            is_inception = features.extractor == "inception"
            self.names = {
                "frechet": "FID" if is_inception else f"FD-{name}",
                "kid": "KID" if is_inception else f"KID-{name}",
                "clustered": "",
            }
            if features.perceptual != "none":
                perceptual = PERCEPTUAL[features.perceptual](features.perceptual_weights, cpu)
                self.names["clustered"] = f"clustered {perceptual.name}"

    @staticmethod
    def _extractor(features: FeatureConfig) -> Extractor:
        return EXTRACTORS[features.extractor](features.weights, torch.device("cpu"))

    def _with_weights(self) -> FeatureConfig:
        """The recipe of features; of "own" with its weights, trained where they are not there yet."""
        if self.features.extractor != "own":
            return self.features
        cells = count_cells(self.real.train)
        photos = [photo for cell in cells for photo in self.real.of_cell(*cell)[:MAX_PHOTOS]]
        what = (photos, *self.size, self.config.seed)
        uri = storage.join(self.config.output, "features", f"own-{own_key(*what)}.safetensors")
        if not storage.exists(uri):
            self.say(
                f"training a network for the distances' features on {len(photos):,} of the training photos"
            )
            storage.put(uri, on_ray.train_extractor(*what))
        return self.features.model_copy(update={"weights": uri})

    def measure(self) -> list[Distance]:
        """The table, in its order."""
        if not self.rows:
            return []
        real, of_runs = self._features()

        def images(row: Comparison) -> np.ndarray:
            cells = self._cells(row)
            if row.run is None:
                split = "train" if row.what == "normal" else "test"
                return gather_real(real, split, cells, normals=row.what == "normal")
            features = [of_runs[row.run][sample.sample_id] for sample in self._take(row)]
            return np.array(features).reshape(len(features), -1)

        def arguments() -> Iterable[tuple]:
            for row in self.rows:
                train, test = (gather_real(real, split, self._cells(row)) for split in ("train", "test"))
                yield row, images(row), train, test, self.config.distances, self.config.seed

        progress = Counted(self.say, "distances", len(self.rows))
        found: dict[int, Distance | None] = {}
        for number, distance in on_ray.run_tasks(measure, arguments(), num_cpus=1):
            found[number] = distance
            progress.add(1)
        clusters = self._clusters()
        return [
            distance.model_copy(update=clusters.get(number, {}))
            for number in range(len(self.rows))
            if (distance := found[number])
        ]

    def _cells(self, row: Comparison) -> list[tuple[str, str]]:
        return row.among(self.real.cells)

    def _take(self, row: Comparison, count: int | None = None) -> list[Sample]:
        """The samples of a run's row: at most `count` of each cell."""
        assert row.run is not None
        assert row.what in GUIDANCES
        count = count or self.config.distances.samples_per_cell
        return [s for cell in self._cells(row) for s in self.chosen[row.run].take(cell, row.what, count)]

    # ---------------------------------------------------------------------------------------- features

    def _features(self) -> tuple[RealFeatures, dict[str, dict[str, np.ndarray]]]:
        """Features of the real photos by split and cell, and of each run's samples by their ids."""
        photos = {
            "train": [*self._some_normals(), *(p for p in self.real.train if p.defect_type != NORMAL)],
            "test": [p for p in self.real.test if p.defect_type != NORMAL],
        }
        sources = {split: _photo_sources(some, self.size) for split, some in photos.items()}
        wanted = {run: self._wanted(run) for run in self.config.distance_runs}
        for run, samples in wanted.items():
            sources[run] = self._shard_sources(run, samples)
        every = [source for some in sources.values() for source in some]
        features = self._with_weights()
        progress = Counted(self.say, "images", sum(map(len, every)))
        cache = on_ray.extract_features(
            every,
            features,
            self._extractor(features).digest,
            self.config.output,
            *self.size,
            compute=self.config.compute,
            done=progress.add,
        )
        real: dict[tuple[str, str, str], list[np.ndarray]] = {}
        for split in photos:
            for source in sources[split]:
                for photo, feature in zip(source.photos, cache.get(source.key)[1], strict=True):
                    real.setdefault((split, photo.product, photo.defect_type), []).append(feature)
        of_runs: dict[str, dict[str, np.ndarray]] = {}
        for run, samples in wanted.items():
            ids = {sample.sample_id for sample in samples}
            own = of_runs.setdefault(run, {})
            for source in sources[run]:
                rows = zip(*cache.get(source.key), strict=True)
                own.update((name, feature.copy()) for name, feature in rows if name in ids)
        return {key: np.stack(some) for key, some in real.items()}, of_runs

    def _wanted(self, run: str) -> list[Sample]:
        """All samples of a run that the table looks at."""
        count = self.config.distances.samples_per_cell
        return [
            s
            for cell, mode in pairs(self.real.cells, MODES)
            for s in self.chosen[run].take(cell, mode, count)
        ]

    def _some_normals(self) -> list[Photo]:
        """The training normals of the floor: as many of a product as samples of a cell, at most."""
        count = self.config.distances.samples_per_cell
        return [p for product in self.real.products for p in self.real.of_cell(product, NORMAL)[:count]]

    def _shard_sources(self, run: str, samples: Sequence[Sample]) -> list[Source]:
        """Whole shards, that another evaluation may find them in the cache."""
        one = self.chosen[run]
        numbers = {sample.shard for sample in samples}
        return [
            Source(key=shard.sha256, run_uri=one.uri, shard=shard)
            for shard in one.manifest.shards
            if shard.shard in numbers
        ]

    # ---------------------------------------------------------------------------------------- clusters

    def _clusters(self) -> dict[int, dict[str, float | None]]:
        """Clustered LPIPS of the runs' rows of single cells, by the number of the row."""
        if self.config.features.perceptual == "none":
            return {}
        count = self.config.distances.cluster_samples
        samples = {
            number: taken
            for number, row in enumerate(self.rows)
            if row.run and len(self._cells(row)) == 1 and len(taken := self._take(row, count)) > 1
        }
        pixels = on_ray.read_samples(
            self.chosen,
            {(self.rows[n].run or "", s) for n, some in samples.items() for s in some},
            *self.size,
        )

        def arguments() -> Iterable[tuple]:
            for number, some in samples.items():
                ((product, defect_type),) = self._cells(self.rows[number])
                fake = np.stack([pixels[self.rows[number].run or "", sample.sample_id] for sample in some])
                real = load_photos(self.real.of_cell(product, defect_type), *self.size)
                yield fake, real, self.config.features, self.config.distances.cluster_size

        progress = Counted(self.say, "clustered distances", len(samples))
        numbers, found = list(samples), {}
        for number, clusters in on_ray.measure_clusters(arguments(), len(samples), self.config.compute):
            nonempty = None if math.isnan(clusters.mean_of_nonempty) else clusters.mean_of_nonempty
            found[numbers[number]] = {"clustered": clusters.mean, "clustered_nonempty": nonempty}
            progress.add(1)
        return found

    def price(self) -> float:
        """Seconds of one core like this for all features; measured on a few images of noise."""
        if not self.rows:
            return 0.0
        num_samples = sum(len(self._wanted(run)) for run in self.config.distance_runs)
        num_images = num_samples + len(self._some_normals()) + len(self.real.test)
        if self.features.extractor == "own":  # a small network: hardly more than reading the images
            return OWN_SECONDS
        return num_images * seconds_per_image(self._extractor(self.features), *self.size)


def _photo_sources(photos: Sequence[Photo], size: tuple[int, int]) -> list[Source]:
    sources = []
    for start in range(0, len(photos), _PHOTOS_PER_SOURCE):
        some = tuple(photos[start : start + _PHOTOS_PER_SOURCE])
        sources.append(Source(key=digest(*size, *(p.content for p in some)), photos=some))
    return sources
