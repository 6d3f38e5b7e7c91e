"""What a training leaves: checkpoints with sheets, metrics, and a line for who watches. One process writes it."""

import io
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import torch
from tensorboardX import SummaryWriter

from raygen import images, storage
from raygen.checkpoint import GENERATOR, JUDGE, REFERENCE_CODES, CheckpointConfig, Reference, save_checkpoint
from raygen.data.defects import group_by_cell
from raygen.models.dtgan import DTGANConfig
from raygen.records import MODES, NORMAL
from raygen.show import duration
from raygen.train.batches import BatchMaker, to_batch
from raygen.train.config import TrainConfig
from raygen.train.dtgan import Networks, Training, generator_objective, generator_terms
from raygen.train.folder import SHEET, STATE, TrainingFolder, TrainingRun
from raygen.train.photos import TRAINING_SPLITS, VALIDATION_SPLITS, DefectSet, from_storage
from raygen.train.sheet import training_sheet

NUM_VALIDATION = 64
"""Translations by which checkpoints are compared."""
_SECONDS_PER_LINE = 10
_POINTS_PER_CHECKPOINT = 50


class Recorder:
    """Writes down how a training goes.

    Args:
        folder: of the training.
        run: what it is.
        config: of it.
        defects: its photos.
        images_seen: where this attempt goes on.
        seconds: that earlier attempts took.
        say: told of the progress.
    """

    def __init__(
        self,
        folder: TrainingFolder,
        run: TrainingRun,
        config: TrainConfig,
        defects: DefectSet,
        images_seen: int = 0,
        seconds: float = 0.0,
        say: Callable[[str], None] = print,
    ) -> None:
        self.folder, self.run, self.config, self.say = folder, run, config, say
        self.sizes = DTGANConfig(**run.model)
        self.learning = defects.part(TRAINING_SPLITS)
        held_back = defects.part(VALIDATION_SPLITS)
        # Photos held back are of no use where a type is missing; then what was learned from must do.
        whole = set(held_back.domains) == set(range(self.sizes.num_domains))
        self.judged, self.judged_name = (held_back, "held-back") if whole else (self.learning, "training")
        self.losses: list[dict[str, float]] = []  # since the last checkpoint, an iteration each
        self._seconds_before, self._started, self._said = seconds, time.monotonic(), time.monotonic()
        self._seen_said = images_seen

    @property
    def seconds(self) -> float:
        """Wall time of the training, all attempts together."""
        return self._seconds_before + time.monotonic() - self._started

    def note(self, training: Training, losses: dict[str, float]) -> None:
        """Notes an iteration, and shows a line when it is time."""
        seen = training.images_seen
        self.losses.append({"images_seen": seen, **losses})
        now = time.monotonic()
        if now - self._said >= _SECONDS_PER_LINE:
            self.say(self._line(seen, (seen - self._seen_said) / (now - self._said), losses))
            self._said, self._seen_said = now, seen

    def _line(self, seen: int, rate: float, losses: dict[str, float]) -> str:
        """`12,000 of 400,000 images (3 %) · 42.0 images/s · 2 h 33 min left · reference/G/cycle 0.031 …`"""
        total = self.config.images
        left = duration((total - seen) / rate) if rate else "?"
        shown = ("latent/D/real", "latent/D/fake", "reference/G/cycle", "head start/D/foreground_class")
        values = " · ".join(f"{name} {losses[name]:.3f}" for name in shown if name in losses)
        share = f"{seen:,} of {total:,} images ({100 * seen // total} %)"
        return f"{share} · {rate:.1f} images/s · {left} left · {values}"

    # -------------------------------------------------------------------------------------- checkpoints

    def checkpoint(self, training: Training) -> None:
        """Writes a checkpoint with its sheet, its metrics and its state, and deletes what is no longer kept."""
        seen, folder = training.images_seen, self.folder
        uri = folder.checkpoint_uri(seen)
        validation = self.validate(training.average)
        sheet = training_sheet(training.average, self.judged, self.sizes, self.config.seed)
        storage.put(storage.join(uri, SHEET), sheet)
        self._write_metrics(seen, validation)
        buffer = io.BytesIO()
        torch.save({**training.state_dict(), "seconds": self.seconds}, buffer)
        storage.put(storage.join(uri, STATE), buffer.getvalue())
        self._save_weights(uri, training, validation)  # last: now the checkpoint is complete
        best = folder.note_best(seen, validation["objective"])
        folder.prune(self.config.num_to_keep)
        self.say(
            f"{uri}: objective {validation['objective']:.4f} on {self.judged_name} photos"
            f"{', the best so far' if best else ''}; look at its {SHEET}"
        )

    @torch.no_grad()
    def validate(self, average: Networks) -> dict[str, float]:
        """G's terms without their games (adversarial, diversity) on a fixed set of translations of the photos held
        back, by the averaged weights: each, by its name, and `objective`, their weighted sum."""
        load = from_storage(self.judged.photos, self.sizes)
        make = BatchMaker(self.judged.sampler(self.config), load, self.sizes, augment=False)
        device = next(average.mapping.parameters()).device
        sums: dict[str, float] = defaultdict(float)
        size = 8
        for start in range(0, NUM_VALIDATION, size):
            batch = to_batch(make(range(start, start + size))).to(device)
            for mode in MODES:
                terms = generator_terms(average, batch, mode, self.config.loss, with_diversity=False)
                del terms["adversarial"]
                sums["objective"] += generator_objective(terms, self.config.loss, 1.0).item()
                for name, term in terms.items():
                    sums[f"{mode}/{name}"] += term.item()
        num_batches = NUM_VALIDATION // size
        return {
            name: value / num_batches / (len(MODES) if name == "objective" else 1)
            for name, value in sums.items()
        }

    def _save_weights(self, uri: str, training: Training, validation: dict[str, float]) -> None:
        average = training.average
        networks = {
            "generator": average.translator.generator,
            "mapping": average.mapping,
            "encoder": average.encoder,
        }
        weights = {
            f"{name}.{key}": value
            for name, net in networks.items()
            for key, value in net.state_dict().items()
        }
        codes, references = self._reference_bank(average)
        config = CheckpointConfig(
            family="dtgan",
            model=asdict(self.sizes),
            image_size=self.sizes.image_size,
            channels=self.sizes.channels,
            products=self.run.products,
            defect_types=self.run.defect_types,
            images_seen=training.images_seen,
            trained_on=f"{self.config.defects}: {self.learning.describe()}",
            training={
                "command": self.run.command,
                "recipe": self.config.identity(),
                "seconds": round(self.seconds),
                "validation": validation,
            },
        )
        tensors = {GENERATOR: weights, JUDGE: average.discriminator.state_dict(), REFERENCE_CODES: codes}
        save_checkpoint(uri, config, tensors, references)

    @torch.no_grad()
    def _reference_bank(self, average: Networks) -> tuple[dict[str, torch.Tensor], tuple[Reference, ...]]:
        """Codes of some of the defects of each cell, at even distances."""
        chosen: list[int] = []
        for (_, defect_type), cell in group_by_cell(self.learning.photos).items():
            if defect_type != NORMAL:
                step = max(1, len(cell) // self.config.references_per_cell)
                chosen += cell[::step][: self.config.references_per_cell]
        load = from_storage(self.learning.photos, self.sizes)
        device = next(average.encoder.parameters()).device
        styles, contents = [], []
        for start in range(0, len(chosen), 32):
            some = chosen[start : start + 32]
            x = images.to_model(torch.from_numpy(load(some))).to(device)
            domain = torch.tensor([self.learning.domains[i] for i in some], device=device)
            style, content = average.encoder(x, domain)
            styles.append(style.cpu())
            contents.append(content.cpu())
        photos = [self.learning.photos[i] for i in chosen]
        references = tuple(Reference(uri=p.uri, product=p.product, defect_type=p.defect_type) for p in photos)
        return {"style": torch.cat(styles), "content": torch.cat(contents)}, references

    # ------------------------------------------------------------------------------------------ metrics

    def _write_metrics(self, seen: int, validation: dict[str, float]) -> None:
        """Writes the losses since the last checkpoint, one object each for people and for TensorBoard; the same
        stretch, done again after a crash, overwrites its own."""
        rows = [_mean(stretch) for stretch in _stretches(self.losses)]
        rows += [{"images_seen": seen, **{f"validation/{k}": v for k, v in validation.items()}}]
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
