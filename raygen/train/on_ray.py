"""Ray Train around the loop: processes, DDP, lost workers; and Ray Data for photos that do not fit into memory, or
that a bank is collected from.

Checkpoints are raygen's own folders, not Ray Train's: they are what the main job reads, on any storage, and what
the same command goes on from, be it after a lost worker, a lost driver or a night.
"""

import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.data import DataContext, TaskPoolStrategy
from ray.exceptions import RayError
from ray.train.v2._internal.exceptions import RayTrainError  # what it says of a worker that is gone

from raygen.data.photo import Photo
from raygen.errors import PromiseError, UserError
from raygen.families.family import Fields, MakeBatch
from raygen.families.recipes import BankConfig, TrainingConfig
from raygen.families.world import World
from raygen.on_ray import living_nodes, prepare_data
from raygen.train.collect import batches_of, take
from raygen.train.config import parse_train_config
from raygen.train.folder import TrainingRun
from raygen.train.process import take_part
from raygen.train.workers import plan_workers


def run_training(config: TrainingConfig, run: TrainingRun, say: Callable[[str], None] = print) -> None:
    """Trains on the cluster to the end of the recipe, from the last checkpoint on if there is one.

    Needs a running Ray.

    Raises:
        UserError: the cluster has no room for the workers, or a photo or the storage is of no use.
        PromiseError: workers were lost more often than the recipe allows.
    """
    workers = plan_workers(config.compute, living_nodes())
    say(workers.describe())
    resources = {"CPU": workers.cpus_per_worker, "GPU": workers.gpus_per_worker}

    on_gpus = workers.gpus_per_worker > 0
    trainer = ray.train.torch.TorchTrainer(
        _worker,
        train_loop_config={"config": config.model_dump(mode="json"), "run": run.model_dump(mode="json")},
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.num_workers,
            use_gpu=on_gpus,
            resources_per_worker={kind: amount for kind, amount in resources.items() if amount},
        ),
        torch_config=ray.train.torch.TorchConfig("nccl" if on_gpus and dist.is_nccl_available() else "gloo"),
        run_config=ray.train.RunConfig(
            name=f".ray/{uuid.uuid4().hex[:8]}",  # Ray's own notes; each attempt is a new run to it
            storage_path=config.output,
            failure_config=ray.train.FailureConfig(max_failures=config.compute.max_failures),
        ),
    )
    try:
        trainer.fit()
    except ray.train.WorkerGroupError as error:
        failures = list(error.worker_failures.values())
        for failure in failures:
            if cause := _user_error(failure):
                raise cause from None
        if all(isinstance(failure, RayError | RayTrainError) for failure in failures):  # died: no bug of ours
            raise PromiseError(
                f"training stopped: a worker was lost {config.compute.max_failures + 1} times; "
                "run the same command again, it goes on from the last checkpoint"
            ) from None
        raise


def take_all(config: BankConfig, photos: Sequence[Photo]) -> list[dict[str, Any]]:
    """Takes of every photo what the recipe's family takes, in tasks of Ray Data; rows as `take` leaves them.

    Needs a running Ray.

    Raises:
        UserError: a photo or the storage is of no use.
    """
    prepare_data()
    work = batches_of(photos)
    dataset = ray.data.from_items(work, override_num_blocks=len(work)).map_batches(
        partial(take, config=config), batch_size=1, batch_format="pyarrow", num_cpus=1
    )
    rows = list(dataset.iter_rows())
    for row in rows:
        if row.get("error"):
            raise UserError(row["error"])
    return rows


def _user_error(failure: BaseException | None) -> UserError | None:
    """The user's error behind a worker's failure, if there is one."""
    while failure is not None and not isinstance(failure, UserError):
        failure = failure.__cause__
    return failure


def _worker(options: dict[str, Any]) -> None:
    """What each process of the training does."""
    config, run = parse_train_config(options["config"]), TrainingRun(**options["run"])
    context = ray.train.get_context()
    # Ray's GPUs may be logical ones (in tests), torch's are not.
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    world = World(context.get_world_rank(), context.get_world_size())
    take_part(config, run, device, world, _streamed if config.compute.loading == "stream" else None)


def _streamed(make: MakeBatch, numbers: Sequence[range]) -> Iterator[Fields]:
    """Makes batches ahead in tasks of Ray Data, whose object store bounds how far; in order."""
    DataContext.get_current().execution_options.preserve_order = True
    batches = ray.data.range(len(numbers), override_num_blocks=-(-len(numbers) // 16)).map(
        lambda row: make(numbers[row["id"]]),
        num_cpus=0,  # they wait for storage, mostly; and the workers may hold every CPU there is
        compute=TaskPoolStrategy(size=4),
    )
    yield from batches.iter_rows()
