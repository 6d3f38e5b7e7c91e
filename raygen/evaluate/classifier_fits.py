"""The classifiers of an evaluation, on a running Ray: what they see, and which are trained already."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property

import numpy as np
from pydantic import ValidationError

from raygen import storage
from raygen.data.defects import load_photos
from raygen.data.photo import Photo
from raygen.evaluate import on_ray
from raygen.evaluate.classifier import Classifier
from raygen.evaluate.downstream import (
    ALL,
    PROTOCOL,
    DownstreamData,
    Fit,
    FitResult,
    Photos,
    Synthetic,
    seconds_per_image,
)
from raygen.evaluate.plan import EvaluationPlan
from raygen.evaluate.samples import Cell, Sample
from raygen.pretrained import read_weights, sha256
from raygen.records import NORMAL, digest
from raygen.show import Counted


class ClassifierFits:
    """The classifiers of an evaluation, to be trained.

    Raises:
        UserError: the backbone's package or weights are missing.
    """

    def __init__(self, plan: EvaluationPlan, say: Callable[[str], None]) -> None:
        self.say = say
        self.config, self.real, self.chosen = plan.config, plan.real, plan.chosen
        self.size = (plan.image_size, plan.channels)
        self.fits = plan.fits
        if self.fits:
            Classifier(self.config.downstream, len(self.real.kinds))

    def train(self) -> list[FitResult]:
        """Every training of the recipe, in its order; those that an earlier attempt has finished are read."""
        if not self.fits:
            return []
        folder = storage.join(self.config.output, "fits")
        uris = {fit: storage.join(folder, f"{self._key(fit)}.json") for fit in self.fits}
        there = {entry.uri for entry in storage.list_files(folder)}
        results = {
            fit: result.model_copy(update={"fit": fit})  # the run may have had another name
            for fit in self.fits
            if uris[fit] in there and (result := _read_result(uris[fit]))
        }
        pending = [fit for fit in self.fits if fit not in results]
        progress = Counted(self.say, "classifiers", len(self.fits))
        progress.add(len(results))
        if pending:
            done = on_ray.fit_classifiers(self._data(), pending, self.config.downstream, self.config.compute)
            for number, result in done:
                fit = pending[number]
                results[fit] = result
                storage.put(uris[fit], result.model_dump_json(indent=1).encode())
                progress.add(1, f"{fit.describe()}: error {100 * result.error:.1f} %")
        return [results[fit] for fit in self.fits]

    # ------------------------------------------------------------------------------------------- keys

    def _key(self, fit: Fit) -> str:
        """A digest of all that decides a training."""
        parts = [PROTOCOL, fit.model_dump_json(exclude={"run"}), self._digest_of_settings]
        if fit.run is not None:
            one = self.chosen[fit.run]
            cells = sorted(self._usable(fit.run).items())
            parts += [one.run.run_id, *(sample.sample_id for _, samples in cells for sample in samples)]
        return digest(*parts)

    @cached_property
    def _digest_of_settings(self) -> str:
        which = {"conditions", "runs", "sizes", "general", "single_products", "cross_domain", "seeds"}
        weights = self.config.downstream.weights
        photos = [
            (
                split,
                photo.product,
                photo.defect_type,
                photo.uri,
                photo.etag or "",
                *map(str, photo.pixel_range or ()),
            )
            for split, some in self.real.splits.items()
            for photo in some
        ]
        return digest(
            self.config.downstream.model_dump_json(exclude={*which, "weights"}),
            sha256(read_weights(weights)) if weights else "",
            *self.size,
            *(name for photo in photos for name in photo),
        )

    # ------------------------------------------------------------------------------------------- data

    def _usable(self, run: str) -> Mapping[Cell, Sequence[Sample]]:
        """A run's samples that the classifiers may be given."""
        return {
            cell: samples for cell, samples in self.chosen[run].cells.items() if cell[:2] in self.real.cells
        }

    def _data(self) -> DownstreamData:
        """Everything that the classifiers see."""
        most = max(self.config.downstream.sizes)
        train = [p for product in self.real.products for p in self.real.of_cell(product, NORMAL)[:most]]
        train += [photo for cell in self.real.cells for photo in self.real.of_cell(*cell)]
        runs = dict.fromkeys(fit.run for fit in self.fits if fit.run is not None)
        cells = {(run, *cell): samples for run in runs for cell, samples in self._usable(run).items()}
        wanted = {(key[0], sample) for key, samples in cells.items() for sample in samples}
        pixels = on_ray.read_samples(self.chosen, wanted, *self.size)
        return DownstreamData(
            products=self.real.products,
            kinds=self.real.kinds,
            train=self._labelled(train),
            val=self._labelled(self.real.val),
            test=self._labelled(self.real.test),
            synthetic={
                key: Synthetic(
                    np.stack([pixels[key[0], sample.sample_id] for sample in samples]),
                    np.array([self._source(sample) for sample in samples]),
                )
                for key, samples in cells.items()
            },
        )

    def _source(self, sample: Sample) -> int:
        """The product of a sample's reference; -1 without."""
        product = self.real.product_of_reference(sample.reference_uri) if sample.reference_uri else None
        return self.real.products.index(product) if product else -1

    def _labelled(self, photos: Sequence[Photo]) -> Photos:
        products = [self.real.products.index(photo.product) for photo in photos]
        kinds = [self.real.kinds.index(photo.defect_type) for photo in photos]
        return Photos(load_photos(photos, *self.size), np.array(products, int), np.array(kinds, int))

    def price(self) -> float:
        """Seconds of one core like this for all trainings; measured on a few images of noise."""
        if not self.fits:
            return 0.0
        num_images = sum(self._images_of_epoch(fit) for fit in self.fits) * self.config.downstream.epochs
        return num_images * seconds_per_image(self.config.downstream, *self.size, len(self.real.kinds))

    def _images_of_epoch(self, fit: Fit) -> int:
        products: Iterable[str] = self.real.products if fit.scope == ALL else [fit.scope]
        normals = (min(fit.size, self.real.num_normals(product)) for product in products)
        return len(self.real.kinds) * sum(normals)


def _read_result(uri: str) -> FitResult | None:
    try:
        return FitResult.model_validate_json(storage.read(uri))
    except ValidationError:  # of another version: train it again
        return None
