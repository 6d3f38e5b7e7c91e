"""Training from config to checkpoints: check, freeze the photos, work, say how it ended."""

import shlex
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from raygen import storage
from raygen.config import check_writable, refuse_lost_places
from raygen.data.defects import load_photos
from raygen.errors import PromiseError, UserError
from raygen.models.dtgan import LADDER, PRESETS, DTGANConfig
from raygen.show import duration
from raygen.train.batches import BatchMaker, to_batch
from raygen.train.config import TrainConfig
from raygen.train.dtgan import Training, iterate
from raygen.train.folder import DIVERGED, TrainingFolder, TrainingRun, photos_name
from raygen.train.photos import TRAINING_SPLITS, DefectSet, in_memory


def train(config: TrainConfig, say: Callable[[str], None] = print) -> None:
    """Trains DT-GAN as a config asks for; goes on where an earlier attempt ended, does nothing twice.

    Args:
        config: the recipe.
        say: takes each line for the user.

    Raises:
        UserError: a wrong config, defect set or output; before any work starts.
        PromiseError: a loss became non-finite; the last good checkpoint stays.
    """
    refuse_lost_places({"defects": config.defects, "output": config.output})
    config = _with_absolute_places(config)
    folder = TrainingFolder(config.output)
    run = folder.read_run()
    if run is None:
        run, defects = _draft(config)
        check_writable(config.output)
        if config.compute.loading == "memory":  # a damaged photo is better found here than by every worker
            load_photos(defects.photos, 32, 1)
        run = folder.begin(run, defects.photos)
    folder.refuse_another(run, config)
    _say_what(run, DefectSet(folder.read_photos(run), run.products, run.defect_types), say)
    done = folder.checkpoints()
    if done and done[-1] >= config.images:
        say(f"{config.output} is complete: nothing to do")
        return

    from raygen.on_ray import connected  # here, so that a refusal or a no-op costs no start of Ray
    from raygen.train import on_ray

    storage.delete(folder.join(DIVERGED))
    with connected(dashboard=True):
        on_ray.run_training(config, run, say)
    _say_result(config, folder, say)


def dry_run(config: TrainConfig, say: Callable[[str], None] = print) -> None:
    """Says what `train` would do and how long it would take on a machine like this one; writes nothing."""
    config = _with_absolute_places(config)
    run, defects = _draft(config)
    say(config.model_dump_json(indent=2))
    found = TrainingFolder(config.output).read_run()
    if found is not None:
        TrainingFolder(config.output).refuse_another(found, config)
        seen = TrainingFolder(config.output).checkpoints()
        say(
            f"{config.output} holds this training: {seen[-1] if seen else 0:,} images seen at its last checkpoint"
        )
    _say_what(run, defects, say)
    seconds = seconds_per_image(config, DTGANConfig(**run.model), defects)
    device = "GPU" if torch.cuda.is_available() else "CPU"
    say(f"one image takes {seconds:.2f} s in one process on this machine's {device}: all take about")
    say(f"{duration(seconds * config.images)} in one process; n processes of their own take an nth of it")


def seconds_per_image(config: TrainConfig, sizes: DTGANConfig, defects: DefectSet) -> float:
    """Seconds of one full step for each of its images, in this process; measured over a few."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learning = defects.part(TRAINING_SPLITS)
    num_kept = min(64, len(learning.photos))
    load = in_memory(learning.photos[:num_kept], sizes)
    training = Training.start(config, sizes, device)
    make = BatchMaker(
        learning.sampler(config), lambda rows: load([row % num_kept for row in rows]), sizes, config.augment
    )

    def step() -> None:
        batch = to_batch(make(range(config.batch_per_worker))).to(device)
        iterate(training, training.networks, batch, config, config.batch_per_worker)

    training.images_seen = config.optimizer.head_start
    step()  # warms up
    started = time.perf_counter()
    for _ in range(3):
        step()
    return (time.perf_counter() - started) / (3 * config.batch_per_worker)


def _with_absolute_places(config: TrainConfig) -> TrainConfig:
    """Ray Train's workers work in a folder of their own."""
    places = {"defects": config.defects, "output": config.output}
    local = {key: str(Path(uri).absolute()) for key, uri in places.items() if storage.is_local(uri)}
    return config.model_copy(update=local)


def _draft(config: TrainConfig) -> tuple[TrainingRun, DefectSet]:
    """What the config asks for, and the photos there are now."""
    defects = DefectSet.read(config)
    sizes = network_sizes(config, len(defects.products), 1 + len(defects.defect_types))
    run = TrainingRun(
        config=config.model_dump(mode="json"),
        photos=photos_name(defects.photos),
        products=defects.products,
        defect_types=defects.defect_types,
        model=asdict(sizes),
        command=shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    )
    return run, defects


def network_sizes(config: TrainConfig, num_products: int, num_domains: int) -> DTGANConfig:
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
    try:
        return replace(PRESETS[config.preset], **{**LADDER[config.ladder], **config.model, **counts})
    except (TypeError, ValueError) as error:
        raise UserError(f"model: {error}; see raygen.models.dtgan.DTGANConfig") from None


def _say_what(run: TrainingRun, defects: DefectSet, say: Callable[[str], None]) -> None:
    say(defects.part(TRAINING_SPLITS).describe())
    held_back = len(defects.photos) - len(defects.part(TRAINING_SPLITS).photos)
    sizes = DTGANConfig(**run.model)
    say(
        f"{sizes.image_size} px, {sizes.channels} channel{'s' * (sizes.channels > 1)}, width {sizes.width:g}; "
        + (f"{held_back:,} photos held back" if held_back else "no photos of the split val: none held back")
    )


def _say_result(config: TrainConfig, folder: TrainingFolder, say: Callable[[str], None]) -> None:
    done, best = folder.checkpoints(), folder.best()
    last = (
        f"the last good checkpoint is {folder.checkpoint_uri(done[-1])}"
        if done
        else "there is no checkpoint yet"
    )
    try:
        reason = storage.read(folder.join(DIVERGED)).decode()
    except storage.ObjectMissingError:
        say(f"done: {last}")
        if best:
            say(f"checkpoint = {config.output} stands for the best one, {best.checkpoint}")
        return
    raise PromiseError(f"training stopped: {reason}; {last}; lower the learning rates in another output")
