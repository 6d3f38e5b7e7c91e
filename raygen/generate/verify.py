"""Does a run folder hold what its manifest promises? Recounts, rehashes and decodes everything."""

import hashlib
import io
import multiprocessing
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.data.runs import (
    MANIFEST,
    Manifest,
    Run,
    ShardStats,
    done_shards,
    read_manifest,
    read_rejects,
    read_run,
    read_shard,
    read_stats,
    sum_cells,
)
from raygen.errors import PromiseError, UserError
from raygen.families.masks import boxes
from raygen.generate.config import GenerateConfig
from raygen.generate.gate import failed_rule
from raygen.generate.plan import read_plan
from raygen.images import BadImageError, decode_photo
from raygen.records import SampleRequest, sample_id, sample_seed

_REQUEST = ("defect_type", "mode", "k")


def verify_run(output_uri: str, num_processes: int | None = None) -> Manifest:
    """Checks a run folder against its plan, byte by byte and sample by sample: on the cluster that RAY_ADDRESS
    names, as it does in a job, or on this machine's cores.

    That each sample stands exactly once follows shard by shard: the plan gives every normal to one shard, and a
    shard must hold exactly the samples of its normals, each under the id and seed that its row decides.

    Returns:
        The manifest, every word of which holds.

    Raises:
        UserError: there is no run.
        PromiseError: the run is not complete, or does not hold what it promises; names the first problems.
    """
    output_uri = storage.normalize(output_uri)
    run = read_run(output_uri)
    if run is None:
        raise UserError(f"{output_uri}: no run there (no run.json)")
    manifest = read_manifest(output_uri)
    if manifest is None:
        done = len(done_shards(output_uri))
        raise PromiseError(
            f"{output_uri} is not complete: {done} of {run.num_shards} shards done; run the same command again"
        )
    problems = _check_totals(output_uri, run, manifest)
    if not problems:
        for found in _map(partial(verify_shard, output_uri, run), manifest.shards, num_processes):
            problems += found
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise PromiseError(
            f"{output_uri} does not hold what it promises: {'; '.join(problems[:3])}{more}; to mend it, delete "
            f"{MANIFEST}, the .json of these shards and files that nobody knows, then run the same command again"
        )
    return manifest


def _map(
    check: Callable[[ShardStats], list[str]], shards: Sequence[ShardStats], num_processes: int | None
) -> Iterable[list[str]]:
    address = os.environ.get("RAY_ADDRESS", "")
    if address and not address.startswith("http"):  # by which one submits a job; in the job it is another
        from raygen.on_ray import connected, map_tasks

        with connected():
            yield from map_tasks(check, shards)
        return
    context = multiprocessing.get_context("spawn")  # a fork would share connections
    num_processes = min(num_processes or os.cpu_count() or 1, len(shards))
    with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
        yield from pool.map(check, shards)


def _check_totals(output_uri: str, run: Run, manifest: Manifest) -> list[str]:
    """Problems that show without opening a shard."""
    problems: list[str] = []

    def expect(what: str, found: object, wanted: object) -> None:
        if found != wanted:
            problems.append(f"{what}: {found!r}, not {wanted!r}")

    try:
        plan = storage.read(storage.join(output_uri, run.plan))
    except storage.ObjectMissingError:
        return [f"{run.plan}: missing"]
    expect("SHA-256 of the plan", f"plan/{hashlib.sha256(plan).hexdigest()}.parquet", run.plan)
    if not problems:
        # Shards are checked one by one, so that a normal stands once follows from its standing once in the plan.
        uris = pq.read_table(io.BytesIO(plan), columns=["uri"])["uri"]
        expect("distinct normals in the plan", len(uris.unique()), run.num_normals)
    expect(f"run_id in {MANIFEST}", manifest.run_id, run.run_id)
    expect(f"shards in {MANIFEST}", [shard.shard for shard in manifest.shards], list(range(run.num_shards)))
    expect("shards marked done", sorted(done_shards(output_uri)), list(range(run.num_shards)))
    expect("normals", manifest.num_normals, run.num_normals)
    rejected = sum(manifest.rejects.values())
    dropped = sum(cell.dropped for cell in manifest.cells)
    expect(
        "samples, dropped and rejected ones",
        manifest.num_samples + dropped + rejected * len(run.requests),
        run.num_samples,
    )
    expect("cells", manifest.cells, sum_cells(cell for shard in manifest.shards for cell in shard.cells))
    for field in ("num_normals", "num_samples", "num_bytes"):
        expect(field, getattr(manifest, field), sum(getattr(shard, field) for shard in manifest.shards))
    for field in ("products", "rejects"):
        total = sum((Counter(getattr(shard, field)) for shard in manifest.shards), Counter())
        expect(field, getattr(manifest, field), dict(total))
    known = {f"shards/{shard.shard:05d}.json" for shard in manifest.shards}
    known |= {f"rejects/{shard.shard:05d}.parquet" for shard in manifest.shards}
    known |= {shard.file for shard in manifest.shards}
    for folder in ("shards", "rejects"):
        for entry in storage.list_files(storage.join(output_uri, folder), deep=False):
            problems += _unknown(output_uri, entry, known)
    return problems


def _unknown(output_uri: str, entry: storage.Entry, known: set[str]) -> list[str]:
    name = entry.uri.removeprefix(f"{output_uri}/")
    return [] if name in known else [f"{name}: a file that nobody knows"]


def verify_shard(output_uri: str, run: Run, stats: ShardStats) -> list[str]:
    """The problems of one shard, none if it is what it should be."""
    where = stats.file
    try:
        [stored] = read_stats(output_uri, {stats.shard})
        data = storage.read(storage.join(output_uri, stats.file))
        if hashlib.sha256(data).hexdigest() != stats.sha256 or stored != stats:
            return [f"{where}: its SHA-256 or its stats differ from those in the manifest"]
        samples = read_shard(output_uri, stats)
        rejects = read_rejects(output_uri, stats)
    except storage.ObjectMissingError as error:
        return [f"{error}: missing"]
    except PromiseError as error:
        return [str(error)]
    problems: list[str] = []
    rejects = rejects.to_pylist()
    rejected = {row["uri"] for row in rejects if row["sample_id"] is None}
    dropped = {tuple(row[name] for name in ("uri", *_REQUEST)) for row in rejects if row["sample_id"]}
    reasons = dict(sorted(Counter(row["reason"] for row in rejects if row["sample_id"] is None).items()))
    if reasons != stats.rejects:
        problems.append(f"{where}: rejects {reasons}, not {stats.rejects}")
    if (fates := _fates(samples, rejects)) != _fates_told(stats):
        problems.append(f"{where}: accepted, kept and dropped samples are {fates}, not {_fates_told(stats)}")
    if samples.num_rows != stats.num_samples:
        problems.append(f"{where}: {samples.num_rows} samples, not {stats.num_samples}")
    if dict(sorted(Counter(samples["product"].to_pylist()).items())) != stats.products:
        problems.append(f"{where}: its samples by product are not {stats.products}")
    planned = read_plan(output_uri, run, stats.shard)["uri"].to_pylist()
    asked = [(uri, *request) for uri in planned if uri not in rejected for request in run.requests]
    wanted = [sample for sample in asked if sample not in dropped]
    columns = (samples[name].to_pylist() for name in ("normal_uri", *_REQUEST))
    found = list(zip(*columns, strict=True))
    if found != wanted or not rejected <= set(planned) or not dropped <= set(asked):
        problems.append(f"{where}: its samples and rejects are not those of the plan")
    if run.layout == "png":
        files = samples["image"].to_pylist() + samples["mask"].to_pylist()
        known = {stats.file} | {stats.file.replace("metadata.parquet", file["path"]) for file in files}
        for entry in storage.list_files(storage.join(output_uri, stats.file.rpartition("/")[0])):
            problems += _unknown(output_uri, entry, known)
    return problems + _check_samples(where, run, stats, samples)


def _fates(samples: pa.Table, rejects: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[int]]:
    """Cell -> how many samples were accepted, kept and dropped, counted from what is there."""
    fates: dict[tuple[str, str, str], list[int]] = {}
    cells = zip(*(samples[name].to_pylist() for name in ("product", "defect_type", "mode")), strict=True)
    for cell, accepted in zip(cells, samples["accepted"].to_pylist(), strict=True):
        fates.setdefault(cell, [0, 0, 0])[0 if accepted else 1] += 1
    for row in rejects:
        if row["sample_id"]:
            fates.setdefault((row["product"], row["defect_type"], row["mode"]), [0, 0, 0])[2] += 1
    return fates


def _fates_told(stats: ShardStats) -> dict[tuple[str, str, str], list[int]]:
    """The same as the stats tell it."""
    return {cell.cell: [cell.accepted, cell.kept, cell.dropped] for cell in stats.cells}


def _check_samples(where: str, run: Run, stats: ShardStats, samples: pa.Table) -> list[str]:
    config = GenerateConfig.model_validate(run.config)
    problems: list[str] = []
    for row in samples.to_pylist():
        sample = f"{where}, sample {row['sample_id']}"
        try:
            if wrong := _wrong_columns(row, run, stats, config):
                problems.append(f"{sample}: wrong {', '.join(wrong)}")
        except BadImageError as error:
            problems.append(f"{sample}: not an image ({error})")
    return problems


def _wrong_columns(row: dict[str, Any], run: Run, stats: ShardStats, config: GenerateConfig) -> list[str]:
    """The columns of a sample that are not what the others, and its images, make them."""
    request = SampleRequest(row["defect_type"], row["mode"], row["k"])
    seed, first_seed = (
        sample_seed(row["normal_sha256"], run.checkpoint, request, run.seed, attempt)
        for attempt in (row["attempt"], 0)
    )
    expected = {
        "seed": seed,
        "sample_id": sample_id(row["normal_uri"], first_seed),
        "checkpoint": run.checkpoint,
        "run_id": run.run_id,
        "shard": stats.shard,
        "image_sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest(),
        "mask_sha256": hashlib.sha256(row["mask"]["bytes"]).hexdigest(),
        "accepted": row["reject_reason"] is None,
    }
    if run.is_judged:
        expected["reject_reason"] = failed_rule(row, config.gate)
    if not config.native:
        expected |= {"height": run.image_size, "width": run.image_size}
        expected |= {"window_y": 0, "window_x": 0, "window_size": run.image_size}
    wrong = [name for name, value in expected.items() if row[name] != value]
    if wrong:
        return wrong
    image = decode_photo(row["image"]["bytes"], max_pixels=2**31, deep=True)
    mask = decode_photo(row["mask"]["bytes"], max_pixels=2**31)
    size = (row["height"], row["width"])
    if image.shape[:2] != size or (image.shape[2] != run.channels and not config.native):
        wrong.append("image")
    if mask.shape != (*size, 1) or not np.isin(np.unique(mask), (0, 255)).all():
        return [*wrong, "mask"]
    y, x, side = row["window_y"], row["window_x"], row["window_size"]
    inside = mask[y : y + side, x : x + side, 0] > 0
    if inside.sum() != (mask > 0).sum():
        wrong.append("window")
    return wrong if boxes(inside, y, x) == row["boxes"] else [*wrong, "boxes"]
