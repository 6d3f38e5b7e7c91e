"""Does a run folder hold what its manifest promises? Recounts, rehashes and decodes everything."""

import hashlib
import io
import multiprocessing
import os
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import storage
from raygen.errors import PromiseError, UserError
from raygen.generate.plan import Run, read_plan, read_run
from raygen.generate.shards import (
    MANIFEST,
    Manifest,
    ShardStats,
    done_shards,
    read_manifest,
    read_rejects,
    read_shard,
    read_stats,
)
from raygen.images import BadImageError, inspect_png
from raygen.records import SampleRequest, sample_id, sample_seed


def verify_run(output_uri: str, num_processes: int | None = None) -> Manifest:
    """Checks a run folder against its plan, byte by byte and sample by sample.

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
        context = multiprocessing.get_context("spawn")  # a fork would share connections
        num_processes = min(num_processes or os.cpu_count() or 1, len(manifest.shards))
        with ProcessPoolExecutor(num_processes, mp_context=context) as pool:
            for found in pool.map(partial(verify_shard, output_uri, run), manifest.shards):
                problems += found
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise PromiseError(
            f"{output_uri} does not hold what it promises: {'; '.join(problems[:3])}{more}; to mend it, delete "
            f"{MANIFEST}, the .json of these shards and files that nobody knows, then run the same command again"
        )
    return manifest


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
    expect("samples and rejects", manifest.num_samples + rejected * len(run.requests), run.num_samples)
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
    rejected = rejects["uri"].to_pylist()
    reasons = dict(sorted(Counter(rejects["reason"].to_pylist()).items()))
    if reasons != stats.rejects:
        problems.append(f"{where}: rejects {reasons}, not {stats.rejects}")
    if samples.num_rows != stats.num_samples:
        problems.append(f"{where}: {samples.num_rows} samples, not {stats.num_samples}")
    if dict(sorted(Counter(samples["product"].to_pylist()).items())) != stats.products:
        problems.append(f"{where}: its samples by product are not {stats.products}")
    planned = read_plan(output_uri, run, stats.shard)["uri"].to_pylist()
    wanted = [(uri, *request) for uri in planned if uri not in set(rejected) for request in run.requests]
    columns = (samples[name].to_pylist() for name in ("normal_uri", "defect_type", "mode", "k"))
    if list(zip(*columns, strict=True)) != wanted or not set(rejected) <= set(planned):
        problems.append(f"{where}: its samples and rejects are not those of the plan")
    if run.layout == "png":
        known = {stats.file} | {
            stats.file.replace("metadata.parquet", row["path"]) for row in samples["image"].to_pylist()
        }
        for entry in storage.list_files(storage.join(output_uri, stats.file.rpartition("/")[0])):
            problems += _unknown(output_uri, entry, known)
    return problems + _check_samples(where, run, stats, samples)


def _check_samples(where: str, run: Run, stats: ShardStats, samples: pa.Table) -> list[str]:
    problems: list[str] = []
    for row in samples.to_pylist():
        sample = f"{where}, sample {row['sample_id']}"
        request = SampleRequest(row["defect_type"], row["mode"], row["k"])
        seed = sample_seed(row["normal_sha256"], run.checkpoint, request, run.seed)
        expected = {
            "seed": seed,
            "sample_id": sample_id(row["normal_uri"], seed),
            "checkpoint": run.checkpoint,
            "run_id": run.run_id,
            "shard": stats.shard,
            "image_sha256": hashlib.sha256(row["image"]["bytes"]).hexdigest(),
            "height": run.image_size,
            "width": run.image_size,
        }
        wrong = [name for name, value in expected.items() if row[name] != value]
        if wrong:
            problems.append(f"{sample}: wrong {', '.join(wrong)}")
            continue
        try:
            shape = inspect_png(row["image"]["bytes"])
        except BadImageError as error:
            problems.append(f"{sample}: not an image ({error})")
            continue
        if shape != (run.image_size, run.image_size, run.channels):
            problems.append(f"{sample}: an image of {shape}")
    return problems
