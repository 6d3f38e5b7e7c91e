"""The probes of pixels of an evaluation, on a running Ray."""

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

import numpy as np
from pydantic import TypeAdapter, ValidationError

from raygen import storage
from raygen.data.photo import Photo
from raygen.evaluate import on_ray
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.probe_plan import ProbePlan, Setting, Work
from raygen.evaluate.probe_table import Found, ProbeTable
from raygen.evaluate.real_photos import RealSet
from raygen.evaluate.segmentation import RunSamples, SegmentationInput, SegmentationResult, has_mask
from raygen.records import NORMAL
from raygen.show import Counted

_RESULTS = TypeAdapter(list[SegmentationResult])
_MAX_NORMALS = 50  # of a product to learn from: they have no pixel of a defect


class SegmentationTable:
    """Where defects are, by every setting of the verdict: all real defects, the one amount, each source's main
    guidance."""

    def __init__(
        self, plan: ProbePlan, config: EvaluateConfig, probes: ProbeTable, say: Callable[[str], None]
    ) -> None:
        self.plan, self.config, self.probes, self.say = plan, config, probes, say
        self.size = probes.size

    @cached_property
    def works(self) -> list[Work]:
        """One for each fold and seed where there is something to learn from and to judge by."""
        if not self.config.probe.segmentation:
            return []
        works = [work for work in self.plan.works if work.few is None]
        wanted = [work._replace(settings=tuple(filter(self._is_wanted, work.settings))) for work in works]
        return [
            work for work in wanted if all(self._masked[work.fold][part] for part in ("train", "val", "test"))
        ]

    def _is_wanted(self, setting: Setting) -> bool:
        if setting.kind != "samples":
            return True
        is_main = setting.guidance == self.plan.guidance_of(setting.source)
        return is_main and setting.amount == self.config.probe.amount

    @cached_property
    def _masked(self) -> list[dict[str, list[Photo]]]:
        """Of each fold the defects with masks, by split."""
        known: dict[tuple[str, str], bool] = {}

        def masked(photos: tuple[Photo, ...]) -> list[Photo]:
            found = []
            for photo in photos:
                key = (photo.uri, photo.defect_type)
                if photo.defect_type != NORMAL:
                    known[key] = known[key] if key in known else has_mask(photo, self.size[0])
                    found += [photo] if known[key] else []
            return found

        def of(real: RealSet) -> dict[str, list[Photo]]:
            return {"train": masked(real.train), "val": masked(real.val), "test": masked(real.test)}

        return [of(real) for real in self.plan.folds]

    def fit(self) -> Found | None:
        """Everything; what an earlier attempt has finished is read. None if there are no masks to judge by."""
        if not self.plan.works or not self.works:
            return None
        folder = storage.join(self.config.output, "segmentation")
        there = {entry.uri for entry in storage.list_files(folder)}
        progress = Counted(self.say, "draws of segmentation", len(self.works))
        results: dict[int, list[SegmentationResult]] = {}
        pending: list[tuple[int, str]] = []

        def inputs() -> Iterator[SegmentationInput]:
            for number, work in enumerate(self.works):
                data = self._input(work)
                uri = storage.join(
                    folder, f"{data.key(self.config.probe, self.probes.extractor.digest)}.json"
                )
                if uri in there and (known := _read(uri)):
                    results[number] = known
                    progress.add(1)
                else:
                    pending.append((number, uri))
                    yield data

        for place, found in on_ray.segment(inputs(), self.config.probe):
            number, uri = pending[place]
            results[number] = found
            storage.put(uri, _RESULTS.dump_json(found))
            progress.add(1)
        return self._sum_up(results)

    def _sum_up(self, results: Mapping[int, list[SegmentationResult]]) -> Found:
        """1 − Dice of each defect that was tested, as a loss."""
        tested = [(fold, photo) for fold, parts in enumerate(self._masked) for photo in parts["test"]]
        folds = np.array([fold for fold, _ in tested])
        losses: dict[Setting, np.ndarray] = {}
        num_samples: dict[Setting, int] = {}
        for number, work in enumerate(self.works):
            rows = np.flatnonzero(folds == work.fold)
            for setting, result in zip(work.settings, results[number], strict=True):
                table = losses.setdefault(setting, np.full((len(tested), self.config.probe.seeds), np.nan))
                table[rows, work.seed] = 1 - np.array(result.dice)
                num_samples[setting] = max(num_samples.get(setting, 0), result.num_synthetic)
        photos = [photo for _, photo in tested]
        cells = np.array([self.plan.cell(photo) for photo in photos])
        return Found(photos, folds, cells, losses, {}, {}, num_samples)

    def _input(self, work: Work) -> SegmentationInput:
        plan, real, masked = self.plan, self.plan.folds[work.fold], self._masked[work.fold]
        normals = [p for product in real.products for p in real.of_cell(product, NORMAL)[:_MAX_NORMALS]]
        alternatives: dict[str, Alternative] = {}
        runs: dict[str, RunSamples] = {}
        names: dict[str, dict[str, tuple[str, ...]]] = {}
        of_names: dict[str, dict[str, tuple[int, ...]]] = {}
        for part in {
            part for setting in work.settings if setting.source for part in plan.parts(setting.source)
        }:
            if part in self.plan.alternatives:
                alternatives[part] = self.probes.inputs.alternative(part, work)
                found = self.probes.inputs.names_made(alternatives[part])
            else:
                chosen = plan.runs[part, work.fold, None]
                used = {sample.shard for samples in chosen.cells.values() for sample in samples}
                shards = tuple(shard for shard in chosen.manifest.shards if shard.shard in used)
                runs[part] = RunSamples(uri=chosen.uri, shards=shards)
                found = self.probes.inputs.names_chosen(chosen)
            names[part] = {mode: some.names for mode, some in found.items()}
            of_names[part] = {mode: some.cells for mode, some in found.items()}
        counts = self.probes.inputs.counts(work)
        return SegmentationInput(
            settings=work.settings,
            shares={s.source: dict(plan.parts(s.source)) for s in work.settings if s.source},
            seed=work.seed,
            image_size=self.size[0],
            channels=self.size[1],
            train=(*normals, *masked["train"]),
            val=tuple(masked["val"]),
            test=tuple(masked["test"]),
            cells={
                plan.cell_name(plan.cell(p)): plan.cell(p)
                for some in masked.values()
                for p in (*some, *normals)
            },
            alternatives=alternatives,
            runs=runs,
            names=names,
            of_names=of_names,
            wanted={cell: plan.wanted(count, self.config.probe.amount) for cell, count in counts.items()},
        )


def _read(uri: str) -> list[SegmentationResult] | None:
    try:
        return _RESULTS.validate_json(storage.read(uri))
    except ValidationError:  # of another version: fit again
        return None
