"""The execution of a night on the cluster: samples generated, files written anew, what was made inspected."""

import contextlib
import functools
import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import MANIFEST, Manifest, ShardStats, done_shards, read_run, read_stats, stats_uri
from raygen.errors import RejectsError, UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.plan import roi_uri
from raygen.publish.arrow import pc
from raygen.publish.changes import read_ledger
from raygen.publish.config import RefreshConfig
from raygen.publish.files import (
    NORMALS_SCHEMA,
    SCORE_SAMPLES,
    Inspected,
    Rewrite,
    inspect_file,
    rewrite_files,
)
from raygen.publish.state import Night
from raygen.publish.table import DataFile

_MAX_SCORES = 64 * SCORE_SAMPLES  # of a night that travel to the driver

Say = Callable[[str], None]
A = TypeVar("A")
R = TypeVar("R")


class Executor(Protocol):
    """Who does the work that grows with a night: a Ray cluster, or, in tests, this process."""

    def connected(self) -> contextlib.AbstractContextManager[None]: ...

    def generate(self, config: GenerateConfig, say: Say) -> Manifest: ...

    def map(self, function: Callable[[A], R], items: Iterable[A]) -> list[R]: ...


class Clock:
    """Seconds by step."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self.seconds = seconds
        self.last = time.monotonic()

    def stop(self, step: str) -> None:
        now = time.monotonic()
        self.seconds[step], self.last = now - self.last, now


class Made(NamedTuple):
    """What came of a night's work."""

    manifest: Manifest | None = None  # None: nothing was to be generated
    rewritten: Sequence[DataFile] = ()
    inspected: Sequence[Inspected] = ()
    num_new: int = 0  # samples made by this attempt; an earlier one may have made others

    def normals(self) -> pa.Table:
        """Those that samples were made of, with the SHA-256 of their bytes."""
        return pa.concat_tables([NORMALS_SCHEMA.empty_table(), *(item.normals for item in self.inspected)])

    def images_per_second(self, seconds: Mapping[str, float]) -> float | None:
        return round(self.num_new / seconds["generate"], 2) if self.num_new else None


def make_night(
    config: RefreshConfig,
    night: Night,
    held: Mapping[str, int],
    executor: Executor,
    say: Say,
    reached: Callable[[str], None],
    clock: Clock,
) -> Made:
    """Does what a night is to do, up to its audit; what an earlier attempt has done stays done.

    Args:
        config: the recipe.
        night: what is to be done.
        held: the table's files, and their samples.
        executor: does it.
        say: takes each line for the user.
        reached: is told each step that is done.
        clock: takes its seconds.

    Raises:
        PromiseError: more normals are bad than allowed, or a published file is not what the log says.
        UserError: the checkpoint is another than the night was planned with.
    """
    with executor.connected():
        made = _generate(config, night, executor, say) if night.counts.work else Made()
        clock.stop("generate")
        reached("generated")
        rewritten = executor.map(
            functools.partial(rewrite_files, config.table), _rewrites(config.table, night, held)
        )
        clock.stop("rewrite")
        reached("rewritten")
        shards = made.manifest.shards if made.manifest else ()
        share = min(1.0, _MAX_SCORES / max(1, sum(stats.num_samples for stats in shards)))
        inspect = functools.partial(_inspect, config.table, night.run, share)
        return made._replace(rewritten=rewritten, inspected=executor.map(inspect, shards))


def _generate(config: RefreshConfig, night: Night, executor: Executor, say: Say) -> Made:
    normals_uri = storage.join(config.table, night.folder, "work.parquet")
    output = storage.join(config.table, night.run)
    recipe = config.generate_config(normals_uri, output)
    # Of the pool, not of the night: one bad photograph among three new ones is no reason to publish nothing.
    rate = min(1.0, recipe.max_reject_rate * night.counts.listed / night.counts.work)
    recipe = recipe.model_copy(update={"max_reject_rate": rate})
    if recipe.roi is not None:
        normals = pq.read_table(io.BytesIO(storage.read(normals_uri)), columns=["product"])
        if not any(
            storage.exists(roi_uri(recipe, name)) for name in pc.unique(normals["product"]).to_pylist()
        ):
            recipe = recipe.model_copy(update={"roi": None})  # other products have some, and nothing new
    done = done_shards(output)
    try:
        manifest = executor.generate(recipe, say)
    except RejectsError as error:
        raise RejectsError(
            f"{error} (max_reject_rate is of the pool in the recipe, here {rate:.3g} of a night of "
            f"{night.counts.work:,} normals)"
        ) from None
    run = read_run(output)
    if run is None or run.checkpoint != night.checkpoint:
        raise UserError(
            f"checkpoint {config.checkpoint}: was written anew while the night was under way; nothing was "
            "published; run the same command again"
        )
    return Made(
        manifest, num_new=sum(stats.num_samples for stats in manifest.shards if stats.shard not in done)
    )


def _rewrites(table_uri: str, night: Night, held: Mapping[str, int]) -> list[Rewrite]:
    """Which files become which, and which normals leave them."""
    if not night.rewritten:
        return []
    leaving = read_ledger(storage.join(table_uri, night.folder, "leaving.parquet"))
    rows = leaving.filter(pc.is_in(leaving["file"], value_set=pa.array(list(night.rewritten), pa.string())))
    anew = {target: Rewrite({}, target, []) for target in night.rewritten.values()}
    for path, target in night.rewritten.items():
        anew[target].paths[path] = held[path]
    for path, uri in zip(rows["file"].to_pylist(), rows["uri"].to_pylist(), strict=True):
        anew[night.rewritten[path]].leaving.append(uri)
    return list(anew.values())


def _inspect(table_uri: str, run: str, share: float, stats: ShardStats) -> Inspected:
    return inspect_file(table_uri, f"{run}/{stats.file}", stats, share)


def forget_bad_shards(table_uri: str, night: Night, made: Made) -> None:
    """The same work has the same name: what another attempt at a night may find otherwise is forgotten, that is
    shards that are not as they were written, and those with bad normals."""
    output = storage.join(table_uri, night.run)
    damaged = {item.file.path for item in made.inspected if item.problem}
    for stats in read_stats(output, done_shards(output)):
        if stats.rejects or f"{night.run}/{stats.file}" in damaged:
            storage.delete(storage.join(output, MANIFEST))
            storage.delete(stats_uri(output, stats.shard))
