"""Training from config to checkpoints: check, freeze the photos, work, say how it ended."""

import hashlib
import shlex
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from raygen import storage
from raygen.checkpoint import load_checkpoint
from raygen.config import check_writable, refuse_lost_places
from raygen.data.defects import load_photos, read_file
from raygen.data.photo import Photo
from raygen.errors import PromiseError, UserError
from raygen.families.family import Trainer
from raygen.families.photos import TRAINING_SPLITS, VALIDATION_SPLITS, DefectSet
from raygen.families.recipes import BankConfig, FamilyConfig, TrainingConfig
from raygen.families.world import World
from raygen.learned import LEARNED, Learned, united, write_learned
from raygen.show import duration
from raygen.train.collect import unpack, write_bank
from raygen.train.config import collector_of, trainer_of
from raygen.train.folder import STOPPED, TrainingFolder, TrainingRun, photos_name
from raygen.train.process import take_part

R = TypeVar("R", bound=FamilyConfig)


def train(config: FamilyConfig, say: Callable[[str], None] = print, *, alone: bool = False) -> None:
    """Makes the checkpoint that a config asks for, by a training or by collecting a bank; goes on where an earlier
    attempt ended, does nothing twice.

    Args:
        config: the recipe.
        say: takes each line for the user.
        alone: trains in this very process, on its GPU if it has one, without Ray, which need not be installed;
            batches are made in a thread, whatever `compute.loading` says.

    Raises:
        UserError: a wrong config, defect set or output; before any work starts.
        PromiseError: a loss became non-finite, or `stop_when_dead`; the last good checkpoint stays.
    """
    refuse_lost_places(config.places())
    config = _with_absolute_places(config)
    if isinstance(config, BankConfig):
        if alone:
            raise UserError("a bank is collected by Ray's tasks, not alone; run it where there is a Ray")
        _collect(config, say)
    else:
        assert isinstance(config, TrainingConfig)
        _learn(config, say, alone)


def _learn(config: TrainingConfig, say: Callable[[str], None], alone: bool) -> None:
    if alone and (config.compute.num_workers or 1) > 1:
        raise UserError(
            f"compute.num_workers = {config.compute.num_workers}: one process trains alone; leave it out"
        )
    folder = TrainingFolder(config.output)
    run = folder.read_run()
    if run is None:
        run, defects = draft(config, *trainer_of(config).draft(config))
        check_writable(config.output)
        if config.compute.loading == "memory":  # a damaged photo is better found here than by every worker
            load_photos(defects.photos, 32, 1)
        run = folder.begin(run, defects.photos, learned_from(config, defects))
    folder.refuse_another(run, config)
    trainer = trainer_of(config)(config, run)
    defects = DefectSet(folder.read_photos(run), run.products, run.defect_types, run.notes)
    _say_what(config, trainer, defects, say)
    done = folder.checkpoints()
    if done and done[-1] >= config.images:
        say(f"{config.output} is complete: nothing to do")
        return

    storage.delete(folder.join(STOPPED))
    if alone:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        take_part(config, run, device, World(), say=say)
    else:
        from raygen.on_ray import connected  # here, so that a refusal or a no-op costs no start of Ray
        from raygen.train import on_ray

        with connected(dashboard=True):
            on_ray.run_training(config, run, say)
    _say_result(config, folder, say)


def _collect(config: BankConfig, say: Callable[[str], None]) -> None:
    folder = TrainingFolder(config.output)
    run = folder.read_run()
    if run is None:
        run, photos = draft(config, *collector_of(config)(config).draft())
        check_writable(config.output)
        run = folder.begin(run, photos.photos, learned_from(config, photos))
    folder.refuse_another(run, config)
    photos = DefectSet(folder.read_photos(run), run.products, run.defect_types, run.notes)
    _say_photos(config, photos, say)
    if folder.checkpoints():
        say(f"{config.output} is complete: nothing to do")
        return

    from raygen.on_ray import connected
    from raygen.train import on_ray

    started = time.monotonic()
    with connected():
        taken = unpack(on_ray.take_all(config, photos.photos))
    write_bank(config, folder, run, taken, say, time.monotonic() - started)


def dry_run(config: FamilyConfig, say: Callable[[str], None] = print) -> None:
    """Says what `train` would do and how long it would take on a machine like this one; writes nothing."""
    config = _with_absolute_places(config)
    is_bank = isinstance(config, BankConfig)
    drafted = collector_of(config)(config).draft() if is_bank else trainer_of(config).draft(config)
    run, defects = draft(config, *drafted)
    say(config.model_dump_json(indent=2))
    found = TrainingFolder(config.output).read_run()
    if found is not None:
        TrainingFolder(config.output).refuse_another(found, config)
        seen = TrainingFolder(config.output).checkpoints()
        say(
            f"{config.output} holds this training: {seen[-1] if seen else 0:,} images seen at its last checkpoint"
        )
    if isinstance(config, BankConfig):
        _say_photos(config, defects, say)
        say(f"{len(defects.photos):,} photos to take from; nothing is learned in iterations")
        return
    assert isinstance(config, TrainingConfig)
    trainer = trainer_of(config)(config, run)
    _say_what(config, trainer, defects, say)
    seconds = seconds_per_image(config, trainer, defects)
    device = "GPU" if torch.cuda.is_available() else "CPU"
    say(f"one image takes {seconds:.2f} s in one process on this machine's {device}: all take about")
    say(f"{duration(seconds * config.images)} in one process; n processes of their own take an nth of it")


def seconds_per_image(config: TrainingConfig, trainer: Trainer[Any], defects: DefectSet) -> float:
    """Seconds of one full step for each of its images, in this process; measured over a few."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    training = trainer.start(device)
    make = trainer.maker(defects.part(TRAINING_SPLITS), in_memory=False)
    trainer.warm(training)
    step = trainer.stepper(training, World())
    fields = make(range(config.batch_per_worker))
    step(fields)  # warms up
    started = time.perf_counter()
    for _ in range(3):
        step(fields)
    return (time.perf_counter() - started) / (3 * config.batch_per_worker)


def _with_absolute_places(config: R) -> R:
    """Ray's workers work in folders of their own."""
    local = {key: uri for key, uri in config.places().items() if storage.is_local(uri)}
    return config.model_copy(update={key: str(Path(uri).absolute()) for key, uri in local.items()})


def draft(config: FamilyConfig, model: dict[str, Any], photos: DefectSet) -> tuple[TrainingRun, DefectSet]:
    """What the config asks for, and the photos there are now."""
    untouched = photos.untouched()
    photos = replace(photos, notes=(*photos.notes, *([f"left untouched: {untouched}"] if untouched else [])))
    run = TrainingRun(
        config=config.model_dump(mode="json"),
        photos=photos_name(photos.photos),
        products=photos.products,
        defect_types=photos.defect_types,
        model=model,
        notes=photos.notes,
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    return run, photos


def _say_what(
    config: TrainingConfig, trainer: Trainer[Any], defects: DefectSet, say: Callable[[str], None]
) -> None:
    _say_photos(config, defects, say)
    say(trainer.describe())


def _say_photos(config: FamilyConfig, defects: DefectSet, say: Callable[[str], None]) -> None:
    """How the set was read; what is learned from, validated on, and left untouched."""
    for note in defects.notes:
        say(note)
    say(f"learned from: {defects.part(TRAINING_SPLITS).describe()}")
    validation = defects.part(VALIDATION_SPLITS)
    if validation.photos:
        say(f"validated on: {validation.describe()}")
    elif isinstance(config, TrainingConfig):
        say("validated on: nothing, no photos of the split val")


def learned_from(config: FamilyConfig, defects: DefectSet) -> bytes:
    """What the checkpoints of a training will know: its photos, and those of the checkpoints it goes on from."""

    def learned(photo: Photo) -> Learned:
        sha256 = hashlib.sha256(read_file(photo)).hexdigest()
        use = "validated" if photo.split in VALIDATION_SPLITS else "learned"
        return Learned(photo.uri, sha256, photo.product, photo.defect_type, photo.split, use)

    with ThreadPoolExecutor(16) as threads:
        own = write_learned(threads.map(learned, defects.photos))
    before = (load_checkpoint(uri).files.get(LEARNED) for uri in config.checkpoints())
    return united([*(data for data in before if data is not None), own])


def _say_result(config: TrainingConfig, folder: TrainingFolder, say: Callable[[str], None]) -> None:
    done, best = folder.checkpoints(), folder.best()
    last = (
        f"the last good checkpoint is {folder.checkpoint_uri(done[-1])}"
        if done
        else "there is no checkpoint yet"
    )
    try:
        reason = storage.read(folder.join(STOPPED)).decode()
    except storage.ObjectMissingError:
        say(f"done: {last}")
        if best:
            say(f"checkpoint = {config.output} stands for the best one, {best.checkpoint}")
        return
    raise PromiseError(f"training stopped: {reason}; {last}")
