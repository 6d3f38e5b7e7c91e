"""The evaluation on Ray: features through an actor pool, then many small computations side by side.

Features are streamed by shard and kept by the digests of shard and extractor: the driver sees those that it
asks for, and an evaluation that goes on extracts nothing twice."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import RayTaskError

from raygen.config import ActorPoolConfig
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate.config import DownstreamConfig, FeatureConfig
from raygen.evaluate.downstream import DownstreamData, Fit, FitResult, run_fit
from raygen.evaluate.feature_cache import Cache, Source
from raygen.evaluate.features import EXTRACTORS, PERCEPTUAL, Extractor, extract
from raygen.evaluate.metrics import ClusteredDistance, clustered_distance
from raygen.evaluate.own_features import train_own
from raygen.evaluate.samples import Chosen, Sample, read_pixels
from raygen.on_ray import ALLOCATOR, Stage, chain_stages, living_nodes, prepare_data
from raygen.relay import tells
from raygen.resources import plan_resources

T = TypeVar("T")


def train_extractor(photos: Sequence[Photo], image_size: int, channels: int, seed: int) -> bytes:
    """`train_own`, in a task: its weights."""
    ((_, weights),) = run_tasks(_train_own, [(photos, image_size, channels, seed)], num_cpus=1)
    return weights


def _train_own(photos: Sequence[Photo], image_size: int, channels: int, seed: int) -> bytes:
    torch.set_num_threads(1)
    return train_own(photos, image_size, channels, seed)


def extract_features(
    sources: Sequence[Source],
    config: FeatureConfig,
    extractor: str,
    output_uri: str,
    image_size: int,
    channels: int,
    compute: ActorPoolConfig,
    done: Callable[[int], None],
) -> Cache:
    """Extracts what is not in the cache yet.

    Args:
        sources: what of.
        config: which extractor, by its recipe.
        extractor: its digest, for the cache's names.
        output_uri: the evaluation's folder.
        image_size, channels: to which the images are brought first: the samples' own.
        compute: how actors and tasks share the cluster.
        done: told the number of images of each source as it is finished.

    Raises:
        UserError: an image is gone, or the storage says no.
    """
    cache = Cache(output_uri, extractor)
    there = cache.keys()
    pending = [source for source in sources if source.key not in there]
    for source in sources:
        if source.key in there:
            done(len(source))
    if not pending:
        return cache
    prepare_data()
    resources = plan_resources(compute, living_nodes(), len(pending))
    rows = chain_stages(
        [{"source": source.model_dump_json()} for source in pending],
        read=Stage(_read, {"image_size": image_size, "channels": channels}),
        compute=Stage(_ExtractActor, {"config": config}),
        write=Stage(_keep, {"cache": cache}),
        resources=resources,
    ).iter_rows()
    for row in rows:
        if row.get("error"):
            raise UserError(row["error"])
        done(row["num_images"])
    return cache


@tells
def _read(batch: pa.Table, image_size: int, channels: int) -> pa.Table:
    """source -> its images, in one row."""
    source = Source.model_validate_json(batch["source"][0].as_py())
    names, pixels = source.read(image_size, channels)
    return pa.table({"key": [source.key], "names": [names], **_pack(pixels)})


class _ExtractActor:
    """Holds an extractor; turns pixels into features."""

    def __init__(self, config: FeatureConfig) -> None:
        self.config = config

    @functools.cached_property
    def extractor(self) -> Extractor:
        return EXTRACTORS[self.config.extractor](self.config.weights, _device())

    def __call__(self, batch: pa.Table) -> pa.Table:
        return tells(self.extract)(batch)

    def extract(self, batch: pa.Table) -> pa.Table:
        features = extract(self.extractor, _unpack(batch, np.uint8), self.config.batch)
        return pa.table({"key": batch["key"], "names": batch["names"], **_pack(features)})


@tells
def _keep(batch: pa.Table, cache: Cache) -> pa.Table:
    """Features -> the cache; what is left is how many."""
    features = _unpack(batch, np.float32)
    cache.put(batch["key"][0].as_py(), batch["names"][0].as_py(), features)
    return pa.table({"num_images": [len(features)]})


def _pack(values: np.ndarray) -> dict[str, pa.Array]:
    """An array as the columns of one row."""
    shape = pa.array([list(values.shape)], pa.list_(pa.int64()))
    return {"shape": shape, "values": pa.array([values.tobytes()], pa.large_binary())}


def _unpack(batch: pa.Table, kind: type[np.generic]) -> np.ndarray:
    values = np.frombuffer(batch["values"][0].as_buffer(), kind)
    return values.reshape(batch["shape"][0].as_py())


def run_tasks(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], num_cpus: float, num_gpus: float = 0
) -> Iterator[tuple[int, T]]:
    """Runs a function on many arguments as Ray tasks, a few ahead of what the cluster can hold at a time.

    Yields:
        The number of the arguments, and what came of them, in the order in which they are done.

    Raises:
        UserError: that a task raised.
    """
    options: Any = {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": ALLOCATOR}}
    task = ray.remote(**options)(function)
    most = 2 * max(1, int(ray.cluster_resources().get("CPU", 1) / num_cpus))
    running: dict[ray.ObjectRef, int] = {}
    todo = iter(enumerate(arguments))
    while True:
        for number, values in todo:
            running[task.remote(*values)] = number
            if len(running) >= most:
                break
        if not running:
            return
        (ready,), _ = ray.wait(list(running))
        try:
            result = ray.get(ready)
        except RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause).splitlines()[0]) from None
            raise
        yield running.pop(ready), result


def read_samples(
    chosen: Mapping[str, Chosen], wanted: Iterable[tuple[str, Sample]], image_size: int, channels: int
) -> dict[tuple[str, str], np.ndarray]:
    """Pixels of samples, uint8 (H, W, C), by run and sample id; all of them, in this process."""
    by_shard: dict[tuple[str, int], set[str]] = {}
    for run, sample in wanted:
        by_shard.setdefault((run, sample.shard), set()).add(sample.sample_id)
    shards = {(run, shard.shard): shard for run, one in chosen.items() for shard in one.manifest.shards}
    parts = sorted(by_shard.items())
    arguments = ((chosen[key[0]].uri, shards[key], ids, image_size, channels) for key, ids in parts)
    found: dict[tuple[str, str], np.ndarray] = {}
    for number, (names, pixels) in run_tasks(read_pixels, arguments, num_cpus=1):
        (run, _), _ = parts[number]
        found.update(zip([(run, name) for name in names], pixels, strict=True))
    return found


def measure_clusters(
    arguments: Iterable[tuple[Any, ...]], count: int, compute: ActorPoolConfig
) -> Iterator[tuple[int, ClusteredDistance]]:
    """Clustered LPIPS of samples among real defects, both uint8 (N, H, W, C); yields the number of each and what
    came of it, as it is done.

    Args:
        arguments: of each the samples, the real ones, the recipe of features, and how many of a cluster count.
        count: how many there are.
        compute: how they share the cluster.
    """
    resources = plan_resources(compute, living_nodes(), count)
    yield from run_tasks(_measure_clusters, arguments, resources.cpus_per_actor, resources.gpus_per_actor)


def _measure_clusters(
    fake: np.ndarray, real: np.ndarray, config: FeatureConfig, max_cluster: int
) -> ClusteredDistance:
    extractor = PERCEPTUAL[config.perceptual](config.perceptual_weights, _device())
    vectors = (extract(extractor, pixels, config.batch) for pixels in (fake, real))
    return clustered_distance(*vectors, max_cluster=max_cluster)


def fit_classifiers(
    data: DownstreamData, fits: Sequence[Fit], config: DownstreamConfig, compute: ActorPoolConfig
) -> Iterator[tuple[int, FitResult]]:
    """Trains classifiers side by side; yields the number of each and what came of it, as it is done."""
    resources = plan_resources(compute, living_nodes(), len(fits))
    shared = ray.put(data)  # once, and mapped into every task
    arguments = ((shared, fit, config) for fit in fits)
    yield from run_tasks(_fit, arguments, resources.cpus_per_actor, resources.gpus_per_actor)


def _fit(data: DownstreamData, fit: Fit, config: DownstreamConfig) -> FitResult:
    return run_fit(data, fit, config, _device())


def _device() -> torch.device:
    """A GPU where Ray has given one; else this process's one thread."""
    if ray.get_gpu_ids() and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")
