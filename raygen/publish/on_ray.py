"""The work of a night on a Ray cluster."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import ray
from ray.exceptions import RayTaskError

from raygen.data.runs import Manifest
from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate
from raygen.on_ray import connected

A = TypeVar("A")
R = TypeVar("R")


class OnRay:
    """`raygen.publish.execution.Executor` on the cluster that `raygen.on_ray.connected` finds."""

    def connected(self) -> AbstractContextManager[None]:
        return connected()

    def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
        return generate(config, say)

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]:
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
