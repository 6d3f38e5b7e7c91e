"""DT-GAN's part in a training: sizes, batches, validation, checkpoints; the steps are beside it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from raygen import images
from raygen.checkpoint import GENERATOR, JUDGE, REFERENCE_CODES, Reference
from raygen.errors import UserError
from raygen.families.dtgan.batches import BatchMaker, Sampler, to_batch
from raygen.families.dtgan.config import DTGANTrainConfig
from raygen.families.dtgan.sheet import training_sheet
from raygen.families.dtgan.sizes import LADDER, PRESETS, DTGANConfig
from raygen.families.dtgan.step import Networks, Training, generator_terms, iterate
from raygen.families.dtgan.vital_signs import THRESHOLDS, distance_from_real, vital_signs
from raygen.families.family import Contents, Fields, Settled
from raygen.families.photos import TRAINING_SPLITS, DefectSet, loader
from raygen.families.vital_signs import Signs
from raygen.families.world import Terms, World
from raygen.records import MODES, NORMAL

NUM_VALIDATION = 64
"""Translations by which checkpoints are compared."""


class DTGANTrainer:
    """See raygen.families.family.Trainer."""

    shown = ("latent/D/real", "latent/D/fake", "reference/G/cycle", "head start/D/foreground_class")
    thresholds = THRESHOLDS

    def __init__(self, config: DTGANTrainConfig, run: Settled) -> None:
        self.config = config
        self.sizes = DTGANConfig(**run.model)

    @staticmethod
    def draft(config: DTGANTrainConfig) -> tuple[dict[str, Any], DefectSet]:
        defects = DefectSet.read(config)
        if config.loss.layer and not any(photo.mask_uri for photo in defects.part(TRAINING_SPLITS).photos):
            raise UserError(
                f"loss.layer = {config.loss.layer:g}: no defect in {config.defects} has a mask to learn from; add "
                "masks, or set loss.layer = 0 and optimizer.head_start = 0, and train much longer"
            )
        return asdict(network_sizes(config, len(defects.products), 1 + len(defects.defect_types))), defects

    def describe(self) -> str:
        channels = f"{self.sizes.channels} channel{'s' * (self.sizes.channels > 1)}"
        return f"{self.sizes.image_size} px, {channels}, width {self.sizes.width:g}"

    def start(self, on: torch.device) -> Training:
        return Training.start(self.config, self.sizes, on)

    def warm(self, training: Training) -> None:
        training.images_seen = self.config.optimizer.head_start

    def stepper(self, training: Training, world: World) -> Callable[[Fields], Terms]:
        networks = training.networks
        if world.size > 1:
            networks = Networks(*(DistributedDataParallel(network) for _, network in networks.items()))
        device = next(training.networks.mapping.parameters()).device
        batch_size = self.config.batch_per_worker * world.size

        def step(fields: Fields) -> Terms:
            return iterate(training, networks, to_batch(fields).to(device), self.config, batch_size)

        return step

    def _sampler(self, photos: DefectSet) -> Sampler:
        return Sampler(photos.domains, photos.product_numbers, self.config.seed, self.config.balance)

    def maker(self, learning: DefectSet, in_memory: bool) -> BatchMaker:
        return self._maker(learning, in_memory, self.config.augment)

    def _maker(self, photos: DefectSet, in_memory: bool, augment: bool) -> BatchMaker:
        with_masks = self.config.loss.layer > 0
        load = loader(photos.photos, self.sizes, in_memory=in_memory, masks="known" if with_masks else "none")
        latents = 2 * self.config.loss.codes_steps
        return BatchMaker(self._sampler(photos), load, self.sizes, augment, with_masks, latents)

    @torch.no_grad()
    def validate(self, training: Training, judged: DefectSet) -> dict[str, float]:
        """G's terms without their games (adversarial, diversity) on a fixed set of translations, by the averaged
        weights: each, by its name. And `objective`: the kernel distance of drawn defects from real ones, a mean
        over the defect types and modes, and 10 more in the head start: M learns nothing in it, so that none of its
        checkpoints is the best. (The terms are no objective: codes that collapse satisfy most.)"""
        average = training.average
        make = self._maker(judged, in_memory=False, augment=False)
        device = next(average.mapping.parameters()).device
        sums: dict[str, float] = defaultdict(float)
        size = 8
        for start in range(0, NUM_VALIDATION, size):
            batch = to_batch(make(range(start, start + size))).to(device)
            for mode in MODES:
                terms = generator_terms(average, batch, mode, self.config.loss, with_diversity=False)
                del terms["adversarial"]
                for name, term in terms.items():
                    sums[f"{mode}/{name}"] += term.item()
        terms = {name: value * size / NUM_VALIDATION for name, value in sums.items()}
        distance = distance_from_real(average, judged, self.sizes, self.config.seed)
        return {**terms, "objective": distance + 10 * self._is_in_head_start(training)}

    def _is_in_head_start(self, training: Training) -> bool:
        return training.images_seen <= self.config.optimizer.head_start

    def vital_signs(self, training: Training, learning: DefectSet, judged: DefectSet) -> Signs:
        if self._is_in_head_start(training):
            return {}  # D has judged nothing yet
        return vital_signs(training, learning, judged, self.sizes, self.config.seed)

    def sheet(self, training: Training, judged: DefectSet, title: str = "") -> bytes:
        return training_sheet(training.average, judged, self.sizes, self.config.seed, title)

    def contents(self, training: Training, learning: DefectSet) -> Contents:
        average = training.average
        networks = {
            "generator": average.translator.generator,
            "mapping": average.mapping,
            "encoder": average.encoder,
        }
        weights = {
            f"{name}.{key}": value
            for name, network in networks.items()
            for key, value in network.state_dict().items()
        }
        more = self.config.more_defects  # may be synthetic, and a reference is a real defect
        real = learning.only(lambda photo: not (more and photo.uri.startswith(f"{more}/")))
        codes, references = self._reference_bank(average, real)
        return Contents(
            model=asdict(self.sizes),
            image_size=self.sizes.image_size,
            channels=self.sizes.channels,
            tensors={GENERATOR: weights, JUDGE: average.discriminator.state_dict(), REFERENCE_CODES: codes},
            references=references,
        )

    @torch.no_grad()
    def _reference_bank(
        self, average: Networks, learning: DefectSet
    ) -> tuple[dict[str, torch.Tensor], tuple[Reference, ...]]:
        """Codes of some of the defects of each cell, at even distances."""
        defects = learning.only(lambda photo: photo.defect_type != NORMAL)
        photos = defects.spread(self.config.references_per_cell)
        chosen = DefectSet(photos, learning.products, learning.defect_types)
        load = loader(photos, self.sizes, in_memory=False)
        device = next(average.encoder.parameters()).device
        styles, contents = [], []
        for start in range(0, len(photos), 32):
            some = range(len(photos))[start : start + 32]
            x = images.to_model(torch.from_numpy(load([*some]))).to(device)
            domain = torch.tensor([chosen.domains[i] for i in some], device=device)
            style, content = average.encoder(x, domain)
            styles.append(style.cpu())
            contents.append(content.cpu())
        references = tuple(Reference(uri=p.uri, product=p.product, defect_type=p.defect_type) for p in photos)
        return {"style": torch.cat(styles), "content": torch.cat(contents)}, references


def network_sizes(config: DTGANTrainConfig, num_products: int, num_domains: int) -> DTGANConfig:
    """The preset with the recipe's changes, for a defect set.

    Raises:
        UserError: no such preset or field, or a value out of range.
    """
    if config.preset not in PRESETS:
        raise UserError(f"preset = {config.preset!r}: choose from {', '.join(PRESETS)}")
    counts = {"num_products": num_products, "num_domains": num_domains}
    for name in counts:
        if name in config.model:
            raise UserError(f"model.{name}: is counted from the defect set; leave it out")
    for name in ("layer", "codes"):
        if getattr(config.loss, name) and config.ladder < "e":
            raise UserError(f"loss.{name}: ladder (a) to (d) has no defect layers of its own; set it to 0")
    if config.model.get("product_codes") and not config.loss.codes:
        raise UserError("model.product_codes: wants loss.codes, by which M learns them; set it to 1")
    try:
        return replace(PRESETS[config.preset], **{**LADDER[config.ladder], **config.model, **counts})
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}; see raygen.families.dtgan.sizes.DTGANConfig") from None
