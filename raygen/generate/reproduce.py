"""Makes a sample again from its row: the normal, the checkpoint and the seed are all it takes."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow.compute as pc

from raygen import images, storage
from raygen.data.runs import (
    Run,
    ShardStats,
    done_shards,
    read_columns,
    read_rejects,
    read_run,
    read_shard,
    read_stats,
)
from raygen.errors import PromiseError, UserError
from raygen.generate.config import GenerateConfig
from raygen.generate.encode import encode_samples
from raygen.generate.plan import read_plan, versions
from raygen.generate.stages import GenerateActor, read_planned


def reproduce(
    output_uri: str, sample_id: str, save: str | None = None, say: Callable[[str], None] = print
) -> None:
    """Makes a sample again, attempts and gate included, and compares it with the one in the run, byte for byte.

    Args:
        output_uri: the run folder; it need not be complete.
        sample_id: of a sample in one of its shards.
        save: a folder for the image and the mask, as they come out now.
        say: takes each line for the user.

    Raises:
        UserError: no such run or sample; its normal or checkpoint is not there any more, or has changed.
        PromiseError: something else comes out.
    """
    output_uri = storage.normalize(output_uri)
    run = read_run(output_uri)
    if run is None:
        raise UserError(f"{output_uri}: no run there (no run.json)")
    row = _find(output_uri, sample_id)
    config = GenerateConfig.model_validate(run.config)
    made = _make_again(output_uri, run, config, row)
    if save:
        for name, suffix in (("image", ".png"), ("mask", "_mask.png")):
            storage.put(storage.join(storage.normalize(save), f"{sample_id}{suffix}"), made[name]["bytes"])
    different = [name for name in row if row[name] != made[name]]
    what = f"{row['defect_type']}, {row['mode']}, on {row['normal_uri']}, attempt {row['attempt']}"
    if not different:
        say(f"{sample_id} ({what}): identical")
        return
    now = versions()
    names = [name for name in {**run.versions, **now} if run.versions.get(name) != now.get(name)]
    others = {name: (run.versions.get(name, "not noted"), now.get(name, "not noted")) for name in names}
    raise PromiseError(
        f"{sample_id} ({what}) comes out with another {', '.join(different)}; {_difference(row, made)}; "
        + (
            f"package versions differ, then and now: {others}"
            if others
            else "is this another class of device?"
        )
    )


def _find(output_uri: str, sample_id: str) -> dict[str, Any]:
    """A sample's row."""
    all_stats = read_stats(output_uri, done_shards(output_uri))
    for stats in all_stats:
        ids = read_columns(output_uri, stats, ["sample_id"])["sample_id"]
        if pc.index(ids, sample_id).as_py() >= 0:
            samples = read_shard(output_uri, stats)
            return samples.filter(pc.field("sample_id") == sample_id).to_pylist()[0]
    for stats in all_stats:
        if reason := _why_dropped(output_uri, stats, sample_id):
            raise UserError(
                f"{output_uri}: the gate dropped {sample_id} ({reason}): there is nothing to compare"
            )
    raise UserError(f"{output_uri}: no sample {sample_id} in its {len(all_stats)} finished shards")


def _why_dropped(output_uri: str, stats: ShardStats, sample_id: str) -> str | None:
    if not stats.num_dropped:
        return None
    rows = read_rejects(output_uri, stats).to_pylist()
    return next((row["reason"] for row in rows if row["sample_id"] == sample_id), None)


def _make_again(output_uri: str, run: Run, config: GenerateConfig, row: dict[str, Any]) -> dict[str, Any]:
    plan = read_plan(output_uri, run, row["shard"])
    plan = plan.filter(pc.field("uri") == row["normal_uri"])
    normals, rejects = read_planned(plan, config, run)
    if rejects.num_rows:
        [reject] = rejects.to_pylist()
        raise UserError(f"{reject['uri']}: {images.REASONS[reject['reason']]} ({reject['detail']})")
    if normals["sha256"][0].as_py() != row["normal_sha256"]:
        raise UserError(f"{row['normal_uri']}: its bytes have changed since the run")
    generated = GenerateActor(config, run, config.checkpoint).sample(normals)
    rows = encode_samples(generated, row["shard"], config, run).samples.to_pylist()
    return next(made for made in rows if made["sample_id"] == row["sample_id"])


def _difference(row: dict[str, Any], made: dict[str, Any]) -> str:
    pixels = [
        images.decode_photo(it["image"]["bytes"], 2**31, deep=True).astype(np.int32) for it in (row, made)
    ]
    if pixels[0].shape != pixels[1].shape:
        return f"{pixels[0].shape} pixels then, {pixels[1].shape} now"
    change = np.abs(pixels[0] - pixels[1])
    if not change.any():
        return "of the image every pixel is the same"
    return f"{(change.max(axis=2) > 0).sum():,} pixels differ, by up to {change.max()} grey levels"
