"""The Ray Data chain: read on CPUs -> generate on an actor pool -> encode and write on CPUs.

One shard is one row of the dataset from end to end: one read task, one actor call, one write task. A row cannot
be split or merged with another, whatever Ray does with blocks; and a shard of which every normal is bad is still
a row. The driver sees the stats of finished shards, never an image.
"""

import functools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa
import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util import metrics

from raygen import storage
from raygen.checkpoint import Checkpoint
from raygen.data.runs import Run, ShardStats, done_shards, read_stats, sum_cells
from raygen.errors import PromiseError, RejectsError, UserError
from raygen.generate import stages
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.plan import read_plan
from raygen.generate.probe import Probe, probe
from raygen.generate.progress import Progress
from raygen.generate.sizing import Sizing, wishes
from raygen.generate.stages import GenerateActor, read_shard
from raygen.on_ray import Stage, chain_stages, living_nodes, prepare_data
from raygen.resources import Resources, coming_nodes, plan_resources

_PROBE_SECONDS = 300  # for a probe, at most, also where other jobs keep it waiting


def run_shards(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, say: Callable[[str], None] = print
) -> list[ShardStats]:
    """Makes the shards of a run that are not done yet; returns the stats of all.

    Needs a running Ray. Whatever ends it, the shards that are done stay, and another call makes the rest. Jobs
    that work on one output at once share its shards: each takes them in an order of its own, and leaves out those
    that are done by the time.

    Raises:
        UserError: the cluster has no room for the chain.
        PromiseError: more normals are bad than `max_reject_rate` allows, or samples than `gate.on_shortfall`;
            nothing written is lost.
    """
    done = done_shards(config.output)
    stats = read_stats(config.output, done)
    pending = [shard for shard in range(run.num_shards) if shard not in done]
    random.shuffle(pending)  # two jobs that went by the number would do the same shards at the same time
    rejects = sum((Counter(shard.rejects) for shard in stats), Counter[str]())
    _check_rejects(rejects, config, run)
    _check_shortfall(stats, config)
    if not pending:
        return stats
    done_before = sum(shard.num_samples for shard in stats)
    dropped_before = sum(shard.num_dropped for shard in stats)
    progress = Progress(run.num_samples, done_before, rejects.total() * len(run.requests) + dropped_before)
    nodes = living_nodes()
    compute = wishes(config, checkpoint)
    if compute.auto:
        compute = _sized(config, run, checkpoint, compute, nodes, pending, say)
    resources = plan_resources(compute, nodes, len(pending))
    say(f"{len(pending):,} of {run.num_shards:,} shards to do: {resources.describe(len(nodes))}")
    num_others = 0
    try:
        for finished, by_another in _stream(config, run, checkpoint, pending, resources):
            num_others += by_another
            stats.append(finished)
            rejects.update(finished.rejects)
            progress.add(
                finished.num_samples, finished.num_rejects * len(run.requests) + finished.num_dropped
            )
            _check_rejects(rejects, config, run)
            _check_shortfall([finished], config)
    except RayTaskError as error:
        if isinstance(error.cause, storage.StorageUnavailableError):  # still, after all retries
            raise storage.StorageUnavailableError(str(error.cause).splitlines()[0]) from None
        raise
    finally:
        progress.close()
    if num_others:
        say(f"{num_others:,} shards were made by another job on {config.output} meanwhile")
    return sorted(stats, key=lambda shard: shard.shard)


def _sized(
    config: GenerateConfig,
    run: Run,
    checkpoint: Checkpoint,
    compute: ComputeConfig,
    nodes: list[dict[str, float]],
    pending: list[int],
    say: Callable[[str], None],
) -> ComputeConfig:
    """What a probe on one of the nodes, with a GPU if actors want one, says is best; what the recipe says where it
    cannot be told, or does not fit."""
    whole = [*nodes, *coming_nodes(compute.autoscaling, nodes)]
    cores, gpus = (sum(node.get(kind, 0.0) for node in whole) for kind in ("CPU", "GPU"))
    on_gpu = compute.gpus_per_actor != 0 and gpus > 0
    work: Any = ray.remote(probe).options(num_cpus=1, num_gpus=int(on_gpu), max_retries=0)
    small = Checkpoint(checkpoint.uri, checkpoint.config, {})
    plan = read_plan(config.output, run, pending[0])
    task = work.remote(config, run, small, plan=plan, try_batches=False)
    try:
        found: Probe | None = ray.get(task, timeout=_PROBE_SECONDS)
    except (RayError, GetTimeoutError) as error:  # what is wrong with the run, the run itself will say
        ray.cancel(task, force=True)
        say(f"compute = auto: nothing could be measured ({type(error).__name__}); goes on as without it")
        return compute
    if found is None:
        return compute
    if on_gpu and not found.costs.accelerator:  # or a cluster's GPUs would be left idle
        say("compute = auto: no work of the GPU was seen; goes on as without it")
        return compute
    smallest = {"smallest_task": compute.cpus_per_task} if compute.cpus_per_task else {}
    sizing = Sizing(found.costs, cores, gpus if on_gpu else compute.num_actors or 1, **smallest)
    for line in sizing.describe(len(pending) * config.normals_per_shard, len(run.requests)):
        say(line)
    chosen = sizing.compute(compute)
    try:
        plan_resources(chosen, nodes, len(pending))
    except UserError:
        say("compute = auto: what was measured does not fit these nodes and keys; goes on as without it")
        return compute
    return chosen


def _stream(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, pending: list[int], resources: Resources
) -> Iterator[tuple[ShardStats, bool]]:
    """The chain; yields the stats of each shard as it is done, in no order, and whether another job made it."""
    prepare_data()
    for row in chain(config, run, checkpoint, pending, resources).iter_rows():
        if row.get("error"):
            raise UserError(row["error"])
        found = row.get("done")
        yield ShardStats.model_validate_json(found or row["stats"]), found is not None


def chain(
    config: GenerateConfig, run: Run, checkpoint: Checkpoint, pending: list[int], resources: Resources
) -> ray.data.Dataset:
    """The dataset of the pending shards, lazily: shard numbers in, `stats` (or `done`, or `error`) out."""
    return chain_stages(
        [{"shard": shard} for shard in pending],
        read=Stage(read_shard, {"config": config, "run": run}),
        compute=Stage(GenerateActor, {"config": config, "run": run, "checkpoint_uri": checkpoint.uri}),
        write=Stage(write_shard, {"config": config, "run": run}),
        resources=resources,
    )


def _check_rejects(rejects: Counter[str], config: GenerateConfig, run: Run) -> None:
    """Raises RejectsError as soon as it is certain that too many normals are bad."""
    if rejects.total() > config.max_reject_rate * run.num_normals:
        by_reason = ", ".join(f"{count} {reason}" for reason, count in rejects.most_common())
        raise RejectsError(
            f"{rejects.total()} of {run.num_normals} normals are unusable ({by_reason}), more than "
            f"max_reject_rate = {config.max_reject_rate:g}; see {storage.join(config.output, 'rejects/')}; mend "
            "the pool and begin a new output, or allow more and run the same command again"
        )


def _check_shortfall(stats: list[ShardStats], config: GenerateConfig) -> None:
    """Raises PromiseError as soon as a sample has not been accepted, where the gate says so."""
    if config.gate.on_shortfall != "fail":
        return
    for cell in sum_cells(cell for shard in stats for cell in shard.cells):
        if cell.accepted < cell.asked:
            reasons = ", ".join(f"{count} {rule}" for rule, count in cell.reasons.items())
            raise PromiseError(
                f"gate: {'/'.join(cell.cell)} fell short: {cell.kept} of {cell.asked} samples failed all of "
                f"{config.gate.max_attempts} attempts ({reasons}); relax the gate or improve the checkpoint for a "
                'new output, or set gate.on_shortfall = "keep-best" and run the same command again'
            )


def write_shard(batch: pa.Table, config: GenerateConfig, run: Run) -> pa.Table:
    """`stages.write_shard`, counted for the dashboard."""
    done = stages.write_shard(batch, config, run)
    for text in done["stats"].to_pylist() if "stats" in done.column_names else ():
        _count(ShardStats.model_validate_json(text))
    return done


def _count(stats: ShardStats) -> None:
    """Adds to the counters on the Ray dashboard (as ray_raygen_…_total in Prometheus)."""
    for name, value in (
        ("raygen_shards", 1),
        ("raygen_samples", stats.num_samples),
        ("raygen_rejects", stats.num_rejects),
        ("raygen_bytes", stats.num_bytes),
    ):
        if value:
            _counter(name).inc(value)


@functools.cache
def _counter(name: str) -> metrics.Counter:
    return metrics.Counter(name, f"{name.removeprefix('raygen_')} written by this run")
