"""A Ray to work on."""

import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayTaskError

from raygen import storage
from raygen.resources import Resources

ALLOCATOR = {
    # An actor computes in a thread of Ray's, where glibc by default gives every large buffer back to the kernel
    # and faults it in again page by page: nearly a third of a small model's time on CPUs.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(2**30),
    "MALLOC_TRIM_THRESHOLD_": str(2**32),
}


A = TypeVar("A")
R = TypeVar("R")


KEEP_WORKERS = ("RAY_idle_worker_killing_time_threshold_ms", "60000")
"""Beside actors, Ray ends each worker that had nothing to do for a second, where it has more of them than CPUs;
the next task then waits for seconds of imports. On a cluster, for those who start its nodes to set."""

_STAGES = 3  # of a chain
_RESERVED = 0.5  # Ray Data's own share of resources that it reserves for stages


class Stage(NamedTuple):
    """A stage of a chain: from a batch of one row, a pyarrow table, to another."""

    work: Callable[..., Any]  # a function; of the computing stage a class, whose instances are called
    arguments: dict[str, Any]  # by name: of every call, or of the class


def chain_stages(
    rows: list[dict[str, Any]], read: Stage, compute: Stage, write: Stage, resources: Resources
) -> ray.data.Dataset:
    """A dataset, lazily: rows in, read on CPUs -> compute on a pool of (GPU) actors -> write on CPUs, rows out.

    A row is a block of its own from end to end: one task reads it, one call computes it, one task writes it.
    """
    # Ray Data reserves a share of all CPUs, a half by default, in equal parts for the stages, and for those in
    # front first. Where the actors leave less than two such parts, writing gets none until all is read: what is
    # computed piles up in the object store.
    context = DataContext.get_current()
    context.op_resource_reservation_ratio = min(_RESERVED, resources.share_left * _STAGES / 2)
    return (
        ray.data.from_items(rows, override_num_blocks=len(rows))
        .map_batches(
            read.work,
            fn_kwargs=read.arguments,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_task,
        )
        .map_batches(
            compute.work,
            fn_constructor_kwargs=compute.arguments,
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(size=resources.num_actors),
            num_cpus=resources.cpus_per_actor,
            num_gpus=resources.gpus_per_actor,
            runtime_env={"env_vars": ALLOCATOR},
        )
        .map_batches(
            write.work,
            fn_kwargs=write.arguments,
            batch_size=1,
            batch_format="pyarrow",
            num_cpus=resources.cpus_per_task,
        )
    )


def map_tasks(function: Callable[[A], R], items: Iterable[A]) -> list[R]:
    """One task an item; the results in their order. What a task raises is raised here as it is."""
    shared = ray.put(function)
    tasks = [_call.remote(shared, item) for item in items]
    try:
        return ray.get(tasks)
    except RayTaskError as error:
        raise error.cause from None


@ray.remote(num_cpus=1, max_retries=3)
def _call(function: Any, item: Any) -> Any:
    return function(item)


def living_nodes() -> list[dict[str, float]]:
    """The resources of each living node of the cluster."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def prepare_data() -> None:
    """Sets Ray Data up for our chains: no progress bars, users' errors as they are, storage that is busy tried
    again."""
    context = DataContext.get_current()
    context.enable_progress_bars = False  # ours counts samples
    context.raise_original_map_exception = True
    context.retried_map_errors = [storage.StorageUnavailableError.__name__]
    context.max_map_retries = 8  # with pauses that grow to half a minute: some two minutes in all
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stderr:
            handler.setLevel(logging.WARNING)  # the rest stands in the session's own log files
            handler.addFilter(lambda record: not record.getMessage().startswith("Progress bars disabled"))


@contextmanager
def connected(dashboard: bool = False) -> Iterator[None]:
    """A Ray to work on: the one this process already has, the cluster that RAY_ADDRESS names (as it does in a
    job), or one of this machine alone, for the time being.

    Args:
        dashboard: whether that last one has the dashboard's server. It takes some seconds to start; without it,
            Ray Train complains every second.
    """
    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if "RAY_ADDRESS" in os.environ:
        ray.init(address="auto", log_to_driver=True)
    else:
        # A cluster of one machine and one process needs no token; asking for one would leave a file in the
        # home folder that turns authentication on for every cluster started here later.
        os.environ.setdefault("RAY_AUTH_MODE", "disabled")
        os.environ.setdefault(*KEEP_WORKERS)
        ray.init(
            address="local",
            include_dashboard=dashboard,
            logging_level=logging.WARNING,
        )
    if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own there
    try:
        yield
    finally:
        ray.shutdown()
