"""What each process of a training does: batches made ahead, the loop, the folder. Knows nothing of Ray."""

import itertools
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from raygen import storage
from raygen.families.family import Fields, MakeBatch
from raygen.families.photos import TRAINING_SPLITS, DefectSet
from raygen.families.recipes import TrainingConfig
from raygen.families.world import Training, World
from raygen.train.config import trainer_of
from raygen.train.folder import STOPPED, TrainingFolder, TrainingRun
from raygen.train.loop import StoppedError, Watcher, train
from raygen.train.recorder import Recorder

MakeAhead = Callable[[MakeBatch, Sequence[range]], Iterator[Fields]]
"""Batches of the numbers of their images, in order."""


def prefetched(make: MakeBatch, numbers: Sequence[range], threads: int = 1) -> Iterator[Fields]:
    """Makes the next batches in threads, one each, while this one is learned from; in order, however many."""
    rest = iter(numbers)
    with ThreadPoolExecutor(threads) as pool:
        waiting = deque(pool.submit(make, some) for some in itertools.islice(rest, threads))
        while waiting:
            ready = waiting.popleft()
            waiting.extend(pool.submit(make, some) for some in itertools.islice(rest, 1))
            yield ready.result()


def take_part(
    config: TrainingConfig,
    run: TrainingRun,
    device: torch.device,
    world: World,
    make_ahead: MakeAhead | None = None,
    say: Callable[[str], None] | None = None,
) -> None:
    """Goes on from the last checkpoint to the end of the recipe, as one of the training's processes.

    Args:
        config: the recipe.
        run: what the folder says the training is.
        device: to compute on.
        world: of the processes; the first of them writes.
        make_ahead: how batches are made; default: `prefetched`, by the recipe's threads.
        say: takes each line of the progress; default: stderr does.

    Raises:
        UserError: a photo or the storage is of no use.
    """
    say = say or _say
    if device.type == "cpu":
        torch.set_num_threads(max(1, int(config.compute.cpus_per_worker)))
    folder, trainer = TrainingFolder(config.output), trainer_of(config)(config, run)
    defects = DefectSet(folder.read_photos(run), run.products, run.defect_types)

    training = trainer.start(device)
    state = folder.latest_state(device)
    if state is not None:
        training.load_state_dict(state)
    make = trainer.maker(defects.part(TRAINING_SPLITS), in_memory=config.compute.loading == "memory")
    starts = range(training.images_seen, config.images, config.batch_per_worker * world.size)
    make_ahead = make_ahead or partial(prefetched, threads=config.compute.batch_threads)
    batches = make_ahead(make, [world.numbers(start, config) for start in starts])
    watcher: Watcher[Any] = _Nobody()
    if world.rank == 0:
        seconds = state["seconds"] if state else 0.0
        watcher = Recorder(folder, run, config, trainer, defects, training.images_seen, seconds, say)
        if state:
            say(f"goes on at image {training.images_seen:,}")
    try:
        train(training, trainer.stepper(training, world), batches, config, world, watcher)
    except StoppedError as error:
        # Not raised further: Ray would start all again, to the same end. The driver finds this note.
        if world.rank == 0:
            storage.put(folder.join(STOPPED), str(error).encode())


class _Nobody:
    """The watcher of the processes that write nothing."""

    def note(self, images_seen: int, losses: dict[str, float]) -> None:
        pass

    def checkpoint(self, training: Training) -> None:
        pass


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")  # not print, which Ray Train shows twice
    sys.stderr.flush()
