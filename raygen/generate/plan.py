"""The plan: the pool's listing cut into shards, frozen in the run folder before any work starts.

A run begins with one conditional put of run.json, which names the frozen plan by its SHA-256. Of two jobs that
begin the same run at once, one wins and the other works to the winner's plan.
"""

import functools
import hashlib
import itertools
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from raygen import __version__, storage
from raygen.checkpoint import Checkpoint
from raygen.data.pixel_ranges import PixelRanges
from raygen.data.pool import Normal, index_pool
from raygen.data.runs import RUN, Run, read_run
from raygen.errors import UserError, did_you_mean
from raygen.families import family_of
from raygen.generate.config import GenerateConfig
from raygen.generate.judging import deciding, judge_digest, read_judge, refuse_other_judges
from raygen.generate.windows import read_region
from raygen.learned import LEARNED, united
from raygen.records import NORMAL, PLAN_SCHEMA, SampleRequest, digest, plan_requests

_MAX_SHARD_BYTES = 2**30  # of a shard's samples before they are encoded: a task holds them all at once


def open_run(
    config: GenerateConfig, checkpoint: Checkpoint, say: Callable[[str], None] = lambda _: None
) -> Run:
    """Begins the run of a config in its output folder, or resumes the one that stands there.

    Raises:
        UserError: the folder holds another run, or the pool is missing or empty.
    """
    run = read_run(config.output)
    if run is None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan.parquet"
            run = draft_run(config, checkpoint, file, say)
            with file.open("rb") as data:
                storage.put(storage.join(config.output, run.plan), data)
            if (learned := _learned(config, checkpoint)) is not None:
                assert run.learned is not None
                storage.put(storage.join(config.output, run.learned), learned)
        if storage.put_if_absent(storage.join(config.output, RUN), run.model_dump_json(indent=2).encode()):
            return run
        run = read_run(config.output)  # another job began it in the meantime
        assert run is not None
    refuse_another(run, config, checkpoint.digest)
    return run


def draft_run(
    config: GenerateConfig,
    checkpoint: Checkpoint,
    plan_file: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Run:
    """Indexes the pool and cuts its plan into a local file; writes nothing to the output."""
    requests = choose_requests(config, checkpoint)
    image_size, channels = checkpoint.config.image_size, checkpoint.config.channels
    _refuse_large_shards(config, checkpoint, len(requests))
    products: Counter[str] = Counter()
    ranges = PixelRanges(config.max_pixels)
    looks = config.pixel_range == "auto" and not config.draws_normals
    num_shards = 0
    with pq.ParquetWriter(plan_file, PLAN_SCHEMA, write_statistics=False) as writer:
        for shard, rows in enumerate(
            _batched(
                index_pool(config.pool, config.product, checkpoint.config.products, say),
                config.normals_per_shard,
            )
        ):
            writer.write_table(plan_table(rows, shard, shard * config.normals_per_shard))
            products.update(normal.product for normal in rows)
            for normal in rows if looks else ():
                ranges.add(normal)
            num_shards = shard + 1
    with plan_file.open("rb") as file:
        fingerprint = hashlib.file_digest(file, "sha256").hexdigest()
    learned = _learned(config, checkpoint)
    run = Run(
        run_id=digest(
            json.dumps(deciding(config), sort_keys=True), checkpoint.digest, fingerprint, num_bytes=8
        ),
        config=config.model_dump(mode="json"),
        checkpoint=checkpoint.digest,
        judge=judge_digest(config),
        is_judged=config.masks and family_of(checkpoint).has_masks,
        image_size=image_size,
        channels=channels,
        requests=requests,
        plan=f"plan/{fingerprint}.parquet",
        learned=None if learned is None else f"learned/{hashlib.sha256(learned).hexdigest()}.parquet",
        num_normals=products.total(),
        num_shards=num_shards,
        products=dict(sorted(products.items())),
        rois=_read_rois(config, products),
        pixel_ranges=ranges.choose(config.pool, say)
        if isinstance(config.pixel_range, str)
        else {"": config.pixel_range},
        versions=versions(),
    )
    _check_references(config, checkpoint, run)
    refuse_unseen(config, run.products, checkpoint)
    return run


def refuse_unseen(config: GenerateConfig, products: Iterable[str], checkpoint: Checkpoint) -> None:
    """Raises UserError if the checkpoint has not seen one of a pool's products, unless the recipe allows it."""
    if config.strict_products and (unseen := unseen_products(products, checkpoint)):
        known = checkpoint.config.products
        named = ", ".join(name + did_you_mean(name, known) for name in unseen)
        raise UserError(
            f"pool {config.pool}: {named}: not among the checkpoint's products ({', '.join(known)}); mend the "
            "names, train on them, or set strict_products = false"
        )


def _learned(config: GenerateConfig, checkpoint: Checkpoint) -> bytes | None:
    """What a run's samples know of real photos: those that its checkpoint, and its judge, learned from. None where
    the checkpoint does not say."""
    if LEARNED not in checkpoint.files:
        return None
    judge = read_judge(config)
    return united([one.files[LEARNED] for one in (checkpoint, judge) if one and LEARNED in one.files])


def choose_requests(config: GenerateConfig, checkpoint: Checkpoint) -> tuple[SampleRequest, ...]:
    """What is made for one normal.

    Raises:
        UserError: a mode that the checkpoint does not have; a defect type that it does not know, or has no
            references of; masks of one that has no defect layers; or a judge that is none, or does not know a
            type.
    """
    family = family_of(checkpoint)
    family.refuse(checkpoint, config)
    _refuse_other_pools(config, checkpoint)
    modes = family.modes(checkpoint)
    for name in config.modes:
        if name not in modes:
            raise UserError(
                f"modes: {checkpoint.uri} makes no {name} samples; set modes = {json.dumps(modes)}"
            )
    known = checkpoint.config.defect_types
    for name in config.defect_types:
        if name not in known:
            raise UserError(
                f"defect_types: {name!r} is unknown to {checkpoint.uri}; it knows {', '.join(known)}"
            )
    wanted = config.defect_types or known
    if config.modes != ("latent",) and family.needs_references:
        for name in wanted:
            if not any(item.defect_type == name for item in checkpoint.references):
                raise UserError(f'{checkpoint.uri} holds no references of {name!r}; set modes = ["latent"]')
    counts = config.samples_per_cell
    if not isinstance(counts, int) and set(counts) != set(wanted):
        raise UserError(
            f"samples_per_cell names {', '.join(counts)}, and the defect types are {', '.join(wanted)}; give each "
            "its number, and leave types out by defect_types"
        )
    requests = plan_requests(wanted, config.modes, counts)
    if not requests:
        raise UserError(f"{checkpoint.uri}: knows no defect types; name a checkpoint that learned some")
    refuse_other_judges(config, checkpoint, family.has_masks, wanted)
    return (SampleRequest(NORMAL, "latent", 0), *requests) if config.write_normals else requests


def _refuse_other_pools(config: GenerateConfig, checkpoint: Checkpoint) -> None:
    """Raises UserError if a family cannot take its normals from where the config has them."""
    family = family_of(checkpoint)
    if config.draws_normals:
        if not family.draws_normals:
            raise UserError(f"pool {config.pool}: {checkpoint.uri} draws no normals; name photographs")
        if config.product and config.product not in checkpoint.config.products:
            raise UserError(
                f"product = {config.product!r}: {checkpoint.uri} draws {', '.join(checkpoint.config.products)}"
            )
    elif not family.takes_photographs:
        raise UserError(f"{checkpoint.uri} takes no photographs; set pool = seeds:0-1000, say")


def roi_uri(config: GenerateConfig, product: str) -> str:
    """Where a product's region of interest stands, if it has one."""
    assert config.roi is not None
    return storage.join(config.roi, f"{product}.png")


def _read_rois(config: GenerateConfig, products: Iterable[str]) -> dict[str, str]:
    """Product -> SHA-256 of its region of interest; those without one are not there.

    Raises:
        UserError: no product has one, or one is of no use.
    """
    if config.roi is None:
        return {}
    found: dict[str, str] = {}
    for product in sorted(products):
        uri = roi_uri(config, product)
        with suppress(storage.ObjectMissingError):
            found[product] = hashlib.sha256(storage.read(uri)).hexdigest()
            read_region(uri, found[product])
    if not found:
        raise UserError(
            f"roi {config.roi}: holds none of {', '.join(f'{name}.png' for name in sorted(products)[:3])} …; "
            "name the folder of the regions of interest, or leave roi out"
        )
    return found


def _refuse_large_shards(config: GenerateConfig, checkpoint: Checkpoint, num_requests: int) -> None:
    """Raises UserError if a shard's samples might not fit into a worker."""
    pixels = config.max_pixels if config.native else checkpoint.config.image_size**2
    channels = 3 if config.native else checkpoint.config.channels  # photographs may be in colour
    most = _MAX_SHARD_BYTES // (num_requests * pixels * channels)
    if config.normals_per_shard > most:
        largest = f"up to max_pixels = {config.max_pixels:,}" if config.native else f"{pixels:,}"
        mend = f"set at most {most}" if most else "lower max_pixels"
        raise UserError(
            f"normals_per_shard = {config.normals_per_shard}: at {num_requests} samples of {largest} pixels each "
            f"a shard would be too large for a worker's memory; {mend}"
        )


def _check_references(config: GenerateConfig, checkpoint: Checkpoint, run: Run) -> None:
    """Raises UserError if `reference_products` leaves a normal without references to guide its samples."""
    wanted = config.reference_products
    if wanted == "any" or config.modes == ("latent",) or not family_of(checkpoint).needs_references:
        return
    there = {(item.product.casefold(), item.defect_type) for item in checkpoint.references}
    for defect_type in dict.fromkeys(request.defect_type for request in run.requests):
        for names in [[product] for product in run.products] if wanted == "same" else [wanted]:
            if not any((name.casefold(), defect_type) in there for name in names):
                raise UserError(
                    f"reference_products = {wanted!r}: {checkpoint.uri} holds no references of {defect_type!r} of "
                    f'{", ".join(names)}; set "any", or a list of products that have some'
                )


def unseen_products(products: Iterable[str], checkpoint: Checkpoint) -> list[str]:
    """Those of a pool's products that the checkpoint was not trained on (compared without case)."""
    seen = {name.casefold() for name in checkpoint.config.products}
    return [name for name in products if name.casefold() not in seen] if seen else []


def versions() -> dict[str, str]:
    """Of what decides the last bit of a sample and of a shard. raygen's own is that of this very code: a job
    brings it along, whatever the cluster's image has installed."""
    packages = ("numpy", "opencv-python-headless", "pillow", "pyarrow", "torch")
    return {"raygen": __version__, **{name: version(name) for name in packages}}


def read_plan(output_uri: str, run: Run, shard: int) -> pa.Table:
    """The plan's rows of one shard, in PLAN_SCHEMA: one row group of the frozen plan."""
    uri = storage.join(output_uri, run.plan)
    with storage.open_input(uri) as stream, pq.ParquetFile(stream, metadata=_footer(uri)) as file:
        return file.read_row_group(shard)


@functools.lru_cache(maxsize=2)
def _footer(uri: str) -> pq.FileMetaData:
    # Kept: a worker reads many shards, and the footer of a plan of millions is megabytes.
    with storage.open_input(uri) as stream:
        return pq.read_metadata(stream)


def refuse_another(run: Run, config: GenerateConfig, checkpoint: str) -> None:
    """Raises UserError unless the run in the folder is the one that the config asks for."""
    wanted = {**config.identity(), "checkpoint": checkpoint, "gate.judge": judge_digest(config)}
    found = {
        **GenerateConfig.model_validate(run.config).identity(),
        "checkpoint": run.checkpoint,
        "gate.judge": run.judge,
    }
    for key in sorted(wanted):
        if wanted.get(key) != found.get(key):
            raise UserError(
                f"{config.output} holds another run: its {key} is {found.get(key)!r}, not {wanted.get(key)!r}; "
                "choose another output, or go back to that config"
            )


def plan_table(normals: list[Normal], shard: int, first_row: int) -> pa.Table:
    """Normals as rows of a plan (PLAN_SCHEMA)."""
    uris, products, sizes, etags = zip(*normals, strict=True)
    rows = range(first_row, first_row + len(normals))
    columns = [uris, products, sizes, etags, [shard] * len(normals), rows]
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, PLAN_SCHEMA, strict=True)],
        PLAN_SCHEMA,
    )


def _batched(normals: Iterable[Normal], size: int) -> Iterator[list[Normal]]:
    iterator = iter(normals)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
