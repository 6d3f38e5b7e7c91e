"""What an evaluation compares, found and checked: the real photos, the samples, distances and classifiers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from raygen.errors import UserError
from raygen.evaluate.config import EvaluateConfig
from raygen.evaluate.distances import Comparison, plan_comparisons
from raygen.evaluate.downstream import ALL, Fit, plan_fits
from raygen.evaluate.pairing import Paired, pair_runs, read_folds
from raygen.evaluate.probe_plan import ProbePlan
from raygen.evaluate.real_photos import RealSet, count_cells
from raygen.evaluate.samples import Chosen
from raygen.records import MODES, NORMAL

_FEW_PHOTOS = 15  # of a cell of the test split: one is more than 6 points of its error


@dataclass(frozen=True)
class EvaluationPlan:
    """What a config asks for, found and checked."""

    config: EvaluateConfig
    real: RealSet  # the set; or the fold of it that distances and the paper's classifiers look at
    chosen: Mapping[str, Chosen]  # by the run's name: that run's samples
    image_size: int  # the samples'
    channels: int
    probe: ProbePlan

    @classmethod
    def prepare(cls, config: EvaluateConfig) -> "EvaluationPlan":
        """Reads the defect set's listing and the runs' manifests; writes nothing.

        Raises:
            UserError: something is missing, does not fit together, or has been learned from that was held out.
        """
        folds = read_folds(config)
        wanted = {*config.distance_runs, *config.downstream_runs, *config.probe_runs}
        names = [name for name in config.runs if name in wanted] or list(config.runs)
        runs = pair_runs(config, names, folds)
        sizes = {(one.run.image_size, one.run.channels) for one in runs.values()}
        if len(sizes) > 1:
            told = ", ".join(
                f"{name}: {one.run.image_size} px × {one.run.channels}" for (name, *_), one in runs.items()
            )
            raise UserError(f"runs: made by models of different sizes ({told}); evaluate them one by one")
        size = sizes.pop() if sizes else (config.image_size, config.channels)
        compared = [name for name in names if name in {*config.distance_runs, *config.downstream_runs}]
        shown = _fold_of_all(compared, runs, len(folds))
        real = folds[shown]
        chosen = {name: runs[name, shown, None] for name in names if (name, shown, None) in runs}
        plan = cls(config, real, chosen, *size, ProbePlan(config, folds, runs))
        if plan.fits:
            real.check_held_out()
        plan.probe.check_tested()
        return plan

    @property
    def judged(self) -> list[str]:
        """The runs with distances whose samples a judge chose, by ImageNet's features."""
        return [name for name in self.config.distance_runs if self.chosen[name].run.judge is not None]

    @property
    def extractor(self) -> str:
        """What distances are measured by; never "auto"."""
        asked = self.config.features.extractor
        return asked if asked != "auto" else "own" if self.judged else "lite0"

    @cached_property
    def comparisons(self) -> list[Comparison]:
        """The rows of the distance table; those of a run only where it has samples of all their cells."""
        if not self.config.distance_runs:
            return []
        has_test = any(photo.defect_type != NORMAL for photo in self.real.test)
        rows = plan_comparisons(self.config.distance_runs, self.real.cells, has_test)
        return [
            row
            for row in rows
            if row.run is None or self._has_all(row.run, row.what, row.among(self.real.cells))
        ]

    @cached_property
    def fits(self) -> list[Fit]:
        """The trainings of classifiers; those with samples only where a run has samples of all their cells."""
        normals = {product: self.real.num_normals(product) for product in self.real.products}
        fits = plan_fits(self.config.downstream, self.config.downstream_runs, normals)
        return [fit for fit in fits if fit.run is None or self._can_fill(fit)]

    def _can_fill(self, fit: Fit) -> bool:
        assert fit.run is not None
        cells = [cell for cell in self.real.cells if fit.scope in (ALL, cell[0])]
        if not self._has_all(fit.run, fit.condition, cells):
            return False
        return fit.source is None or all(
            any(
                sample.reference_uri and self.real.product_of_reference(sample.reference_uri) == fit.source
                for sample in self.chosen[fit.run].cells[*cell, "reference"]
            )
            for cell in cells
        )

    def _has_all(self, run: str, guidance: str, cells: Iterable[tuple[str, str]]) -> bool:
        """Whether a run has samples of all cells, of a mode or for the mix."""
        modes = [mode for mode in MODES if guidance in (mode, "mix")]
        return all((*cell, mode) in self.chosen[run].cells for cell in cells for mode in modes)

    def describe(self, say: Callable[[str], None]) -> None:
        """Says what there is and what is to do."""
        for note in self.real.notes:
            say(note)
        for split, photos in self.real.splits.items():
            cells = ", ".join(f"{'/'.join(cell)} {count}" for cell, count in count_cells(photos).items())
            say(f"{split}: {cells or 'no photos'}")
        for name, one in self.chosen.items():
            cells = ", ".join(
                f"{'/'.join(cell)} {len(samples)}" for cell, samples in sorted(one.cells.items())
            )
            say(f"{name}: {cells}")
        channels = f"{self.channels} channel{'s' * (self.channels > 1)}"
        probes = sum(len(work.settings) for work in self.probe.works)
        say(
            f"{self.image_size} px, {channels}; {probes:,} probes to fit, {len(self.comparisons)} distances to "
            f"measure, {len(self.fits)} classifiers to train"
        )

    def caveats(self) -> list[str]:
        """What a reader of the figures must know of the data."""
        found = [
            f"All images were brought to the samples' {self.image_size} px, {self.channels} channel(s) first; at "
            "another size other figures would come out.",
        ]
        if self.comparisons:
            found += self._of_distances()
        if self.probe.works:
            found.append(
                "The probe is a linear classifier of ImageNet's features, chosen on few validation photos: how "
                "samples serve another classifier, it does not tell. The curve over real defects takes the whole "
                "set to test on, and as few as it learns from to choose by."
            )
            found += self._of_probe()
        if len(self.probe.folds) > 1 and self.chosen:
            shown = [self.probe.folds.index(self.real)]
            found.append(f"Distances, sheets and the paper's classifiers look at fold {shown[0]} alone.")
        test = count_cells(self.real.test)
        few = [f"{'/'.join(cell)} {count}" for cell, count in test.items() if count < _FEW_PHOTOS]
        if few:
            found.append(
                f"Few test photos: {', '.join(few)}; one of them moves its cell's error by many points."
            )
        if not any(kind != NORMAL for _, kind in test):
            found.append("No defects are held out: there is no floor, and copies cannot be counted.")
        for name, one in self.chosen.items():
            missing = [(*cell, mode) for cell in self.real.cells for mode in MODES]
            missing = ["/".join(cell) for cell in missing if cell not in one.cells]
            if missing:
                found.append(f"{name} has no samples of {', '.join(missing)}: what needs them is left out.")
            if others := {request.mode for request in one.run.requests} - set(MODES):
                found.append(f"{name}: its {', '.join(sorted(others))} samples are not looked at.")
        if unknown := [name for name, one in self.chosen.items() if one.learned is None]:
            found.append(
                f"{', '.join(unknown)}: made by a checkpoint without a record of what it learned from: whether it "
                "saw held-out photos could be checked of references and normals alone."
            )
        if self.fits:
            found.append(
                "The spread is that of the classifiers' seeds: photos and samples are the same for all of them. "
                "Other test photos would give other errors."
            )
        if self.chosen:
            found.append(
                "Each checkpoint is one training: another seed may do better or worse. (`train` chooses its best "
                "checkpoint on the split val, which here chooses a classifier's epoch.)"
            )
        return found

    def _of_probe(self) -> list[str]:
        found = []
        if left_out := set(self.config.probe.alternatives) - set(self.probe.alternatives):
            found.append(f"{', '.join(sorted(left_out))}: left out, since no defect has a mask.")
        tested = {(p.product, p.defect_type) for fold in self.probe.folds for p in fold.test}
        cells = {(p.product, p.defect_type) for fold in self.probe.folds for p in fold.train}
        if missing := ["/".join(cell) for cell in sorted(cells - tested)]:
            found.append(
                f"Not tested: {', '.join(missing)}; without photos of several groups, some cannot be held out."
            )
        if self.config.probe.segmentation:
            found.append("Dice is of defects alone: false alarms on normals cost it nothing.")
        return found

    def _of_distances(self) -> list[str]:
        found = [
            "Distances between sets of different sizes are not comparable as such: a Fréchet distance grows as "
            "sets shrink. Compare rows with like numbers, and the kernel distance first."
        ]
        if self.extractor != "inception":
            found.append("The distances are not FID and KID: their features are others.")
        if self.extractor == "own":
            found.append(
                "The distances are by a network that learned the training photos, which it therefore knows better "
                "than any others: hold them against the floor, the held-out defects, not against 0."
            )
        if self.judged:
            found.append(_of_judged(self.judged, self.extractor, self.config.features.perceptual))
        return found


def _fold_of_all(names: Sequence[str], runs: Mapping[Paired, Chosen], num_folds: int) -> int:
    """The first fold that all of some runs have left out, with all defects to learn from.

    Raises:
        UserError: there is none.
    """
    folds = [fold for fold in range(num_folds) if all((name, fold, None) in runs for name in names)]
    if not folds:
        told = "; ".join(
            f"{name}: {', '.join(str(fold) for of, fold, few in runs if of == name and few is None) or 'none'}"
            for name in names
        )
        raise UserError(f"runs: no fold that all of them have left out ({told})")
    return folds[0]


def _of_judged(runs: list[str], extractor: str, perceptual: str) -> str:
    """What a judge's choice means for distances."""
    told = f"{', '.join(runs)}: a judge chose the samples by ImageNet's features; "
    if extractor in ("lite0", "inception"):
        return f'{told}distances by them favour these runs. Take features.extractor = "own" or "pixels".'
    also = "" if perceptual == "none" else " Clustered LPIPS is ImageNet's all the same."
    return f"{told}distances are by others, which neither generation nor gate has seen.{also}"
