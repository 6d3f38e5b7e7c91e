"""The work of an evaluation, on a running Ray: features, distances, classifiers, sheets."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import ValidationError

from raygen import storage
from raygen.data.defects import Photo, load_photos
from raygen.evaluate import on_ray
from raygen.evaluate.classifier import Classifier
from raygen.evaluate.distances import Comparison, Distance, RealFeatures, gather_real, measure
from raygen.evaluate.downstream import DownstreamData, Fit, FitResult, Photos, Synthetic, training_seconds
from raygen.evaluate.features import EXTRACTORS, PERCEPTUAL, extract
from raygen.evaluate.on_ray import Source
from raygen.evaluate.samples import Sample, read_pixels
from raygen.records import MODES, NORMAL, Mode, digest
from raygen.show import draw_sheet

if TYPE_CHECKING:
    from raygen.evaluate.job import Evaluation

_PHOTOS_PER_SOURCE = 256
_SHEET_COLUMNS = 8

Guidance = Mode | Literal["mix"]
GUIDANCES: tuple[Guidance, ...] = (*MODES, "mix")


class Work:
    """What is computed for an evaluation.

    Raises:
        UserError: a package or weights are missing: before anything else is done.
    """

    def __init__(self, evaluation: "Evaluation", say: Callable[[str], None]) -> None:
        self.evaluation, self.say = evaluation, say
        self.config, self.real, self.chosen = evaluation.config, evaluation.real, evaluation.chosen
        self.size = (evaluation.image_size, evaluation.channels)
        features = self.config.features
        cpu = torch.device("cpu")
        self.names: dict[str, str] = {}
        if evaluation.comparisons:
            self.extractor = EXTRACTORS[features.extractor](features.weights, cpu)
            is_inception = features.extractor == "inception"
            self.names = {
                "frechet": "FID" if is_inception else f"FD-{self.extractor.name}",
                "kid": "KID" if is_inception else f"KID-{self.extractor.name}",
                "clustered": "",
            }
            if features.perceptual != "none":
                perceptual = PERCEPTUAL[features.perceptual](features.perceptual_weights, cpu)
                self.names["clustered"] = f"clustered {perceptual.name}"
        if evaluation.fits:
            Classifier(self.config.downstream, len(self.real.kinds))

    # ---------------------------------------------------------------------------------------- distances

    def measure_distances(self) -> list[Distance]:
        """The distance table, in its order."""
        rows = self.evaluation.comparisons
        if not rows:
            return []
        real, of_runs = self._features()
        train = {row: gather_real(real, "train", self._cells(row)) for row in rows}
        test = {row: gather_real(real, "test", self._cells(row)) for row in rows}

        def images(row: Comparison) -> np.ndarray:
            if row.run is None:
                return (
                    gather_real(real, "train", self._cells(row), normals=True)
                    if row.what == "normal"
                    else test[row]
                )
            samples = self._take(row.run, self._cells(row), row.what)
            return np.stack([of_runs[row.run][s.sample_id] for s in samples]) if samples else np.empty((0, 1))

        progress = _Progress(self.say, "distances", len(rows))
        found: dict[int, Distance | None] = {}
        config, seed = self.config.distances, self.config.seed
        arguments = ((row, images(row), train[row], test[row], config, seed) for row in rows)
        for number, distance in on_ray.run_tasks(measure, arguments, num_cpus=1):
            found[number] = distance
            progress.add(1)
        clusters = self._clusters(rows)
        return [
            distance.model_copy(update=clusters.get(number, {}))
            for number in range(len(rows))
            if (distance := found[number])
        ]

    def _cells(self, row: Comparison) -> list[tuple[str, str]]:
        return row.cells(self.real.products, self.real.defect_types)

    def _take(
        self, run: str, cells: Iterable[tuple[str, str]], what: str, count: int | None = None
    ) -> list[Sample]:
        """The samples of a row: at most `count` of each cell."""
        count = count or self.config.distances.samples_per_cell
        guidance: Guidance = next(item for item in GUIDANCES if item == what)
        return [sample for cell in cells for sample in self.chosen[run].take(cell, guidance, count)]

    def _features(self) -> tuple[RealFeatures, dict[str, dict[str, np.ndarray]]]:
        """Features of the real photos by split and cell, and of each run's samples by their ids."""
        photos = {
            "train": [*self._some_normals(), *(p for p in self.real.train if p.defect_type != NORMAL)],
            "test": [p for p in self.real.test if p.defect_type != NORMAL],
        }
        sources = {split: list(self._photo_sources(some)) for split, some in photos.items()}
        wanted: dict[str, set[str]] = {}
        for run in self.config.distance_runs:
            cells = [(p, t) for p in self.real.products for t in self.real.defect_types]
            samples = [s for mode in MODES for s in self._take(run, cells, mode)]
            wanted[run] = {sample.sample_id for sample in samples}
            sources[run] = list(self._shard_sources(run, samples))
        every = [source for some in sources.values() for source in some]
        progress = _Progress(self.say, "images", sum(map(len, every)))
        cache = on_ray.extract_features(
            every,
            self.config.features,
            self.extractor.digest,
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
        for run, ids in wanted.items():
            own = of_runs.setdefault(run, {})
            for source in sources[run]:
                names, features = cache.get(source.key)
                own.update(
                    (n, feature.copy()) for n, feature in zip(names, features, strict=True) if n in ids
                )
        return {key: np.stack(some) for key, some in real.items()}, of_runs

    def _some_normals(self) -> list[Photo]:
        """The training normals of the floor: as many of a product as samples of a cell, at most."""
        count = self.config.distances.samples_per_cell
        return [
            photo
            for product in self.real.products
            for photo in _shuffled(
                p for p in self.real.train if (p.product, p.defect_type) == (product, NORMAL)
            )[:count]
        ]

    def _photo_sources(self, photos: Sequence[Photo]) -> Iterable[Source]:
        for start in range(0, len(photos), _PHOTOS_PER_SOURCE):
            some = tuple(photos[start : start + _PHOTOS_PER_SOURCE])
            yield Source(key=digest(*self.size, *(f"{p.uri} {p.etag}" for p in some)), photos=some)

    def _shard_sources(self, run: str, samples: Sequence[Sample]) -> Iterable[Source]:
        """Whole shards, that another evaluation may find them in the cache."""
        one = self.chosen[run]
        numbers = {sample.shard for sample in samples}
        for shard in one.manifest.shards:
            if shard.shard in numbers:
                yield Source(key=shard.sha256, run_uri=one.uri, shard=shard)

    def _clusters(self, rows: Sequence[Comparison]) -> dict[int, dict[str, float | None]]:
        """Clustered LPIPS of the rows of single cells, by the number of the row."""
        if self.config.features.perceptual == "none":
            return {}
        single = [
            (n, row, cell) for n, row in enumerate(rows) if row.run and len(cell := self._cells(row)) == 1
        ]
        count = self.config.distances.cluster_samples
        samples = {n: self._take(row.run or "", cells, row.what, count) for n, row, cells in single}
        pixels = self._pixels({(row.run or "", s) for n, row, _ in single for s in samples[n]})
        progress = _Progress(self.say, "clustered distances", len(single))

        def arguments() -> Iterable[tuple]:
            for n, row, ((product, defect_type),) in single:
                photos = [p for p in self.real.train if (p.product, p.defect_type) == (product, defect_type)]
                fake = np.stack([pixels[row.run or "", s.sample_id] for s in samples[n]])
                real = load_photos(photos, *self.size)
                yield fake, real, self.config.features, self.config.distances.cluster_size

        single = [(n, row, cells) for n, row, cells in single if len(samples[n]) > 1]
        found = {}
        for number, clusters in on_ray.run_tasks(on_ray.measure_clusters, arguments(), num_cpus=1):
            mean, nonempty = clusters
            found[single[number][0]] = {
                "clustered": mean,
                "clustered_nonempty": None if np.isnan(nonempty) else nonempty,
            }
            progress.add(1)
        return found

    def _pixels(self, wanted: Iterable[tuple[str, Sample]]) -> dict[tuple[str, str], np.ndarray]:
        """Pixels of samples, uint8 (H, W, C), by run and sample id."""
        by_shard: dict[tuple[str, int], set[str]] = {}
        for run, sample in wanted:
            by_shard.setdefault((run, sample.shard), set()).add(sample.sample_id)
        of_number = {
            run: {shard.shard: shard for shard in one.manifest.shards} for run, one in self.chosen.items()
        }
        parts = sorted(by_shard.items())
        arguments = (
            (self.chosen[run].uri, of_number[run][number], ids, *self.size) for (run, number), ids in parts
        )
        found: dict[tuple[str, str], np.ndarray] = {}
        for number, (names, pixels) in on_ray.run_tasks(read_pixels, arguments, num_cpus=1):
            (run, _), _ = parts[number]
            found.update(zip([(run, name) for name in names], pixels, strict=True))
        return found

    # ------------------------------------------------------------------------------------- classifiers

    def train_classifiers(self) -> list[FitResult]:
        """Every training of the recipe, in its order; those that an earlier attempt has finished are read."""
        fits = self.evaluation.fits
        if not fits:
            return []
        uris = {fit: storage.join(self.config.output, "fits", f"{self._fit_key(fit)}.json") for fit in fits}
        there = {entry.uri for entry in storage.list_files(storage.join(self.config.output, "fits"))}
        results = {fit: result for fit in fits if uris[fit] in there and (result := _read_result(uris[fit]))}
        pending = [fit for fit in fits if fit not in results]
        progress = _Progress(self.say, "classifiers", len(fits))
        progress.add(len(results))
        if pending:
            for number, result in on_ray.fit_classifiers(
                self._data(), pending, self.config.downstream, self.config.compute
            ):
                results[pending[number]] = result
                storage.put(uris[pending[number]], result.model_dump_json(indent=1).encode())
                progress.add(1, f"{result.fit.describe()}: error {100 * result.error:.1f} %")
        return [results[fit] for fit in fits]

    def _fit_key(self, fit: Fit) -> str:
        """A digest of all that decides a training."""
        which = {"conditions", "runs", "sizes", "general", "single_products", "cross_domain", "seeds"}
        parts = [
            fit.model_dump_json(),
            self.config.downstream.model_dump_json(exclude=which),
            *map(str, self.size),
        ]
        parts += [f"{p.uri} {p.etag}" for photos in self.real.splits.values() for p in photos]
        if fit.run is not None:
            one = self.chosen[fit.run]
            parts += [one.run.run_id, *(s.sample_id for _, cell in sorted(one.cells.items()) for s in cell)]
        return digest(*parts)

    def _data(self) -> DownstreamData:
        """Everything that the classifiers see."""
        most = max(self.config.downstream.sizes)
        train = []
        for product in self.real.products:
            own = _shuffled(p for p in self.real.train if p.product == product)
            train += [p for p in own if p.defect_type == NORMAL][:most] + [
                p for p in own if p.defect_type != NORMAL
            ]
        cells = {
            (run, *cell): samples
            for run in self.config.downstream_runs
            for cell, samples in self.chosen[run].cells.items()
        }
        pixels = self._pixels({(key[0], sample) for key, samples in cells.items() for sample in samples})
        synthetic: Mapping[tuple[str, str, str, str], Synthetic] = {
            key: Synthetic(
                np.stack([pixels[key[0], sample.sample_id] for sample in samples]),
                np.array([self._source(sample) for sample in samples]),
            )
            for key, samples in cells.items()
        }
        return DownstreamData(
            products=self.real.products,
            kinds=self.real.kinds,
            train=self._labelled(train),
            val=self._labelled(self.real.val),
            test=self._labelled(self.real.test),
            synthetic=synthetic,
        )

    def _source(self, sample: Sample) -> int:
        """The product of a sample's reference; -1 without."""
        product = self.real.product_of_reference(sample.reference_uri) if sample.reference_uri else None
        return self.real.products.index(product) if product else -1

    def _labelled(self, photos: Sequence[Photo]) -> Photos:
        products = [self.real.products.index(photo.product) for photo in photos]
        kinds = [self.real.kinds.index(photo.defect_type) for photo in photos]
        return Photos(load_photos(photos, *self.size), np.array(products, int), np.array(kinds, int))

    # ------------------------------------------------------------------------------------------ the rest

    def sheets(self) -> dict[str, bytes]:
        """Real defects and samples of each run, side by side: defect type -> PNG."""
        columns = range(_SHEET_COLUMNS)
        shown: dict[tuple[str, str, str, Mode], list[Sample]] = {}
        for run, one in self.chosen.items():
            for product, defect_type, mode in one.cells:
                shown[run, product, defect_type, mode] = one.take(
                    (product, defect_type), mode, _SHEET_COLUMNS
                )
        pixels = self._pixels({(key[0], sample) for key, samples in shown.items() for sample in samples})
        sheets = {}
        for defect_type in self.real.defect_types:
            groups: dict[str, list[list[np.ndarray | None]]] = {}
            for product in self.real.products:
                cell = (product, defect_type)
                real = _shuffled(p for p in self.real.train if (p.product, p.defect_type) == cell)[
                    :_SHEET_COLUMNS
                ]
                groups[f"{product}, real"] = [list(load_photos(real, *self.size))]
                for (run, *own, mode), samples in shown.items():
                    if tuple(own) == cell:
                        groups[f"{product}, {run}: {mode}"] = [[pixels[run, s.sample_id] for s in samples]]
            sheets[defect_type] = draw_sheet([""] * len(columns), groups, self.size[0])
        return sheets

    def price(self) -> tuple[float, float]:
        """Seconds of one core like this: of all features, and of all classifiers; measured on a few noise
        images."""
        noise = np.random.default_rng(0).integers(
            0, 256, (16, self.size[0], self.size[0], self.size[1]), np.uint8
        )
        torch.set_num_threads(1)
        extracting = 0.0
        if self.evaluation.comparisons:
            extract(self.extractor, noise, 16)  # a warm-up
            started = time.perf_counter()
            extract(self.extractor, noise, 16)
            each = (time.perf_counter() - started) / len(noise)
            num_samples = sum(
                len(cell) for run in self.config.distance_runs for cell in self.chosen[run].cells.values()
            )
            extracting = each * (num_samples + len(self.real.train) + len(self.real.test))
        training = 0.0
        if self.evaluation.fits:
            each = training_seconds(self.config.downstream, noise, len(self.real.kinds))
            for fit in self.evaluation.fits:
                num_products = 1 if fit.scope in self.real.products else len(self.real.products)
                training += (
                    each * fit.size * num_products * len(self.real.kinds) * self.config.downstream.epochs
                )
        return extracting, training


def _shuffled(photos: Iterable[Photo]) -> list[Photo]:
    """In an order that is as good as random, and always the same."""
    return sorted(photos, key=lambda photo: digest(*photo.uri.split("/")[-3:]))


def _read_result(uri: str) -> FitResult | None:
    try:
        return FitResult.model_validate_json(storage.read(uri))
    except ValidationError:  # of another version: train it again
        return None


class _Progress:
    """A line now and then."""

    def __init__(self, say: Callable[[str], None], what: str, total: int) -> None:
        self.say, self.what, self.total = say, what, total
        self.count, self.told = 0, time.monotonic()

    def add(self, count: int, detail: str = "") -> None:
        self.count += count
        now = time.monotonic()
        if self.count == self.total or now - self.told > 10:
            self.told = now
            self.say(f"{self.count:,} of {self.total:,} {self.what}" + (f"; {detail}" if detail else ""))
