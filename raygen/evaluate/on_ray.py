"""The evaluation on Ray: features through an actor pool, then many small computations side by side.

Features are streamed by shard and kept by the digests of shard and extractor, and then lie in the cluster's
memory: the driver holds names and numbers, never features. Pixels it holds of a few samples to show; the
classifiers' alone are all there."""

import functools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.exceptions import RayTaskError

from raygen.config import ActorPoolConfig
from raygen.data.photo import Photo
from raygen.errors import UserError
from raygen.evaluate.alternatives import Alternative
from raygen.evaluate.clusters import Clustering, measure_clustering
from raygen.evaluate.config import DownstreamConfig, FeatureConfig, ProbeConfig
from raygen.evaluate.downstream import DownstreamData, Fit, FitResult, run_fit
from raygen.evaluate.feature_cache import Cache, Source
from raygen.evaluate.features import Extractor, extract
from raygen.evaluate.own_features import train_own
from raygen.evaluate.probe_fits import ProbeInput, ProbeResult, fit_probes_of
from raygen.evaluate.samples import Chosen, Sample, read_pixels
from raygen.evaluate.segmentation import SegmentationInput, SegmentationResult, segment_all
from raygen.metrics import ClusteredDistance
from raygen.on_ray import ALLOCATOR, Stage, chain_stages, living_nodes, prepare_data
from raygen.relay import tells
from raygen.resources import plan_resources

T = TypeVar("T")
G = TypeVar("G")

Build = Callable[[torch.device], Extractor]


def train_extractor(photos: Sequence[Photo], image_size: int, channels: int, seed: int) -> bytes:
    """`train_own`, in a task: its weights."""
    ((_, weights),) = run_tasks(_train_own, [(photos, image_size, channels, seed)], num_cpus=1)
    return weights


def _train_own(photos: Sequence[Photo], image_size: int, channels: int, seed: int) -> bytes:
    torch.set_num_threads(1)
    return train_own(photos, image_size, channels, seed)


def extract_features(
    sources: Sequence[Source],
    build: Build,
    batch: int,
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
        build: builds the extractor on a device.
        batch: images in one forward pass.
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
        compute=Stage(_ExtractActor, {"build": build, "images": batch}),
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

    def __init__(self, build: Build, images: int) -> None:
        self.build, self.images = build, images

    @functools.cached_property
    def extractor(self) -> Extractor:
        return self.build(_device())

    def __call__(self, batch: pa.Table) -> pa.Table:
        return tells(self.extract)(batch)

    def extract(self, batch: pa.Table) -> pa.Table:
        features = extract(self.extractor, _unpack(batch, np.uint8), self.images)
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


class Placed(NamedTuple):
    """Features that lie in the cluster, not in this process: the first `num` rows of an array (N, D)."""

    features: ray.ObjectRef
    num: int

    def first(self, num: int) -> "Placed":
        """At most so many."""
        return Placed(self.features, min(num, self.num))


@dataclass(frozen=True)
class Selection:
    """Features one after the other; a task reads them as one array."""

    parts: tuple[Placed, ...]

    def __len__(self) -> int:
        return sum(part.num for part in self.parts)

    def read(self) -> np.ndarray:
        """float32 (N, D)."""
        arrays = ray.get([part.features for part in self.parts])
        cut = [array[: part.num] for array, part in zip(arrays, self.parts, strict=True)]
        return np.concatenate(cut) if cut else np.empty((0, 1), np.float32)


def place_features(
    cache: Cache, wanted: Mapping[str, tuple[Sequence[str], Mapping[G, Sequence[str]]]]
) -> dict[str, dict[G, Placed]]:
    """Features out of the cache into the cluster's memory, a task for each set of them.

    Args:
        cache: where they are.
        wanted: of each set the keys that hold it, and the names of each group of its images.
    """
    placed: dict[str, dict[G, Placed]] = {}
    for name, (keys, groups) in wanted.items():
        task = _remote(_gather, num_cpus=1).options(num_returns=len(groups))
        refs: Any = task.remote(cache, keys, list(groups.values()))
        refs = refs if len(groups) > 1 else [refs]
        parts = zip(groups.items(), refs, strict=True)
        placed[name] = {group: Placed(ref, len(names)) for (group, names), ref in parts}
    refs = [one.features for groups in placed.values() for one in groups.values()]
    ray.wait(refs, num_returns=len(refs), fetch_local=False)  # else tasks that read them hold CPUs and wait
    return placed


def _gather(cache: Cache, keys: Sequence[str], groups: Sequence[Sequence[str]]) -> Any:
    found = cache.gather(keys, groups)
    return found if len(groups) > 1 else found[0]


def run_on_features(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]
) -> Iterator[tuple[int, T]]:
    """`run_tasks` for a function of features, (N, D), which are given it as Selections."""
    todo = ((function, *values) for values in arguments)
    yield from run_tasks(_on_features, todo, num_cpus=1)


def _on_features(function: Callable[..., T], *values: Any) -> T:
    return function(*(value.read() if isinstance(value, Selection) else value for value in values))


def run_tasks(
    function: Callable[..., T], arguments: Iterable[tuple[Any, ...]], num_cpus: float, num_gpus: float = 0
) -> Iterator[tuple[int, T]]:
    """Runs a function on many arguments as Ray tasks, a few ahead of what the cluster can hold at a time.

    Yields:
        The number of the arguments, and what came of them, in the order in which they are done.

    Raises:
        UserError: that a task raised.
    """
    task = _remote(function, num_cpus, num_gpus)
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


def _remote(function: Callable[..., Any], num_cpus: float, num_gpus: float = 0) -> Any:
    options: Any = {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": ALLOCATOR}}
    return ray.remote(**options)(function)


def read_samples(
    chosen: Mapping[str, Chosen],
    wanted: Iterable[tuple[str, Sample]],
    image_size: int,
    channels: int,
    read: Callable[..., tuple[list[str], np.ndarray]] = read_pixels,
) -> dict[tuple[str, str], np.ndarray]:
    """Pixels of samples, uint8 (H, W, C), by run and sample id; all of them, in this process.

    Args:
        chosen: the runs.
        wanted: run and sample.
        image_size, channels: the samples' own.
        read: `read_pixels`, or another function of the same arguments.
    """
    by_shard: dict[tuple[str, int], set[str]] = {}
    for run, sample in wanted:
        by_shard.setdefault((run, sample.shard), set()).add(sample.sample_id)
    parts = sorted(by_shard.items())
    arguments = (
        (chosen[run].uri, chosen[run].shards[shard], ids, image_size, channels) for (run, shard), ids in parts
    )
    found: dict[tuple[str, str], np.ndarray] = {}
    for number, (names, pixels) in run_tasks(read, arguments, num_cpus=1):
        (run, _), _ = parts[number]
        found.update(zip([(run, name) for name in names], pixels, strict=True))
    return found


def measure_clusters(
    clusterings: Iterable[Clustering],
    count: int,
    size: tuple[int, int],
    config: FeatureConfig,
    max_cluster: int,
    compute: ActorPoolConfig,
) -> Iterator[tuple[int, list[ClusteredDistance]]]:
    """Clustered LPIPS, in tasks that read the pixels themselves; yields the number of each and what came of it,
    one for each of its sets, as it is done.

    Args:
        clusterings: what is clustered.
        count: how many there are.
        size: image_size and channels: the samples' own.
        config: the recipe of features.
        max_cluster: how many of a cluster count.
        compute: how tasks share the cluster.
    """
    resources = plan_resources(compute, living_nodes(), count)
    arguments = ((one, size, config, max_cluster) for one in clusterings)
    yield from run_tasks(_measure_clusters, arguments, resources.cpus_per_actor, resources.gpus_per_actor)


def _measure_clusters(
    clustering: Clustering, size: tuple[int, int], config: FeatureConfig, max_cluster: int
) -> list[ClusteredDistance]:
    return measure_clustering(clustering, *size, config, max_cluster, _device())


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


def seconds_to_make(alternative: Alternative, image_size: int, channels: int) -> float:
    """What it takes to make samples without a training, on one core."""
    ((_, seconds),) = run_tasks(_time_making, [(alternative, image_size, channels)], num_cpus=1)
    return seconds


def _time_making(alternative: Alternative, image_size: int, channels: int) -> float:
    started = time.monotonic()
    alternative.make(image_size, channels)
    return time.monotonic() - started


def fit_probes(
    inputs: Iterable[ProbeInput], cache: Cache, config: ProbeConfig
) -> Iterator[tuple[int, list[ProbeResult]]]:
    """Fits the probes of each draw of photos, side by side; yields its number and what came of it, when done."""
    yield from run_tasks(_fit_probes, ((one, cache, config) for one in inputs), num_cpus=1)


def _fit_probes(data: ProbeInput, cache: Cache, config: ProbeConfig) -> list[ProbeResult]:
    torch.set_num_threads(1)
    return fit_probes_of(data, cache, config)


def segment(
    inputs: Iterable[SegmentationInput], config: ProbeConfig
) -> Iterator[tuple[int, list[SegmentationResult]]]:
    """Likewise the probes of pixels."""
    yield from run_tasks(_segment, ((one, config) for one in inputs), num_cpus=1)


def _segment(data: SegmentationInput, config: ProbeConfig) -> list[SegmentationResult]:
    return segment_all(data, config, _device())


def _device() -> torch.device:
    """A GPU where Ray has given one; else this process's one thread."""
    if ray.get_gpu_ids() and torch.cuda.is_available():
        return torch.device("cuda")
    torch.set_num_threads(1)
    return torch.device("cpu")
