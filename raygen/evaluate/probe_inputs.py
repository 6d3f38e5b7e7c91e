"""What the probes see: all that features are wanted of, and each draw of photos by the names of its images."""

from collections.abc import Iterable, Sequence
from functools import cached_property

from raygen.data.photo import Photo
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.feature_cache import Source, augmented_name, within
from raygen.evaluate.probe_fits import Images, ProbeInput
from raygen.evaluate.probe_plan import ProbePlan, Work
from raygen.evaluate.samples import Chosen
from raygen.records import MODES, NORMAL, digest

_PHOTOS_PER_SOURCE = 256


class ProbeInputs:
    """A plan's photos and samples, brought to a size."""

    def __init__(self, plan: ProbePlan, size: tuple[int, int]) -> None:
        self.plan, self.size = plan, size

    @cached_property
    def sources(self) -> list[Source]:
        """Everything that features are wanted of."""
        plan, augmentations = self.plan, self.plan.probe.augmentations
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
        for name in used & set(self.plan.alternatives):
            alternative = self.alternative(name, work)
            made[name] = Source(key=digest(*self.size, alternative.key), alternative=alternative)
        return made

    def counts(self, work: Work) -> dict[int, int]:
        """Cell of defects -> training photos."""
        return {self.plan.number(*cell): count for cell, count in self.plan.real(work).num_defects.items()}

    @cached_property
    def _keys(self) -> dict[str, str]:
        """Name of a photo, or of its first augmentation -> key of its features."""
        return {
            augmented_name(photo, 0) if source.augmentations else photo.uri: source.key
            for source in self.sources
            for photo in source.photos
        }

    def of(self, work: Work) -> ProbeInput:
        """A work, by the names of its images."""
        plan, probe = self.plan, self.plan.probe
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
        keys = {shard.shard: shard.sha256 for shard in chosen.manifest.shards}
        for mode in MODES:
            samples = [s for (*_, of), some in sorted(chosen.cells.items()) if of == mode for s in some]
            found[mode] = Images(
                names=tuple(within(keys[sample.shard], sample.sample_id) for sample in samples),
                cells=tuple(self.plan.number(sample.product, sample.defect_type) for sample in samples),
            )
        return found
