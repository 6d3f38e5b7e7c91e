"""The distances of an evaluation, on a running Ray: features, then every row of the table."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from itertools import product as pairs

import torch

from raygen import storage
from raygen.data.photo import Photo
from raygen.evaluate import on_ray
from raygen.evaluate.config import FeatureConfig
from raygen.evaluate.distances import Comparison, Distance, measure
from raygen.evaluate.feature_cache import Source
from raygen.evaluate.features import PERCEPTUAL, Extractor, build_extractor, seconds_per_image
from raygen.evaluate.memorisation import Candidates, Copied, find_copies
from raygen.evaluate.on_ray import Placed, Selection
from raygen.evaluate.own_features import MAX_PHOTOS, OWN_SECONDS, OwnFeatures, own_key
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.real_photos import count_cells
from raygen.evaluate.samples import GUIDANCES, Cell, Sample
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
        return build_extractor(features, torch.device("cpu"))

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
        settings = (self.config.distances, self.config.seed)
        arguments = (
            (row, self._images(row), *(self._real(split, self._cells(row)) for split in ("train", "test")))
            for row in self.rows
        )
        progress = Counted(self.say, "distances", len(self.rows))
        found: dict[int, Distance | None] = {}
        for number, distance in on_ray.run_on_features(measure, ((*some, *settings) for some in arguments)):
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

    # ---------------------------------------------------------------------------------------- features

    @cached_property
    def _placed(self) -> dict[str, dict[tuple[str, str, str], Placed]]:
        """All features, extracted where they are not kept yet: of runs by cell; under "" those of the real photos,
        by split, product and defect type, or normal."""
        photos = {
            "train": [*self._some_normals(), *(p for p in self.real.train if p.defect_type != NORMAL)],
            "test": [p for p in self.real.test if p.defect_type != NORMAL],
        }
        real: dict[tuple[str, str, str], list[str]] = {}
        for split, some in photos.items():
            for photo in some:
                real.setdefault((split, photo.product, photo.defect_type), []).append(photo.uri)
        sources = {"": [source for some in photos.values() for source in _photo_sources(some, self.size)]}
        groups: dict[str, Mapping[tuple[str, str, str], Sequence[str]]] = {"": real}
        for run in self.config.distance_runs:
            samples = self._wanted(run)
            sources[run] = self._shard_sources(run, samples)
            groups[run] = {cell: [sample.sample_id for sample in some] for cell, some in samples.items()}
        every = [source for some in sources.values() for source in some]
        features = self._with_weights()
        progress = Counted(self.say, "images", sum(map(len, every)))
        cache = on_ray.extract_features(
            every,
            partial(build_extractor, features),
            features.batch,
            self._extractor(features).digest,
            self.config.output,
            *self.size,
            compute=self.config.compute,
            done=progress.add,
        )
        keys = {name: [source.key for source in some] for name, some in sources.items()}
        return on_ray.place_features(cache, {name: (keys[name], groups[name]) for name in groups})

    def copies(self) -> list[Copied]:
        """The samples that are most likely copies, of each run."""
        if not self.rows:
            return []
        return find_copies(
            Candidates(
                run,
                samples,
                Selection((self._placed[run][cell],)),
                [photo for photo in self.real.train if (photo.product, photo.defect_type) == cell[:2]],
                *(self._real(split, [cell[:2]]) for split in ("train", "test")),
            )
            for run in self.config.distance_runs
            for cell, samples in self._wanted(run).items()
        )

    def _images(self, row: Comparison) -> Selection:
        """What a row compares with the real training defects."""
        cells, count = self._cells(row), self.config.distances.samples_per_cell
        if row.run is None:
            normals = sorted({(product, NORMAL) for product, _ in cells})
            return self._real("train", normals) if row.what == "normal" else self._real("test", cells)
        assert row.what in GUIDANCES
        placed, chosen = self._placed[row.run], self.chosen[row.run]
        return Selection(
            tuple(
                placed[*cell, mode].first(number)
                for cell in cells
                for mode, number in chosen.count(cell, row.what, count).items()
                if number
            )
        )

    def _real(self, split: str, cells: Iterable[tuple[str, str]]) -> Selection:
        """The real photos of some cells."""
        placed = self._placed[""]
        return Selection(tuple(placed[split, *cell] for cell in cells if (split, *cell) in placed))

    def _wanted(self, run: str) -> dict[Cell, Sequence[Sample]]:
        """All samples of a run that the table looks at, by cell."""
        count = self.config.distances.samples_per_cell
        cells: list[Cell] = [(*cell, mode) for cell, mode in pairs(self.real.cells, MODES)]
        return {cell: own[:count] for cell in cells if (own := self.chosen[run].cells.get(cell))}

    def _some_normals(self) -> list[Photo]:
        """The training normals of the floor: as many of a product as samples of a cell, at most."""
        count = self.config.distances.samples_per_cell
        return [p for product in self.real.products for p in self.real.of_cell(product, NORMAL)[:count]]

    def _shard_sources(self, run: str, samples: Mapping[Cell, Sequence[Sample]]) -> list[Source]:
        """Whole shards, that another evaluation may find them in the cache."""
        one = self.chosen[run]
        numbers = sorted({sample.shard for some in samples.values() for sample in some})
        shards = (one.shards[number] for number in numbers)
        return [Source(key=shard.sha256, run_uri=one.uri, shard=shard) for shard in shards]

    # ---------------------------------------------------------------------------------------- clusters

    def _clusters(self) -> dict[int, dict[str, float | None]]:
        """Clustered LPIPS of the runs' rows of single cells, by the number of the row; a cell's together."""
        if self.config.features.perceptual == "none":
            return {}
        count = self.config.distances.cluster_samples
        of_cell: dict[tuple[str, tuple[str, str]], dict[int, list[Sample]]] = {}
        for number, row in enumerate(self.rows):
            if row.run is None or len(cells := self._cells(row)) > 1:
                continue
            assert row.what in GUIDANCES
            samples = self.chosen[row.run].take(cells[0], row.what, count)
            if len(samples) > 1:
                of_cell.setdefault((row.run, cells[0]), {})[number] = samples
        progress = Counted(self.say, "clustered distances", sum(map(len, of_cell.values())))
        places, found = list(of_cell), {}
        clusterings = (self._clustering(*place, of_cell[place].values()) for place in places)
        limits = (self.config.features, self.config.distances.cluster_size, self.config.compute)
        for place, results in on_ray.measure_clusters(clusterings, len(places), self.size, *limits):
            for number, clusters in zip(of_cell[places[place]], results, strict=True):
                nonempty = None if math.isnan(clusters.mean_of_nonempty) else clusters.mean_of_nonempty
                found[number] = {"clustered": clusters.mean, "clustered_nonempty": nonempty}
                progress.add(1)
        return found

    def _clustering(
        self, run: str, cell: tuple[str, str], sets: Iterable[Sequence[Sample]]
    ) -> on_ray.Clustering:
        one = self.chosen[run]
        numbers = sorted({sample.shard for samples in sets for sample in samples})
        return on_ray.Clustering(
            run_uri=one.uri,
            shards=tuple(one.shards[number] for number in numbers),
            sets=tuple(tuple(sample.sample_id for sample in samples) for samples in sets),
            photos=tuple(self.real.of_cell(*cell)),
        )

    def price(self) -> float:
        """Seconds of one core like this for all features; measured on a few images of noise."""
        if not self.rows:
            return 0.0
        num_samples = sum(
            len(some) for run in self.config.distance_runs for some in self._wanted(run).values()
        )
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
