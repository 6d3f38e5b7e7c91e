"""The main job from config to manifest: check, plan, work, sum up, show."""

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from raygen import images, storage
from raygen.checkpoint import Checkpoint, load_checkpoint
from raygen.config import ActorPoolConfig, check_writable, refuse_lost_places
from raygen.data.runs import CellStats, Manifest, Run, done_shards, read_manifest, read_run
from raygen.families import family_of
from raygen.generate.config import ComputeConfig, GenerateConfig
from raygen.generate.judging import judge_warnings
from raygen.generate.plan import draft_run, open_run, refuse_another, unseen_products
from raygen.generate.probe import probe
from raygen.generate.shards import write_manifest
from raygen.generate.sheet import contact_sheet
from raygen.generate.sizing import Sizing, wishes
from raygen.resources import num_cores
from raygen.show import duration, size

CONTACT_SHEET = "contact-sheet.png"
_SHORT = 60.0  # seconds of a run whose shards are not worth a word
_MAX_CELLS = 24  # lines of the summary


def generate(config: GenerateConfig, say: Callable[[str], None] = print) -> Manifest:
    """Makes the defects that a config asks for; resumes what an earlier attempt left, does nothing twice.

    Args:
        config: the recipe.
        say: takes each line for the user.

    Raises:
        UserError: a wrong config, pool, output or checkpoint; before any work starts.
        PromiseError: more bad normals than allowed; what was written stays.
    """
    started = time.monotonic()
    places = {"pool": config.pool, "output": config.output, "checkpoint": config.checkpoint}
    refuse_lost_places(places | ({"gate.judge": config.gate.judge} if config.gate.judge else {}))
    checkpoint = load_checkpoint(config.checkpoint)
    manifest = read_manifest(config.output)
    if manifest is None:
        say(f"indexing {config.pool} …")
        check_writable(config.output)
    run = open_run(config, checkpoint, say)
    _say_what(config, run, checkpoint, say)
    if manifest is not None:
        say(f"{config.output} is complete: nothing to do")
        return manifest

    from raygen.generate import on_ray  # here, so that a refusal or a no-op costs no start of Ray
    from raygen.on_ray import connected

    with connected():
        stats = on_ray.run_shards(config, run, checkpoint, say)
    storage.put(storage.join(config.output, CONTACT_SHEET), contact_sheet(config, run, stats))
    manifest = write_manifest(config.output, run.run_id, stats)
    _say_result(config, run, manifest, time.monotonic() - started, say)
    return manifest


def dry_run(config: GenerateConfig, say: Callable[[str], None] = print) -> None:
    """Says what `generate` would do, how much it would write and how long it would take; writes nothing."""
    checkpoint = load_checkpoint(config.checkpoint)
    say(config.model_dump_json(indent=2))
    run = read_run(config.output)
    if run is None:
        with tempfile.TemporaryDirectory() as folder:
            run = draft_run(config, checkpoint, Path(folder) / "plan.parquet", say)
    else:
        refuse_another(run, config, checkpoint.digest)
        say(f"{config.output} holds this run: {len(done_shards(config.output)):,} of its shards are done")
    _say_what(config, run, checkpoint, say)
    found = probe(config, run, checkpoint)
    if found is None:
        say("none of the first files is a usable image: no estimate")
        return
    say(f"about {size(found.num_bytes * run.num_normals)}; measured on this machine:")
    compute = wishes(config, checkpoint)
    sizing = Sizing(found.costs, num_cores(), _num_accelerators(compute))
    for line in sizing.describe(run.num_normals, len(run.requests)):
        say(line)
    chosen = sizing.compute(compute).model_dump(include=set(ActorPoolConfig.model_fields))
    keys = ", ".join(f"{key} = {value:g}" for key, value in chosen.items() if value is not None)
    say(f'proposed for this machine, as compute = "auto" would have it: compute = {{{keys}}}')
    shard = sizing.normals_per_shard(run.num_normals, found.num_bytes)
    takes_long = run.num_normals / sizing.rate > _SHORT
    if takes_long and not config.normals_per_shard / 2 <= shard <= config.normals_per_shard * 2:
        say(
            f"normals_per_shard = {shard} would suit it better than {config.normals_per_shard} (in a new run): "
            f"shards of {size(shard * found.num_bytes)}, {shard * sizing.costs.core:.1f} s of a core each"
        )
    for micro_batch, times in found.faster_at.items():
        say(
            f"micro_batch = {micro_batch} would generate {times:.1f} times as fast (in a new run: other last bits)"
        )


def _num_accelerators(compute: ComputeConfig) -> int:
    """This machine's GPUs, or the actors that simulate one each."""
    import torch

    gpus = torch.cuda.device_count() if compute.gpus_per_actor != 0 else 0
    return gpus or compute.num_actors or 1


def _say_what(config: GenerateConfig, run: Run, checkpoint: Checkpoint, say: Callable[[str], None]) -> None:
    products = ", ".join(f"{name} {count:,}" for name, count in run.products.items())
    say(f"{run.num_normals:,} normals ({products}) in {run.num_shards:,} shards")
    say(
        f"{len(run.requests)} samples each: "
        + ", ".join(f"{r.defect_type}/{r.mode}/{r.k}" for r in run.requests)
    )
    if checkpoint.config.images_seen == 0 and family_of(checkpoint).learns:
        say(f"WARNING: {checkpoint.uri} is untrained (images_seen = 0): its defects mean nothing")
    if config.roi and (free := [name for name in run.products if name not in run.rois]):
        say(
            f"WARNING: {', '.join(free)}: no region of interest in {config.roi}; defects may lie anywhere on them"
        )
    for warning in family_of(checkpoint).warnings(checkpoint, config) + judge_warnings(config, run):
        say(f"WARNING: {warning}")
    if unseen := unseen_products(run.products, checkpoint):
        say(
            f"WARNING: {', '.join(unseen)}: not among the products the checkpoint has seen "
            f"({', '.join(checkpoint.config.products)}); look at the samples before you use them"
        )


def _say_result(
    config: GenerateConfig, run: Run, manifest: Manifest, seconds: float, say: Callable[[str], None]
) -> None:
    made = f"{manifest.num_samples:,} samples ({_counts(manifest.products)})"
    say(f"{made}, {size(manifest.num_bytes)}, in {duration(seconds)}")
    for reason, count in manifest.rejects.items():
        say(f"{count:,} normals rejected: {reason} ({images.REASONS[reason]})")
    for cell in manifest.cells[:_MAX_CELLS] if run.is_judged else ():
        say(_fate(cell))
    if run.is_judged and len(manifest.cells) > _MAX_CELLS:
        say(f"… and {len(manifest.cells) - _MAX_CELLS} more in manifest.json")
    say(f"look at {storage.join(config.output, CONTACT_SHEET)}")


def _fate(cell: CellStats) -> str:
    """`metal/scratches/latent: 37 of 40 accepted (1.3 attempts each); 3 kept below the gate: 3 min_type_prob`"""
    text = f"{'/'.join(cell.cell)}: {cell.accepted:,} of {cell.asked:,} accepted"
    text += f" ({cell.attempts / cell.asked:.1f} attempts each)"
    for name, count in (("kept below the gate", cell.kept), ("dropped", cell.dropped)):
        text += f"; {count:,} {name}" if count else ""
    reasons = ", ".join(f"{count:,} {rule}" for rule, count in cell.reasons.items())
    return f"{text}: {reasons}" if reasons else text


def _counts(products: Mapping[str, int]) -> str:
    """`metal 40, fabric 40`; of very many the first, and how many more."""
    some = [f"{name} {count:,}" for name, count in list(products.items())[:8]]
    more = len(products) - len(some)
    return ", ".join(some) + (f" and {more:,} more products" if more else "")
