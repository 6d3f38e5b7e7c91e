"""Measures what a normal costs in each stage, on the machine that this runs on.

All cores (16 at most) work at once, each on its own: two that share a physical core, or the memory, are slower
together, and so they will be in the run. Each reads the same few files again and again, so that what a machine
keeps of them is not waited for.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import pyarrow as pa

from raygen import accelerator
from raygen.checkpoint import Checkpoint
from raygen.data.pool import index_pool
from raygen.data.runs import Run
from raygen.generate import shards
from raygen.generate.config import GenerateConfig
from raygen.generate.encode import encode_samples
from raygen.generate.plan import plan_table
from raygen.generate.sizing import Costs
from raygen.generate.stages import GenerateActor, pack, read_planned, unpack
from raygen.resources import num_cores

SECONDS = 2.0
"""For each stage."""
_MOST_PROCESSES = 16
_START_UP = 120.0  # seconds, at most


class Probe(NamedTuple):
    """What was measured."""

    costs: Costs
    num_bytes: float  # of the files of one normal's samples
    faster_at: dict[int, float]  # micro_batch -> how many times as fast as the recipe's, of a few larger ones


class _Timed(NamedTuple):
    """A call, in seconds: medians over several."""

    wall: float
    core: float  # of all threads of this process


def probe(
    config: GenerateConfig,
    run: Run,
    checkpoint: Checkpoint,
    seconds: float = SECONDS,
    plan: pa.Table | None = None,
    try_batches: bool = True,
) -> Probe | None:
    """Measures for some seconds a stage; None if none of the first normals can be used.

    Writes to a temporary folder, whatever the output.

    Args:
        config: the recipe.
        run: its run, drafted or begun.
        checkpoint: its generator's.
        seconds: for each stage.
        plan: rows of a plan to measure on. Default: the pool's first files.
        try_batches: whether larger micro-batches are tried, too, on an accelerator.
    """
    rows = _first_rows(config, checkpoint) if plan is None else plan
    few, _ = read_planned(rows.slice(0, config.micro_batch), config, run)
    if not few.num_rows:
        return None
    actor = GenerateActor(config, run, checkpoint.uri)
    # So many that a call takes a good part of the time: what a shard costs as such counts little, as in the run.
    count = int(seconds / 3 / (_timed(lambda: actor.sample(few), 0.0).wall / few.num_rows))
    rows = rows.slice(0, max(config.micro_batch, min(count, rows.num_rows)))
    normals, rejects = read_planned(rows, config, run)
    generated = actor.sample(normals)
    has_accelerator = accelerator.seconds_of(lambda: actor.sample(few)) > 0
    # Where an accelerator generates, this process alone does: the others read and write beside it.
    arguments = config, run, None if has_accelerator else checkpoint.uri, rows, rejects, generated, seconds
    # As many as cores, beside an actor, too, which mostly waits: with fewer, some cores would be idle.
    processes, context = min(_MOST_PROCESSES, num_cores()), get_context("spawn")
    ready = context.Barrier(processes + has_accelerator)
    with ProcessPoolExecutor(processes, context, _begin, (ready,)) as pool:
        others = [pool.submit(_on_one_core, *arguments) for _ in range(processes)]
        if has_accelerator:
            ready.wait(_START_UP)
        alone = _in_an_actor(actor, normals, seconds) if has_accelerator else {}
        found = [other.result() | alone for other in others]
    costs = {name: statistics.median(one[name] for one in found) / normals.num_rows for name in found[0]}
    num_bytes = costs.pop("bytes")
    tries = has_accelerator and try_batches
    faster = _larger_batches(config, run, checkpoint, normals, seconds) if tries else {}
    return Probe(Costs(**costs), num_bytes, faster)


def _first_rows(config: GenerateConfig, checkpoint: Checkpoint) -> pa.Table:
    """A plan's rows of the pool's first files."""
    listed = index_pool(config.pool, config.product, checkpoint.config.products)
    return plan_table(list(itertools.islice(listed, config.normals_per_shard)), shard=0, first_row=0)


def _begin(ready: Any) -> None:
    """Waits until all processes are there."""
    ready.wait(_START_UP)


def _on_one_core(
    config: GenerateConfig,
    run: Run,
    checkpoint_uri: str | None,
    plan: pa.Table,
    rejects: pa.Table,
    generated: pa.Table,
    seconds: float,
) -> dict[str, float]:
    """What some normals take in a process of its own; without a checkpoint, to read and to write alone."""
    read = _timed(lambda: _travelled(normals=read_planned(plan, config, run)[0]), seconds)
    found = {"read": read.core, "wait": max(0.0, read.wall - read.core)}
    if checkpoint_uri:
        actor = GenerateActor(config, run, checkpoint_uri)
        normals = _travelled(normals=read_planned(plan, config, run)[0])
        generate = _timed(lambda: _travelled(generated=actor.sample(normals)), seconds)
        found |= {"generate": generate.core, "accelerator": 0.0}
    arrived = _travelled(generated=generated)
    with tempfile.TemporaryDirectory() as folder:
        numbers = itertools.count()

        def write() -> int:
            number = next(numbers)
            encoded = encode_samples(arrived, number, config, run)
            stats = shards.write_shard(
                folder, config.layout, number, plan.num_rows, encoded, rejects, seconds={}
            )
            return stats.num_bytes

        return found | {"write": _timed(write, seconds).core, "bytes": float(write())}


def _in_an_actor(actor: GenerateActor, normals: pa.Table, seconds: float) -> dict[str, float]:
    """What some normals take of an actor beside its accelerator, and of that; they work in turns."""
    arrived, devices = _travelled(normals=normals), []

    def work() -> None:
        devices.append(accelerator.seconds_of(lambda: _travelled(generated=actor.sample(arrived))))

    whole, device = _timed(work, seconds), statistics.median(devices)
    # Who waits for a GPU may keep the core busy with that, and who waits for a core lets the wall clock go on.
    return {"generate": max(0.0, min(whole.core, whole.wall - device)), "accelerator": device}


def _larger_batches(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, normals: pa.Table, seconds: float
) -> dict[int, float]:
    """How many times as fast larger micro-batches are, as far as they still gain."""
    found: dict[int, float] = {}
    best = None
    for size in (config.micro_batch * factor for factor in (1, 4, 16)):
        some = normals.slice(0, size)
        if some.num_rows < size:
            break
        actor = GenerateActor(config.model_copy(update={"micro_batch": size}), run, checkpoint.uri)
        try:
            each = _timed(lambda actor=actor, some=some: actor.sample(some), seconds / 4).wall / size
        except RuntimeError as error:
            if "out of memory" not in str(error):
                raise
            break
        found[size] = found.get(size, each)
        if best is not None and each > 0.9 * best:
            break
        best = each
    base = found.pop(config.micro_batch)
    return {size: base / each for size, each in found.items()}


def _travelled(**tables: pa.Table) -> pa.Table:
    """A shard's table as the next stage gets it: packed, written to where processes share objects, unpacked."""
    packed, sink = pack(shard=0, seconds={}, **tables), pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, packed.schema) as stream:
        stream.write_table(packed)
    (name,) = tables
    return unpack(pa.ipc.open_stream(sink.getvalue()).read_all()).tables[name]


def _timed(work: Callable[[], Any], seconds: float) -> _Timed:
    """Calls again and again for so long, at least once, after a first call that may import and warm up."""
    work()
    walls: list[float] = []
    cores: list[float] = []
    while not walls or sum(walls) < seconds:
        wall, core = time.perf_counter(), time.process_time()
        work()
        walls.append(time.perf_counter() - wall)
        cores.append(time.process_time() - core)
    return _Timed(statistics.median(walls), statistics.median(cores))
