"""What the generators of trained checkpoints share: how often a host waits, and networks that are compiled."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import TINY, make_samples, write_checkpoint
from training import NoWaiting

from raygen import surfaces
from raygen.checkpoint import Checkpoint
from raygen.errors import UserError
from raygen.families import load_generator
from raygen.families.dtgan import generator as dtgan
from raygen.families.family import Views
from raygen.generate.config import GenerateConfig
from raygen.records import SampleRequest, plan_requests


class NoReading(NoWaiting):
    """Lets numbers come from the host, as seeds and products do; none goes back."""

    WAITS = tuple(name for name in NoWaiting.WAITS if name != "aten::lift_fresh")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return write_checkpoint(str(tmp_path_factory.mktemp("dtgan")))


def generator_of(checkpoint: Checkpoint, **settings: Any) -> Any:
    values = {"pool": "pool", "output": "out", "checkpoint": checkpoint.uri, "micro_batch": 3, **settings}
    return load_generator(checkpoint, GenerateConfig(**values))


@pytest.mark.parametrize("settings", [{}, {"composition": "residual", "native": True}])
@pytest.mark.parametrize(("mode", "waits"), [("reference", 1), ("latent", 2), ("restyled", 2)])
def test_a_micro_batch_comes_back_at_once(
    checkpoint: Checkpoint,
    mode: Any,
    waits: int,
    settings: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pixels, scores and layers; before them only layers of which nobody knows yet where their defects are."""
    generator = generator_of(checkpoint, **settings)
    calls: list[int] = []

    def fetched(*tensors: torch.Tensor) -> list[np.ndarray]:
        calls.append(len(tensors))
        return [tensor.numpy() for tensor in tensors]

    monkeypatch.setattr(dtgan, "fetched", fetched)
    pixels = np.stack([pixels for _, pixels in surfaces.pool(3, 0, TINY.image_size)][:3])
    with NoReading():
        views = Views(pixels, list(surfaces.PRODUCTS), None, generator.backgrounds(pixels))
        made = generator.make(views, SampleRequest("spots", mode, 0), np.arange(3))
    assert len(calls) == waits
    assert made.pixels.shape == pixels.shape
    assert (made.layers is not None) == bool(settings)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here")
@pytest.mark.filterwarnings(
    "ignore:.torch.jit.script_method. is deprecated:DeprecationWarning"
)  # torch's own
def test_compiled_networks_draw_the_same_but_for_rounding(checkpoint: Checkpoint) -> None:
    """Images alone: D's compilation takes as long again."""
    requests = plan_requests(("spots",), ("latent",), 1)
    normals = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 1), np.uint8)
    seeds = np.arange(5)[:, None]

    def pixels(rows: np.ndarray, compiles: bool) -> np.ndarray:
        generator = generator_of(checkpoint, compile=compiles, masks=False, micro_batch=2)
        return make_samples(generator, normals[rows], seeds[rows], requests).made.pixels

    order = np.array([3, 0, 4, 1, 2])
    expected, found = pixels(np.arange(5), False), pixels(np.arange(5), True)
    assert np.abs(found.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(pixels(order, True), found[order])


def test_without_a_compiler_there_is_one_line(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="compile = true wants a C"):
        generator_of(checkpoint, compile=True)
