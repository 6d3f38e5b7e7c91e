"""The work of a night on a Ray cluster."""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from raygen.data.runs import Manifest
from raygen.generate.config import GenerateConfig
from raygen.generate.job import generate
from raygen.on_ray import connected, map_tasks

A = TypeVar("A")
R = TypeVar("R")


class OnRay:
    """`raygen.publish.execution.Executor` on the cluster that `raygen.on_ray.connected` finds."""

    def connected(self) -> AbstractContextManager[None]:
        return connected()

    def generate(self, config: GenerateConfig, say: Callable[[str], None]) -> Manifest:
        return generate(config, say)

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]:
        return map_tasks(function, items)
