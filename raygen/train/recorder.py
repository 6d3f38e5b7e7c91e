"""What a training leaves: checkpoints with sheets, metrics, and a line for who watches. One process writes it."""

import io
import json
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from tensorboardX import SummaryWriter

from raygen import storage
from raygen.families.family import Trainer
from raygen.families.photos import TRAINING_SPLITS, VALIDATION_SPLITS, DefectSet
from raygen.families.recipes import TrainingConfig
from raygen.families.vital_signs import Signs, Threshold
from raygen.show import duration
from raygen.train.folder import SHEET, STATE, TrainingFolder, TrainingRun

_SECONDS_PER_LINE = 10
_POINTS_PER_CHECKPOINT = 50


class Recorder:
    """Writes down how a training goes.

    Args:
        folder: of the training.
        run: what it is.
        config: of it.
        trainer: at work on it.
        defects: its photos.
        images_seen: where this attempt goes on.
        seconds: that earlier attempts took.
        say: told of the progress.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        run: TrainingRun,
        config: TrainingConfig,
        trainer: Trainer[Any],
        defects: DefectSet,
        images_seen: int = 0,
        seconds: float = 0.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.run, self.config, self.trainer, self.say = folder, run, config, trainer, say
        self.learning = defects.part(TRAINING_SPLITS)
        held_back = defects.part(VALIDATION_SPLITS)
        # Photos held back are of no use where a type is missing; then what was learned from must do.
        whole = set(held_back.domains) == set(self.learning.domains)
        self.judged, self.judged_name = (held_back, "held-back") if whole else (self.learning, "training")
        self.losses: list[dict[str, float]] = []  # since the last checkpoint, an iteration each
        self._seconds_before, self._started, self._said = seconds, time.monotonic(), time.monotonic()
        self._seen_said = images_seen
        self._crossed: list[Threshold] = []  # at the last checkpoint of this attempt

    @property
    def seconds(self) -> float:
        """Wall time of the training, all attempts together."""
        return self._seconds_before + time.monotonic() - self._started

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        """Notes an iteration, and shows a line when it is time."""
        self.losses.append({"images_seen": images_seen, **losses})
        now = time.monotonic()
        if now - self._said >= _SECONDS_PER_LINE:
            rate = (images_seen - self._seen_said) / (now - self._said)
            self.say(self._line(images_seen, rate, losses))
            self._said, self._seen_said = now, images_seen

    def _line(self, seen: int, rate: float, losses: dict[str, float]) -> str:
        """`12,000 of 400,000 images (3 %) · 42.0 images/s · 2 h 33 min left · reference/G/cycle 0.031 …`"""
        total = self.config.images
        left = duration((total - seen) / rate) if rate else "?"
        values = " · ".join(f"{name} {losses[name]:.3f}" for name in self.trainer.shown if name in losses)
        share = f"{seen:,} of {total:,} images ({100 * seen // total} %)"
        return f"{share} · {rate:.1f} images/s · {left} left · {values}"

    # -------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, training: Any) -> str | None:
        """Writes a checkpoint with its sheet, its metrics and its state, and deletes what is no longer kept; says
        what its vital signs warn of, once as long as it lasts.

        Returns:
            Why the training is dead, if it was so at the checkpoint before, too.
        """
        seen, folder = training.images_seen, self.folder
        uri = folder.checkpoint_uri(seen)
        validation = self.trainer.validate(training, self.judged)
        signs = self.trainer.vital_signs(training, self.learning, self.judged)
        signs = {name: value for name, value in signs.items() if math.isfinite(value)}
        crossed = [t for t in self.trainer.thresholds if t.is_crossed(signs, seen / self.config.images)]
        title = _caption(seen, signs, crossed)
        storage.put(storage.join(uri, SHEET), self.trainer.sheet(training, self.judged, title))
        self._write_metrics(seen, validation, signs)
        buffer = io.BytesIO()
        torch.save({**training.state_dict(), "seconds": self.seconds}, buffer)
        storage.put(storage.join(uri, STATE), buffer.getvalue())
        contents = self.trainer.contents(training, self.learning)
        record = {"seconds": round(self.seconds), "validation": validation, "vital": signs}
        # Last: now the checkpoint is complete.
        folder.save(contents, self.config, self.run, self.learning, seen, **record)
        objective = validation.get("objective")
        # Where nothing cheap tells good from better, the latest is taken for the best.
        best = folder.note_best(seen, -float(seen) if objective is None else objective)
        folder.prune(self.config.num_to_keep)
        told = ""
        if objective is not None:
            told = f": objective {objective:.4f} on {self.judged_name} photos{', the best so far' * best}"
        self.say(f"{uri}{told}; look at its {SHEET}")
        for threshold in crossed:
            if threshold not in self._crossed:
                self.say(f"warning: {threshold.describe(signs)}")
        deadly = [t.describe(signs) for t in crossed if t.deadly and t in self._crossed]
        self._crossed = crossed
        return deadly[0] if deadly else None

    # ------------------------------------------------------------------------------------------ metrics

    def _write_metrics(self, seen: int, validation: dict[str, float], signs: Signs) -> None:
        """Writes the losses since the last checkpoint and what was measured at it, one object each for people and
        for TensorBoard; the same stretch, done again after a crash, overwrites its own."""
        rows = [_mean(stretch) for stretch in _stretches(self.losses)]
        measured = {f"validation/{k}": v for k, v in validation.items()}
        rows += [{"images_seen": seen, **measured, **{f"vital/{k}": v for k, v in signs.items()}}]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        storage.put(self.folder.join("metrics", f"{seen:09d}.jsonl"), lines.encode())
        with tempfile.TemporaryDirectory() as local:
            with SummaryWriter(local, filename_suffix=f".{seen:09d}") as writer:
                for row in rows:
                    for name, value in row.items():
                        writer.add_scalar(name, value, int(row["images_seen"]))
            (events,) = Path(local).iterdir()
            storage.put(
                self.folder.join("tensorboard", f"events.out.tfevents.{seen:010d}.raygen"),
                events.read_bytes(),
            )
        self.losses = []


def _caption(seen: int, signs: Signs, crossed: Sequence[Threshold]) -> str:
    """`2,000 images · content/z_share 0.91 · …`, and a line for every warning."""
    values = [f"{name} {value:.2g}" for name, value in signs.items()]
    return "\n".join([" · ".join([f"{seen:,} images", *values]), *(t.describe(signs) for t in crossed)])


def _stretches(rows: list[dict[str, float]]) -> Iterator[list[dict[str, float]]]:
    """Cuts the iterations between two checkpoints into at most so many runs as a curve wants points."""
    length = -(-len(rows) // _POINTS_PER_CHECKPOINT)
    for start in range(0, len(rows), length or 1):
        yield rows[start : start + length]


def _mean(rows: list[dict[str, float]]) -> dict[str, float]:
    """Every loss's mean over the iterations that had it; `images_seen` at their end."""
    values: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        for name, value in row.items():
            values[name].append(value)
    means = {name: sum(found) / len(found) for name, found in values.items()}
    return {**means, "images_seen": rows[-1]["images_seen"]}
