"""What the probe compares: training sets of equal real photos, with samples and without, in every fold."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate.alternatives import takes
from raygen.evaluate.config import EvaluateConfig, ProbeConfig
from raygen.evaluate.real_photos import RealSet
from raygen.evaluate.samples import GUIDANCES, Chosen, Guidance
from raygen.records import MODES, NORMAL

Kind = Literal["no-aug", "trad-aug", "samples"]


class Setting(NamedTuple):
    """What a probe is trained on, but for fold and seed."""

    kind: Kind
    source: str = ""  # a run, an alternative or a mix; "" without samples
    guidance: Guidance = "mix"
    amount: int = 0  # samples for each real defect
    few: int | None = None  # real defects of each cell; None: all

    @property
    def name(self) -> str:
        """`Trad-Aug`, `ours: mix`."""
        return (
            f"{self.source}: {self.guidance}"
            if self.source
            else {"no-aug": "No-Aug"}.get(self.kind, "Trad-Aug")
        )

    @property
    def base(self) -> "Setting":
        """Traditional augmentation of the same real photos."""
        return Setting("trad-aug", few=self.few)


class Work(NamedTuple):
    """All probes of one draw of photos: they share what they have read."""

    fold: int
    few: int | None
    seed: int
    settings: tuple[Setting, ...]


@dataclass(frozen=True)
class ProbePlan:
    """What a config asks for, where there are samples for it."""

    config: EvaluateConfig
    folds: tuple[RealSet, ...]  # one, with the set's own splits; or all
    runs: Mapping[tuple[str, int, int | None], Chosen]  # name, fold, real defects of each cell

    @property
    def probe(self) -> ProbeConfig:
        return self.config.probe

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """The curve's numbers of real defects: those that leave some out."""
        most = max((count for fold in self.folds for count in fold.num_defects.values()), default=0)
        return tuple(sorted(count for count in self.probe.real_defects if count < most))

    @cached_property
    def works(self) -> list[Work]:
        """Everything that is to be fitted. A run that was trained with few defects knows those of draw 0 alone."""
        found = []
        for fold in range(len(self.folds)):
            for few in (None, *self.counts):
                for seed in range(self.probe.seeds):
                    settings = tuple(self._settings(fold, few, seed))
                    if settings:
                        found.append(Work(fold, few, seed, settings))
        return found

    def check_tested(self) -> None:
        """Raises UserError unless there are defects and normals to test on."""
        kinds = {photo.defect_type == NORMAL for fold in self.folds for photo in fold.test}
        if self.works and len(kinds) < 2:
            missing = "normals" if kinds == {False} else "defects"
            raise UserError(
                f"defect set {self.config.defects}: no {missing} in its split {self.config.test_split!r} to test "
                "a probe on; set folds = 5, name the split in test_split, or set probe.conditions = []"
            )

    def real(self, work: Work) -> RealSet:
        """The photos of a work."""
        fold = self.folds[work.fold]
        return fold if work.few is None else fold.with_few(work.few, work.seed)

    def parts(self, source: str) -> Mapping[str, float]:
        """Runs and alternatives that a source is, and their shares."""
        return self.probe.mixes.get(source, {source: 1.0})

    @cached_property
    def alternatives(self) -> tuple[str, ...]:
        """Those that have something to take: defects with masks, or normals."""
        if not self.guidances:
            return ()
        has_masks = any(photo.mask_uri for fold in self.folds for photo in fold.train)
        return tuple(name for name in self.probe.alternatives if takes(name) == "normals" or has_masks)

    @property
    def sources(self) -> list[str]:
        parts = [*self.alternatives, *self.config.probe_runs]
        mixes = (name for name, shares in self.probe.mixes.items() if set(shares) <= set(parts))
        return [*parts, *mixes] if self.guidances else []

    @property
    def guidances(self) -> list[Guidance]:
        return [guidance for guidance in GUIDANCES if guidance in self.probe.conditions]

    def guidance_of(self, source: str) -> Guidance | None:
        """The samples by which a source is judged in a word: its mix; or, of a run of one mode, that."""
        for guidance in self.guidances[::-1]:  # the mix first
            if any(self.has(source, fold, None, 0, guidance) for fold in range(len(self.folds))):
                return guidance
        return None

    def has(self, source: str, fold: int, few: int | None, seed: int, guidance: Guidance) -> bool:
        """Whether there are samples of all cells of a fold."""
        modes = [mode for mode in MODES if guidance in (mode, "mix")]
        for part in self.parts(source):
            if part in self.alternatives:
                continue
            chosen = self.runs.get((part, fold, few))
            if chosen is None or (few is not None and seed):
                return False
            if not all((*cell, mode) in chosen.cells for cell in self.folds[fold].cells for mode in modes):
                return False
        return True

    def _settings(self, fold: int, few: int | None, seed: int) -> Iterator[Setting]:
        if not self.probe.conditions:
            return
        if "no-aug" in self.probe.conditions:
            yield Setting("no-aug", few=few)
        yield Setting("trad-aug", few=few)
        for source in self.sources:
            main = self.guidance_of(source)
            if main is None:
                continue
            is_main_alone = few is not None or source in self.probe.mixes
            guidances: list[Guidance] = [main] if is_main_alone else self.guidances
            for guidance in guidances:
                if self.has(source, fold, few, seed, guidance):
                    yield Setting("samples", source, guidance, self.probe.amount, few)
            for amount in self.probe.amounts if few is None else ():
                if amount != self.probe.amount and self.has(source, fold, few, seed, main):
                    yield Setting("samples", source, main, amount, few)

    # --------------------------------------------------------------------------------------- photos

    @cached_property
    def products(self) -> tuple[str, ...]:
        return tuple(sorted({product for fold in self.folds for product in fold.products}))

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """The classes: normal first."""
        types = sorted({kind for fold in self.folds for kind in fold.defect_types})
        return (NORMAL, *types)

    def cell(self, photo: Photo) -> int:
        return self.number(photo.product, photo.defect_type)

    def number(self, product: str, kind: str) -> int:
        """A cell's: its class is the number modulo the classes."""
        return self.products.index(product) * len(self.kinds) + self.kinds.index(kind)

    def cell_name(self, number: int) -> str:
        product, kind = divmod(number, len(self.kinds))
        return f"{self.products[product]}/{self.kinds[kind]}"

    def training(self, real: RealSet) -> list[Photo]:
        """What a probe learns from: all defects, and of each product as many normals as it may have."""
        normals = [
            photo
            for product in real.products
            for photo in real.of_cell(product, NORMAL)[: self.probe.max_normals]
        ]
        return normals + [photo for photo in real.train if photo.defect_type != NORMAL]

    def wanted(self, num_real: int, amount: int) -> int:
        """Samples of a cell with so many real defects."""
        return min(amount * num_real, self.probe.max_samples)
